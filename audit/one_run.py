"""Lower bounds on ε from one run: what cannot be explained by the privacy that was declared.

The game: each of m canaries is in or out by its own fair coin, an auditor who sees what was released
guesses "in" or "out" for c′ of them and abstains on the others, and c guesses are right. Under privacy no
auditor is right too often. The auditor may be as clever as it likes; the bounds hold for all, at the
stated confidence, as long as c′ was fixed before the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from ..common.errors import ConfigError
from .estimates import normal_epsilon

TradeOff = Callable[[float], float]
"""y → the least chance of an event on one dataset that has chance y on its neighbour.

This is f(1 − y) for the trade-off function f of f-DP (Dong, Roth & Su 2022, definition 2.1), which is
symmetric here. A dataset's neighbour has one user more or less.
"""

_HALVINGS = 40
_MOST_EPSILON = 500.0  # e^ε is still a number


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How the game went.

    Attributes:
        canaries: m, each in or out by a fair coin.
        made: c′, canaries guessed on.
        correct: c, of those right.

    Raises:
        ConfigError: not 0 ≤ correct ≤ made ≤ canaries, or nothing was guessed.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.made < 1:
            raise ConfigError(
                f"guesses must be 1 or more, at most as many as canaries: {self.correct} right of "
                f"{self.made} on {self.canaries}"
            )


def guess(scores: NDArray[np.float64], included: NDArray[np.bool_], *, guesses: int) -> Guesses:
    """Guess "in" for the highest scores and "out" for the lowest, half each.

    Args:
        scores: float [m]; higher speaks for "in".
        included: bool [m], the coins.
        guesses: how many in all, fixed before the run; of an odd number "in" gets one more.
    """
    if len(scores) != len(included) or not np.isfinite(scores).all():
        raise ConfigError("every canary needs a coin and a finite score")
    order = np.argsort(scores, kind="stable")
    outs, ins = order[: guesses // 2], order[len(order) - (guesses - guesses // 2) :]
    correct = int(included[ins].sum() + (~included[outs]).sum())
    return Guesses(canaries=len(scores), made=guesses, correct=correct)


def steinke_p_value(game: Guesses, *, epsilon: float, delta: float) -> float:
    """Chance of so many right guesses, at most, under (ε, δ)-DP.

    Steinke, Nasr & Jagielski, "Privacy auditing with one (1) training run" (NeurIPS 2023), corollary 5.4:
    with F(v) = P[Binomial(c′, e^ε/(1 + e^ε)) ≥ v] it is F(c) + 2mδ·max_i (F(c − i) − F(c))/i.
    """
    rate = 1 / (1 + math.exp(-epsilon))
    tails = binom.sf(np.arange(game.correct, -1, -1) - 1, game.made, rate)  # F(c), …, F(0)
    slack = np.max((tails[1:] - tails[0]) / np.arange(1, len(tails)), initial=0.0)
    return float(min(1.0, tails[0] + 2 * game.canaries * delta * slack))


def steinke_bound(game: Guesses, *, delta: float, confidence: float) -> float:
    """Largest ε that the game refutes at ``delta`` with ``confidence`` (:func:`steinke_p_value`)."""
    return _largest_refuted(
        lambda e: steinke_p_value(game, epsilon=e, delta=delta) < 1 - confidence
    )


def refuted(game: Guesses, trade_off: TradeOff, *, significance: float) -> bool:
    """Whether so many right guesses have a chance below ``significance`` under f-DP.

    Mahloujifar, Melis & Chaudhuri, "Auditing f-differential privacy in one run" (ICML 2025), algorithm 3
    for fair coins. Let p_l be the chance of exactly l right guesses, r_i = Σ_{l≥i} (l/m)·p_l and
    h_i = Σ_{l≥i} ((c′ − l)/m)·p_l. Turning the coin of a canary that was guessed right makes l right
    guesses l − 1, so r_i ≤ f̄(h_{i−1}), where f̄(x) is the largest chance of an event whose chance on the
    neighbour is x. Going down from i = c, where the tail has the chance ``significance``, that forces
    ever more mass into p_{i−1}; where the masses add up to more than 1, the tail is less likely.
    """
    m, made, correct = game.canaries, game.made, game.correct
    r, h = significance * correct / m, significance * (made - correct) / m
    for right in range(correct - 1, -1, -1):
        needed = trade_off(min(r, 1.0))
        if needed <= h:
            break  # nothing is forced any more, here or further down
        r += right / (made - right) * (needed - h)
        h = needed
    return r + h > made / m


def trade_off_p_value(game: Guesses, trade_off: TradeOff) -> float:
    """Largest chance of so many right guesses under f-DP: the level where :func:`refuted` turns."""
    refuting, below = 1.0, 0.0
    if not refuted(game, trade_off, significance=1.0):
        return 1.0
    for _ in range(_HALVINGS):
        middle = math.sqrt(refuting * below) if below else refuting / 16
        if refuted(game, trade_off, significance=middle):
            refuting = middle
        else:
            below = middle
        if refuting < 1e-300:
            break
    return refuting


def profile_curve(epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> TradeOff:
    """Trade-off of a mechanism that is (ε, δ)-DP for every pair at once.

    Dong, Roth & Su 2022, proposition 2.12; for one pair it is that of (ε, δ)-DP (ibid., equation 5).
    """
    grow, shrink = np.exp(epsilons), np.exp(-epsilons)

    def least(y: float) -> float:
        by_rise = shrink * (y - deltas)
        by_fall = 1 - deltas - grow * (1 - y)
        return float(max(0.0, by_rise.max(), by_fall.max()))

    return least


def gaussian_curve(mu: float) -> TradeOff:
    """Trade-off of μ-Gaussian DP: Φ(Φ⁻¹(y) − μ) (Dong, Roth & Su 2022, equation 6)."""
    return lambda y: float(ndtr(ndtri(y) - mu))


def gaussian_bound(game: Guesses, *, delta: float, confidence: float) -> float:
    """ε at ``delta`` of the largest μ-Gaussian DP that the game refutes with ``confidence``.

    Tighter by far, and a bound for mechanisms whose trade-off is that of a Gaussian release; close for many
    Poisson-sampled ones (Dong, Roth & Su 2022, theorem 11), not a theorem there.
    """
    mu = _largest_refuted(lambda m: refuted(game, gaussian_curve(m), significance=1 - confidence))
    if mu == 0:
        return 0.0
    return float(normal_epsilon(null_mean=0, null_stddev=1, mean=mu, stddev=1, delta=delta))


def best_of(p_value: Callable[[Guesses], float], games: Sequence[Guesses]) -> float:
    """Smallest p-value over several games on the same canaries, the choice paid for (Bonferroni)."""
    return min(1.0, len(games) * min(p_value(game) for game in games))


def best_bound(
    bound: Callable[..., float], games: Sequence[Guesses], *, delta: float, confidence: float
) -> float:
    """Best bound over games of several sizes on the same canaries (Bonferroni).

    The sizes must be fixed before the run. Keeping the best of several without paying for the choice, as
    is often done, isn't valid (Steinke et al. 2023, §6).
    """
    each = 1 - (1 - confidence) / len(games)
    return max(bound(game, delta=delta, confidence=each) for game in games)


def _largest_refuted(is_refuted: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    if not is_refuted(0.0):
        return 0.0
    while is_refuted(high):
        if high >= _MOST_EPSILON:
            return high
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if is_refuted(middle):
            low = middle
        else:
            high = middle
    return low
