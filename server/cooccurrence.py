"""From the noisy co-occurrence release to item vectors: post-processing, free of ε."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..common.mechanism import Mechanism
from ..common.messages import CooccurrenceTask
from .split import COHERENT

_LEAST_TOLD = 0.15
"""Of the norm of what was released. With .14 and less left of a log of ids, lists were no better than
popularity; with .17 and more they were."""
_FEWEST_ITEMS = 16
"""With fewer, taking off what popularity explains leaves next to nothing."""


def head_size(n_items: int, mechanism: Mechanism, *, whole: bool = False) -> int:
    """K, how many items the noise allows to compare; 0 where they are too few to be worth a release.

    Twice as many as get vectors: single pairs stand out of the noise, however many there are. Tuned on
    other logs, K was 1.5 to 2 times as large, too.

    Args:
        n_items: of the catalogue.
        mechanism: σ and N.
        whole: whether pairs are of whole histories.
    """
    size = min(n_items, CooccurrenceTask.largest_head(whole=whole))
    if mechanism.private:
        size = min(size, 2 * _comparable(mechanism))
    return size if vectors_size(size, mechanism) >= min(_FEWEST_ITEMS, n_items) else 0


def vectors_size(head: int, mechanism: Mechanism) -> int:
    """How many of the K items of the head get vectors."""
    return min(head, _comparable(mechanism)) if mechanism.private else head


def _comparable(mechanism: Mechanism) -> int:
    """Of how many items signal and noise are the same.

    N devices with parts of norm C, a tenth of which adds up, make a sum of norm 0.1·N·C. Noise of σ·C on
    each pair of K items has a norm of σ·C·K in the symmetric matrix. Both are the same at K = 0.1·N/σ.
    """
    return int(COHERENT * mechanism.population_size / mechanism.noise_multiplier)


def head_of(popularity: NDArray[np.float32], size: int) -> NDArray[np.int64]:
    """The most popular items, most popular first: int64 [size].

    Args:
        popularity: float32 [n_items], as released; nothing else is known of the items.
        size: how many.
    """
    return np.argsort(-popularity, kind="stable")[:size].astype(np.int64)


def item_vectors(
    noisy: NDArray[np.float64],
    *,
    head: NDArray[np.int64],
    popularity: NDArray[np.float32],
    stddev: float,
    dimension: int,
) -> NDArray[np.float32]:
    """Vectors such that items taken close together, beyond what popularity explains, are alike.

    Off popularity, the symmetric matrix of pairs has eigenvalues of a signal and a bulk of noise
    with an edge at 2s√K (Wigner). Those beyond it are shrunk, λ → √(λ² − 4s²K), the best that can be
    done by the Frobenius norm (Gavish & Donoho 2017, eq. 7); the largest positive ones make up the
    vectors U√λ, each scaled to length 1, as content vectors are. Where less than 15 % of the norm is
    left, noise left too little to rank by, and there are no vectors: popularity says more.

    Args:
        noisy: float64 [K (K − 1) / 2], the release, row by row of the upper triangle.
        head: int64 [K], the items.
        popularity: float32 [n_items], log popularity.
        stddev: s of the noise on each pair; 0 without privacy.
        dimension: columns of the result.

    Returns:
        float32 [n_items, dimension]; 0 for items outside the head, or for all.
    """
    size = len(head)
    upper = np.triu_indices(size, 1)
    pairs = np.zeros((size, size))
    pairs[upper] = noisy
    shares = np.exp(popularity[head].astype(np.float64))
    by_chance = np.outer(shares, shares)
    pairs[upper] -= by_chance[upper] * (noisy.sum() / by_chance[upper].sum())
    edge = 2 * stddev * math.sqrt(size)
    values, directions = np.linalg.eigh(pairs + pairs.T)
    all_told = np.linalg.norm(values)
    values, directions = values[::-1][:dimension], directions[:, ::-1][:, :dimension]
    told = values > max(edge, 1e-9 * np.abs(values).max(initial=0.0))
    shrunk = np.sqrt(values[told] ** 2 - edge**2)
    if stddev > 0 and np.linalg.norm(shrunk) < _LEAST_TOLD * all_told:
        return np.zeros((len(popularity), dimension), dtype=np.float32)
    columns = directions[:, told] * np.sqrt(shrunk)
    norms = np.linalg.norm(columns, axis=1, keepdims=True)
    unit = np.divide(columns, norms, out=np.zeros_like(columns), where=norms > 0)
    found = np.zeros((len(popularity), dimension), dtype=np.float32)
    found[head, : unit.shape[1]] = unit
    return found
