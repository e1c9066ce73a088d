"""What devices wrote down themselves, beside what the server says, as rows of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .findings import Finding

if TYPE_CHECKING:
    from .device_checks import Device

USER = "user"
"""Unit of the guarantee that the server's ledger is about; ε of another unit is never set beside it."""


def describe_device(device: Device) -> dict[str, Any]:
    """The outcome of a device's reconciliation with the server, and what its own ledger comes to.

    Returns:
        JSON-ready content: ``unit``, ``releases``, ``releases_here`` (of the server's runs),
        ``noise_multipliers`` (least and largest), ``epsilon`` at ``delta`` over the device's lifetime and
        ``target_epsilon`` are None where its ledger isn't whole; an ``epsilon`` of None is unknown or
        infinite.
    """
    whole = device.opening is not None
    return {
        "file": str(device.path),
        "outcome": device.finding.outcome,
        "what": device.finding.what,
        "unit": device.unit,
        "releases": device.here + device.others if whole else None,
        "releases_here": device.here if whole else None,
        "noise_multipliers": list(device.noise) if device.noise else None,
        "epsilon": _finite(device.epsilon),
        "delta": device.opening.delta if device.opening else None,
        "target_epsilon": device.opening.target_epsilon if device.opening else None,
    }


def summarise(folder: Path, finding: Finding, devices: Sequence[Device]) -> dict[str, Any]:
    """One row of the same content for many ``devices`` of one unit, with what was found of them all.

    ``epsilon`` is the largest; ``delta`` and ``target_epsilon`` are None where they differ.
    """
    from .device_checks import most_spent

    openings = [device.opening for device in devices if device.opening is not None]
    deltas = {opening.delta for opening in openings}
    targets = {opening.target_epsilon for opening in openings}
    noise = [multiplier for device in devices if device.noise for multiplier in device.noise]
    return {
        "file": f"{folder}: {len(devices):,} ledgers",
        "outcome": finding.outcome,
        "what": finding.what,
        "unit": devices[0].unit,
        "releases": sum(device.here + device.others for device in devices),
        "releases_here": sum(device.here for device in devices),
        "noise_multipliers": [min(noise), max(noise)] if noise else None,
        "epsilon": _finite(most_spent(devices)),
        "delta": deltas.pop() if len(deltas) == 1 else None,
        "target_epsilon": targets.pop() if len(targets) == 1 else None,
    }


def _finite(epsilon: float | None) -> float | None:
    return epsilon if epsilon is not None and math.isfinite(epsilon) else None
