"""What the one-shot releases would tell without noise: for models that see everything in clear."""

from __future__ import annotations

import numpy as np

from ..client.cooccurrence import pairs_contribution
from ..client.popularity import popularity_contribution
from ..common.config import StatisticsConfig
from ..common.items import COOCCURRENCE_BLOCK
from ..common.mechanism import Mechanism
from ..common.successors import Successors
from ..server.budget import STATISTICS_CLIP
from ..server.cooccurrence import head_of, head_size
from ..server.popularity import item_priors
from ..server.relations import Relations, item_relations
from ..server.statistics import ItemStatistics
from .population import Population


def exact_statistics(
    population: Population, config: StatisticsConfig, *, now: int
) -> ItemStatistics:
    """Statistics of all devices, by the formulas of the releases.

    Args:
        population: its histories are read in clear.
        config: time scales.
        now: ages count back from here, seconds since 1970 UTC.
    """
    histories, table = population.histories, population.table
    popular = popularity_contribution(
        histories,
        now=now,
        half_lives_days=config.half_lives_days,
        n_items=table.n_items,
        clip_norm=STATISTICS_CLIP,
    )
    priors = item_priors(popular.arrays["popularity"].astype(np.float64), stddev=0.0)
    columns = table.width_of(COOCCURRENCE_BLOCK)
    relations = Relations(np.zeros((table.n_items, columns), dtype=np.float32), Successors.none())
    if table.compares:
        exact = Mechanism(
            clip_norm=STATISTICS_CLIP,
            noise_multiplier=0.0,
            sampling_probability=1.0,
            population_size=population.size,
        )
        head = head_of(priors.long_run, head_size(table.n_items, exact, whole=table.whole))
        together = pairs_contribution(histories, table=table, head=head, clip_norm=STATISTICS_CLIP)
        relations = item_relations(
            together.arrays["cooccurrence"].astype(np.float64),
            table=table,
            head=head,
            priors=priors,
            mechanism=exact,
            devices=together.devices,
        )
    return ItemStatistics(**priors._asdict(), **vars(relations))
