"""The report of a run: one HTML page that opens offline, for a researcher and a privacy officer.

Words are chosen in ``claims.py``, drawings made in ``charts.py``; ``report.html.j2`` lays them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.drawing import Dot, budget_curve, dot_plot
from ..common.files import write_atomically
from ..common.formatting import known
from ..common.pages import render_page
from .charts import Level, cohort_bars, norm_curves, training_curve
from .claims import (
    baselines,
    compared,
    difference,
    event_level,
    guarantee,
    level,
    limits,
    ndcg,
    own_model,
    protected,
    repeats,
    verdict,
    warnings,
)

VIEWS = {"new": "New items", "all": "All items"}
"""View of an evaluation → heading."""

MEASURES = {
    "hr_at_k": "HR",
    "recall_at_k": "Recall",
    "mrr": "MRR",
    "coverage_at_k": "Coverage",
    "diversity_at_k": "Diversity",
    "novelty_at_k": "Novelty",
}
"""Columns of the quality tables beside NDCG: key of a view → heading."""

_SILENT = {"no-reply": "no reply", "declined": "declined"}
"""Reasons why a device isn't in the sum that are no rejection of what it sent."""


def write_report(metrics: dict[str, Any], path: Path) -> None:
    """Write the page of a run to ``path``, whole or not at all.

    Args:
        metrics: what ``metrics.json`` holds. The run's own model is the first of kind ``ours``; a
            model's ``difference`` is the run's own NDCG@k minus that model's, on new items
            (``difference_all``: on all), so that positive is in the run's favour. None and NaN are
            unknown, save for an ε of None, which is infinite.
        path: file to write; its folder exists.

    Raises:
        OSError: the file can't be written; what was at ``path`` stays.
    """
    # A file name may hold bytes that are no text; they become question marks.
    write_atomically(path, render_report(metrics).encode("utf-8", "replace"))


def render_report(metrics: dict[str, Any]) -> str:
    """The page as text; see :func:`write_report`."""
    run, privacy, curve = metrics["run"], metrics["privacy"], metrics["curve"]
    own = own_model(metrics["models"])
    ranked = sorted(metrics["models"], key=_place)
    return render_page(
        Path(__file__).with_name("report.html.j2"),
        version=run["version"],
        compared=compared,
        difference=difference,
        event_level=event_level,
        run=run,
        data=metrics["data"],
        privacy=privacy,
        curve=curve,
        notes=metrics["notes"],
        models=ranked,
        measured=[model for model in ranked if model["test"]],
        own=own,
        best=next(iter(baselines(ranked)), None),
        best_of_all=next(iter(baselines(ranked, "all")), None),
        repeats=repeats(metrics["data"]),
        ceiling=next((m for m in ranked if m["kind"] == "ceiling" and known(ndcg(m))), None),
        k=next((model["test"]["k"] for model in ranked if model["test"]), None),
        views=VIEWS,
        measures=MEASURES,
        diverse=any(known(m["test"]["all"]["diversity_at_k"]["mean"]) for m in ranked if m["test"]),
        protected=protected(privacy),
        verdict=verdict(run, privacy, metrics["models"], metrics["data"]),
        warnings=list(warnings(run, privacy)),
        guarantee=guarantee(privacy),
        level=level(privacy),
        limits=list(limits(privacy)),
        mechanisms=_mechanisms(privacy["releases"]),
        funnel=_funnel(curve, privacy),
        charts=dict(_charts(curve, privacy, ranked)),
    )


def _place(model: Mapping[str, Any]) -> tuple[bool, float]:
    """Best on new items first, what was not measured last."""
    quality = ndcg(model)
    return (not known(quality), -quality if known(quality) else 0.0)


def _mechanisms(releases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Releases of one task and one mechanism together: the task, its parameters, and how many."""
    shared = ("task", "noise_multiplier", "clip_norm", "sampling_probability")
    groups: dict[tuple[Any, ...], int] = {}
    for release in releases:
        key = tuple(release[name] for name in shared)
        groups[key] = groups.get(key, 0) + 1
    return [{**dict(zip(shared, key, strict=True)), "releases": n} for key, n in groups.items()]


def _outcomes(entry: Mapping[str, Any]) -> dict[str, int]:
    """What became of the devices sampled in one round: name → devices."""
    refused = {
        _SILENT.get(reason, f"rejected: {reason}"): n for reason, n in entry["rejected"].items()
    }
    lost = entry["sampled"] - entry["trained"] - sum(refused.values())
    return {"trained": entry["trained"], **refused, "not accounted for": max(lost, 0)}


def _per_round(curve: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Outcome → devices of each round; outcomes that never happened are left out."""
    rounds = [_outcomes(entry) for entry in curve]
    names = dict.fromkeys(name for outcome in rounds for name in outcome)
    table = {name: [outcome.get(name, 0) for outcome in rounds] for name in names}
    return {name: counts for name, counts in table.items() if name == "trained" or any(counts)}


def _funnel(
    curve: Sequence[Mapping[str, Any]], privacy: Mapping[str, Any]
) -> list[tuple[str, float]]:
    """Devices over all rounds, from expected to what became of them."""
    expected = sum(
        release["sampling_probability"] * privacy["population_size"]
        for release in privacy["releases"]
        if release["task"] == "training"
    )
    outcomes = {name: sum(counts) for name, counts in _per_round(curve).items()}
    sampled = sum(entry["sampled"] for entry in curve)
    return [("expected (q·N a round)", expected), ("sampled", sampled), *outcomes.items()]


def _charts(
    curve: Sequence[Mapping[str, Any]],
    privacy: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, str]]:
    """Name → drawing, as far as there is something to draw."""
    for view, heading in VIEWS.items():
        dots = [_dot(model, view) for model in models if known(ndcg(model, view))]
        if dots:
            yield view, dot_plot(dots, axis=f"NDCG, {heading.lower()}")
    scored = [(e["round"], e["validation_ndcg"]) for e in curve if known(e["validation_ndcg"])]
    if scored:
        yield "training", training_curve(scored, _levels(models), axis="validation NDCG")
    spent = [
        (release["round"] or 0, release["epsilon_after"])
        for release in privacy["releases"]
        if known(release["epsilon_after"])
    ]
    # Statistics alone are all at round 0, which is no curve; the table of releases tells their ε.
    if any(number for number, _ in spent):
        yield "budget", budget_curve(spent, target=privacy["target_epsilon"])
    if curve:
        rounds = [entry["round"] for entry in curve]
        yield "cohorts", cohort_bars(rounds, _per_round(curve))
        norms = {
            name: [entry[key] if known(entry[key]) else 0.0 for entry in curve]
            for name, key in (("noisy update", "update_norm"), ("noise", "noise_norm"))
        }
        norms = {name: values for name, values in norms.items() if any(values)}
        if norms:
            yield "norms", norm_curves(rounds, norms)


def _dot(model: Mapping[str, Any], view: str) -> Dot:
    interval = model["test"][view]["ndcg_at_k"]
    low, high = (end if known(end) else None for end in (interval["low"], interval["high"]))
    return Dot(model["label"], model["kind"], interval["mean"], low, high)


def _levels(models: Sequence[Mapping[str, Any]]) -> list[Level]:
    """Popularity, the best baseline and the ceiling, by validation NDCG."""
    others = [m for m in models if m["kind"] != "ours" and known(m["validation_ndcg"])]
    others.sort(key=lambda model: -model["validation_ndcg"])
    chosen = [m for m in others if m["kind"] == "ceiling"]
    chosen += [m for m in others if m["kind"] == "baseline"][:1]
    chosen += [m for m in others if m["key"] == "popularity" and m not in chosen]
    return [Level(m["label"], m["kind"], m["validation_ndcg"]) for m in chosen]
