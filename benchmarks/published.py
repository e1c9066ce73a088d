"""Published ε, and the settings that they are of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dp_accounting import DpEvent
from dp_accounting.rdp import RdpAccountant

from fedprofile.common.mechanism import Mechanism

WHOLE = range(2, 65)
FRACTIONS = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))


@dataclass(frozen=True)
class Published:
    """An ε in print.

    Attributes:
        source: who printed it, and where.
        population: N.
        cohort: q·N.
        noise_multiplier: σ.
        rounds: T.
        delta: δ.
        epsilon: as printed.
        digits: after the point.
        orders: of the Rényi divergences that the source looked at.
    """

    source: str
    population: int
    cohort: int
    noise_multiplier: float
    rounds: int
    delta: float
    epsilon: float
    digits: int
    orders: Sequence[float] = WHOLE

    @property
    def mechanism(self) -> Mechanism:
        """One round."""
        return Mechanism(
            clip_norm=1.0,
            noise_multiplier=self.noise_multiplier,
            sampling_probability=self.cohort / self.population,
            population_size=self.population,
        )


PUBLISHED = (
    # q = 0.01, E = 100 epochs, which are E/q rounds
    Published("Abadi et al. 2016, §5.1, figure 2", 60_000, 600, 4.0, 10_000, 1e-5, 1.26, 2),
    # K = 763,430 users, z = 1.0
    Published("McMahan et al. 2018, table 1", 763_430, 5_000, 1.0, 5_000, 1e-9, 4.634, 3),
    # tutorials/README.md, "Select Parameters": MNIST, batches of 256, for 15, 60 and 45 epochs
    Published("TensorFlow Privacy, tutorials", 60_000, 256, 1.3, 3_516, 1e-5, 1.19, 2, FRACTIONS),
    Published("TensorFlow Privacy, tutorials", 60_000, 256, 1.1, 14_063, 1e-5, 3.01, 2, FRACTIONS),
    Published("TensorFlow Privacy, tutorials", 60_000, 256, 0.7, 10_547, 1e-5, 7.10, 2, FRACTIONS),
)


def by_moments(events: Mapping[DpEvent, int], *, delta: float, orders: Sequence[float]) -> float:
    """ε by Rényi DP as before 2020: ε(α) + log(1/δ)/(α − 1), the least over ``orders``.

    Mironov 2017, proposition 3; Abadi et al. 2016, theorem 2. Today's conversions and PLD are tighter.
    """
    accountant = RdpAccountant(orders)
    for event, count in events.items():
        accountant.compose(event, count)
    costs = zip(accountant._orders, accountant._rdp, strict=True)
    return min(cost + math.log(1 / delta) / (order - 1) for order, cost in costs)
