"""The page of a sweep: NDCG against ε and against the number of users, by group, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..common.files import write_atomically
from ..common.formatting import epsilon, known, number, scientific, share
from ..common.pages import render_page
from ..common.strength import Level, Statement, strength
from .claims import baselines, repeats
from .report import VIEWS
from .sweep_charts import group_chart, group_of, groups_of, ndcg, sweep_charts


def write_sweep_report(document: Mapping[str, Any], path: Path) -> None:
    """Write the page of ``document``, what ``sweep.json`` holds, to ``path``, whole or not at all.

    Raises:
        OSError: the file can't be written; what was at ``path`` stays.
    """
    write_atomically(path, render_sweep_report(document).encode("utf-8", "replace"))


def render_sweep_report(document: Mapping[str, Any]) -> str:
    """The page as text; see :func:`write_sweep_report`."""
    sweep, points, references = document["sweep"], document["points"], document["references"]
    largest = max(sweep["users"])
    curve = [point for point in points if point["share"] == largest]
    beside_in = {
        view: sorted(
            (m for m in references if m["share"] == largest), key=partial(_place, view=view)
        )
        for view in VIEWS
    }
    beside = beside_in["new"]
    without = next((point for point in curve if point["epsilon"] is None), None)
    return render_page(
        Path(__file__).with_name("sweep.html.j2"),
        version=sweep["version"],
        sweep=sweep,
        curve=curve,
        points=points,
        references=references,
        beside=beside,
        beside_in=beside_in,
        without=without,
        best=next(iter(baselines(beside, quality=ndcg)), None),
        best_of_all=next(iter(baselines(beside, "all", quality=ndcg)), None),
        repeats=repeats(sweep),
        runs=document["runs"],
        privacy=document["privacy"],
        notes=document["notes"],
        views=VIEWS,
        by_users=_by_users(document) if len(sweep["users"]) > 1 else [],
        groupings=list(curve[0]["groups"]),
        group_rows={
            by: {view: _group_rows(curve, beside_in[view], by, view) for view in VIEWS}
            for by in curve[0]["groups"]
        },
        group_chart=group_chart,
        verdict=verdict(document),
        cost=cost(document["privacy"]),
        level=_level(document["privacy"], curve[0]["population_size"]),
        limits=list(_limits(document)),
        charts=dict(sweep_charts(document, curve, beside)),
    )


def verdict(document: Mapping[str, Any]) -> str:
    """The sweep in a sentence or two."""
    sweep = document["sweep"]
    largest = max(sweep["users"])
    curve = [p for p in document["points"] if p["share"] == largest and known(ndcg(p))]
    if not curve:
        return "No test user had a new item to be found, so nothing was measured."
    without = next((p for p in curve if p["epsilon"] is None), None)
    private = [p for p in reversed(curve) if p["epsilon"] is not None]
    parts = []
    if without is not None:
        parts.append(f"{number(ndcg(without))} without privacy")
    for point in private:
        kept = ""
        if without is not None and ndcg(without) > 0:
            kept = f" ({share(ndcg(point), ndcg(without))} of that)"
        parts.append(f"{number(ndcg(point))}{kept} at ε = {point['epsilon']:g}")
    sentence = (
        f"The federated encoder reaches NDCG@{sweep['k']} on new items of {', '.join(parts)}."
    )
    others = [m for m in document["references"] if m["share"] == largest]
    for best in baselines(others, quality=ndcg)[:1]:
        sentence += f" The best baseline, “{best['label']}”, reaches {number(ndcg(best))}."
    if repeats(sweep):
        sentence += _with_repeats(sweep, [*private, *filter(None, [without])], others)
    return sentence


def _with_repeats(
    sweep: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
) -> str:
    reached = [ndcg(point, "all") for point in points]
    sentence = (
        f" On all items ({share(sweep['repeated_targets'], 1)} of what test users took was had before) "
        f"the encoder reaches "
    )
    low, high = number(min(reached)), number(max(reached))
    sentence += low if low == high else f"{low} to {high}"
    for best in baselines(references, "all", quality=ndcg)[:1]:
        sentence += f", the best baseline, “{best['label']}”, {number(ndcg(best, 'all'))}"
    return sentence + "."


def cost(privacy: Mapping[str, Any]) -> str:
    """What the whole sweep cost those who took part in all of it, in words."""
    private, others = privacy["private_runs"], privacy["other_runs"]
    if not private:
        return "No run was private, so there is no guarantee: ε is infinite."
    models = (
        f"the models of all {private} private runs" if private > 1 else "the private run's model"
    )
    joint = (
        f"Who receives {models} can tell by no more than (ε, δ) whether "
        f"any one user took part, with ε = {epsilon(privacy['epsilon_of_private_runs'])}, δ = "
        f"{scientific(privacy['delta'])}: all their ledgers composed."
    )
    if privacy["repeatable"]:
        joint = "Had the noise been secret: " + joint[0].lower() + joint[1:]
    if others:
        joint += (
            f" With the {others} {'run' if others == 1 else 'runs'} without privacy, which released exact "
            "sums, ε is infinite: hand out none of those."
        )
    return joint


def _level(privacy: Mapping[str, Any], population_size: int) -> Level:
    """How much the joint guarantee of the private runs says."""
    if privacy["private_runs"] and privacy["repeatable"]:
        return "warn"
    return strength(
        privacy["epsilon_of_private_runs"],
        delta=privacy["delta"],
        population_size=population_size,
    )


def _by_users(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each point and reference, those of one ε or model together."""
    sizes = {point["share"]: point["population_size"] for point in document["points"]}
    points = [
        {"label": "Federated encoder", "own": True, **point}
        for budget in document["sweep"]["epsilon"]
        for point in document["points"]
        if point["epsilon"] == budget
    ]
    references = [
        {"epsilon": None, "own": False, "population_size": sizes[model["share"]], **model}
        for model in sorted(document["references"], key=lambda model: model["label"])
    ]
    return [*points, *references]


def _limits(document: Mapping[str, Any]) -> Iterator[Statement]:
    yield Statement(
        "A choice made by looking",
        "Whoever takes an ε, a seed or a number of users from this page because its figures are good "
        "has looked at data in clear to do so. No ε on this page covers that choice. For a guarantee "
        "that holds, fix ε beforehand, or sweep over other people's data.",
    )
    yield Statement(
        "The figures on this page",
        "Quality, by group too, is the researcher's own measurement on raw data. It is exact, no ε "
        "covers it, and it isn't meant for publication as private.",
    )
    yield Statement(
        "Groups",
        f"No figure is of fewer than {document['sweep']['smallest_group']} users, for a mean over few "
        "people tells what these few did; small groups are put together, so that none can be had by "
        "subtraction. That keeps a page decent and is no privacy guarantee.",
    )
    yield Statement(
        "Intervals",
        "They say where means would lie with other test users and other runs of the same study. Of few "
        "runs they know little: look at the single runs too. Whether another population would fare "
        "alike they don't say.",
    )


def _group_rows(
    curve: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]], by: str, view: str
) -> list[dict[str, Any]]:
    """A row for each group: its size, and each point's and model's interval for it in one view."""
    return [
        {
            "name": group["name"],
            "users": group["users"],
            "points": [group_of(point, by, group["name"], view) for point in curve],
            "models": [group_of(model, by, group["name"], view) for model in beside],
        }
        for group in groups_of(curve[0], by, view)
    ]


def _place(model: Mapping[str, Any], view: str) -> tuple[bool, float]:
    """Best in a view first, what was not measured last."""
    quality = ndcg(model, view)
    return (not known(quality), -quality if known(quality) else 0.0)
