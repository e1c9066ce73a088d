"""Public names of event types that don't speak for an item, whatever the domain.

They are those of the presets of a simulation, so that a device takes an event as the data did that its
model was trained on; a test compares.
"""

from __future__ import annotations

REJECTING = frozenset(
    {
        "remove_from_cart",
        "return",
        "refund",
        "cancel",
        "hide",
        "unlike",
        "dislike",
        "unfollow",
        "mute",
        "block",
        "report",
        "skip",
        "unsubscribe",
        "ban",
        "bounce",
        "drop",
        "unenroll",
        "dismiss",
    }
)
"""Somebody turned the item down."""

NEUTRAL = frozenset({"impression", "query"})
"""Somebody saw the item, or looked for it."""
