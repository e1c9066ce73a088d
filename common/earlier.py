"""What earlier ledgers of a population have spent of its budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .anchor import is_behind
from .errors import LedgerError
from .ledger_entries import Earlier, Releases, Reserve, read_chain, signed_by


def find_earlier(
    paths: Sequence[Path], *, population: str, population_size: int
) -> tuple[Earlier, ...]:
    """What ledgers of one population have reserved, each once however often it is named.

    Args:
        paths: ledgers, or run folders with one; those that they name as earlier ones count too.
        population: name of the users that all of them must be about.
        population_size: how many they are.

    Raises:
        LedgerError: a ledger can't be read, doesn't hold together, is of another population, or ends
            before the anchor beside it.
    """
    found: dict[str, Earlier] = {}
    for path in paths:
        file = path / "ledger.jsonl" if path.is_dir() else path
        chain = read_chain(file)
        anchor = file.with_name("anchor.json")
        if file.name == "ledger.jsonl" and anchor.exists():
            is_behind(anchor, file, chain)  # what was cut off stays spent
        opening = chain.opening
        if (opening.population, opening.population_size) != (population, population_size):
            raise LedgerError(
                f"{file}: is of population '{opening.population}' of {opening.population_size:,}, not "
                f"of '{population}' of {population_size:,}; budgets add up within one population only"
            )
        if opening.unit != "user":
            raise LedgerError(f"{file}: is of {opening.unit}s; figures of other units don't add up")
        if not signed_by(chain.entries[-1], opening.public_key):
            raise LedgerError(f"{file}: the last line isn't signed with the ledger's key")
        mechanisms = Counter(e.mechanism for e in chain.entries if isinstance(e, Reserve))
        own = Earlier(
            ledger=chain.identity,
            head=chain.head,
            releases=tuple(Releases(mechanism=m, count=n) for m, n in mechanisms.items()),
        )
        for other in (*opening.earlier, own):
            known = found.get(other.ledger)
            # A ledger only grows, so the one with more releases is the later state of it.
            if known is None or _total(other) >= _total(known):
                found[other.ledger] = other
    return tuple(found.values())


def _total(earlier: Earlier) -> int:
    return sum(releases.count for releases in earlier.releases)
