"""ε as canaries measure it: an estimate, not a bound.

Andrew, Kairouz, Oh, Oprea, McMahan & Suriyakumar, "One-shot empirical privacy estimation for federated
learning" (ICLR 2024): canaries are random directions. Those that took part point a little towards what was
released, those that didn't do so by chance alone. Two normal distributions are fitted to the two sets
of cosines, and ε is what tells these two normals apart at δ. It reads low where the attack is weak, and
rests on the tails being normal far beyond what was sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr
from scipy.stats import chi2, f, t

from ..common.errors import ConfigError

_FEWEST = 10  # canaries on each side for a standard deviation that means anything
_RATIOS = 9  # of standard deviations at which ε is looked up between both ends
_MOST_EPSILON = 1e6
_HALVINGS = 50
_ALIKE = 1e-9  # relative difference of two standard deviations that makes them one


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimated ε and the interval it would stay in under other draws of canaries.

    Attributes:
        epsilon: the estimate.
        low: lower end of the interval.
        high: upper end.
        level: coverage of the interval.
    """

    epsilon: float
    low: float
    high: float
    level: float


def estimate_epsilon(
    *,
    present: NDArray[np.float64],
    absent: NDArray[np.float64],
    delta: float,
    null_stddev: float | None = None,
    level: float = 0.99,
) -> Estimate:
    """ε at ``delta`` between the normals fitted to two sets of scores (Andrew et al. 2024, algorithm 2).

    The interval is the range of ε over all distances of the means and ratios of the standard deviations
    that the scores leave possible (t, χ² and F intervals for normal scores, half the risk each). A
    bootstrap would be wrong here: ε grows whichever way the ratio errs from 1, so resamples lie above
    the truth.

    Args:
        present: float [k₁], scores of the canaries that took part.
        absent: float [k₀], of those that didn't.
        delta: δ.
        null_stddev: standard deviation of ``absent`` where it is known, then about 0: 1/√d for the cosine
            of a random direction with a fixed vector of d numbers (ibid., theorem 3.1). None fits both.
        level: coverage of the interval.

    Raises:
        ConfigError: a set has fewer than 10 canaries or holds a number that is not finite, or all its
            scores are the same.
    """
    for name, scores in (("took part", present), ("didn't take part", absent)):
        if len(scores) < _FEWEST or not np.isfinite(scores).all():
            raise ConfigError(
                f"{len(scores)} canaries {name}: an estimate needs {_FEWEST} or more with finite "
                "scores on each side; use more canaries"
            )
    tail, k, k0 = (1 - level) / 4, len(present), len(absent)
    mean, stddev = present.mean(), present.std(ddof=1)
    if null_stddev is None:
        null_mean, null = absent.mean(), absent.std(ddof=1)
        free: tuple[int, ...] = (k - 1, k0 - 1)
    else:
        null_mean, null = 0.0, null_stddev
        free = (k - 1,)
    if not (stddev > 0 and null > 0):
        raise ConfigError("all canaries have the same score: nothing can be told from them")
    distance, ratio = (mean - null_mean) / null, stddev / null
    if null_stddev is None:
        error = np.sqrt(ratio**2 / k + (1 + distance**2 / 2) / k0)
        least, most = ratio / np.sqrt(f.ppf((1 - tail, tail), *free))
    else:
        error = ratio / np.sqrt(k)
        least, most = ratio / np.sqrt(chi2.ppf((1 - tail, tail), *free) / free[0])
    reach = t.ppf(1 - tail, min(free)) * error
    # ε grows with the distance either way; in the ratio it is least somewhere near 1.
    near, far = distance - reach, distance + reach
    distances = np.array([distance, near, far, np.clip(0.0, near, far)])
    ratios = np.concatenate(
        [[ratio, np.clip(1.0, least, most)], np.geomspace(least, most, _RATIOS)]
    )
    found = normal_epsilon(
        null_mean=0, null_stddev=1, mean=distances[:, None], stddev=ratios, delta=delta
    )
    return Estimate(
        epsilon=float(found[0, 0]), low=float(found.min()), high=float(found.max()), level=level
    )


def normal_epsilon(
    *,
    null_mean: ArrayLike,
    null_stddev: ArrayLike,
    mean: ArrayLike,
    stddev: ArrayLike,
    delta: float,
) -> NDArray[np.float64]:
    """Least ε ≥ 0 at which two normal distributions are (ε, δ)-close, both ways round; elementwise.

    The hockey-stick divergence between N(0, 1) and N(m, s²) has a closed form: where the log-likelihood
    ratio exceeds ε is a half-line (s = 1), the outside of an interval (s > 1) or its inside (s < 1). For
    s = 1 that is theorem 8 of Balle & Wang (2018).

    Returns:
        float64, shaped like the arguments broadcast; at most 10⁶.

    Raises:
        ConfigError: ``delta`` is outside (0, 1), or a standard deviation isn't above 0.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be above 0 and below 1, got {delta}")
    m0, s0, m1, s1 = (
        np.asarray(a, dtype=np.float64)
        for a in np.broadcast_arrays(null_mean, null_stddev, mean, stddev)
    )
    if not ((s0 > 0) & (s1 > 0)).all():
        raise ConfigError("standard deviations of scores must be above 0: do the canaries differ?")
    forwards = _least_epsilon((m1 - m0) / s0, s1 / s0, delta)
    backwards = _least_epsilon((m0 - m1) / s1, s0 / s1, delta)
    return np.maximum(forwards, backwards)


def _least_epsilon(
    m: NDArray[np.float64], s: NDArray[np.float64], delta: float
) -> NDArray[np.float64]:
    low, high = np.zeros_like(m), np.ones_like(m)
    while (beyond := (_divergence(high, m, s) > delta) & (high < _MOST_EPSILON)).any():
        low, high = np.where(beyond, high, low), np.where(beyond, 2 * high, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = _divergence(middle, m, s) > delta
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    within = _divergence(np.zeros_like(m), m, s) <= delta
    return np.where(within, 0.0, np.minimum(high, _MOST_EPSILON))


def _divergence(
    epsilon: NDArray[np.float64], m: NDArray[np.float64], s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P₁(L > ε) − e^ε·P₀(L > ε) for P₀ = N(0, 1), P₁ = N(m, s²) and L = log p₁/p₀."""
    # By its sign in z, L > ε is s²z² − (z − m)² > 2s²(log s + ε): a quadratic with leading s² − 1.
    a = s * s - 1
    alike = np.abs(s - 1) < _ALIKE
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # A half-line z > x for m > 0, mirrored for m < 0; nothing where m = 0.
        x = epsilon / np.abs(m) + np.abs(m) / 2
        line = _difference(log_ndtr(np.abs(m) - x), log_ndtr(-x), epsilon)
        line = np.where(m == 0, 0.0, line)
        # The quadratic's roots are −m/a ± root.
        root = np.sqrt(s * s * (m * m + 2 * a * (np.log(s) + epsilon)) / (a * a))
        left, right = -m / a - root, -m / a + root
        tails = _difference(
            np.logaddexp(log_ndtr((left - m) / s), log_ndtr((m - right) / s)),
            np.logaddexp(log_ndtr(left), log_ndtr(-right)),
            epsilon,
        )
        inside = _difference(
            _log_between((left - m) / s, (right - m) / s), _log_between(left, right), epsilon
        )
    quadratic = np.where(a > 0, tails, np.where(np.isnan(root), 0.0, inside))
    return np.where(alike, line, quadratic)


def _difference(
    log_p: NDArray[np.float64], log_q: NDArray[np.float64], epsilon: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P − e^ε·Q, from logarithms: far out Q is tiny and e^ε huge."""
    difference: NDArray[np.float64] = np.exp(log_p) - np.exp(np.minimum(epsilon + log_q, log_p))
    return difference


def _log_between(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """log P(low < Z < high) for a standard normal Z, from the tail on the near side."""
    flip = low > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    upper, lower = log_ndtr(high), log_ndtr(low)
    found: NDArray[np.float64] = upper + np.log1p(-np.exp(lower - upper))
    return found
