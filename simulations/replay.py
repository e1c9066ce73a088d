"""Prequential replay: predict what comes next, then let the profile learn it, in time order.

The encoder stays as it was released; what moves is the profile. Three devices are compared: one
whose profile is frozen at the cut, one that updates it each midnight, and one that updates it with
every event. Events of one second are a basket: none of them helps to predict the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.decay import Scale, decayed_sums
from ..common.histories import Histories
from .bootstrap import Interval, bootstrap_interval
from .evaluation import CHUNK, Scorer
from .fairness import MINIMUM
from .metrics import rank_metrics
from .splits import Targets

POLICIES = ("frozen", "daily", "every event")
_DAY = 86_400  # seconds
_SECOND_BITS = 40  # a device's number and a time in one integer; times end before 2^38
_INDICES = ((1, 1), (2, 3), (4, 7), (8, 15), (16, None))
_KNOWN = ((0, 0), (1, 1), (2, 2), (3, 5), (6, 20), (21, None))
_DRIFTED = 0.25  # share of moments, those whose profile has turned furthest since the cut


@dataclass(frozen=True, eq=False)
class Moments:
    """``m`` times at which somebody took something, ordered by user, then time.

    Attributes:
        users: int64 [m], devices of the histories.
        times: int64 [m], seconds since 1970 UTC.
        indices: int64 [m], the how-maniest moment of the user since the cut, from 1.
        known: int64 [m], events of the user before the moment.
        offsets: int64 [m + 1]; what moment i took is ``items[offsets[i]:offsets[i + 1]]``.
        items: int32 [targets], distinct within a moment.
        new: bool [targets], the user never took it before.
    """

    users: NDArray[np.int64]
    times: NDArray[np.int64]
    indices: NDArray[np.int64]
    known: NDArray[np.int64]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    new: NDArray[np.bool_]

    @property
    def size(self) -> int:
        """Number of moments."""
        return len(self.users)

    def take(self, rows: NDArray[np.int64]) -> Moments:
        """Moments ``rows``, in that order."""
        sizes = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        at = np.repeat(self.offsets[rows] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Moments(
            self.users[rows],
            self.times[rows],
            self.indices[rows],
            self.known[rows],
            offsets,
            self.items[at],
            self.new[at],
        )


@dataclass(frozen=True, eq=False)
class Group:
    """NDCG@k of each policy over some of the moments: a mean over users of their means.

    Attributes:
        name: which moments.
        moments: how many.
        users: of how many users.
        quality: policy → interval over users; NaN where these are fewer than the minimum.
        gain: "every event" minus "frozen", paired by user; NaN likewise.
    """

    name: str
    moments: int
    users: int
    quality: dict[str, Interval]
    gain: Interval

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return {
            "name": self.name,
            "moments": self.moments,
            "users": self.users,
            "ndcg_at_k": {policy: value.to_dict() for policy, value in self.quality.items()},
            "gain": self.gain.to_dict(),
        }


def moments_after(histories: Histories, start: int) -> Moments:
    """Every moment at or after ``start`` (seconds since 1970 UTC), with what was taken in it."""
    devices, times = histories.devices, histories.times
    opens = np.ones(histories.n_events, dtype=np.bool_)
    opens[1:] = (np.diff(devices) != 0) | (np.diff(times) != 0)
    moment = np.cumsum(opens) - 1
    # An item is new in the moment that holds its first event.
    pairs = devices * (int(histories.items.max(initial=0)) + 1) + histories.items
    _, first, which = np.unique(pairs, return_index=True, return_inverse=True)
    new = moment[first][which] == moment

    late = times >= start
    _, keep = np.unique(np.stack([moment, histories.items])[:, late], axis=1, return_index=True)
    events = np.flatnonzero(late)[keep]
    begins = np.flatnonzero(opens & late)
    users = devices[begins]
    number = np.arange(len(begins)) - np.searchsorted(users, users)
    return Moments(
        users=users,
        times=times[begins],
        indices=number + 1,
        known=begins - histories.offsets[users],
        offsets=np.searchsorted(moment[events], np.append(moment[begins], len(times))),
        items=histories.items[events],
        new=new[events],
    )


def some_of(moments: Moments, most: int) -> Moments:
    """All of them, or ``most`` chosen at random, the same at every call."""
    if moments.size <= most:
        return moments
    chosen = np.random.default_rng(0).choice(moments.size, most, replace=False)
    return moments.take(np.sort(chosen))


def known_events(
    histories: Histories, moments: Moments, *, start: int
) -> dict[str, NDArray[np.int64]]:
    """Policy → int64 [m], how many of the user's first events the profile holds at each moment."""
    key = (histories.devices << _SECOND_BITS) + histories.times

    def before(bound: NDArray[np.int64]) -> NDArray[np.int64]:
        place = np.searchsorted(key, (moments.users << _SECOND_BITS) + bound)
        return place - histories.offsets[moments.users]

    midnight = moments.times - moments.times % _DAY
    cut = np.full(moments.size, start, dtype=np.int64)
    counts = (before(cut), before(np.maximum(midnight, cut)), moments.known)
    return dict(zip(POLICIES, counts, strict=True))


def replay(
    scorer: Scorer,
    histories: Histories,
    *,
    start: int,
    vectors: NDArray[np.float32],
    scales: tuple[Scale, ...],
    k: int,
    most: int,
    samples: int,
    minimum: int = MINIMUM,
    on_chunk: Callable[[], None] = lambda: None,
) -> dict[str, list[Group]]:
    """Quality of the three policies: ``all`` items and ``new`` ones.

    New are items that the user had never taken; a profile that doesn't know what was taken since the
    cut goes on offering it, as a device would.

    Args:
        scorer: ranks the catalogue.
        histories: whole log; the scorer must have been fitted on what lies before ``start``.
        start: the cut, seconds since 1970 UTC.
        vectors: float32 [n_items, k], public item vectors, to tell how far a profile has turned.
        scales: time scales of the decayed interest sums, for the same.
        k: length of the list.
        most: moments to replay; of more, a random choice with a fixed seed.
        samples: bootstrap resamples of users.
        minimum: users of the smallest group that has figures; of fewer it is told only how many they are.
        on_chunk: called after each of the steps that :func:`steps` counts.
    """
    moments = some_of(moments_after(histories, start), most)
    known = known_events(histories, moments, start=start)
    cosine = _turned(histories, moments, known, vectors=vectors, scales=scales)
    groups = list(_groups(moments, cosine))
    quality = {view: np.full((len(POLICIES), moments.size), np.nan) for view in ("all", "new")}
    for p, policy in enumerate(POLICIES):
        for first in range(0, moments.size, CHUNK):
            rows = np.arange(first, min(first + CHUNK, moments.size), dtype=np.int64)
            part = moments.take(rows)
            history = histories.prefixes(part.users, known[policy][rows])
            scores = scorer.scores(history, part.times)
            for view, of in quality.items():
                targets = _targets(part, history, new_only=view == "new")
                ranks = rank_metrics(scores, targets, k=k, mask_seen=view == "new")
                of[p, rows[ranks.users]] = ranks.ndcg
            on_chunk()
    return {
        view: [
            _summary(name, of[:, mask], moments.users[mask], samples=samples, minimum=minimum)
            for name, mask in groups
        ]
        for view, of in quality.items()
    }


def steps(histories: Histories, *, start: int, most: int) -> int:
    """How often :func:`replay` calls ``on_chunk``."""
    return len(POLICIES) * -(-min(most, moments_after(histories, start).size) // CHUNK)


def _targets(moments: Moments, history: Histories, *, new_only: bool) -> Targets:
    rows = np.repeat(np.arange(moments.size), np.diff(moments.offsets))
    keep = moments.new if new_only else np.ones(len(rows), dtype=np.bool_)
    return Targets(
        history=history,
        users=np.arange(moments.size, dtype=np.int64),
        offsets=np.searchsorted(rows[keep], np.arange(moments.size + 1)),
        items=moments.items[keep],
        now=moments.times,
        cold_users=0,
    )


def _turned(
    histories: Histories,
    moments: Moments,
    known: dict[str, NDArray[np.int64]],
    *,
    vectors: NDArray[np.float32],
    scales: tuple[Scale, ...],
) -> NDArray[np.float64]:
    """Cosine of the interest sums at the cut and at each moment, float64 [m]; NaN without either."""
    found = []
    for first in range(0, moments.size, CHUNK):
        rows = slice(first, first + CHUNK)
        sums = [
            decayed_sums(
                histories.prefixes(moments.users[rows], known[policy][rows]),
                vectors,
                moments.times[rows],
                scales,
            )
            for policy in (POLICIES[0], POLICIES[-1])
        ]
        # Directions: with time alone every sum shrinks, and that is no change of interests.
        norms = np.prod([np.linalg.norm(s, axis=2) for s in sums], axis=0)
        norms[norms == 0] = np.nan
        found.append((np.prod(sums, axis=0).sum(axis=2) / norms).mean(axis=1))
    return np.concatenate(found).astype(np.float64) if found else np.zeros(0)


def _groups(
    moments: Moments, cosine: NDArray[np.float64]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    yield "all moments", np.ones(moments.size, dtype=np.bool_)
    for low, high in _INDICES:
        yield f"moment {_span(low, high)} from the cut", _within(moments.indices, low, high)
    for low, high in _KNOWN:
        yield _known(low, high), _within(moments.known, low, high)
    moved = np.isfinite(cosine) & (moments.indices > 1)
    edge = np.quantile(cosine[moved], _DRIFTED) if moved.any() else -np.inf
    yield "interests turned, furthest quarter", moved & (cosine <= edge)
    yield "interests stayed, the rest", moved & (cosine > edge)


def _within(values: NDArray[np.int64], low: int, high: int | None) -> NDArray[np.bool_]:
    return (values >= low) & (values <= (np.iinfo(np.int64).max if high is None else high))


def _known(low: int, high: int | None) -> str:
    return "1 event known" if (low, high) == (1, 1) else f"{_span(low, high)} events known"


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+"
    return str(low) if low == high else f"{low}–{high}"


def _summary(
    name: str,
    quality: NDArray[np.float64],
    users: NDArray[np.int64],
    *,
    samples: int,
    minimum: int,
) -> Group:
    real = np.isfinite(quality[0])  # moments with a target in the view, the same for all policies
    owners, row = np.unique(users[real], return_inverse=True)
    count = np.bincount(row, minlength=len(owners))
    means = [np.bincount(row, weights=of[real], minlength=len(owners)) / count for of in quality]
    if len(owners) < minimum:  # what these few did is no figure
        means = [np.zeros(0) for _ in means]
    return Group(
        name=name,
        moments=int(real.sum()),
        users=len(owners),
        quality={
            policy: bootstrap_interval(mean, samples=samples)
            for policy, mean in zip(POLICIES, means, strict=True)
        },
        gain=bootstrap_interval(means[-1] - means[0], samples=samples),
    )
