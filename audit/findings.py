"""What an audit finds: one finding a check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["holds", "fails", "not run"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name.
        outcome: ``not run`` where what it needs isn't there.
        what: what was found, or why it wasn't run; one line.
        line: the first bad line of the ledger, from 1; None where no line is to blame.
    """

    check: str
    outcome: Outcome
    what: str
    line: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return asdict(self)


def judge(check: str, faults: Iterable[tuple[int | None, str]], *, otherwise: str) -> Finding:
    """The first of ``faults``, each a line (or None) and what is wrong with it, or that there is none."""
    for line, what in faults:
        where = "" if line is None else f"line {line} (entry {line - 1}): "
        return Finding(check, "fails", where + what, line)
    return Finding(check, "holds", otherwise)
