"""Full-ranking metrics: every item of the catalogue competes, and every user counts once.

Sampled negatives reverse the order of models (Krichene & Rendle 2020, "On Sampled Metrics for Item
Recommendation"), so there are none here. Ties are broken against the program.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .splits import Targets


@dataclass(frozen=True, eq=False)
class RankMetrics:
    """Metrics of ``p`` users, one value each, so that intervals and paired tests can be made.

    Attributes:
        users: int64 [p], as in :class:`~.splits.Targets`; those with a target in the view.
        hr: float64 [p], 1 where any target is among the first k.
        recall: float64 [p], share of the user's targets among the first k.
        ndcg: float64 [p], binary gain, ideal of min(k, targets) (Järvelin & Kekäläinen 2002, §2).
        mrr: float64 [p], 1 / rank of the best-placed target in the full ranking.
        lists: int32 [p, min(k, n_items)], the k best, best first; -1 where candidates run out.
    """

    users: NDArray[np.int64]
    hr: NDArray[np.float64]
    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]
    mrr: NDArray[np.float64]
    lists: NDArray[np.int32]


def rank_metrics(
    scores: NDArray[np.floating], targets: Targets, *, k: int, mask_seen: bool
) -> RankMetrics:
    """Rank all items for each user and see where the targets come.

    A target that ties with other items ranks behind them; NaN and -inf rank last.

    Args:
        scores: float [m, n_items], one row for each row of ``targets``; higher is better.
        targets: what the users took next.
        k: length of the list, ≥ 1.
        mask_seen: the view of *new* items: those of the history can't be recommended and don't
            count as targets, and users without another target are left out. False: *all* items.
    """
    limit = float(np.finfo(scores.dtype).max)
    scores = np.nan_to_num(scores, nan=-limit, posinf=limit, neginf=-limit)  # a copy
    rows, items = targets.rows, targets.items
    if mask_seen:
        # Below every candidate: finite numbers are for candidates, -inf for what can't be had.
        scores[targets.history.devices, targets.history.items] = -np.inf
        new = scores[rows, items] > -np.inf
        rows, items = rows[new], items[new]
    counted, first, sizes = np.unique(rows, return_index=True, return_counts=True)

    lists = _best(scores[counted], k)
    own = scores[rows, items]
    order = np.lexsort((-own, rows))
    own = own[order]
    scores[rows, items] = -np.inf  # what remains are the rivals of the targets
    rivals = np.sort(scores[counted], axis=1)
    ahead = np.empty(len(rows), dtype=np.int64)
    for row, start, size in zip(rivals, first, sizes, strict=True):
        targets_of_row = own[start : start + size]
        ahead[start : start + size] = len(row) - np.searchsorted(row, targets_of_row, side="left")
    position = np.arange(len(rows)) - np.repeat(first, sizes)
    rank = ahead + position + 1

    found = rank <= k
    gain = np.where(found, 1 / np.log2(rank + 1.0), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(2.0, k + 2.0)))
    hits = _sums(found.astype(np.float64), first)
    return RankMetrics(
        users=targets.users[counted],
        hr=(hits > 0).astype(np.float64),
        recall=hits / sizes,
        ndcg=_sums(gain, first) / ideal[np.minimum(sizes, k) - 1],
        mrr=1.0 / rank[first],
        lists=lists,
    )


def coverage(lists: NDArray[np.int32], n_items: int) -> float:
    """Share of the catalogue that is in anybody's list."""
    return len(np.unique(lists[lists >= 0])) / n_items


def diversity(lists: NDArray[np.int32], vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Intra-list diversity, float64 [p]: 1 - mean pairwise cosine (Ziegler et al. 2005, §3.3).

    An item without content (a zero vector) is unlike every other. Lists of fewer than two items
    have no pairs, and diversity 0.

    Args:
        lists: int32 [p, k], -1 where a list ends early.
        vectors: float [n_items, dimension], public item vectors.
    """
    norms = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.where(norms > 0, norms, 1.0)[:, None]
    shown = unit[lists] * (lists >= 0)[:, :, None]
    length = (lists >= 0).sum(axis=1)
    total = np.square(shown.sum(axis=1)).sum(axis=1) - np.square(shown).sum(axis=(1, 2))
    pairs = length * (length - 1)
    return np.where(pairs > 0, 1.0 - total / np.maximum(pairs, 1), 0.0).astype(np.float64)


def novelty(lists: NDArray[np.int32], popularity: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean self-information of the list in bits, float64 [p] (Vargas & Castells 2011, §4.1).

    Args:
        lists: int32 [p, k], -1 where a list ends early.
        popularity: float [n_items], distinct users of each item in training; items that nobody took
            count as taken once.
    """
    taken = np.maximum(popularity, 1)
    bits = -np.log2(taken / taken.sum())
    shown = lists >= 0
    mean: NDArray[np.float64] = (bits[lists] * shown).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)
    return mean


def _best(scores: NDArray[np.floating], k: int) -> NDArray[np.int32]:
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    values = np.take_along_axis(values, order, axis=1)
    return np.where(values > -np.inf, best, -1).astype(np.int32)


def _sums(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = np.add.reduceat(values, starts) if len(starts) else np.zeros(0)
    return sums
