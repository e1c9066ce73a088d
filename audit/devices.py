"""What devices wrote down themselves, beside what the server says: one line a ledger."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..common.ledger_entries import Chain, Open, Reserve
from ..common.mechanism import Mechanism
from .accountants import PLD
from .chain_checks import check_chain
from .findings import Finding
from .privacy_checks import releases_of

USER = "user"
"""Unit of the guarantee that the server's ledger is about; ε of another unit is never set beside it."""

_OF_A_WHOLE_LEDGER = (
    "unit",
    "releases",
    "releases_here",
    "noise_multipliers",
    "epsilon",
    "delta",
    "target_epsilon",
)


def describe_device(path: Path, finding: Finding, server: Chain) -> dict[str, Any]:
    """The outcome of a device's reconciliation with ``server``, and what its own ledger comes to.

    Returns:
        JSON-ready content: ``unit``, ``releases``, ``releases_here`` (of the server's runs),
        ``noise_multipliers`` (least and largest), ``epsilon``
        at ``delta`` over the device's lifetime and ``target_epsilon`` are None where its ledger isn't
        whole; an ``epsilon`` of None is unknown or infinite.

    Raises:
        LedgerError: it can't be read.
    """
    told = {"file": str(path), "outcome": finding.outcome, "what": finding.what}
    chain, _ = check_chain(path)
    if chain is None:
        return {**told, **dict.fromkeys(_OF_A_WHOLE_LEDGER)}
    opening, releases = chain.opening, releases_of(chain)
    runs = {entry.run for entry in server.entries if isinstance(entry, Reserve)}
    made = [entry for entry in chain.entries if isinstance(entry, Reserve)]
    noise = [entry.mechanism.noise_multiplier for entry in made]
    return {
        **told,
        "unit": opening.unit,
        "releases": len(made),
        "releases_here": sum(entry.run in runs for entry in made),
        "noise_multipliers": [min(noise), max(noise)] if noise else None,
        "epsilon": _epsilon(releases, opening),
        "delta": opening.delta,
        "target_epsilon": opening.target_epsilon,
    }


def _epsilon(releases: Counter[Mechanism], opening: Open) -> float | None:
    if not all(mechanism.private for mechanism in releases):
        return None
    from .worker import answers  # loads scipy, which a ledger by itself doesn't need

    described = [[mechanism.describe(), count] for mechanism, count in releases.items()]
    asked = {"releases": described, "delta": opening.delta, "adjacency": opening.adjacency}
    return dict(answers(asked, (PLD,)))[PLD].epsilon
