"""The hazards of NIST SP 800-226, each answered with evidence or "not covered".

Near, Darais, Lefkovitz & Howarth, "Guidelines for Evaluating Differential Privacy Guarantees" (March
2025), put what a guarantee rests on into a pyramid of three layers, each of which depends on those
below, and warn of hazards in each. The headings here are its topics, in our words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from ..common.formatting import count, epsilon, factor, number, scientific
from ..common.strength import STRONG_EPSILON, WEAK_EPSILON
from .device_checks import COMPLETE, DISTINCT
from .devices import USER
from .measurements import Canaries, Measurement, Probes
from .privacy_checks import UNCLAIMED
from .verify import Verification

GUARANTEE, ALGORITHMS, DEPLOYMENT = (
    "Privacy parameters and unit of privacy",
    "Algorithms: correctness, utility and bias",
    "Deployment: trust, side channels, security, data collection",
)
Answer = Literal["evidence", "attention", "not covered"]


@dataclass(frozen=True)
class Hazard:
    """One hazard and its answer.

    Attributes:
        layer: of the pyramid, from its top.
        title: the hazard.
        answer: ``evidence`` where something that was checked speaks against it, ``attention`` where what
            was found says to take care, ``not covered`` where this audit can't tell.
        text: the evidence, or who could tell.
    """

    layer: str
    title: str
    answer: Answer
    text: str

    def to_dict(self) -> dict[str, str]:
        """JSON-ready content."""
        return asdict(self)


def hazards(
    verification: Verification,
    *,
    probes: Measurement | None,
    canaries: Measurement | None,
) -> list[Hazard]:
    """All hazards, from the top of the pyramid down.

    Args:
        verification: of the ledger.
        probes: what they found; None where there are none.
        canaries: what they found; None where there are none.
    """
    return [
        *_guarantee(verification),
        *_algorithms(verification, probes, canaries),
        *_deployment(verification),
    ]


def _guarantee(verification: Verification) -> Iterator[Hazard]:
    chain, cost = verification.chain, verification.cost
    if chain is None or cost is None:
        yield Hazard(
            GUARANTEE,
            "All hazards of the parameters and the unit",
            "not covered",
            "The ledger isn't whole, so there is no guarantee to ask about.",
        )
        return
    opening, spent, size = chain.opening, cost.credited, chain.opening.population_size
    if spent is None or math.isinf(spent):
        yield Hazard(GUARANTEE, "A large ε", "attention", "ε is infinite or unknown.")
    else:
        shown = f"ε = {epsilon(spent)}, so a factor of {factor(spent)} at most"
        if spent <= STRONG_EPSILON:
            answer, remark = "evidence", "values up to 1 are commonly held to be strong"
        elif spent <= WEAK_EPSILON:
            answer, remark = (
                "attention",
                "above 1 it bounds, but doesn't rule out, what can be learned",
            )
        else:
            answer, remark = "attention", "above 10 protection in practice is doubtful"
        yield Hazard(GUARANTEE, "A large ε", _as(answer == "evidence"), f"{shown}; {remark}.")
    exposed = cost.delta * size
    yield Hazard(
        GUARANTEE,
        "A δ that allows catastrophic failure",
        _as(cost.delta <= 1 / size**2),
        f"δ = {scientific(cost.delta)} and N = {count(size)}, so N·δ = {number(exposed, 3)} and 1/N² = "
        f"{scientific(1 / size**2)}. Up to 1/N² is the careful choice; from 1/N on, publishing somebody's "
        "data in clear would be allowed. Gaussian noise as such doesn't fail in that way.",
    )
    yield Hazard(
        GUARANTEE,
        "Event-level privacy presented as privacy of people",
        _as(opening.unit == USER),
        "The unit is the user, and everything of one user is clipped together; event-level figures of "
        "devices are told in a section of their own and never added."
        if opening.unit == USER
        else f"The unit is the {opening.unit}: each is hidden by itself, and who has many of them is not. "
        "Its ε is no promise to people.",
    )
    yield Hazard(
        GUARANTEE,
        "Harm outside the unit of privacy",
        "not covered",
        "A person with several accounts, or a household, is protected by about as many times ε. What is "
        "true of everybody can be learned from others. The ledger can't tell who is behind a user id.",
    )
    yield Hazard(
        GUARANTEE,
        "Guarantees that can't be compared",
        "evidence",
        f"All parameters are stated: unit {opening.unit}, neighbours by {opening.adjacency}, one δ for all "
        "releases together, and the mechanisms themselves in the table of releases. Another ε compares "
        "only at the same unit, adjacency and δ.",
    )
    others = len(opening.earlier)
    yield Hazard(
        GUARANTEE,
        "Other releases from the same data",
        "not covered",
        f"ε covers the releases of this ledger and of {count(others)} earlier ones that it names, nothing "
        "else: no metrics, exports, recommendations or other ledgers (compose those by “fedprofile audit "
        "compose”).",
    )


def _algorithms(
    verification: Verification, probes: Measurement | None, canaries: Measurement | None
) -> Iterator[Hazard]:
    yield Hazard(
        ALGORITHMS,
        "Custom implementations with mistakes in them",
        *_measured(
            probes,
            "clip, noise and accounting come from Opacus and dp_accounting; the noise source, the "
            "sampler and the ledger are the program's own",
        ),
    )
    yield Hazard(
        ALGORITHMS,
        "Contributions that aren't bounded",
        *_measured(
            _only(probes, "clip/", "weights/"),
            f"every {_contribution(verification)} is to be clipped to the norm in the table of releases, "
            "and all are to count the same",
        ),
    )
    sampler = next((f for f in verification.findings if f.check == "sampler"), None)
    if sampler is not None and sampler.outcome == "not run":
        yield Hazard(
            ALGORITHMS,
            "Sampling other than what is accounted",
            "evidence" if sampler.what == UNCLAIMED else "not covered",
            f"{_upper(sampler.what)}.",
        )
    elif sampler is not None:
        yield Hazard(
            ALGORITHMS,
            "Sampling other than what is accounted",
            _as(sampler.outcome == "holds"),
            f"{_upper(sampler.what)}. Sizes are looked at, not who was sampled.",
        )
    yield Hazard(ALGORITHMS, "Empirical measures in place of a proof", *_canaries(canaries))
    yield Hazard(
        ALGORITHMS,
        "Bias against small groups",
        "not covered",
        "Noise and clipping hit rare tastes first. The report of a run shows quality over all users; "
        "compare groups before relying on it.",
    )


def _deployment(verification: Verification) -> Iterator[Hazard]:
    budget = next((f for f in verification.findings if f.check == "budget"), None)
    kept = budget is not None and budget.outcome == "holds"
    yield Hazard(
        DEPLOYMENT,
        "Budgets that run out or are forgotten",
        _as(kept),
        "There are no interactive queries: releases are planned, reserved in the ledger before they are "
        f"made, and never refunded. {_upper(budget.what) if budget else 'What was spent is unknown'}.",
    )
    # One that took part in none of the server's releases has nothing to say about them.
    telling = [d for d in verification.devices if d.finding.outcome == "fails" or d.here]
    missing = [f.what for f in verification.findings if f.check in (COMPLETE, DISTINCT)]
    if telling or missing:
        failed = sum(device.finding.outcome == "fails" for device in telling)
        yield Hazard(
            DEPLOYMENT,
            "Trust that isn't warranted",
            _as(not failed and not missing),
            "A central model: the server is trusted to add noise and keep cohorts secret, hosts to clip. "
            f"{count(len(telling) - failed)} of {count(len(telling))} device ledgers agree with the "
            "server's; that noise was added they can't see."
            + "".join(f" {what}." for what in missing),
        )
    else:
        yield Hazard(
            DEPLOYMENT,
            "Trust that isn't warranted",
            "not covered",
            "A central model: the server is trusted to add noise and keep cohorts secret, hosts to clip. "
            "No ledger of a device that took part is there (--device-ledger), so nobody but the server "
            "speaks.",
        )
    yield Hazard(
        DEPLOYMENT,
        "Finite precision (floating-point)",
        "not covered",
        "By design noise is a four-fold sum in float64, rounded once, which closes the known attack on low "
        "bits and is no proof; no probe looks at low bits.",
    )
    yield Hazard(
        DEPLOYMENT,
        "Timing channels",
        "not covered",
        "The time that a round takes depends on who trains, and wasn't measured.",
    )
    yield Hazard(
        DEPLOYMENT,
        "Error messages and other side channels of the system",
        "not covered",
        "Counts of cohorts, replies and rejections in the ledger are exact: give it to auditors, don't "
        "publish it where being a user is a secret. Logs of server and devices weren't looked at.",
    )
    yield Hazard(
        DEPLOYMENT,
        "Parameters that were tuned on the data",
        "not covered",
        "The ledger can't tell where clip norm, rounds or the catalogue come from. What was tried on "
        "the same users before costs, too, unless it is counted as an earlier ledger.",
    )
    yield Hazard(
        DEPLOYMENT,
        "Data security and access control",
        "not covered",
        "A lost device, a copied log or a signing key in the wrong hands is outside this audit.",
    )
    yield Hazard(
        DEPLOYMENT,
        "Collecting more than is needed",
        "not covered",
        "By design raw behaviour stays on devices; which of it is recorded there, and for how long, is for "
        "the operator to say.",
    )


def _measured(probes: Measurement | None, design: str) -> tuple[Answer, str]:
    """Answer and text of a hazard that probes speak to."""
    if probes is None:
        return (
            "not covered",
            f"By design {design}; it wasn't measured (fedprofile audit probe).",
        )
    result = probes.result
    assert isinstance(result, Probes)
    held = sum(probe.sound for probe in result.probes)
    told = f"{_upper(design)}. {held} of {len(result.probes)} probes of that hold"
    if probes.foreign:
        return "not covered", f"{told}, but not for this ledger: {probes.foreign}."
    return _as(held == len(result.probes)), f"{told} on this code version and configuration."


def _only(probes: Measurement | None, *areas: str) -> Measurement | None:
    """The same measurement with the probes of some areas; None where there are none."""
    if probes is None:
        return None
    result = probes.result
    assert isinstance(result, Probes)
    kept = tuple(probe for probe in result.probes if probe.name.startswith(areas))
    if not kept:
        return None
    narrowed = Probes(
        run=result.run,
        randomness=result.randomness,
        false_alarm_rate=result.false_alarm_rate,
        probes=kept,
    )
    return Measurement(path=probes.path, result=narrowed, foreign=probes.foreign)


def _canaries(canaries: Measurement | None) -> tuple[Answer, str]:
    rests = "ε is computed from what the ledger records, not measured"
    if canaries is None:
        return (
            "not covered",
            f"{rests}. No canaries were run (fedprofile audit canaries), so nothing tried to refute it.",
        )
    result = canaries.result
    assert isinstance(result, Canaries)
    bound, declared = result.bounds, result.declared
    told = (
        f"{rests}. Canaries, which can refute and never prove, come to at least {number(bound.steinke, 2)} "
        f"with {bound.confidence:.0%} confidence in a run that declares {epsilon(declared.epsilon)}"
    )
    if canaries.foreign:
        return "not covered", f"{told}; but not for this ledger: {canaries.foreign}."
    return _as(not result.faults), f"{told}."


def _contribution(verification: Verification) -> str:
    unit = verification.chain.opening.unit if verification.chain else USER
    return "user's whole contribution" if unit == USER else f"{unit}'s gradient"


def _as(good: bool) -> Answer:
    return "evidence" if good else "attention"


def _upper(text: str) -> str:
    """The text as a sentence begins; ε stays ε."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text
