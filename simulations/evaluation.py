"""Measure one scorer on held-out targets: new items and all items apart, with intervals.

This is the researcher's own measurement on data that lies on their machine. It's no release, and
nothing in the federation depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..common.histories import Histories
from ..common.items import ItemTable
from .bootstrap import Interval, bootstrap_interval
from .metrics import RankMetrics, coverage, diversity, novelty, rank_metrics
from .splits import Targets

CHUNK = 512  # users scored at once: bounds memory at CHUNK × n_items scores


class Scorer(Protocol):
    """Anything that can rank the catalogue for a user."""

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of all items, float32 [m, n_items]; higher is better.

        Args:
            history: ``m`` devices, what each knows.
            now: int64 [m], the moment each asks, seconds since 1970 UTC.
        """
        ...


@dataclass(frozen=True, eq=False)
class View:
    """Results over one choice of items.

    Attributes:
        ranks: per-user accuracy, for paired comparisons.
        means: ``hr_at_k``, ``recall_at_k``, ``ndcg_at_k``, ``mrr``, ``diversity_at_k`` and
            ``novelty_at_k`` as means over users; diversity is NaN where vectors don't say which items
            are alike.
        coverage_at_k: share of the catalogue in anybody's list.
    """

    ranks: RankMetrics
    means: dict[str, Interval]
    coverage_at_k: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready means; per-user values stay behind."""
        return {
            "users": len(self.ranks.users),
            **{name: interval.to_dict() for name, interval in self.means.items()},
            "coverage_at_k": self.coverage_at_k,
        }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Quality of one scorer.

    Attributes:
        k: length of the lists.
        new_items: items of the history masked, targets among the others.
        all_items: nothing masked, repeat purchases count.
        cold_users: users who had targets but no history, and were left out.
    """

    k: int
    new_items: View
    all_items: View
    cold_users: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return {
            "k": self.k,
            "new": self.new_items.to_dict(),
            "all": self.all_items.to_dict(),
            "cold_users": self.cold_users,
        }


def score_chunks(scorer: Scorer, targets: Targets) -> Iterator[tuple[Targets, NDArray[np.float32]]]:
    """Targets a chunk of users at a time, with the scorer's scores [chunk, n_items]."""
    for start in range(0, targets.n_users, CHUNK):
        chunk = targets.chunk(start, start + CHUNK)
        yield chunk, scorer.scores(chunk.history, chunk.now)


def evaluate(
    scorer: Scorer,
    targets: Targets,
    table: ItemTable,
    popularity: NDArray[np.floating],
    *,
    k: int,
    bootstrap_samples: int,
    seed: int = 0,
) -> Evaluation:
    """Score every user of ``targets`` once and measure both views.

    Args:
        scorer: the model.
        targets: validation or test targets.
        table: item vectors that lists are made with, for diversity.
        popularity: float [n_items], distinct users of each item in training, for novelty.
        k: length of the lists.
        bootstrap_samples: resamples of users; 0 for means without intervals.
        seed: of the resampling.
    """
    parts: dict[bool, list[RankMetrics]] = {True: [], False: []}
    for chunk, scores in score_chunks(scorer, targets):
        for mask_seen, found in parts.items():
            found.append(rank_metrics(scores, chunk, k=k, mask_seen=mask_seen))
    new_items, all_items = (
        _view(joined(found, k), table, popularity, bootstrap_samples, seed)
        for found in parts.values()
    )
    return Evaluation(k, new_items, all_items, targets.cold_users)


def joined(parts: list[RankMetrics], k: int) -> RankMetrics:
    """Metrics of one chunk of users after another, as those of all."""
    if not parts:
        none = np.zeros(0)
        nobody, nothing = np.zeros(0, np.int64), np.zeros((0, k), np.int32)
        return RankMetrics(nobody, none, none, none, none, nothing)
    columns = (np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(RankMetrics))
    return RankMetrics(*columns)


def _view(
    ranks: RankMetrics,
    table: ItemTable,
    popularity: NDArray[np.floating],
    samples: int,
    seed: int,
) -> View:
    blocks = [ranks.lists[i : i + CHUNK] for i in range(0, len(ranks.lists), CHUNK)]
    # Random directions that stand in for content would make every list look as varied as can be.
    spread = [diversity(block, table.vectors) for block in blocks if table.tells_likeness]
    values = {
        "hr_at_k": ranks.hr,
        "recall_at_k": ranks.recall,
        "ndcg_at_k": ranks.ndcg,
        "mrr": ranks.mrr,
        "diversity_at_k": np.concatenate(spread) if spread else np.zeros(0),
        "novelty_at_k": novelty(ranks.lists, popularity),
    }
    return View(
        ranks=ranks,
        means={
            name: bootstrap_interval(column, samples=samples, seed=seed)
            for name, column in values.items()
        },
        coverage_at_k=coverage(ranks.lists, table.n_items),
    )
