"""How much of what is taken together content doesn't tell already.

Names of goods tell what goes together, titles of films hardly do. Where content says it, too, a release of
co-occurrence says it twice, and popular items, which alone are in it, crowd out the others. So it weighs as
much as it says beyond content, which the pairs that stand out of it show: post-processing, free of ε.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..common.successors import Successors

_TELLS_APART = 1e-6
"""Least difference of the mean cosines; below it is rounding."""


def beyond_content(
    successors: Successors,
    *,
    content: NDArray[np.float32],
    head: NDArray[np.int64],
    popularity: NDArray[np.float32],
) -> float:
    """1 − (c − c₀) / (c₁ − c₀), of mean cosines of content, within [0, 1].

    c is that of the pairs told, c₀ of pairs at random, and c₁ of pairs that are as alike as could be: as
    many with each item, of the same chances, for the chances weigh. 1 where nothing stands out of the
    release, or content tells nothing apart.

    Args:
        successors: pairs that stand out.
        content: float32 [n_items, k], vectors of public content.
        head: int64 [K], the items that were compared.
        popularity: float32 [n_items], log popularity, by which items are drawn.
    """
    if not len(successors) or not content.shape[1]:
        return 1.0
    vectors = content[head].astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    shares = np.exp(popularity[head] - popularity[head].max(), dtype=np.float64)
    shares /= shares.sum()
    place = np.zeros(len(content), dtype=np.int64)
    place[head] = np.arange(len(head))
    first, second = place[successors.pairs].T
    weights = shares[first] * successors.chances
    told = weights @ np.einsum("ij,ij->i", vectors[first], vectors[second])

    # Two draws without one item twice.
    mean, twice = shares @ vectors, np.square(shares)
    apart = 1 - twice.sum()
    if apart <= 0:
        return 1.0
    by_chance = (
        float((mean @ mean - twice @ np.square(vectors).sum(axis=1)) / apart) * weights.sum()
    )
    # Pairs ascend by their first item: one stretch each.
    most, starts = 0.0, np.flatnonzero(np.diff(first, prepend=-1))
    for own in np.split(np.arange(len(first)), starts[1:]):
        cosines = np.delete(vectors @ vectors[first[own[0]]], first[own[0]])
        most += np.sort(cosines)[::-1][: len(own)] @ np.sort(weights[own])[::-1]
    if most - by_chance < _TELLS_APART * weights.sum():
        return 1.0
    return float(np.clip(1 - (told - by_chance) / (most - by_chance), 0, 1))
