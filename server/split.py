"""How a budget is spread over releases: by a rule of public numbers, before any data is seen.

The signal of a release is measured against the noise on it, as norms over all its numbers. With the noise
that a share w of μ² allows, signal to noise is s·√w for the s of the whole budget, and of the signal's
variance an optimal filter keeps s²w / (1 + s²w) (Wiener 1949). The rule spends where the releases
together keep most. Little noise: all get about the same, the weaker ones more. Much noise: the
weakest would drown and gets next to nothing. Nothing in it is fitted to a data set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..common.config import StatisticsConfig
from ..common.encoder import Encoder
from ..common.items import ItemTable
from ..common.mechanism import Mechanism

COHERENT = 0.1
"""Part of a clipped update that devices have in common; .05 to .3 are typical of federated encoders."""
LEAST_SHARE, _MOST_SHARE = 0.05, 0.45
"""Of μ² for popularity. What a crash took along is paid for again: it must fit twice."""


@dataclass(frozen=True)
class Sizes:
    """How many numbers a device sends; public.

    Attributes:
        n_items: of the catalogue.
        scales: time scales of popularity, all time among them.
        weights: of the shared encoder.
        cooccurrence: whether what is taken together is released, too.
        whole: whether that is of whole histories.
    """

    n_items: int
    scales: int
    weights: int
    cooccurrence: bool = False
    whole: bool = False

    @classmethod
    def of(cls, encoder: Encoder, statistics: StatisticsConfig, table: ItemTable) -> Sizes:
        """Sizes of a configured run."""
        return cls(
            n_items=table.n_items,
            scales=1 + len(statistics.half_lives_days),
            weights=sum(p.numel() for p in encoder.parameters()),
            cooccurrence=table.compares,
            whole=table.whole,
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
    """Expected signal to noise of the co-occurrence release over the K items
    that get vectors; inf without noise.

    A tenth of what devices send is taken to add up, against noise of norm σ·C·K in the symmetric matrix.
    K is chosen so that it is 1, unless the catalogue or the wire allow no more: how much can be learned
    shows in K.
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


@dataclass(frozen=True)
class Split:
    """Parts of μ² for each statistic; the rest is for rounds.

    Attributes:
        popularity: for the first release.
        cooccurrence: for the second; 0 where there is none.
    """

    popularity: float
    cooccurrence: float = 0.0

    @property
    def statistics(self) -> float:
        """For both."""
        return self.popularity + self.cooccurrence

    @property
    def everything(self) -> Split:
        """The same proportions, and nothing left for rounds; popularity's where neither has a share."""
        if not self.statistics:
            return Split(1.0)
        return Split(self.popularity / self.statistics, self.cooccurrence / self.statistics)

    def within(self, most: float) -> Split:
        """The same proportions, and both together at most ``most``."""
        factor = min(1.0, most / self.statistics)
        return Split(self.popularity * factor, self.cooccurrence * factor)


def split(
    *, popularity: float, cooccurrence: float | None = None, training: float | None = None
) -> Split:
    """By :func:`most_kept`, within bounds.

    Popularity gets 5 % to 45 %. Co-occurrence gets no more than that either of the two fits again if a
    crash takes its result along; where there are no rounds it gets the rest.

    Args:
        popularity: expected signal to noise with the whole budget, above 0.
        cooccurrence: the same of co-occurrence; None where it isn't released.
        training: the same of all rounds; None where there are none.
    """
    there = [signal for signal in (popularity, cooccurrence, training) if signal is not None]
    kept = most_kept(there)
    if len(kept) == 1:
        return Split(1.0)
    first = min(max(kept[0], LEAST_SHARE), _MOST_SHARE)
    if cooccurrence is None:
        return Split(first)
    if training is None:
        return Split(first, 1 - first)
    room = 1 - LEAST_SHARE - first
    return Split(first, min(max(kept[1], LEAST_SHARE), room / 2, room - first))


def most_kept(signals: Sequence[float]) -> list[float]:
    """The parts w of μ², Σ w = 1, with which releases together keep most of their signal.

    Maximises Σ s²w / (1 + s²w) over w ≥ 0 for signals to noise s > 0 at the whole budget. By Lagrange
    w = c/s − 1/s² with c = (1 + Σ 1/s²) / Σ 1/s, the sums over releases that get something: those with
    the largest s, for w ≥ 0 means c·s ≥ 1.
    """
    inverse = 1 / np.array(signals, dtype=np.float64)
    alive = np.ones(len(inverse), dtype=np.bool_)
    while True:
        level = (1 + np.square(inverse[alive]).sum()) / inverse[alive].sum()
        drowned = alive & (inverse > level)
        if not drowned.any():
            break
        alive &= inverse < inverse[alive].max()
    shares: list[float] = np.where(alive, level * inverse - np.square(inverse), 0.0).tolist()
    return shares
