"""How a profile moved: Δu, told of the profiles before and after."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .answers import InterestShift, ProfileChange, RecentEvent, VectorShift, WeightShift
from .api_limits import MOST_SHIFTS
from .profile import Event, Profile

_ROUNDING = 1e-6
"""Of a weight: what building a profile anew may differ by from updating it, and no change."""


def profile_change(
    before: Profile, after: Profile, *, ids: Sequence[str], event_types: Sequence[str]
) -> ProfileChange:
    """What became of ``before``, in the owner's words: ids and names in place of indices.

    Args:
        before: a profile.
        after: of the same owner, model and table, later.
        ids: item ids, by index.
        event_types: names of the event types, by index.
    """
    tags = _shifts(before.tags, after.tags)
    frequencies = _shifts(_named_frequencies(before, ids), _named_frequencies(after, ids))
    # Counted, for the same may happen twice at a time.
    old, new = Counter(before.window), Counter(after.window)

    def told(events: Counter[Event]) -> tuple[RecentEvent, ...]:
        return tuple(
            RecentEvent(ids[e.item], event_types[e.type], e.time, e.weight)
            for e in sorted(events.elements(), key=lambda e: e.time)
        )

    return ProfileChange(
        old_events=before.n_events,
        new_events=after.n_events,
        old_repeat_rate=before.repeat_rate,
        new_repeat_rate=after.repeat_rate,
        vector=vector_shift(before.vector, after.vector),
        interests=tuple(
            InterestShift(scale.clock, scale.half_life, vector_shift(a, b))
            for scale, a, b in zip(after.scales, before.sums, after.sums, strict=True)
        ),
        tags=tags[:MOST_SHIFTS],
        other_tags=len(tags[MOST_SHIFTS:]),
        frequencies=frequencies[:MOST_SHIFTS],
        other_frequencies=len(frequencies[MOST_SHIFTS:]),
        entered=told(new - old),
        left=told(old - new),
    )


def vector_shift(before: NDArray[np.float32], after: NDArray[np.float32]) -> VectorShift:
    """How far a vector moved; the angle is exact where it is small, which the cosine's isn't."""
    old, new = before.astype(np.float64), after.astype(np.float64)
    lengths = float(np.linalg.norm(old)), float(np.linalg.norm(new))
    angle = None
    if min(lengths) > 0:
        old_unit, new_unit = old / lengths[0], new / lengths[1]
        apart = float(np.linalg.norm(new_unit - old_unit))
        angle = math.degrees(2 * math.atan2(apart, float(np.linalg.norm(new_unit + old_unit))))
    return VectorShift(*lengths, distance=float(np.linalg.norm(new - old)), angle=angle)


def _shifts(old: Mapping[str, float], new: Mapping[str, float]) -> tuple[WeightShift, ...]:
    """The weights that moved, the largest change first."""
    shifts = (WeightShift(name, old.get(name, 0.0), new.get(name, 0.0)) for name in {**old, **new})
    moved = [one for one in shifts if abs(one.new - one.old) > _ROUNDING * max(one.old, one.new)]
    return tuple(sorted(moved, key=lambda one: (-abs(one.new - one.old), one.name)))


def _named_frequencies(profile: Profile, ids: Sequence[str]) -> dict[str, float]:
    pairs = zip(profile.items.tolist(), profile.frequencies.tolist(), strict=True)
    return {ids[item]: weight for item, weight in pairs}
