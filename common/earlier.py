"""What earlier ledgers of a population have spent of its budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .anchor import is_behind
from .errors import BadEntry, LedgerError
from .ledger_entries import Chain, Earlier, Releases, Reserve, read_chain, signed_by
from .mechanism import Mechanism


def find_earlier(
    paths: Sequence[Path], *, population: str, population_size: int
) -> tuple[Earlier, ...]:
    """What ledgers of one population have reserved, each once however often it is named.

    A ledger that is at hand counts by its own signed lines, whatever others say of it; and what they say
    must be how it once stood, or one of the two is a lie.

    Args:
        paths: ledgers, or run folders with one; those that they name as earlier ones count too.
        population: name of the users that all of them must be about.
        population_size: how many they are.

    Raises:
        LedgerError: a ledger can't be read, doesn't hold together, is of another population, or ends
            before the anchor beside it.
        BadEntry: a ledger tells something else of another one at hand than that one's own lines.
    """
    at_hand: dict[str, Chain] = {}
    told: list[tuple[Path, Earlier]] = []
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
        known = at_hand.get(chain.identity)
        if known is None or len(known.entries) < len(chain.entries):
            at_hand[chain.identity] = chain  # a ledger only grows
        told += [(file, other) for other in (*opening.earlier, _own(chain))]
    found: dict[str, Earlier] = {}
    for file, other in told:
        own = at_hand.get(other.ledger)
        if own is None:
            found[other.ledger] = _most(other, found.get(other.ledger, other))
            continue
        if _counts(other) != _reserved(own, other.head):
            why = f"what it tells of ledger {other.ledger[:16]}… isn't in that ledger, which is at hand: "
            raise BadEntry(file, 1, why + "one of the two isn't what was written, so use neither")
        found[other.ledger] = _own(own)
    return tuple(found.values())


def _own(chain: Chain) -> Earlier:
    return _earlier(chain.identity, chain.head, _reserved(chain, chain.head) or Counter())


def _reserved(chain: Chain, head: str) -> Counter[Mechanism] | None:
    """What the ledger had reserved when ``head`` was its last line; None where it never was."""
    heads = [*(entry.previous for entry in chain.entries[1:]), chain.head]
    if head not in heads:
        return None
    known = chain.entries[: heads.index(head) + 1]
    return Counter(entry.mechanism for entry in known if isinstance(entry, Reserve))


def _most(one: Earlier, other: Earlier) -> Earlier:
    """Two accounts of a ledger that nobody has: of each mechanism the larger number."""
    later = max(one, other, key=lambda earlier: _counts(earlier).total())
    return _earlier(later.ledger, later.head, _counts(one) | _counts(other))


def _counts(earlier: Earlier) -> Counter[Mechanism]:
    counts: Counter[Mechanism] = Counter()
    for releases in earlier.releases:
        counts[releases.mechanism] += releases.count
    return counts


def _earlier(ledger: str, head: str, mechanisms: Counter[Mechanism]) -> Earlier:
    releases = tuple(Releases(mechanism=m, count=n) for m, n in mechanisms.items())
    return Earlier(ledger=ledger, head=head, releases=releases)
