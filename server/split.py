"""How a budget is spread over releases: by a rule of public numbers, before any data is seen.

The signal of a release is measured against the noise on it, as norms over all its numbers. With the noise
that a share w of μ² allows, signal to noise is s·√w for the s of the whole budget, and of the signal's
variance an optimal filter keeps s²w / (1 + s²w) (Wiener 1949). The rule spends where the two releases
together keep most. Little noise: both get about the same, the weaker one more. Much noise: the
weaker one would drown and gets next to nothing. Nothing in it is fitted to a data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..common.config import StatisticsConfig
from ..common.encoder import Encoder
from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from ..common.mechanism import Mechanism

COHERENT = 0.1
"""Part of a clipped update that devices have in common; .05 to .3 are typical of federated encoders."""
LEAST_SHARE, _MOST_SHARE = 0.05, 0.45
"""Of μ² for statistics. Those whose result a crash took along are paid for again: they must fit twice."""


BOTH_SHARE, POPULARITY_PART = 0.54, 0.1 / 0.54
"""Of μ² for statistics, where co-occurrence is released as well, and of that for popularity, which only
decides what items are compared. If a crash takes the larger one along, it fits again, and no round does."""


@dataclass(frozen=True)
class Sizes:
    """How many numbers a device sends; public.

    Attributes:
        n_items: of the catalogue.
        scales: time scales of popularity, all time among them.
        weights: of the shared encoder.
        cooccurrence: whether what is taken together is released, too.
    """

    n_items: int
    scales: int
    weights: int
    cooccurrence: bool = False

    @classmethod
    def of(cls, encoder: Encoder, statistics: StatisticsConfig, table: ItemTable) -> Sizes:
        """Sizes of a configured run."""
        return cls(
            n_items=table.n_items,
            scales=1 + len(statistics.half_lives_days),
            weights=sum(p.numel() for p in encoder.parameters()),
            cooccurrence=table.width_of(COOCCURRENCE_BLOCK) > 0,
        )


def popularity_signal(sizes: Sizes, *, noise_multiplier: float, population_size: int) -> float:
    """Expected signal to noise of the popularity release; inf without noise.

    N devices with parts of norm C over items of Zipf's law (frequency ∝ 1/rank: Zipf 1949) add up to a
    sum of norm N·C·‖p‖₂, against noise of norm σ·C·√(scales · n_items).
    """
    if noise_multiplier == 0:
        return math.inf
    frequencies = 1 / np.arange(1, sizes.n_items + 1)
    shape = float(np.linalg.norm(frequencies) / frequencies.sum())
    numbers = sizes.scales * sizes.n_items
    return population_size * shape / (noise_multiplier * math.sqrt(numbers))


def cooccurrence_signal(head: int, mechanism: Mechanism) -> float:
    """Expected signal to noise of the co-occurrence release over K items; inf without noise.

    A tenth of what devices send is taken to add up, against noise of norm σ·C·K in the symmetric matrix.
    """
    if not mechanism.private:
        return math.inf
    return COHERENT * mechanism.population_size / (mechanism.noise_multiplier * head)


def training_signal(
    sizes: Sizes, *, noise_multiplier: float, expected_cohort: float, rounds: int
) -> float:
    """Expected signal to noise of all rounds together; inf without noise, 0 without rounds.

    A tenth of every clipped update is taken to point one way. Over R rounds of m devices that adds up to
    0.1·R·m·C, against noise of norm σ·C·√(R · weights).
    """
    if noise_multiplier == 0:
        return math.inf
    return COHERENT * expected_cohort * math.sqrt(rounds / sizes.weights) / noise_multiplier


def statistics_share(popularity: float, training: float) -> float:
    """The part of μ² for statistics, so that both releases keep most of their signal.

    Maximises a²w/(1 + a²w) + b²(1 − w)/(1 + b²(1 − w)) for signals to noise a, b > 0 at the whole
    budget: by Lagrange w = (1 + 1/a² + 1/b²)/(1/a + 1/b)/a − 1/a².

    Returns:
        w, at least 0.05 and at most 0.45.
    """
    a, b = 1 / popularity, 1 / training
    share = (1 + a * a + b * b) / (a + b) * a - a * a
    return min(max(share, LEAST_SHARE), _MOST_SHARE)
