"""What a probe found, and all of them together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..audit.statistics import Measurement


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One figure of the mechanism, and what it must be.

    Attributes:
        name: ``area/what``.
        claim: what holds if the figure is as expected; says its unit.
        result: the figure and its interval.
        where: what the figure belongs to, where it was the worst of several.
    """

    name: str
    claim: str
    result: Measurement
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether the claim stands."""
        return self.result.holds

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        if self.holds:
            return f"{self.claim}."
        at = f" ({self.where})" if self.where else ""
        low, high = self.result.low, self.result.high
        expected = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
        return (
            f"Not so: {self.claim}; measured {self.result.measured:.6g}{at}, expected {expected}."
        )

    def describe(self) -> dict[str, Any]:
        """The probe as JSON values; a figure that isn't finite is None."""
        result = self.result
        return {
            "name": self.name,
            "holds": self.holds,
            "measured": result.measured if math.isfinite(result.measured) else None,
            "expected": [result.low, result.high],
            "false_alarm_rate": result.false_alarm_rate,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """What all probes found.

    Attributes:
        declared: the mechanism of a round, as the ledger has it.
        randomness: ``csprng`` or ``seeded``: of the configuration.
        probes: in the order of the areas.
    """

    declared: dict[str, Any]
    randomness: str
    probes: tuple[Probe, ...]

    @property
    def holds(self) -> bool:
        """Whether every probe holds."""
        return all(probe.holds for probe in self.probes)

    @property
    def false_alarm_rate(self) -> float:
        """Bound on the chance that any probe fails without a fault."""
        return sum(probe.result.false_alarm_rate for probe in self.probes)

    def describe(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "holds": self.holds,
            "declared": self.declared,
            "randomness": self.randomness,
            "false_alarm_rate": self.false_alarm_rate,
            "probes": [probe.describe() for probe in self.probes],
        }
