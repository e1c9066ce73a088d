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


def check_size(count: int, most: int, what: str) -> None:
    """Refuse what is too much.

    Raises:
        ConfigError: ``count`` is above ``most``.
    """
    if count > most:
        raise ConfigError(f"{count:,} {what}; at most {most:,} at a time")
