"""What the releases of a ledger cost, recomputed from it alone, and whether that was in the budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..common.ledger_entries import Chain, Commit, Reserve
from ..common.mechanism import Mechanism
from .accountants import FINER, PLD, PRV, RDP, UNAMPLIFIED, Answer, Cohorts
from .cohort_test import FALSE_ALARM, CohortTest
from .findings import Finding, Outcome

PRV_ABOVE_PLD = 0.02
"""How far Opacus's upper bound may lie above dp_accounting's: its own error is 0.01."""

_FEW = 3
"""Releases without a cohort that are laid to crashes however few have one, so that an honest run passes.

So few may be drawn otherwise, unseen; but whoever did that could as well write down a size.
"""
UNCLAIMED = "no release of this ledger claims amplification"
UNENDED = "no release that claims amplification has ended yet"


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


def cohorts_of(chain: Chain) -> Cohorts | None:
    """Sizes that releases which claim amplification recorded; None where there are none.

    Releases of earlier ledgers are named by hashes only, and those have no cohorts. A device doesn't write
    down how many of its events it drew.
    """
    if chain.opening.unit == "event":
        return None
    reserved = {e.sequence: e for e in chain.entries if isinstance(e, Reserve)}
    population = chain.opening.population_size
    sampled = [
        # More than there are is another check's finding, and as unlikely as all of them.
        (min(entry.cohort_size, population), reserved[entry.release].mechanism.sampling_probability)
        for entry in chain.entries
        if isinstance(entry, Commit) and _amplified(reserved[entry.release])
    ]
    if not sampled:
        return None
    sizes, rates = zip(*sampled, strict=True)
    seed = int(chain.head[:16], 16)
    return Cohorts(sizes=sizes, probabilities=rates, population_size=population, seed=seed)


def check_sampler(
    chain: Chain, cohorts: Cohorts | None, test: CohortTest | None
) -> tuple[Finding, bool]:
    """Whether ``cohorts`` have the sizes of Poisson samples, by the ``test`` of them.

    Returns:
        The finding, and whether amplification is credited: where the test passed on enough of the
        releases that claim it, and where none of them is there to be tested.
    """
    outcome, what, believed = _judged(chain, cohorts, test)
    if earlier := _amplified_before(chain):
        what += f"; {earlier:,} earlier releases claim it too and are not tested here: verify the "
        what += "ledgers they are from"
    return Finding("sampler", outcome, what), believed


def _judged(
    chain: Chain, cohorts: Cohorts | None, test: CohortTest | None
) -> tuple[Outcome, str, bool]:
    if chain.opening.unit == "event":
        # The coins are of the device that they protect; how they fell is its secret.
        return "not run", "a device tosses these coins for its own events", True
    tested, untested = len(cohorts.sizes) if cohorts else 0, _untested(chain)
    if cohorts is not None and test is None:
        return "fails", "the test of cohort sizes broke down, so nothing is amplified", False
    if test is not None:
        what = f"{test.rounds:,} cohort sizes, p = {test.rate:.2g} for the rate, {test.spread:.2g} for "
        what += f"the spread (false alarm {FALSE_ALARM:.1%})"
        if not test.passed:
            return "fails", f"not Poisson, so nothing is amplified: {what}", False
    if untested > max(tested, _FEW):
        what = f"{untested:,} releases that claim amplification have no cohort, {tested:,} have one"
        return "not run", f"nothing is amplified: {what}", False
    if test is not None:
        more = ""
        if untested:
            more = f"; {untested:,} without a cohort can't be tested, and are credited as those"
        return "holds", f"Poisson: {what}{more}", True
    if any(_amplified(release) for release in chain.pending.values()):
        return "not run", f"nothing is amplified: {UNENDED}", False
    return "not run", UNCLAIMED, True


def is_untold(chain: Chain, cohorts: Cohorts | None) -> bool:
    """Whether no release that claims amplification has ended, for one is going on or a few crashed."""
    opened = any(_amplified(release) for release in chain.pending.values())
    return opened and cohorts is None and _untested(chain) <= _FEW


def _untested(chain: Chain) -> int:
    """Releases that claim amplification and tell no cohort, but for one that may be going on."""
    newest = chain.entries[-1]
    return sum(_amplified(entry) for entry in chain.pending.values() if entry is not newest)


def _amplified_before(chain: Chain) -> int:
    """Releases of earlier ledgers that claim amplification."""
    return sum(
        counted.count
        for earlier in chain.opening.earlier
        for counted in earlier.releases
        if _claims(counted.mechanism)
    )


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


def check_accountants(
    answers: Mapping[str, Answer], *, delta: float, private: bool
) -> list[Finding]:
    """Whether three accountants agree: PLD ≤ PRV ≤ PLD + 0.02, and PLD ≤ RDP.

    Over many rounds of little the grid of PLD, which rounds up, has a say; a finer one decides then.

    Args:
        answers: of each accountant.
        delta: δ, for messages.
        private: whether all releases have noise.
    """
    pld, prv, rdp = (answers[name] for name in (PLD, PRV, RDP))
    if pld.epsilon is None:
        return [Finding("epsilon", "fails", f"can't be recomputed: {pld.why}")]
    if math.isinf(pld.epsilon):
        why = "a release has no noise, nobody is protected"
        if private:
            why = f"no figure is sure enough for δ = {delta:.3g}, below what PLD can tell"
        return [Finding("epsilon", "not run", f"infinite: {why}")]
    findings = [Finding("epsilon", "holds", f"PLD {pld.epsilon:.6g}, recomputed from the ledger")]
    if prv.epsilon is None:
        findings.append(Finding("PRV", "not run", prv.why))
    elif math.isinf(prv.epsilon):
        findings.append(Finding("PRV", "not run", "Opacus finds no finite ε here"))
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
        finer = answers.get(FINER, Answer(None)).epsilon
        least = pld.epsilon if finer is None else finer
        held = least <= rdp.epsilon
        compared = f"{rdp.epsilon:.6g}, {'not ' if not held else ''}above PLD"
        if finer is not None:
            compared += f", which is {finer:.6g} on a finer grid"
        findings.append(Finding("RDP", "holds" if held else "fails", compared))
    return findings


def check_budget(cost: Cost, *, unit: str, untold: bool) -> Finding:
    """Whether the credited ε is within the target.

    Args:
        cost: what was spent.
        unit: whose content ε is of.
        untold: whether no release that claims amplification has ended yet; see :func:`is_untold`.
    """
    if cost.target is None:
        return Finding("budget", "not run", "the ledger has no target: nothing was enforced")
    if cost.credited is None:
        return Finding("budget", "fails", f"ε is unknown, the target is {cost.target:.6g}")
    within = cost.credited <= cost.target
    if not within and untold and cost.pld is not None and cost.pld <= cost.target:
        return Finding(
            "budget",
            "not run",
            f"ε = {cost.pld:.6g} if cohorts turn out to be Poisson samples, {cost.credited:.6g} if not; "
            f"the target is {cost.target:.6g}",
        )
    verdict = "within" if within else "above"
    what = f"{unit}-level ε = {cost.credited:.6g} at δ = {cost.delta:.3g}, {verdict} the target of "
    what += f"{cost.target:.6g}"
    return Finding("budget", "holds" if within else "fails", what)


def _amplified(entry: Reserve) -> bool:
    return _claims(entry.mechanism)


def _claims(mechanism: Mechanism) -> bool:
    return (
        mechanism.sampler == "poisson" and mechanism.sampling_probability < 1 and mechanism.private
    )
