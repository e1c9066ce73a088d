"""What in a profile speaks for an item: the terms of its score, by the events they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..common.decay import SECONDS_PER_DAY, decay
from ..common.items import ItemTable
from .nearest import nearest_item, tells_nearest
from .profile import Event, Profile
from .scoring import check_candidates
from .succession import event_chances, held_chances, tells_next

_ALL = slice(None)
_SPEAKS = 0.05
"""Share of an item's chance that what it goes with has at least: it goes a little with nearly anything."""


@dataclass(frozen=True)
class Reasons:
    """What in a profile speaks for an item.

    Attributes:
        events: recent events and their parts of the cosine between interests and item (mean over
            the time scales), largest first; the parts of all events of a history add up to it. What was
            done again and again is told once, of the last time, with all its parts.
        tags: tags of the item that the profile holds, and their share of all tag weight, largest
            first.
        follows: recent events that the item often follows on, and their parts of the chance that it
            comes next, largest first; likewise.
        together: items held that go with the item, and their parts of the chance that it comes next,
            largest first.
        nearest: the item held that is most like it, and the cosine; None where nothing tells that.
    """

    events: tuple[tuple[Event, float], ...] = ()
    tags: tuple[tuple[str, float], ...] = ()
    follows: tuple[tuple[Event, float], ...] = ()
    together: tuple[tuple[int, float], ...] = ()
    nearest: tuple[int, float] | None = None


def why(
    profile: Profile, table: ItemTable, item: int, *, served: ItemTable | None = None, top: int = 3
) -> Reasons:
    """What speaks most for ``item``.

    Args:
        profile: the user.
        table: that the profile was built with.
        item: index of the item.
        served: the table that it was ranked with; None: the same.
        top: events and tags of each kind, at most.

    Raises:
        DataError: the item is not in the table.
    """
    served = served or table
    found = why_alike(profile, table, item, top=top)
    if tells_next(served):
        next_ = why_next(profile, served, item, top=top)
        found = replace(found, follows=next_.follows, together=next_.together)
    asked = tells_nearest(served)
    return replace(
        found,
        nearest=nearest_item(served, profile.items, item) if asked else None,
    )


def why_alike(
    profile: Profile,
    table: ItemTable,
    item: int,
    *,
    columns: slice | NDArray[np.int64] = _ALL,
    top: int = 3,
) -> Reasons:
    """The events and tags alone.

    Args:
        profile: the user.
        table: that the profile was built with.
        item: index of the item.
        columns: of the item vectors, within which the cosine is.
        top: events and tags, at most.

    Raises:
        DataError: the item is not in the table.
    """
    check_candidates(np.array([item], dtype=np.int32), table)
    window, sums = profile.window, profile.sums[:, columns]
    times = np.array([event.time for event in window], dtype=np.int64)
    days = ((profile.updated_at or 0) - times) / SECONDS_PER_DAY
    steps = np.array([len(set(times[times > time])) for time in times], dtype=np.int64)
    norms = np.maximum(np.linalg.norm(sums, axis=1), 1e-6)
    parts = (decay(profile.scales, days, steps) / norms[:, None]).mean(axis=0)
    parts *= np.array([event.weight for event in window])
    vector = table.vectors[item][columns]
    likeness = table.vectors[[event.item for event in window]][:, columns] @ vector
    parts *= likeness / max(float(np.linalg.norm(vector)), 1e-6)
    events = list(zip(window, parts.tolist(), strict=True))
    total = sum(profile.tags.values())
    tags = [(tag, profile.tags[tag] / total) for tag in table.tags[item] if tag in profile.tags]
    return Reasons(
        events=_largest(events, top),
        tags=tuple(sorted(tags, key=lambda tag: (-tag[1], tag[0]))[:top]),
    )


def why_next(profile: Profile, served: ItemTable, item: int, *, top: int = 3) -> Reasons:
    """The recent events that an item often follows on, or what is held that it goes with, as ``served``
    tells either."""
    if not served.whole:
        return Reasons(follows=_largest(event_chances(profile, served, item), top))
    parts = held_chances(profile, served, item)
    least = _SPEAKS * sum(part for _, part in parts)
    parts = [part for part in parts if part[1] > least]
    return Reasons(together=tuple(sorted(parts, key=lambda part: (-part[1], part[0]))[:top]))


def _largest(parts: list[tuple[Event, float]], top: int) -> tuple[tuple[Event, float], ...]:
    """Those that say something, most first; events of one type and item are the newest of them."""
    found: dict[tuple[int, int], tuple[Event, float]] = {}
    for event, part in parts:  # oldest first
        _, before = found.get((event.item, event.type), (event, 0.0))
        found[event.item, event.type] = (event, before + part)
    return tuple(sorted((p for p in found.values() if p[1] > 0), key=lambda part: -part[1])[:top])
