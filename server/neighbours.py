"""From the noisy sums of pairs in whole histories to what goes with what: post-processing, free of ε."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..common.successors import MOST_CERTAIN, Successors
from .popularity import ItemPriors

_NEIGHBOURS = 30
"""Of each item, those that say most of it; 30 to 60 are level on a shop's log."""
_LEAST = 1e-6
"""A chance; less is rounding."""


def neighbours_of(
    noisy: NDArray[np.float64],
    *,
    head: NDArray[np.int64],
    priors: ItemPriors,
    voice: float,
    stddev: float,
    devices: int,
) -> Successors:
    """How much each item speaks for each other one, beside all others that are held.

    Ridge regression of each item on all others, B_ij = −P_ij / P_jj with P = (G + λI)⁻¹ and zeros on the
    diagonal (EASE: Steck 2019, eq. 8). G are the sums of pairs; one of n pairs gives each 1/√n, so that all
    of m devices give W = m·√n, and one counts u = m/W. An item gives itself as much as any other that is
    held, of which there are √(2n) = √2/u. λ is the edge of the noise on G: with variance
    s² + u·G_ij on each pair, 2·√(K·s² + u·maxᵢ Σ_j G_ij) (Bandeira & van Handel 2016, §1, up to a factor).
    Where there is noise by the mechanism, eigenvalues are shrunk, too (Gavish & Donoho 2017, eq. 7).

    To who holds i, j then comes next with a chance of v·B_ij·√t_j, where t_j is its popularity now, of that
    of all time. Of each j the 30 items count that say most of it.

    Args:
        noisy: float64 [K (K − 1) / 2], the release, row by row of the upper triangle.
        head: int64 [K], the items.
        priors: log popularity.
        voice: v, how much what the regression says counts beside every other score, in (0, 1]; all that
            goes with an item has a chance of 0.9 at most, as with successors.
        stddev: s of the noise on each pair; 0 without privacy.
        devices: m, how many answered; of those that never do nothing is known, and too large an m makes
            the regression timid.
    """
    size, whole = len(head), float(noisy.sum())
    # What all give together must show, or there is nothing to regress on.
    if not whole > 3 * stddev * math.sqrt(len(noisy)):
        return Successors.none()
    pairs = np.zeros((size, size))
    pairs[np.triu_indices(size, 1)] = noisy
    pairs += pairs.T
    one, rows = devices / whole, np.maximum(pairs.sum(axis=1), 0.0)
    np.fill_diagonal(pairs, rows * one / math.sqrt(2))
    ridge = 2 * math.sqrt(size * stddev**2 + one * rows.max())
    weights = _regression(pairs, ridge=ridge, edge=2 * stddev * math.sqrt(size))
    trend = np.exp(0.5 * (priors.current - priors.long_run)[head].astype(np.float64))
    chances = voice * np.maximum(weights, 0.0) * trend
    if size > _NEIGHBOURS:
        least = np.partition(chances, size - _NEIGHBOURS, axis=0)[size - _NEIGHBOURS]
        chances[chances < least] = 0.0
    chances /= np.maximum(chances.sum(axis=1, keepdims=True) / MOST_CERTAIN, 1)
    first, second = np.nonzero(chances > _LEAST)
    return Successors.of(head[first], head[second], chances[first, second])


def _regression(pairs: NDArray[np.float64], *, ridge: float, edge: float) -> NDArray[np.float64]:
    """B, float64 [K, K]."""
    values, directions = np.linalg.eigh(pairs)
    values = np.sqrt(np.maximum(np.maximum(values, 0.0) ** 2 - edge**2, 0.0))
    inverse = (directions / (values + ridge)) @ directions.T
    found: NDArray[np.float64] = -inverse / np.diag(inverse)
    np.fill_diagonal(found, 0.0)
    return found
