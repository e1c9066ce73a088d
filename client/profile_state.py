"""A profile as bytes for the device's own store, and back: safetensors, nothing that can run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from safetensors.numpy import load, save

from .profile import Event, Profile

LAYOUT = 2
"""Of the bytes: those of another layout are left, and the profile is built anew."""
_TAIL = "tail"  # what isn't an array, as JSON


def profile_to_bytes(profile: Profile) -> bytes:
    """All that follows from events; declared data and time scales are kept elsewhere."""
    tail = {
        "tags": profile.tags,
        "before_window": profile.before_window,
        "n_events": profile.n_events,
        "began_at": profile.began_at,
        "n_began": profile.n_began,
        "updated_at": profile.updated_at,
    }
    window = profile.window
    state: bytes = save(
        {
            "sums": np.ascontiguousarray(profile.sums),
            "vector": np.ascontiguousarray(profile.vector),
            "items": np.ascontiguousarray(profile.items),
            "frequencies": np.ascontiguousarray(profile.frequencies),
            "window": np.array([[e.item, e.time, e.type] for e in window], np.int64).reshape(-1, 3),
            "weights": np.array([e.weight for e in window], np.float64),
            _TAIL: np.frombuffer(json.dumps(tail).encode(), np.uint8),
        }
    )
    return state


def profile_from_bytes(state: bytes, empty: Profile) -> Profile:
    """The profile that :func:`profile_to_bytes` was given.

    Args:
        state: its result.
        empty: a profile without events, with the same scales, window size and declared data.
    """
    arrays = load(state)
    tail = json.loads(arrays[_TAIL].tobytes())
    events = zip(arrays["window"].tolist(), arrays["weights"].tolist(), strict=True)
    return replace(
        empty,
        sums=arrays["sums"],
        vector=arrays["vector"],
        items=arrays["items"],
        frequencies=arrays["frequencies"],
        window=tuple(
            Event(item=item, time=time, weight=weight, type=kind)
            for (item, time, kind), weight in events
        ),
        **tail,
    )
