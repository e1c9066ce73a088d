"""What an audit may say in words: verdict, guarantee, what to be wary of, and what no check looked at."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..common.formatting import count, epsilon, factor, printable, scientific
from ..common.ledger_entries import Chain, Open, Reserve
from ..common.strength import Statement, weaknesses
from .devices import USER
from .findings import Finding
from .privacy_checks import Cost
from .verify import Verification

ASKED = {
    "chain": "Was a line of the ledger changed, removed or inserted?",
    "signatures": "Was it all signed by the key that the ledger names?",
    "public key": "Is that the key you know?",
    "anchor": "Is the end of the ledger still there?",
    "pairing": "Does each round follow from the one before?",
    "arithmetic": "Do its numbers agree with each other?",
    "unit": "Is ε about all that a user did?",
    "sampler": "Do cohort sizes look like the secret coins that ε rests on?",
    "epsilon": "What did it cost, recomputed from the ledger alone?",
    "PRV": "Does a second accountant agree?",
    "RDP": "Does a third accountant agree?",
    "budget": "Is ε within the target?",
    "configuration": "Is the configuration the one that was run?",
    "metrics": "Does the run tell the ledger's figures?",
    "checkpoint": "Did the last release lead to the weights that were kept?",
    "model": "Are the released weights those that the run ended with?",
    "items": "Are the items to rank with as they were written?",
    "releases": "Is each model that was handed out one that the ledger paid for?",
    "server key": "Do devices trust the key that signed the ledger?",
}
"""Check → the question that it answers."""


@dataclass(frozen=True)
class Scope:
    """What a guarantee covers.

    Attributes:
        tasks: task → releases, in the order of the ledger.
        earlier: releases of earlier ledgers on the same population that this one counts.
        first: day of the first release, by the ledger's own clock; None where it tells none.
        last: day of the last one.
    """

    tasks: dict[str, int]
    earlier: int
    first: str | None
    last: str | None

    @classmethod
    def of(cls, chain: Chain) -> Scope:
        """The scope of a whole ledger."""
        reserved = [e for e in chain.entries if isinstance(e, Reserve)]
        return cls(
            tasks=dict(Counter(e.task for e in reserved)),
            earlier=sum(r.count for other in chain.opening.earlier for r in other.releases),
            first=_day(reserved[0].time) if reserved else None,
            last=_day(reserved[-1].time) if reserved else None,
        )

    @property
    def releases(self) -> int:
        """How many, without earlier ledgers'."""
        return sum(self.tasks.values())

    def sentence(self) -> str:
        """``the 9 releases of this ledger (1 of …, 8 of …), made from … to …``."""
        shown = [f"{count(n)} of {printable(task, 40)}" for task, n in self.tasks.items()]
        if len(shown) > 4:
            shown = [*shown[:3], f"{count(len(shown) - 3)} more tasks"]
        what = f"the {count(self.releases)} releases of this ledger ({', '.join(shown)}"
        what += "; no others)"
        if self.earlier:
            what += f" and the {count(self.earlier)} earlier releases that it counts"
        if self.first is None or self.last is None:
            return what
        when = (
            f"on {self.first}" if self.first == self.last else f"from {self.first} to {self.last}"
        )
        return f"{what}, made {when} by the ledger's clock"


def objection(verification: Verification, faults: Sequence[str]) -> str | None:
    """Why no guarantee may be quoted, None where one may.

    Args:
        verification: of the ledger.
        faults: what probes and canaries of the same build have against it.
    """
    chain, cost = verification.chain, verification.cost
    if chain is None or cost is None:
        return "The ledger isn't whole: what it says can't be relied on."
    if not verification.holds:
        return "The ledger doesn't hold what it says."
    if faults:
        return "The program doesn't run as the ledger declares."
    if cost.credited is None:
        return "ε couldn't be computed."
    if math.isinf(cost.credited):
        return f"ε is {_told_of_epsilon(verification)}."
    unit: str = chain.opening.unit
    if unit != USER:
        return f"The ledger is about the {unit}, not the {USER}: its ε is no promise to people."
    if chain.opening.randomness != "csprng":
        return "A seed decided noise and cohorts: whoever knows or guesses it can take the noise off again."
    if not Scope.of(chain).releases:
        return "Nothing was released yet."
    return None


def guarantee(opening: Open, cost: Cost, scope: Scope) -> str:
    """One sentence to be quoted: unit, adjacency, ε, δ, what it covers and who must be trusted."""
    assert cost.credited is not None
    unit = opening.unit
    return (
        f"For {scope.sentence()}, taken together, whoever receives all of them learns about any one "
        f"{unit} of the population “{printable(opening.population)}” (N = "
        f"{count(opening.population_size)}) no more than (ε, δ)-differential privacy at the level of the "
        f"{unit} allows, with ε = {epsilon(cost.credited)} and δ = {scientific(cost.delta)}, neighbours by "
        f"{opening.adjacency}: adding or removing everything that any one {unit} did changes the "
        f"probability of any outcome by no more than a factor of e^ε = {factor(cost.credited)}, plus δ; "
        "provided that the operator of the server, who sees sums before noise is added, adds the recorded "
        "noise and keeps it and the choice of cohorts secret, that the hosts of devices clip every "
        f"contribution as recorded, and that the number of {unit}s, the catalogue of items and all "
        "settings of the run, moments in time included, are public."
    )


def verdict(verification: Verification, faults: Sequence[str]) -> str:
    """The audit in one sentence."""
    failed = [finding.check for finding in verification.findings if finding.outcome == "fails"]
    if faults:
        failed.append("the running program")
    if failed:
        return f"Does not hold: {', '.join(printable(check, 60) for check in failed)}."
    cost = verification.cost
    if cost is None or cost.credited is None or math.isinf(cost.credited):
        return "The ledger is whole, and it promises no privacy: ε is infinite."
    within = ""
    if cost.target is not None:
        target, open_yet = epsilon(cost.target), "unless cohorts turn out to be Poisson samples"
        within = f", within the target of {target}"
        if cost.credited > cost.target:
            within = f", above the target of {target} {open_yet}"
    return (
        f"Holds: every check that could be run agrees with ε = {epsilon(cost.credited)} at "
        f"δ = {scientific(cost.delta)}{within}."
    )


def faults_of(findings: Sequence[Finding], more: Sequence[str]) -> Iterator[Statement]:
    """What doesn't hold, in the order of the checks."""
    for finding in findings:
        if finding.outcome == "fails":
            yield Statement(finding.check, finding.what, "bad")
    for fault in more:
        yield Statement("the running program", fault, "bad")


def cautions(verification: Verification) -> Iterator[Statement]:
    """What to be wary of where nothing fails."""
    chain, cost = verification.chain, verification.cost
    if chain is None or cost is None:
        return
    opening = chain.opening
    if cost.credited is None or math.isinf(cost.credited):
        yield Statement(
            "Nobody is protected",
            f"ε is {'unknown' if cost.credited is None else _told_of_epsilon(verification)}.",
            "bad",
        )
        return
    if opening.randomness != "csprng":
        yield Statement(
            "The noise is repeatable",
            f"A seed decided noise and cohorts, so ε = {epsilon(cost.credited)} is what the same releases "
            "would cost with secret noise. Don't hand them out.",
            "warn",
        )
    yield from weaknesses(cost.credited, delta=cost.delta, population_size=opening.population_size)
    unseen = [f.check for f in verification.findings if f.outcome == "not run"]
    if unseen:
        yield Statement(
            f"{len(unseen)} of {len(verification.findings)} checks could not be run",
            f"{', '.join(printable(check, 60) for check in unseen)}: “not run” is no “holds”. The table of "
            "checks says what each one needs.",
        )


def _told_of_epsilon(verification: Verification) -> str:
    return next(f.what for f in verification.findings if f.check == "epsilon")


def _day(time: str) -> str | None:
    try:
        return dt.datetime.fromisoformat(time).date().isoformat()
    except ValueError:
        return None
