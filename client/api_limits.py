"""How much a call of a device may carry; the service and its clients keep to it."""

from __future__ import annotations

from ..common.errors import ConfigError

MOST_BYTES = 8 << 20
"""Of a message, either way."""
MOST_EVENTS = 1_000
"""Events recorded at a time."""
MOST_CANDIDATES = 100_000
"""Candidates of a recommendation."""
LONGEST_LIST = 10_000
"""Items of a recommendation."""

LONGEST_COMPARED = 1_000
"""Items of a list whose change is told: with two lists and the longest ids the answer stays below
``MOST_BYTES``, and it comes when the event is stored already."""
MOST_SHIFTS = 1_000
"""Weights of tags, and of items, whose change is told."""


def check_size(count: int, most: int, what: str) -> None:
    """Refuse what is too much.

    Raises:
        ConfigError: ``count`` is above ``most``.
    """
    if count > most:
        raise ConfigError(f"{count:,} {what}; at most {most:,} at a time")


def check_change(top_k: int | None, n_events: int) -> None:
    """Refuse to tell the change of a list that is none, or of too much; None asks for nothing.

    Raises:
        ConfigError: the list has no item or too many, or there are too many events.
    """
    if top_k is None:
        return
    if top_k < 1:
        raise ConfigError(f"change of a list of {top_k} items; ask for at least one")
    check_size(top_k, LONGEST_COMPARED, "items of a list whose change is to be told")
    check_size(n_events, MOST_EVENTS, "events whose change is to be told")
