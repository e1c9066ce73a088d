"""What several ledgers cost one population together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.earlier import find_earlier
from ..common.errors import LedgerError
from ..common.ledger_entries import NEIGHBOURS, read_chain
from .bounded import Bounded, epsilon_within

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@dataclass(frozen=True)
class Composition:
    """ε of several ledgers.

    Attributes:
        population: its name.
        population_size: its users.
        delta: δ of ``joint``: the smallest of the ledgers'.
        each: ε of each ledger's own releases at ``delta``, in the order given.
        exceeded: ledgers whose target is below ``joint``, each with its target.
        joint: ε of all releases together, those of earlier ledgers that these name included.
        others: ledgers that count because one of these names them, and that weren't given.
    """

    population: str
    population_size: int
    delta: float
    each: tuple[tuple[Path, float], ...]
    exceeded: tuple[tuple[Path, float], ...]
    joint: float
    others: int

    @property
    def total(self) -> float:
        """What adding up would say: never below ``joint`` where no other ledger counts."""
        return math.fsum(figure for _, figure in self.each)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content; infinite figures are None."""

        def finite(figure: float) -> float | None:
            return figure if math.isfinite(figure) else None

        return {
            "population": self.population,
            "population_size": self.population_size,
            "delta": self.delta,
            "ledgers": [{"ledger": str(p), "epsilon": finite(e)} for p, e in self.each],
            "epsilon": finite(self.joint),
            "sum": finite(self.total),
            "other_ledgers": self.others,
            "above_target": [{"ledger": str(p), "target_epsilon": t} for p, t in self.exceeded],
        }


def compose(paths: Sequence[Path]) -> Composition:
    """Compose ``paths``, ledgers or run folders.

    Raises:
        LedgerError: one can't be read or doesn't hold together, they are of different
            populations, one is of another unit than the user or given twice, or what they cost
            can't be worked out.
    """
    files = [path / "ledger.jsonl" if path.is_dir() else path for path in paths]
    chains = [read_chain(file) for file in files]
    first = chains[0].opening
    identities: dict[str, Path] = {}
    for file, chain in zip(files, chains, strict=True):
        if chain.identity in identities:
            raise LedgerError(
                f"{file}: is {identities[chain.identity]} again; name each ledger once"
            )
        identities[chain.identity] = file
    found = find_earlier(files, population=first.population, population_size=first.population_size)
    delta = min(chain.opening.delta for chain in chains)
    own = {earlier.ledger: earlier.events() for earlier in found}
    every: Counter[DpEvent] = Counter()
    for events in own.values():
        every += events
    with Bounded(epsilon_within) as ask:
        joint, *each = (
            ask(events, delta=delta, adjacency=NEIGHBOURS["user"])
            for events in (every, *(own[identity] for identity in identities))
        )
    targets = [(f, c.opening.target_epsilon) for f, c in zip(files, chains, strict=True)]
    return Composition(
        population=first.population,
        population_size=first.population_size,
        delta=delta,
        each=tuple(zip(files, each, strict=True)),
        exceeded=tuple((file, t) for file, t in targets if t is not None and t < joint),
        joint=joint,
        others=len(own.keys() - identities.keys()),
    )
