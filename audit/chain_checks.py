"""Whether a ledger is whole: its chain, who signed it, and whether its end is still there."""

from __future__ import annotations

from collections import deque
from itertools import islice
from pathlib import Path

from ..common.anchor import Anchor
from ..common.errors import BadEntry, LedgerError
from ..common.ledger_entries import Chain, follow, read_chain, signed_by
from .devices import USER
from .findings import Finding, judge
from .ledgers import Evidence
from .release_checks import check_arithmetic, check_pairing

_UNREADABLE = "the chain doesn't hold"
_SIGNS = (b'"kind":"open"', b'"previous":', b'"sequence":')
"""Of an entry, however damaged: a few bytes that changed don't take all of them away."""


def check_whole(
    evidence: Evidence, public_key: str | None = None
) -> tuple[Chain | None, list[Finding]]:
    """The chain, None where it or its signatures don't hold, and what can be said of it by itself.

    That is whether all of it is there, by whom, and whether its releases fit together.

    Raises:
        LedgerError: the file can't be read, or is no ledger.
    """
    chain, findings = check_chain(evidence.ledger)
    if chain is not None:
        findings += [
            check_key(chain, public_key),
            check_anchor(chain, evidence.anchor, trusting=evidence.trusting),
        ]
        findings += [check_pairing(chain), check_arithmetic(chain)]
        if evidence.folder is not None:
            findings.append(check_unit(chain))
    return chain, findings


def check_chain(path: Path) -> tuple[Chain | None, list[Finding]]:
    """The chain, None where it doesn't hold, and what is to be said about it and its signatures.

    The last signature is over a line that holds the hash of the one before, and so on: with a chain
    that holds, it is over everything. Only where one of the two fails, every signature is looked at to
    find the first bad line.

    Raises:
        LedgerError: the file can't be read, holds no entry or is no ledger.
    """
    try:
        chain = read_chain(path)
    except BadEntry as error:
        if error.line == 1 and not _signs_of_a_ledger(path):
            raise LedgerError(f"{path}: is no ledger; name one, or the folder it is in") from error
        line, why = _first_bad(path, error)
        return None, [
            Finding("chain", "fails", f"line {line} (entry {line - 1}): {why}", line),
            Finding("signatures", "not run", _UNREADABLE),
        ]
    entries = chain.entries
    held = (
        f"{len(entries):,} entries, each with the hash of the one before; head {chain.head[:16]}…"
    )
    if torn := _torn(path):
        held += f"; {torn:,} bytes of a line that was cut off follow, which is no entry"
    holds = Finding("chain", "holds", held)
    key = chain.opening.public_key
    if not signed_by(entries[-1], key):
        bad = next(entry for entry in entries if not signed_by(entry, key))
        line, why = (
            bad.sequence + 1,
            "isn't signed by the ledger's key: changed, and the chain rebuilt",
        )
        what = f"line {line} (entry {bad.sequence}): {why}"
        return None, [holds, Finding("signatures", "fails", what, line)]
    return chain, [
        holds,
        Finding("signatures", "holds", f"the last one covers all lines; key {key[:16]}…"),
    ]


def check_key(chain: Chain, public_key: str | None) -> Finding:
    """Whether the ledger is signed by the key the officer knows."""
    own = chain.opening.public_key
    if public_key is None:
        return Finding(
            "public key", "not run", f"anybody can sign with a key of their own: pin {own}"
        )
    if own != public_key:
        return Finding("public key", "fails", f"signed by {own}, not by {public_key}", 1)
    return Finding("public key", "holds", f"signed by the pinned key {own[:16]}…")


def check_unit(chain: Chain) -> Finding:
    """Whether the ledger of a run or server is about users: only a device's own counts its events."""
    unit = chain.opening.unit
    return judge(
        "unit",
        [] if unit == USER else [(1, f"a ledger of {unit}s, where one of {USER}s is to be")],
        otherwise=f"ε is of all that one {USER} did",
    )


def check_anchor(chain: Chain, path: Path | None, *, trusting: str | None = None) -> Finding:
    """Whether the ledger is at least as long as its head was published to be.

    Args:
        chain: the ledger.
        path: of the anchor; None: nobody says.
        trusting: what named the place, where the officer didn't: the configuration's digest leaves places
            out, so that who has no key can name another one there.
    """
    if path is None:
        return Finding(
            "anchor", "not run", "none named: a tail that was cut off wouldn't show; use --anchor"
        )
    place = (
        f"; {trusting}, which whoever has the folder can change: use --anchor" if trusting else ""
    )
    if not path.exists():
        return Finding("anchor", "fails", f"{path}: the anchor is missing{place}")
    try:
        anchor = Anchor.read(path)
    except LedgerError as error:
        return Finding("anchor", "fails", str(error))
    entries = chain.entries
    if anchor.ledger != chain.identity:
        return Finding("anchor", "fails", f"{path}: is the anchor of another ledger")
    if not anchor.signed_by(chain.opening.public_key):
        return Finding("anchor", "fails", f"{path}: isn't signed by the ledger's key")
    if anchor.sequence >= len(entries):
        gone = anchor.sequence + 1 - len(entries)
        return Finding(
            "anchor",
            "fails",
            f"line {len(entries) + 1} and what followed is missing: {gone} of {anchor.sequence + 1} "
            f"published entries were cut off",
            len(entries) + 1,
        )
    following = (
        entries[anchor.sequence + 1].previous if anchor.sequence + 1 < len(entries) else None
    )
    if anchor.head != (following or chain.head):
        line = anchor.sequence + 1
        return Finding("anchor", "fails", f"line {line} isn't the one that was published", line)
    later = len(entries) - 1 - anchor.sequence
    behind = f"; {later} entries are later" if later else ""
    return Finding(
        "anchor", "holds", f"{anchor.sequence + 1:,} entries were published{behind}{place}"
    )


def _signs_of_a_ledger(path: Path) -> bool:
    with path.open("rb") as file:
        return any(sign in line for line in file for sign in _SIGNS)


def _torn(path: Path) -> int:
    """Bytes after the last whole line: a process died there, or is writing just now."""
    with path.open("rb") as file:
        [last] = deque(file, maxlen=1)
    return 0 if last.endswith(b"\n") else len(last)


def _first_bad(path: Path, error: BadEntry) -> tuple[int, str]:
    """A changed line may show only in the hash that the next one has of it; its signature tells."""
    with path.open("rb") as file:
        lines = list(islice(file, error.line - 1))
    if not lines:
        return error.line, error.why
    good = follow(path, lines)  # held until there
    key = good.opening.public_key
    if not signed_by(good.opening, key):
        return 1, "isn't signed by the key it names"
    for entry in good.entries:
        if not signed_by(entry, key):
            return entry.sequence + 1, "isn't what was signed: changed afterwards"
    return error.line, error.why
