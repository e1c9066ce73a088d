"""Rounds that nobody takes part in cost as much as any: a server must not go on making them."""

from __future__ import annotations

from ..common.errors import ServerError
from .strategy import RoundRecord

EMPTY_ROUNDS = 3
"""How many in a row are too many."""


class Attendance:
    """Counts the rounds in a row that no device contributed to."""

    def __init__(self) -> None:
        self._empty = 0

    def after(self, record: RoundRecord) -> None:
        """Take note of a round.

        Raises:
            ServerError: it was one too many without a contribution.
        """
        self._empty = 0 if record.trained else self._empty + 1
        if self._empty < EMPTY_ROUNDS:
            return
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(record.rejected.items()))
        raise ServerError(
            f"{EMPTY_ROUNDS} rounds in a row were paid for, and no device contributed "
            f"({told or 'none was asked'}): see what the policies of devices ask for, and start the "
            "server again to go on"
        )
