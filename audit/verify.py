"""The audit of a ledger: every check there is evidence for, trusting nobody who wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.ledger_entries import Chain
from .accountants import Accountants
from .chain_checks import check_anchor, check_chain, check_key
from .device_checks import check_device, check_devices
from .findings import Finding
from .ledgers import Evidence
from .privacy_checks import (
    Cost,
    check_accountants,
    check_budget,
    check_sampler,
    cohorts_of,
    cost_of,
    releases_of,
)
from .release_checks import check_arithmetic, check_pairing


@dataclass(frozen=True)
class Verification:
    """All that was found.

    Attributes:
        ledger: the file.
        findings: in the order of the checks.
        cost: what was spent; None where the ledger isn't whole.
        public_key: hex, that signed it; None where the ledger isn't whole.
        head: SHA-256 of its last line; None where the ledger isn't whole.
        chain: its entries; None where the ledger isn't whole.
    """

    ledger: Path
    findings: tuple[Finding, ...]
    cost: Cost | None = None
    public_key: str | None = None
    head: str | None = None
    chain: Chain | None = None

    @property
    def holds(self) -> bool:
        """Whether no check failed."""
        return all(finding.outcome != "fails" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return {
            "ledger": str(self.ledger),
            "holds": self.holds,
            "findings": [finding.to_dict() for finding in self.findings],
            "cost": self.cost.to_dict() if self.cost else None,
            "public_key": self.public_key,
            "head": self.head,
        }


def verify(
    evidence: Evidence,
    *,
    public_key: str | None = None,
    device_ledgers: Sequence[Path] = (),
) -> Verification:
    """Run every check that ``evidence`` allows; those after a broken chain are left out.

    Args:
        evidence: ledger, and anchor and the folder of its run or server where there are any.
        public_key: hex, of who should have signed.
        device_ledgers: what devices wrote down, besides those in a run folder.

    Raises:
        LedgerError: a ledger can't be read.
    """
    with Accountants() as accountants:
        # 1. Is it whole, and whose is it?
        chain, findings = check_chain(evidence.ledger)
        if chain is None:
            return Verification(evidence.ledger, tuple(findings))
        findings += [check_key(chain, public_key), check_anchor(chain, evidence.anchor)]
        # 2. Do its releases fit together?
        findings += [check_pairing(chain), check_arithmetic(chain)]
        # 3. What did they cost?
        opening, cohorts = chain.opening, cohorts_of(chain)
        answers = accountants.ask(
            releases_of(chain), delta=opening.delta, adjacency=opening.adjacency, cohorts=cohorts
        )
    sampler = check_sampler(cohorts, answers.cohorts)
    cost = cost_of(chain, answers.epsilon, believed=sampler.outcome != "fails")
    findings += [sampler, *check_accountants(answers.epsilon), check_budget(cost)]
    # 4. Do others tell the same?
    if evidence.run is not None:
        from .run_checks import check_run  # loads numpy, which a ledger by itself doesn't need

        findings += check_run(evidence.run, chain, cost)
    if evidence.server is not None:
        from .server_checks import check_server

        findings += check_server(evidence.server, chain, cost)
    if evidence.devices is not None:
        findings += check_devices(chain, evidence.devices, kept=evidence.kept)
    findings += [check_device(chain, path) for path in device_ledgers]
    key = chain.opening.public_key
    return Verification(evidence.ledger, tuple(findings), cost, key, chain.head, chain)
