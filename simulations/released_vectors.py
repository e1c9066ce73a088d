"""Whether what is told of items follows from the release of co-occurrence, and from nothing else."""

from __future__ import annotations

import numpy as np

from ..common.items import ItemTable
from ..common.messages import CooccurrenceTask
from ..server.popularity import ItemPriors
from ..server.relations import item_relations
from ..server.statistics import ItemStatistics
from .probe_observed import Release, flat


def strayed(released: Release, statistics: ItemStatistics, table: ItemTable) -> float:
    """Largest difference, over pairs of items, between what is told and what follows from it.

    It is of the cosines between vectors, for those are told up to a rotation among directions that weigh
    the same, and of the chances that one comes after the other, or goes with it.

    Args:
        released: the release of co-occurrence.
        statistics: what the federation made of it and of popularity.
        table: the public one of the federation.
    """
    task = released.exchanges[0].task
    assert isinstance(task, CooccurrenceTask), "a release of co-occurrence"
    told = statistics.vectors.astype(np.float64)
    relations = item_relations(
        flat(released.total),
        table=table,
        head=task.head,
        priors=ItemPriors(statistics.long_run, statistics.current),
        mechanism=released.declared,
        devices=released.contributed()[1],
    )
    follow = relations.vectors.astype(np.float64)
    chances = [np.zeros((len(told), len(told))) for _ in range(2)]
    for matrix, successors in zip(
        chances, (statistics.successors, relations.successors), strict=True
    ):
        if successors is not None:
            matrix[tuple(successors.pairs.T)] = successors.chances
    return max(
        float(np.abs(told @ told.T - follow @ follow.T).max()),
        float(np.abs(chances[0] - chances[1]).max()),
    )
