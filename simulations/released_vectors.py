"""Whether item vectors follow from the release of co-occurrence, as it was seen, and from nothing else."""

from __future__ import annotations

import numpy as np

from ..common.messages import CooccurrenceTask
from ..server.cooccurrence import item_vectors
from ..server.statistics import ItemStatistics
from .probe_observed import Release, flat


def strayed(released: Release, statistics: ItemStatistics) -> float:
    """Largest difference, over pairs of items, between the cosines told and those that follow.

    Cosines, for vectors are told up to a rotation among directions that weigh the same.

    Args:
        released: the release of co-occurrence.
        statistics: what the federation made of it and of popularity.
    """
    task = released.exchanges[0].task
    assert isinstance(task, CooccurrenceTask), "a release of co-occurrence"
    told = statistics.vectors.astype(np.float64)
    follow = item_vectors(
        flat(released.total),
        head=task.head,
        popularity=statistics.long_run,
        stddev=released.declared.noise_stddev,
        dimension=told.shape[1],
    ).astype(np.float64)
    return float(np.abs(told @ told.T - follow @ follow.T).max())
