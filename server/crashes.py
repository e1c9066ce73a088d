"""Releases that were paid for and never finished: dying again and again must not spend the budget.

Whatever the process dies of, the ledger tells: a release that was reserved, and not committed, was lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..common.errors import ServerError
from ..common.files import write_atomically
from ..common.ledger_entries import Commit, Entry, Reserve, read_chain
from .folder import ServerFolder

_MOST = 3  # releases lost in a row


def lost_in_a_row(entries: Iterable[Entry], *, seen: int = 0) -> int:
    """Releases reserved since the last one that was finished.

    Args:
        entries: of a ledger, oldest first.
        seen: entries that don't count any more, from the first.
    """
    lost = 0
    for entry in entries:
        if isinstance(entry, Commit):
            lost = 0
        elif isinstance(entry, Reserve) and entry.sequence >= seen:
            lost += 1
    return lost


def check_crashes(folder: ServerFolder, entries: Iterable[Entry]) -> None:
    """Before the next release is paid for.

    Raises:
        ServerError: the last ones were all lost.
    """
    try:
        seen = int(folder.crashes_seen.read_text())
    except (FileNotFoundError, ValueError):
        seen = 0
    lost = lost_in_a_row(entries, seen=seen)
    if lost >= _MOST:
        raise ServerError(
            f"the last {lost} releases were paid for and none was finished; see died in "
            f"{folder.log.name} for why (memory?), then go on with fedprofile server run --after-crashes"
        )


def accept_crashes(folder: ServerFolder) -> None:
    """Go on after what was lost so far: the operator has found out why.

    Raises:
        LedgerError: the ledger can't be read.
    """
    if folder.ledger.exists():
        number = len(read_chain(folder.ledger).entries)
        write_atomically(folder.crashes_seen, str(number).encode(), mode=0o600)
