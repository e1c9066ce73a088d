"""The profile of one user, kept on the device and brought up to date event by event.

A profile has no serialiser to the wire: it can be shown to its owner, and that is all. Everything
in it follows from the events, so a device stores those and can build the profile anew at any time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.decay import (
    CONTENT_TEMPERATURE,
    Scale,
    decay,
    decayed_sums,
    event_ages,
    event_factors,
)
from ..common.errors import ConfigError, DataError
from ..common.histories import Histories
from ..common.items import ItemTable

HABITS = Scale("days", 180.0)
"""How fast tags and frequencies fade: slowly, for a habit comes back after months."""


@dataclass(frozen=True)
class Event:
    """One interaction.

    Attributes:
        item: index into the item table.
        time: seconds since 1970-01-01 UTC.
        weight: strength of the event, > 0.
        type: index into the event-type names.
    """

    item: int
    time: int
    weight: float = 1.0
    type: int = 0


@dataclass(frozen=True, eq=False)
class Profile:
    """What a device knows of its owner, as of the newest event.

    Attributes:
        scales: time scales of the interest sums.
        habits: time scale of tags and frequencies.
        sums: float32 [n_scales, k], decayed interest sums.
        vector: float32 [k], profile vector U in the space of the item vectors.
        tags: interest tag → decayed weight.
        items: int32 [seen], items of all events, ascending.
        frequencies: float32 [seen], decayed number of the events of each of ``items``: how often, not
            how much at a time, tells what is taken again.
        window: the most recent events, oldest first.
        window_size: events that ``window`` holds at most.
        before_window: time of the newest event too old for ``window``; None while there is none.
        n_events: events so far.
        began_at: time of the oldest event; None before the first.
        n_began: events of that moment, none of which could repeat another.
        updated_at: time of the newest event; None before the first.
        declared: basic data the owner stated, such as language or age band.
    """

    scales: tuple[Scale, ...]
    habits: Scale
    sums: NDArray[np.float32]
    vector: NDArray[np.float32]
    tags: Mapping[str, float]
    items: NDArray[np.int32]
    frequencies: NDArray[np.float32]
    window: tuple[Event, ...]
    window_size: int
    before_window: int | None = None
    n_events: int = 0
    began_at: int | None = None
    n_began: int = 0
    updated_at: int | None = None
    declared: Mapping[str, str] = field(default_factory=dict)

    @property
    def repeat_rate(self) -> float:
        """ρ, the share of events that repeat an earlier item; see :func:`repeat_rate`."""
        counts = (self.n_events, len(self.items), self.n_began)
        return float(repeat_rate(*map(np.array, counts)))

    def to_dict(self, table: ItemTable) -> dict[str, Any]:
        """The whole profile as JSON-ready values with original item ids, for its owner's eyes."""
        return {
            "declared": dict(self.declared),
            "events": self.n_events,
            "updated_at": self.updated_at,
            "repeat_rate": self.repeat_rate,
            "tags": dict(sorted(self.tags.items(), key=lambda tag: (-tag[1], tag[0]))),
            "frequencies": {
                table.ids[item]: float(weight)
                for item, weight in zip(self.items, self.frequencies, strict=True)
            },
            "recent": [
                {"item": table.ids[e.item], "time": e.time, "weight": e.weight, "type": e.type}
                for e in self.window
            ],
            "interests": [
                {"clock": scale.clock, "half_life": scale.half_life, "sum": total.tolist()}
                for scale, total in zip(self.scales, self.sums, strict=True)
            ],
            "vector": self.vector.tolist(),
        }


Encode = Callable[[Profile], NDArray[np.float32]]
"""From sums and window of a profile to its profile vector U, float32 [k]."""


def content_vector(profile: Profile) -> NDArray[np.float32]:
    """U of an untrained encoder, the content cosine: the mean over scales of 6·D_s/‖D_s‖."""
    return interest_vectors(profile.sums)


def interest_vectors(sums: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same of any interest sums: float32 [..., n_scales, k] → [..., k]."""
    norms = np.linalg.norm(sums, axis=-1, keepdims=True)
    directions = sums / np.maximum(norms, 1e-6)
    vectors: NDArray[np.float32] = CONTENT_TEMPERATURE * directions.mean(axis=-2)
    return vectors.astype(np.float32)


def repeat_rate(
    n_events: NDArray[np.int64], n_items: NDArray[np.int64], n_began: NDArray[np.int64]
) -> NDArray[np.float64]:
    """ρ, the share of events that repeat an earlier item, under a uniform Beta(1, 1) prior.

    Events of the first moment have none to repeat, and tell nothing of it: a first basket of ten things
    isn't ten times that somebody took another one.

    Args:
        n_events: events of each user.
        n_items: different items among them; every other event is a repeat.
        n_began: events of each user's first moment.
    """
    could = n_events - n_began
    repeats = np.minimum(n_events - n_items, could)
    rate: NDArray[np.float64] = (repeats + 1) / (could + 2)
    return rate


def empty_profile(
    table: ItemTable,
    *,
    scales: tuple[Scale, ...],
    window_size: int,
    habits: Scale = HABITS,
    declared: Mapping[str, str] | None = None,
    encode: Encode = content_vector,
) -> Profile:
    """The profile of someone who has done nothing yet.

    Raises:
        ConfigError: the window holds no event.
    """
    if window_size < 1:
        raise ConfigError(f"profile: window of {window_size} events; it must hold at least one")
    profile = Profile(
        scales=scales,
        habits=habits,
        sums=np.zeros((len(scales), table.dimension), dtype=np.float32),
        vector=np.zeros(table.dimension, dtype=np.float32),
        tags={},
        items=np.zeros(0, dtype=np.int32),
        frequencies=np.zeros(0, dtype=np.float32),
        window=(),
        window_size=window_size,
        declared=dict(declared or {}),
    )
    return replace(profile, vector=encode(profile))


def update(
    profile: Profile, event: Event, *, table: ItemTable, encode: Encode = content_vector
) -> Profile:
    """The profile after one more event; O(k) for the sums.

    An event older than the newest one comes in aged. On the ``events`` clock its age counts the
    later times in the window only, and what came before it doesn't age by it: a profile that took
    late events is approximate on that clock until it is built anew.

    Raises:
        DataError: the item is not in the table, the weight is not positive and finite, or the
            profile belongs to another table.
    """
    _check(event.item, event.weight, table)
    if profile.sums.shape[1] != table.dimension:
        raise DataError(
            f"profile: sums of {profile.sums.shape[1]} numbers, item vectors of {table.dimension}; "
            "build the profile anew with the current item table"
        )
    newest = event.time if profile.updated_at is None else profile.updated_at
    seconds = event.time - newest
    steps = int(seconds > 0) or len({e.time for e in profile.window if e.time > event.time})
    held, added = event_factors((*profile.scales, profile.habits), seconds, steps)
    held_habits, once = float(held[-1]), float(added[-1])

    sums = profile.sums * held[:-1, None]
    sums += event.weight * added[:-1, None] * table.vectors[event.item]
    tags = {tag: weight * held_habits for tag, weight in profile.tags.items()}
    for tag in table.tags[event.item]:
        tags[tag] = tags.get(tag, 0.0) + event.weight * once
    items, frequencies = profile.items, profile.frequencies * np.float32(held_habits)
    place = int(np.searchsorted(items, event.item))
    if place == len(items) or items[place] != event.item:
        items = np.insert(items, place, event.item)
        frequencies = np.insert(frequencies, place, 0.0)
    frequencies[place] += once
    began_at = event.time if profile.began_at is None else min(profile.began_at, event.time)
    n_began = profile.n_began if profile.began_at == began_at else 0
    position = bisect_right(profile.window, event.time, key=lambda e: e.time)
    events = (*profile.window[:position], event, *profile.window[position:])
    dropped = events[: max(0, len(events) - profile.window_size)]
    older = [e.time for e in dropped]
    if profile.before_window is not None:
        older.append(profile.before_window)

    after = replace(
        profile,
        sums=sums,
        tags=tags,
        items=items,
        frequencies=frequencies,
        window=events[len(dropped) :],
        before_window=max(older, default=None),
        n_events=profile.n_events + 1,
        began_at=began_at,
        n_began=n_began + (event.time == began_at),
        updated_at=max(newest, event.time),
    )
    return replace(after, vector=encode(after))


def build(
    history: Histories,
    *,
    table: ItemTable,
    scales: tuple[Scale, ...],
    window_size: int,
    habits: Scale = HABITS,
    declared: Mapping[str, str] | None = None,
    encode: Encode = content_vector,
) -> Profile:
    """The profile of one device's history: the same as updating event by event, at once.

    Args:
        history: one device.

    Raises:
        ConfigError: the window holds no event.
        DataError: an item is not in the table, or a weight is not positive and finite.
    """
    profile = empty_profile(
        table,
        scales=scales,
        window_size=window_size,
        habits=habits,
        declared=declared,
        encode=encode,
    )
    if not history.n_events:
        return profile
    for item, weight in zip(history.items.tolist(), history.weights.tolist(), strict=True):
        _check(item, weight, table)
    now = int(history.times[-1])
    [faded] = decay([habits], *event_ages(history, now))
    aged = faded * history.weights
    tags: dict[str, float] = {}
    for item, weight in zip(history.items.tolist(), aged.tolist(), strict=True):
        for tag in table.tags[item]:
            tags[tag] = tags.get(tag, 0.0) + weight
    items, place = np.unique(history.items, return_inverse=True)
    columns = (history.items, history.times, history.weights, history.types)
    recent = (column[-window_size:].tolist() for column in columns)
    profile = replace(
        profile,
        sums=decayed_sums(history, table.vectors, now, scales)[0],
        tags=tags,
        items=items,
        frequencies=np.bincount(place, weights=faded).astype(np.float32),
        window=tuple(Event(*values) for values in zip(*recent, strict=True)),
        before_window=(
            int(history.times[-window_size - 1]) if history.n_events > window_size else None
        ),
        n_events=history.n_events,
        began_at=int(history.times[0]),
        n_began=int((history.times == history.times[0]).sum()),
        updated_at=now,
    )
    return replace(profile, vector=encode(profile))


def _check(item: int, weight: float, table: ItemTable) -> None:
    if not 0 <= item < table.n_items:
        raise DataError(
            f"event: item index {item} is not in the table of {table.n_items} items; "
            "fetch the current item table"
        )
    if not 0 < weight < float("inf"):
        raise DataError(f"event: weight {weight} of item {table.ids[item]!r} must be positive")
