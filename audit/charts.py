"""Charts of an audit: ε over releases, canaries against the declared ε, membership inference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..common.drawing import Dot, budget_curve, dot_plot

VIEWS = {
    "final_model": "Estimate, released model",
    "sum_of_releases": "Estimate, sum of all releases",
    "largest_of_releases": "Estimate, largest release (rough)",
}
"""Estimate → what it looks at."""
BOUNDS = {"steinke": "At least, Steinke et al.", "mahloujifar": "At least, Mahloujifar et al."}
"""Lower bound → whose."""
ATTACKS = {"loss": "by the loss", "calibrated": "by fall of the loss"}
"""Attack → how it scores."""


def spent_chart(document: Mapping[str, Any]) -> str | None:
    """ε over the number of releases, and the target."""
    points = [(point["releases"], point["epsilon"]) for point in document["spent"]]
    if not points:
        return None
    target = document["cost"]["target_epsilon"]
    return budget_curve(points, target=target, over="releases of this ledger")


def canaries_chart(canaries: Mapping[str, Any]) -> str:
    """What canaries measured of ε, against what their run declares."""
    rows = [
        Dot(VIEWS[name], "ours", found["epsilon"], found["low"], found["high"])
        for name, found in canaries["estimates"].items()
    ]
    rows += [
        Dot(label, "bound", canaries["bounds"][name], canaries["bounds"][name], math.inf)
        for name, label in BOUNDS.items()
    ]
    declared = canaries["declared"]["epsilon"]
    return dot_plot(rows, axis="ε of the canaries' run", limit=("declared", declared))


def membership_chart(canaries: Mapping[str, Any]) -> str | None:
    """How well members are told from others, against a coin."""
    rows = []
    for name, attack in (canaries["membership"] or {}).items():
        how = ATTACKS[name]
        for label, rate, chance in (
            (f"AUC, {how}", attack["auc"], 0.5),
            (
                f"true positives, {how}",
                attack["true_positive_rate"],
                attack["false_positive_rate"],
            ),
        ):
            rows.append(Dot(label, "ours", rate["value"], rate["low"], rate["high"], chance))
    return dot_plot(rows, axis="share; | is what a coin reaches", right=1.0) if rows else None
