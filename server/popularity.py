"""From the noisy popularity release to log-popularity priors: post-processing, free of ε."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ATOMS = 400  # largest items, and as many of the others
_EM_STEPS = 60
_FITTED_ITEMS = 2_048  # the distribution of a larger catalogue is fitted on as many of its items
_CHUNK = 4_096


class ItemPriors(NamedTuple):
    """Log popularity of every item, adding up to one as probabilities.

    Attributes:
        long_run: float32 [n_items], over all time. Training uses it: the encoder then learns what
            popularity doesn't explain, in sessions old and new.
        current: float32 [n_items], the even mixture over the recent time scales (all time where there
            are none). Ranking uses it: people choose among what is sought now.
    """

    long_run: NDArray[np.float32]
    current: NDArray[np.float32]


def item_priors(noisy: NDArray[np.float64], *, stddev: float) -> ItemPriors:
    """Denoise the sums, then fall back from recent scales to longer ones where little was recent.

    A scale's shares are (y + κ·p) / (Σ y + κ), the Dirichlet posterior with the next longer scale's
    shares p as its prior mean (MacKay & Peto 1995, eq. 11), and the same share for all items behind
    the longest. κ = √(n_items · (1 + s²)) is the norm of what chance puts on all items together: a
    scale on which little happened says no more than that.

    Args:
        noisy: float [1 + time scales, n_items], the release; row 0 is all time.
        stddev: s of its noise; 0 takes the sums as they are.
    """
    sums = np.maximum(noisy, 0.0) if stddev == 0 else denoised(noisy, stddev=stddev)
    n_items = noisy.shape[1]
    pseudo_counts = math.sqrt(n_items * (1 + stddev**2))
    everything = _smoothed(sums[0], np.full(n_items, 1 / n_items), pseudo_counts)
    shares, longer = [], everything
    # By mass rather than by name: on the longer of two scales more has happened.
    for row in sorted(sums[1:], key=lambda row: -float(row.sum())):
        longer = _smoothed(row, longer, pseudo_counts)
        shares.append(longer)
    current = np.mean(shares, axis=0) if shares else everything
    return ItemPriors(
        long_run=np.log(everything).astype(np.float32),
        current=np.log(current).astype(np.float32),
    )


def _smoothed(
    sums: NDArray[np.float64], prior: NDArray[np.float64], pseudo_counts: float
) -> NDArray[np.float64]:
    found = sums + pseudo_counts * prior
    shares: NDArray[np.float64] = found / found.sum()
    return shares


def denoised(noisy: NDArray[np.float64], *, stddev: float) -> NDArray[np.float64]:
    """Posterior means under the distribution of true sums that makes the noisy ones most likely.

    Nothing is assumed of that distribution but that sums aren't negative: popularity has a long tail
    that a Gaussian prior would cut off. An item's scales are denoised together, for they say much about
    each other. The distribution has its mass on the data's own points and is found by EM (multivariate
    NPMLE empirical Bayes: Soloff, Guntuboyina & Sen 2024, §2.2; Jiang & Zhang 2009, §3). No sum moves by
    more than the largest noise there can be expected to be (limited translation: Efron & Morris 1972).

    Args:
        noisy: float [scales, n_items], sums with independent noise.
        stddev: of the noise, above 0.

    Returns:
        float64 [scales, n_items], not negative.
    """
    points = noisy.T / stddev
    by_size = np.argsort(-np.square(points).sum(axis=1), kind="stable")
    atoms = _atoms(points, by_size)
    fitted = points[by_size[_evenly(len(points), _FITTED_ITEMS)]]
    likelihood = _likelihood(fitted, atoms)
    mass = np.full(len(atoms), 1 / len(atoms), dtype=np.float32)
    for _ in range(_EM_STEPS):
        mass = _posterior(likelihood, mass).mean(axis=0)
    chunks = [points[start : start + _CHUNK] for start in range(0, len(points), _CHUNK)]
    means = [_posterior(_likelihood(chunk, atoms), mass) @ atoms for chunk in chunks]
    # Noise moves no item further than this: what an atom is too far away for stays what it is.
    reach = math.sqrt(2 * math.log(max(noisy.size, 2)))
    found = np.clip(np.concatenate(means), points - reach, points + reach) * stddev
    return np.maximum(found.T, 0.0)


def _atoms(points: NDArray[np.float64], by_size: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nothing at all, the largest points, some of all the others, and each of these halved: noise makes
    points larger than what is behind them."""
    largest, others = by_size[:_ATOMS], by_size[_ATOMS:]
    chosen = np.concatenate([largest, others[_evenly(len(others), _ATOMS)]])
    held = np.maximum(points[chosen], 0.0)
    return np.concatenate([np.zeros((1, points.shape[1])), held, held / 2])


def _evenly(n: int, most: int) -> NDArray[np.int64]:
    """Up to ``most`` of n places, at even distances."""
    return np.linspace(0, max(n - 1, 0), min(n, most)).astype(np.int64)


def _likelihood(points: NDArray[np.float64], atoms: NDArray[np.float64]) -> NDArray[np.float32]:
    """Of unit noise, float32 [points, atoms], each row up to a factor."""
    squares = np.square(points).sum(axis=1)[:, None] + np.square(atoms).sum(axis=1)
    exponents = points @ atoms.T - squares / 2
    exponents -= exponents.max(axis=1, keepdims=True)
    ratios: NDArray[np.float32] = np.exp(exponents).astype(np.float32)
    return ratios


def _posterior(likelihood: NDArray[np.float32], mass: NDArray[np.float32]) -> NDArray[np.float32]:
    weights = likelihood * mass
    total = weights.sum(axis=1, keepdims=True)
    # A point far from all that has mass left is told by its likelihood alone.
    np.copyto(weights, likelihood, where=total <= 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
