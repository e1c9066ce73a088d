"""Cold start: what lists are worth while a device knows nothing yet, or its owner's first few events.

Those who really are new are few in a log, and one figure of them can't be held against another. So every
test user stands in for a new one: asked for the same targets, with a profile that knows only the last few
events before the cut. New is what the user had never taken in *all* of the history, in every row: the
same items are left out and the same ones count, and the rows differ in what the profile knows.

They aren't new in all: what they have is left out, some of it popular, and each was one of the many
whom the model has learned from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.histories import Histories
from .baselines import Popularity
from .bootstrap import Interval, bootstrap_interval
from .evaluation import CHUNK, Scorer, joined
from .fairness import MINIMUM
from .metrics import RankMetrics, rank_metrics
from .splits import Targets

KNOWN = (0, 1, 2, 5, None)
"""Events that a profile knows; None: all."""


@dataclass(frozen=True, eq=False)
class Start:
    """Lists of new items, made from no more than the last few events of each user.

    Attributes:
        name: for people.
        known: events that profiles hold at most; None: all, or for popularity: it asks nobody.
        ndcg: NDCG@k, interval over users.
        hr: share of users with a target in their list, likewise.
        gain: NDCG@k minus that of popularity, paired by user; None for popularity itself.
        hr_gain: the same of ``hr``.
    """

    name: str
    known: int | None
    ndcg: Interval
    hr: Interval
    gain: Interval | None
    hr_gain: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return {
            "name": self.name,
            "known": self.known,
            "ndcg_at_k": self.ndcg.to_dict(),
            "hr_at_k": self.hr.to_dict(),
            "gain": self.gain and self.gain.to_dict(),
            "hr_gain": self.hr_gain and self.hr_gain.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class ColdStart:
    """The same users and targets, with ever more known.

    Attributes:
        users: who had a new item to find, the same in every row.
        starts: popularity, then one for each of :data:`KNOWN`; none where users are fewer than the minimum.
    """

    users: int
    starts: tuple[Start, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return {"users": self.users, "lists": [start.to_dict() for start in self.starts]}


def last_events(histories: Histories, n: int) -> Histories:
    """Only the last ``n`` events of each device, or all that it has; of a basket, its last ones there."""
    from_end = histories.offsets[1:][histories.devices] - np.arange(histories.n_events)
    return histories.where(from_end <= n)


def cold_start(
    scorer: Scorer,
    targets: Targets,
    *,
    prior: NDArray[np.float32],
    k: int,
    samples: int,
    minimum: int = MINIMUM,
    on_chunk: Callable[[], None] = lambda: None,
) -> ColdStart:
    """Measure lists of new items of all test users, with what is known of them cut short.

    Args:
        scorer: the run's model as devices use it.
        targets: test targets, and whole histories before the cut.
        prior: float32 [n_items], log popularity as it was released.
        k: length of the lists.
        samples: resamples of users for intervals.
        minimum: users below which there are no figures.
        on_chunk: called after each of the steps that :func:`cold_steps` counts.
    """
    popularity = Popularity(prior, half_life_days=None)
    reference = first_lists(popularity, targets, None, k=k, on_chunk=on_chunk)
    rows = [first_lists(scorer, targets, known, k=k, on_chunk=on_chunk) for known in KNOWN]
    if len(reference.users) < minimum:
        return ColdStart(len(reference.users), ())

    def over_users(values: NDArray[np.float64]) -> Interval:
        return bootstrap_interval(values, samples=samples)

    ndcg, hr = over_users(reference.ndcg), over_users(reference.hr)
    starts = [Start("popularity", None, ndcg, hr, None, None)]
    for known, lists in zip(KNOWN, rows, strict=True):
        ndcg, hr = over_users(lists.ndcg), over_users(lists.hr)
        gain = over_users(lists.ndcg - reference.ndcg)
        hr_gain = over_users(lists.hr - reference.hr)
        starts.append(Start(_name(known), known, ndcg, hr, gain, hr_gain))
    return ColdStart(len(reference.users), tuple(starts))


def cold_steps(targets: Targets) -> int:
    """How often :func:`cold_start` calls ``on_chunk``."""
    return (1 + len(KNOWN)) * -(-targets.n_users // CHUNK)


def first_lists(
    scorer: Scorer,
    targets: Targets,
    known: int | None,
    *,
    k: int,
    on_chunk: Callable[[], None] = lambda: None,
) -> RankMetrics:
    """What each user gets of a scorer that knows the last ``known`` events (None: all)."""
    parts = []
    for first in range(0, targets.n_users, CHUNK):
        chunk = targets.chunk(first, first + CHUNK)
        told = chunk.history if known is None else last_events(chunk.history, known)
        # The chunk, with its whole history, says what is new.
        parts.append(rank_metrics(scorer.scores(told, chunk.now), chunk, k=k, mask_seen=True))
        on_chunk()
    return joined(parts, k)


def _name(known: int | None) -> str:
    if known is None:
        return "all events"
    return {0: "no event", 1: "last event"}.get(known, f"last {known}")
