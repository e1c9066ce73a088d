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
_PAIRS_UNSEEN = 10.0
"""Pairs of which content tells nothing, that count beside those told: as many make the mean cosine sure to
about a tenth."""


def beyond_content(
    successors: Successors,
    *,
    content: NDArray[np.float32],
    head: NDArray[np.int64],
    popularity: NDArray[np.float32],
) -> float:
    """1 − n / (n + 10) · (c − c₀) / (c₁ − c₀), of mean cosines of content, within [0, 1].

    c is that of the pairs told, c₀ of the same items with others by chance, and c₁ with those most like
    them, as many each; the chances weigh. n is the number of pairs, as if all weighed the same (Kish 1965,
    §8.2): a few tell little. 1 where nothing stands out of the release, or content tells nothing apart.

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

    # Pairs ascend by their first item: one stretch each.
    starts = np.flatnonzero(np.diff(first, prepend=-1))
    by_chance = most = 0.0
    for own in np.split(np.arange(len(first)), starts[1:]):
        item = first[own[0]]
        others = np.delete(shares, item)
        if not others.any():
            continue
        cosines = np.delete(vectors @ vectors[item], item)
        by_chance += weights[own].sum() * float(others @ cosines / others.sum())
        most += np.sort(cosines)[::-1][: len(own)] @ np.sort(weights[own])[::-1]
    if most - by_chance < _TELLS_APART * weights.sum():
        return 1.0
    alike = np.clip((told - by_chance) / (most - by_chance), 0, 1)
    pairs = weights.sum() ** 2 / np.square(weights).sum()
    return 1 - float(alike) * float(pairs / (pairs + _PAIRS_UNSEEN))
