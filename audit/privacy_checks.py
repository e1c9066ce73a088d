"""What the releases of a ledger cost, recomputed from it alone, and whether that was in the budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.ledger_entries import Chain, Commit, Reserve
from ..common.mechanism import Mechanism
from .accountants import PLD, PRV, RDP, UNAMPLIFIED, Answer
from .cohort_test import FALSE_ALARM, check_cohorts
from .findings import Finding

PRV_ABOVE_PLD = 0.02
"""How far Opacus's upper bound may lie above dp_accounting's: its own error is 0.01."""


@dataclass(frozen=True)
class Cost:
    """ε at ``delta``, by each accountant; None where it couldn't tell.

    Attributes:
        delta: δ.
        target: the budget, None where there is none.
        pld: by privacy loss distributions, with the samplers as declared.
        prv: by Opacus.
        rdp: by Rényi DP.
        unamplified: if nothing is believed about samplers.
        credited: the figure that stands: ``pld``, or ``unamplified`` where a sampler isn't believed.
    """

    delta: float
    target: float | None
    pld: float | None
    prv: float | None
    rdp: float | None
    unamplified: float | None
    credited: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content; infinite figures are None."""
        figures = {
            "epsilon": self.credited,
            "epsilon_pld": self.pld,
            "epsilon_prv": self.prv,
            "epsilon_rdp": self.rdp,
            "epsilon_without_amplification": self.unamplified,
            "delta": self.delta,
            "target_epsilon": self.target,
        }
        return {k: v if v is not None and math.isfinite(v) else None for k, v in figures.items()}


def releases_of(chain: Chain) -> Counter[Mechanism]:
    """Mechanism → how often it was reserved, here or in the earlier ledgers that this one names."""
    releases = Counter(e.mechanism for e in chain.entries if isinstance(e, Reserve))
    for earlier in chain.opening.earlier:
        for counted in earlier.releases:
            releases[counted.mechanism] += counted.count
    return releases


def check_sampler(chain: Chain) -> Finding:
    """Whether the cohorts of amplified releases have the sizes of Poisson samples.

    Releases of earlier ledgers are taken as those declare them: verify each by itself.
    """
    if chain.opening.unit == "event":
        return Finding("sampler", "not run", "a device doesn't write down how many events it drew")
    reserved = {e.sequence: e.mechanism for e in chain.entries if isinstance(e, Reserve)}
    if not any(_amplified(mechanism) for mechanism in reserved.values()):
        return Finding("sampler", "not run", "no release claims amplification by sampling")
    sampled = [
        (entry.cohort_size, reserved[entry.release].sampling_probability)
        for entry in chain.entries
        if isinstance(entry, Commit) and _amplified(reserved[entry.release])
    ]
    if not sampled:
        return Finding("sampler", "not run", "no cohort is recorded yet")
    sizes, rates = zip(*sampled, strict=True)
    test = check_cohorts(
        np.array(sizes, dtype=np.int64),
        population_size=chain.opening.population_size,
        probabilities=np.array(rates, dtype=np.float64),
        seed=int(chain.head[:16], 16),
    )
    what = f"{test.rounds:,} cohort sizes, p = {test.rate:.2g} for the rate, {test.spread:.2g} for the "
    what += f"spread (false alarm {FALSE_ALARM:.1%})"
    if test.passed:
        return Finding("sampler", "holds", f"Poisson: {what}")
    return Finding("sampler", "fails", f"not Poisson, so nothing is amplified: {what}")


def cost_of(chain: Chain, answers: Mapping[str, Answer], *, believed: bool) -> Cost:
    """What the accountants' ``answers`` mean; ``believed`` says whether samplers are."""
    found = {name: answer.epsilon for name, answer in answers.items()}
    return Cost(
        delta=chain.opening.delta,
        target=chain.opening.target_epsilon,
        pld=found[PLD],
        prv=found[PRV],
        rdp=found[RDP],
        unamplified=found[UNAMPLIFIED],
        credited=found[PLD] if believed else found[UNAMPLIFIED],
    )


def check_accountants(answers: Mapping[str, Answer]) -> list[Finding]:
    """Whether three accountants agree: PLD ≤ PRV ≤ PLD + 0.02, and PLD ≤ RDP."""
    pld, prv, rdp = (answers[name] for name in (PLD, PRV, RDP))
    if pld.epsilon is None:
        return [Finding("epsilon", "fails", f"can't be recomputed: {pld.why}")]
    if math.isinf(pld.epsilon):
        return [
            Finding("epsilon", "not run", "infinite: a release has no noise, nobody is protected")
        ]
    findings = [Finding("epsilon", "holds", f"PLD {pld.epsilon:.6g}, recomputed from the ledger")]
    if prv.epsilon is None:
        findings.append(Finding("PRV", "not run", prv.why))
    elif pld.epsilon == 0:
        findings.append(Finding("PRV", "not run", "nothing is spent"))
    else:
        held = pld.epsilon <= prv.epsilon <= pld.epsilon + PRV_ABOVE_PLD
        bound = f"{prv.epsilon:.6g} by Opacus, {'' if held else 'not '}within "
        bound += f"[{pld.epsilon:.6g}, {pld.epsilon + PRV_ABOVE_PLD:.6g}]"
        findings.append(Finding("PRV", "holds" if held else "fails", bound))
    if rdp.epsilon is None:
        findings.append(Finding("RDP", "not run", rdp.why))
    else:
        held = pld.epsilon <= rdp.epsilon
        compared = f"{rdp.epsilon:.6g}, {'not ' if not held else ''}above PLD"
        findings.append(Finding("RDP", "holds" if held else "fails", compared))
    return findings


def check_budget(cost: Cost) -> Finding:
    """Whether the credited ε is within the target."""
    if cost.target is None:
        return Finding("budget", "not run", "the ledger has no target: nothing was enforced")
    if cost.credited is None:
        return Finding("budget", "fails", f"ε is unknown, the target is {cost.target:.6g}")
    within = cost.credited <= cost.target
    verdict = "within" if within else "above"
    what = f"ε = {cost.credited:.6g} at δ = {cost.delta:.3g}, {verdict} the target of {cost.target:.6g}"
    return Finding("budget", "holds" if within else "fails", what)


def _amplified(mechanism: Mechanism) -> bool:
    return (
        mechanism.sampler == "poisson" and mechanism.sampling_probability < 1 and mechanism.private
    )
