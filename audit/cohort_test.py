"""Whether cohort sizes are those of a Poisson sampler: amplification by sampling rests on it.

Under the declared sampler each size is Binomial(N, q), independently. A randomised quantile residual
(Dunn & Smyth 1996, §2) turns a size n into Φ⁻¹(F(n − 1) + V·(F(n) − F(n − 1))) with V uniform, which is
exactly standard normal whatever N and q, so that rounds with different ones share a test. Then
exactly, for T rounds, Σz/√T ~ N(0, 1) tells a wrong rate and Σz² ~ χ²_T a wrong spread: cohorts of
fixed size spread too little, cohorts that come in waves too much.

The test sees sizes only. Who writes sizes drawn from the right law passes it, whoever was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FALSE_ALARM = 0.002
"""Chance that an honest ledger fails, over both tests and both sides of each."""


@dataclass(frozen=True)
class CohortTest:
    """What the sizes say.

    Attributes:
        rounds: T, sizes looked at.
        rate: p-value of the mean, two-sided.
        spread: p-value of the dispersion, two-sided.
    """

    rounds: int
    rate: float
    spread: float

    @property
    def passed(self) -> bool:
        """Whether neither p-value is below half the false-alarm rate (Bonferroni)."""
        return min(self.rate, self.spread) >= FALSE_ALARM / 2


def check_cohorts(
    sizes: Sequence[int],
    *,
    population_size: int,
    probabilities: Sequence[float],
    seed: int,
) -> CohortTest:
    """Test ``sizes`` against Binomial(``population_size``, ``probabilities``).

    Args:
        sizes: [T], T ≥ 1, users sampled in each round, at most ``population_size``.
        population_size: N.
        probabilities: [T], q of each round, in (0, 1).
        seed: of the V; taken from the ledger, so that the same ledger gets the same answer.
    """
    import numpy as np
    from scipy.special import bdtr, chdtr, chdtrc, ndtr, ndtri  # slow: in a worker, not in an audit

    n, q = np.array(sizes, dtype=np.float64), np.array(probabilities, dtype=np.float64)
    below = np.where(n > 0, bdtr(np.maximum(n - 1, 0), population_size, q), 0.0)
    up_to = bdtr(n, population_size, q)
    coins = np.random.default_rng(seed).random(len(n))
    # Far in the tails F is 0 or 1 to the last bit; the clip keeps z finite, at about ±8.
    u = np.clip(below + coins * (up_to - below), 1e-16, 1 - 1e-16)
    z = ndtri(u)
    rounds = len(z)
    rate = 2 * float(ndtr(-abs(z.sum()) / np.sqrt(rounds)))
    squares = float(np.square(z).sum())
    spread = 2 * min(float(chdtr(rounds, squares)), float(chdtrc(rounds, squares)))
    return CohortTest(rounds=rounds, rate=rate, spread=min(1.0, spread))
