"""The audit of a ledger: every check there is evidence for, trusting nobody who wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.ledger_entries import Chain
from .accountants import Accountants
from .bounded import Bounded
from .chain_checks import check_whole
from .device_checks import Device, check_devices, check_distinct, examine, examine_all, lifetime
from .findings import Finding
from .ledgers import Evidence
from .privacy_checks import (
    Cost,
    check_accountants,
    check_budget,
    check_sampler,
    cohorts_of,
    cost_of,
    is_untold,
    releases_of,
)


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
        devices: what was found in each device's ledger, those of the run folder first.
    """

    ledger: Path
    findings: tuple[Finding, ...]
    cost: Cost | None = None
    public_key: str | None = None
    head: str | None = None
    chain: Chain | None = None
    devices: tuple[Device, ...] = ()

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
        LedgerError: a ledger can't be read, or is none.
    """
    with Accountants() as accountants:
        # 1. Is it whole, whose is it, and do its releases fit together?
        chain, findings = check_whole(evidence, public_key)
        if chain is None:
            return Verification(evidence.ledger, tuple(findings))
        # 2. What did they cost?
        opening, cohorts = chain.opening, cohorts_of(chain)
        releases = releases_of(chain)
        answers = accountants.ask(
            releases, delta=opening.delta, adjacency=opening.adjacency, cohorts=cohorts
        )
    sampler, believed = check_sampler(chain, cohorts, answers.cohorts)
    cost = cost_of(chain, answers.epsilon, believed=believed)
    findings += [
        sampler,
        *check_accountants(
            answers.epsilon, delta=opening.delta, private=all(m.private for m in releases)
        ),
        check_budget(cost, unit=opening.unit, untold=is_untold(chain, cohorts)),
    ]
    # 3. Do others tell the same?
    if evidence.run is not None:
        from .run_checks import check_run  # loads numpy, which a ledger by itself doesn't need

        findings += check_run(evidence.run, chain, cost)
    if evidence.server is not None:
        from .server_checks import check_server

        findings += check_server(evidence.server, chain, cost)
    devices: list[Device] = []
    if evidence.devices is not None:
        devices = examine_all(chain, evidence.devices)
        found = check_devices(chain, evidence.devices, kept=evidence.kept, devices=devices)
        if not found and not device_ledgers:
            found = [
                Finding("devices", "not run", "no device's ledger: nobody but the server speaks")
            ]
        findings += found
    with Bounded(lifetime) as ask:
        named = [examine(chain, path, ask) for path in device_ledgers]
    findings += [device.finding for device in named]
    findings += check_distinct([*devices, *named])
    return Verification(
        ledger=evidence.ledger,
        findings=tuple(findings),
        cost=cost,
        public_key=chain.opening.public_key,
        head=chain.head,
        chain=chain,
        devices=(*devices, *named),
    )
