"""What earlier federations of the same users spent of their budget, before this one began."""

from __future__ import annotations

from pathlib import Path

from ..common.earlier import find_earlier
from ..common.ledger_entries import Earlier, read_chain
from ..common.server_config import FederationConfig

_FIRST_LINE = 1 << 20  # bytes; the first entry of a ledger is shorter


def spent_before(path: Path, ledger: Path, federation: FederationConfig) -> tuple[Earlier, ...]:
    """As the server's own ledger has it, or where that isn't begun, as the configuration names it.

    Args:
        path: folder of the server, which names are relative to.
        ledger: of the server.
        federation: who takes part, and which ledgers there are of them.

    Raises:
        LedgerError: a ledger can't be read, doesn't hold together, or is of another population.
    """
    if is_begun(ledger):
        return read_chain(ledger).opening.earlier
    return find_earlier(
        [path / name for name in federation.earlier],
        population=federation.name,
        population_size=federation.population_size,
    )


def is_begun(ledger: Path) -> bool:
    """Whether there is a first entry; a file without is what a kill left, and nothing was charged."""
    if not ledger.exists():
        return False
    with ledger.open("rb") as file:
        return b"\n" in file.read(_FIRST_LINE)
