"""From the noisy co-occurrence release to what follows what: post-processing, free of ε.

Vectors of some dozens of numbers tell which items are alike, and not that one episode follows another.
Such a pair stands out of the noise by itself, if it is strong; where it does, its chance is told beside
the vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_ndtr

from ..common.successors import MOST_CERTAIN, MOST_PAIRS, ORDER_SHARE, Successors

_STEPS = 40
_LIKELY = 0.2
"""Least probability that a pair is more than noise, for it to be kept. Each counts by its probability, so
little depends on it: .05 to .5 are level, and fewer pairs are sooner sent."""
_HALVINGS = 60
_LEAST_ROW = 0.01
"""Of what popularity makes of an item's pairs, whatever noise made of their sum."""
_ORDERS = np.linspace(-1, 1, 21)
"""From always the other way round to always in the order of the head."""
_PLAIN = 6.0
"""Standard deviations beyond which values are looked at one by one."""
_BEYOND_DOUBT = 30.0


def successors_of(
    noisy: NDArray[np.float64],
    *,
    head: NDArray[np.int64],
    popularity: NDArray[np.float32],
    stddev: float,
    population_size: int,
) -> Successors:
    """Pairs that are taken together far more often than popularity explains, and in which order.

    A pair is chance alone, or a signal beside it that is exponentially distributed: spike and slab with the
    mixture fitted to the release itself (empirical Bayes, Johnstone & Silverman 2004, §2). Noise is that of
    the mechanism, and of devices that are few: one of n pairs gives each 1/√n, so that all N of them give
    W = N·√n, and one counts u = N/W. Of what is expected, E, the variance is u·E, at least u². What is kept
    of a pair is its mean under the mixture; its order follows from the differences, all shares of it alike
    before. P(j | i) is what is kept in this order, of what is taken soon after i at all, its share of W.

    E is what independence makes of the items' own shares of all pairs, which the release tells, too, and
    popularity tells nearly: what is taken again and again is in more pairs than its first takers are.

    Args:
        noisy: float64 [K (K − 1)], the release: sums and differences.
        head: int64 [K], the items.
        popularity: float32 [n_items], log popularity.
        stddev: of the noise on each number; 0 without privacy.
        population_size: N.
    """
    low, high = np.triu_indices(len(head), 1)
    sums, differences = noisy[: len(low)], noisy[len(low) :]
    # What all give together must show, or there is nothing to compare a pair with.
    whole = float(sums.sum())
    if not whole > 3 * stddev * math.sqrt(len(sums)):
        return Successors.none()
    one = population_size / whole
    shares = _shares(sums, np.exp(popularity[head].astype(np.float64)), stddev=stddev, one=one)
    expected = shares[low] * shares[high]
    expected *= whole / expected.sum()
    variance = stddev**2 + one * np.maximum(expected, one)
    scores = (sums - expected) / np.sqrt(variance)
    spikes = _Spikes.fitted(scores)
    probability, mean = spikes.posterior(scores)
    kept = np.flatnonzero(probability >= _LIKELY)
    value = probability[kept] * mean[kept] * np.sqrt(variance[kept])
    kept = kept[np.argsort(-value, kind="stable")[: MOST_PAIRS // 2]]
    if not len(kept):
        return Successors.none()
    strength = mean[kept] * np.sqrt(variance[kept])
    # Differences are sums of as many devices, and noise is the same on both.
    spread = stddev**2 + ORDER_SHARE**2 * (variance[kept] - stddev**2)
    forward = _forward(differences[kept], strength, spread)
    value = probability[kept] * strength
    one_way = value * forward / (whole * shares[low[kept]])
    other_way = value * (1 - forward) / (whole * shares[high[kept]])
    first, second = head[low[kept]], head[high[kept]]
    items, then = np.concatenate([first, second]), np.concatenate([second, first])
    chances = np.concatenate([one_way, other_way])
    told = chances > np.finfo(np.float32).tiny
    items, then, chances = items[told], then[told], chances[told]
    totals = np.bincount(items, chances, len(popularity))
    chances = chances / np.maximum(totals / MOST_CERTAIN, 1)[items]
    return Successors.of(items, then, chances)


def _shares(
    sums: NDArray[np.float64],
    popularity: NDArray[np.float64],
    *,
    stddev: float,
    one: float,
) -> NDArray[np.float64]:
    """Share of each item in all pairs, float64 [K] > 0, adding up to 1.

    The sums of an item's pairs, shrunk towards those that popularity alone would make: r = e·(1 + δ),
    with the variance of δ told by all rows together (empirical Bayes, Efron & Morris 1973).

    Args:
        sums: float64 [K (K − 1) / 2], row by row of the upper triangle.
        popularity: float64 [K], up to a factor.
        stddev: of the noise on each of them.
        one: that a single device adds to a pair.
    """
    size = len(popularity)
    shares: NDArray[np.float64] = popularity / popularity.sum()
    pairs = np.zeros((size, size))
    pairs[np.triu_indices(size, 1)] = sums
    rows = pairs.sum(axis=0) + pairs.sum(axis=1)
    expected = shares * (1 - shares)
    expected *= rows.sum() / expected.sum()
    variance = (size - 1) * stddev**2 + one * expected
    spread = max(float(((rows - expected) ** 2 - variance).sum() / (expected**2).sum()), 0.0)
    signal = spread * expected**2
    rows = expected + signal / (signal + variance) * (rows - expected)
    rows = np.maximum(rows, _LEAST_ROW * expected)
    # An item makes no pair with itself: c·r_i = x_i (1 − x_i), with c such that Σ x = 1. Where noise says
    # that one item is in nearly all pairs there is no such c, and it gets as much as it can.
    low, high = 0.0, 1 / (4 * rows.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _solved(middle * rows).sum() < 1 else (low, middle)
    shares = _solved(high * rows)
    shares /= shares.sum()
    return shares


def _solved(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """x ≤ ½ of x (1 − x) = r, for r of 0 to ¼."""
    solved: NDArray[np.float64] = 2 * rows / (1 + np.sqrt(np.maximum(1 - 4 * rows, 0.0)))
    return solved


def _forward(
    differences: NDArray[np.float64], strength: NDArray[np.float64], variance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Expected share of each pair that is in the order of the head, float64 [m]."""
    means = ORDER_SHARE * _ORDERS * strength[:, None]
    likelihood = -0.5 * (differences[:, None] - means) ** 2 / variance[:, None]
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    share: NDArray[np.float64] = (likelihood @ _ORDERS) / likelihood.sum(axis=1)
    return (1 + share) / 2


@dataclass(frozen=True)
class _Spikes:
    """A mixture of N(0, 1) and of the same with an exponentially distributed signal on it.

    Attributes:
        share: of values with a signal.
        mean: of the signal.
    """

    share: float
    mean: float

    @classmethod
    def fitted(cls, scores: NDArray[np.float64]) -> _Spikes:
        """By expectation and maximisation. Values near 0 are counted in bins, the few others are not; those
        that are a signal beyond doubt count as one of ``_BEYOND_DOUBT``, for a handful of giants says
        nothing of the others."""
        plain = np.abs(scores) <= _PLAIN
        counts, edges = np.histogram(scores[plain], bins=1_200, range=(-_PLAIN, _PLAIN))
        clear = np.minimum(scores[scores > _PLAIN], _BEYOND_DOUBT)
        values = np.concatenate([(edges[1:] + edges[:-1]) / 2, clear])
        weights = np.concatenate([counts, np.ones(len(values) - len(counts))])
        found = cls(share=1e-3, mean=3.0)
        for _ in range(_STEPS):
            probability, mean = found.posterior(values)
            signals = float(probability @ weights)
            total = float((probability * mean) @ weights)
            found = cls(
                share=min(max(signals / len(scores), 1e-7), 0.5),
                mean=max(total / max(signals, 1e-9), 0.5),
            )
        return found

    def posterior(
        self, scores: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Probability that there is a signal, and its mean if there is."""
        rate = 1 / self.mean
        # Given the value, the signal is a normal of this centre, cut off below 0.
        centre = scores - rate
        tail = log_ndtr(centre)
        log_signal = math.log(rate) + rate**2 / 2 - rate * scores + tail
        log_noise = -0.5 * scores**2 - 0.5 * math.log(2 * math.pi)
        probability = expit(math.log(self.share / (1 - self.share)) + log_signal - log_noise)
        density = np.exp(-0.5 * centre**2 - 0.5 * math.log(2 * math.pi) - tail)
        return probability, np.maximum(centre + density, 0.0)
