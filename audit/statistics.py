"""Tests of what a mechanism did against what it declares: a figure, and the interval it must lie in.

Every interval states how often a faultless mechanism falls outside of it. They are two-sided: too much
noise is a false declaration, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.stats import binom, chi2, hypergeom, kstwo, norm, t

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_REACH = 8.0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A figure and the interval it must lie in.

    Attributes:
        measured: the figure; NaN where nothing could be measured, which never holds.
        low: lower end of the interval.
        high: upper end.
        false_alarm_rate: chance that a faultless mechanism falls outside; 0 where no chance is involved.
    """

    measured: float
    low: float
    high: float
    false_alarm_rate: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the figure lies in its interval."""
        return self.low <= self.measured <= self.high


def noise_size(noise: Floats, *, stddev: float, false_alarm_rate: float) -> Measurement:
    """Standard deviation of ``noise`` over the declared one.

    Of n values from N(0, s²), Σx²/s² has a χ² distribution with n degrees of freedom, exactly.

    Args:
        noise: any shape.
        stddev: s > 0, declared.
        false_alarm_rate: of the interval.
    """
    half, n = false_alarm_rate / 2, noise.size
    ratio = math.sqrt(float(np.square(noise).mean())) / stddev if n else math.nan
    low, high = (math.sqrt(x / max(n, 1)) for x in (chi2.ppf(half, n), chi2.isf(half, n)))
    return Measurement(measured=ratio, low=low, high=high, false_alarm_rate=false_alarm_rate)


def noise_mean(noise: Floats, *, stddev: float, false_alarm_rate: float) -> Measurement:
    """Mean of ``noise`` in its own standard errors s/√n: N(0, 1). Arguments as :func:`noise_size`."""
    mean = float(noise.sum()) / (stddev * math.sqrt(noise.size)) if noise.size else math.nan
    bound = float(norm.isf(false_alarm_rate / 2))
    return Measurement(measured=mean, low=-bound, high=bound, false_alarm_rate=false_alarm_rate)


def noise_shape(noise: Floats, *, stddev: float, false_alarm_rate: float) -> Measurement:
    """Largest distance between the distribution of ``noise`` and N(0, s²), times √n.

    Kolmogorov–Smirnov with the distribution of D_n for n values (Simard & L'Ecuyer 2011). Arguments as
    :func:`noise_size`.
    """
    n = noise.size
    if not n:
        return Measurement(measured=math.nan, low=0, high=0, false_alarm_rate=false_alarm_rate)
    expected = norm.cdf(np.sort(noise, axis=None) / stddev)
    steps = np.arange(n + 1) / n
    distance = max(float((steps[1:] - expected).max()), float((expected - steps[:-1]).max()))
    bound = float(kstwo.isf(false_alarm_rate, n))
    root = math.sqrt(n)
    return Measurement(
        measured=distance * root, low=0.0, high=bound * root, false_alarm_rate=false_alarm_rate
    )


def worst_layer(
    layers: Mapping[str, Floats], *, stddev: float, false_alarm_rate: float
) -> tuple[str, Measurement]:
    """The layer that is farthest from its interval, and :func:`noise_size` of it.

    Each of k layers is tested at a k-th of the rate (Bonferroni), so the rate is that of all together.
    """
    rate = false_alarm_rate / len(layers)
    sizes = {
        name: noise_size(noise, stddev=stddev, false_alarm_rate=rate)
        for name, noise in layers.items()
    }
    outside = {name: max(m.low - m.measured, m.measured - m.high) for name, m in sizes.items()}
    return _worst(sizes, outside, false_alarm_rate)


def worst_correlation(
    pairs: Mapping[str, tuple[Floats, Floats]], *, false_alarm_rate: float
) -> tuple[str, Measurement]:
    """The most correlated of ``pairs``, as |cosine|·√n: about a standard normal's size; √n is equality.

    The cosine c of two independent vectors of n normal numbers around zero is that of a random
    direction: c·√((n − 1)/(1 − c²)) has Student's t distribution with n − 1 degrees of freedom, exactly
    (Muirhead 1982, theorem 1.5.7). Bonferroni over the pairs.

    Args:
        pairs: name → two arrays of one shape.
        false_alarm_rate: of all pairs together.
    """
    rate, found = false_alarm_rate / len(pairs), {}
    for name, (a, b) in pairs.items():
        n, one, other = a.size, a.reshape(-1), b.reshape(-1)
        lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
        cosine = abs(float(one @ other)) / lengths if lengths > 0 else math.nan
        quantile = float(t.isf(rate / 2, n - 1))
        bound = quantile / math.sqrt(n - 1 + quantile**2)
        found[name] = Measurement(
            measured=cosine * math.sqrt(n),
            low=0.0,
            high=bound * math.sqrt(n),
            false_alarm_rate=rate,
        )
    outside = {name: m.measured - m.high for name, m in found.items()}
    return _worst(found, outside, false_alarm_rate)


def all_pairs(arrays: Mapping[str, Floats]) -> dict[str, tuple[Floats, Floats]]:
    """Every two of ``arrays``, the longer one cut along its last axis; for :func:`worst_correlation`."""
    pairs = {}
    for (name, a), (other, b) in combinations(arrays.items(), 2):
        n = min(a.shape[-1], b.shape[-1])
        pairs[f"{name} and {other}"] = (a[..., :n], b[..., :n])
    return pairs


def worst_lag(rounds: Floats, *, false_alarm_rate: float) -> tuple[int, Measurement]:
    """The lag at which the coordinates of one round repeat most, and |autocorrelation| there.

    Σ x_i·x_(i+k) over m pairs of independent numbers with variance s² has mean 0 and variance m·s⁴,
    and is normal for large m (Box & Jenkins 1970, §2.1.6). All lags up to half a round are looked at,
    Bonferroni over them.

    Args:
        rounds: [rounds, coordinates], 4 coordinates or more.
        false_alarm_rate: of all lags together.
    """
    n_rounds, n = rounds.shape
    size = fft.next_fast_len(2 * n, real=True)
    products = fft.irfft(np.square(np.abs(fft.rfft(rounds, size))).sum(axis=0), size)
    lags = np.arange(1, n // 2 + 1)
    variance = products[0] / rounds.size
    bound = float(norm.isf(false_alarm_rate / (2 * len(lags))))
    if not variance > 0:
        nothing = Measurement(
            measured=math.nan, low=0, high=bound, false_alarm_rate=false_alarm_rate
        )
        return 0, nothing
    scores = np.abs(products[lags]) / (variance * np.sqrt(n_rounds * (n - lags)))
    place = int(scores.argmax())
    return int(lags[place]), Measurement(
        measured=float(scores[place]), low=0.0, high=bound, false_alarm_rate=false_alarm_rate
    )


def sampling_rate(
    sizes: Ints, *, population_size: int, probability: float, false_alarm_rate: float
) -> Measurement:
    """Devices sampled over those expected; their number is Binomial(R·N, q), exactly.

    Args:
        sizes: [R], devices of each cohort.
        population_size: N.
        probability: q, declared.
        false_alarm_rate: of the interval.
    """
    coins, half = len(sizes) * population_size, false_alarm_rate / 2
    expected = coins * probability
    return Measurement(
        measured=float(sizes.sum()) / expected,
        low=float(binom.ppf(half, coins, probability)) / expected,
        high=float(binom.isf(half, coins, probability)) / expected,
        false_alarm_rate=false_alarm_rate,
    )


def binomial_spread(
    counts: Ints, *, trials: int, probability: float, false_alarm_rate: float
) -> Measurement:
    """Variance of ``counts`` around n·q over that of Binomial(n, q): 0 for counts that never vary.

    The mean of k standardised squares has mean 1 and variance (2 + κ)/k with the binomial's excess
    kurtosis κ = (1 − 6q(1 − q))/(nq(1 − q)); its distribution is taken as the scaled χ² with the same two
    moments (Satterthwaite 1946).

    Args:
        counts: [k], independent.
        trials: n of each count.
        probability: q in (0, 1), declared.
        false_alarm_rate: of the interval.
    """
    variance = trials * probability * (1 - probability)
    kurtosis = (1 - 6 * probability * (1 - probability)) / variance
    scale = 1 + kurtosis / 2
    freedom, half = len(counts) / scale, false_alarm_rate / 2
    return Measurement(
        measured=float(np.square(counts - trials * probability).mean()) / variance,
        low=float(chi2.ppf(half, freedom)) / freedom,
        high=float(chi2.isf(half, freedom)) / freedom,
        false_alarm_rate=false_alarm_rate,
    )


def cohort_overlap(
    cohorts: Sequence[Ints], *, population_size: int, false_alarm_rate: float
) -> Measurement:
    """Devices that two successive cohorts share, over those expected.

    Given their sizes, the devices that two independent cohorts share are hypergeometric, whichever
    the first one is; so the sum over successive pairs is a convolution of hypergeometric laws.

    Args:
        cohorts: devices of each round, two rounds or more.
        population_size: N.
        false_alarm_rate: of the interval.
    """
    law, first = np.ones(1), 0
    shared, expected = 0, 0.0
    for a, b in pairwise(cohorts):
        mean = len(a) * len(b) / population_size
        # Poisson's tails are above the hypergeometric's: next to nothing lies farther out.
        reach = _REACH * (math.sqrt(mean) + 3)
        low = max(0, len(a) + len(b) - population_size, math.floor(mean - reach))
        high = min(len(a), len(b), math.ceil(mean + reach))
        pair = hypergeom.pmf(np.arange(low, high + 1), population_size, len(a), len(b))
        law, first = np.convolve(law, pair), first + low
        shared += len(np.intersect1d(a, b, assume_unique=True))
        expected += mean
    below, half = np.cumsum(law), false_alarm_rate / 2
    low, high = (first + int(np.searchsorted(below, level)) for level in (half, 1 - half))
    unit = expected or 1.0
    return Measurement(
        measured=shared / unit, low=low / unit, high=high / unit, false_alarm_rate=false_alarm_rate
    )


def _worst(
    measurements: Mapping[str, Measurement], outside: Mapping[str, float], false_alarm_rate: float
) -> tuple[str, Measurement]:
    """The one farthest outside, at the rate of all; one that couldn't be measured comes first."""
    name = max(outside, key=lambda n: math.inf if math.isnan(outside[n]) else outside[n])
    return name, replace(measurements[name], false_alarm_rate=false_alarm_rate)
