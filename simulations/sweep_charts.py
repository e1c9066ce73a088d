"""Charts of a sweep: NDCG against ε, against the number of users, and by group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..common.drawing import shortened
from ..common.formatting import count, known
from .charts import Level, Line, interval_lines
from .report import VIEWS

_MOST_GROUPS = 5  # lines of a chart that can be told apart; the table has all
_BESIDE_USERS = ("ease", "item-knn", "popularity")

Cell = Mapping[str, Any]
"""A point or a reference of ``sweep.json``, or what one holds of a view or a group."""


def sweep_charts(
    document: Cell, curve: Sequence[Cell], beside: Sequence[Cell]
) -> Iterator[tuple[str, str]]:
    """Name → drawing, as far as there is something to draw.

    Args:
        document: what ``sweep.json`` holds.
        curve: its points at the largest share.
        beside: its references at that share.
    """
    k = document["sweep"]["k"]
    places, apart = _epsilon_places(document["sweep"]["epsilon"])
    ticks = [(place, _budget(epsilon)) for epsilon, place in places.items()]
    at = [places[point["epsilon"]] for point in curve]
    for view, heading in VIEWS.items():
        line = _line("federated encoder", zip(at, (point[view] for point in curve), strict=True))
        if line.points:
            singles = [
                (place, run[view])
                for place, point in zip(at, curve, strict=True)
                for run in point["runs"]
            ]
            axis, levels = f"NDCG@{k}, {heading.lower()}", _levels(beside, view)
            lines = [Line(line.label, line.points, singles)]
            yield (
                view,
                interval_lines(
                    lines, axis=axis, below="ε", ticks=ticks, levels=levels, apart=apart
                ),
            )
    if len(document["sweep"]["users"]) > 1:
        yield from _users_chart(document)
    for by in curve[0]["groups"]:
        for view in VIEWS:
            names = [group["name"] for group in groups_of(curve[0], by, view)[:_MOST_GROUPS]]
            lines = [
                _line(name, zip(at, (group_of(p, by, name, view) for p in curve), strict=True))
                for name in names
            ]
            if lines:
                axis = f"NDCG@{k} ({view}), by {shortened(by, 20)}"
                yield (
                    group_chart(by, view),
                    interval_lines(lines, axis=axis, below="ε", ticks=ticks, apart=apart),
                )


def _users_chart(document: Cell) -> Iterator[tuple[str, str]]:
    points, references = document["points"], document["references"]
    sizes = {point["share"]: point["population_size"] for point in points}
    of_line: dict[tuple[str, str], list[Cell]] = {}
    for point in points:
        epsilon = point["epsilon"]
        label = "without privacy" if epsilon is None else f"ε = {epsilon:g}"
        of_line.setdefault((label, "ours"), []).append(point)
    for model in references:
        if model["key"] in _BESIDE_USERS:
            of_line.setdefault((model["label"], model["kind"]), []).append(model)
    lines = [
        _line(label, ((math.log2(sizes[cell["share"]]), cell["common"]) for cell in cells), kind)
        for (label, kind), cells in of_line.items()
    ]
    lines = [line for line in lines if line.points]
    if lines:
        ticks = [(math.log2(size), count(size)) for size in sizes.values()]
        axis = f"NDCG@{document['sweep']['k']}, the same test users"
        yield "users", interval_lines(lines, axis=axis, below="users who take part", ticks=ticks)


def _epsilon_places(
    epsilons: Sequence[float | None],
) -> tuple[dict[float | None, float], float | None]:
    """ε → its logarithm; no privacy stands to the right of all, and apart from them."""
    places: dict[float | None, float] = {e: math.log2(e) for e in epsilons if e is not None}
    if None not in epsilons:
        return places, None
    known_places = list(places.values()) or [0.0]
    apart = known_places[-1] + max(1.0, 0.2 * (known_places[-1] - known_places[0]))
    places[None] = apart
    return places, apart


def _budget(epsilon: float | None) -> str:
    return "∞" if epsilon is None else f"{epsilon:g}"


def _line(label: str, cells: Iterable[tuple[float, Cell | None]], kind: str = "ours") -> Line:
    """Means and intervals of ``cells``, each with its place, as far as they are known."""
    points = []
    for place, cell in cells:
        interval = cell["ndcg_at_k"] if cell else {"mean": None}
        if known(interval["mean"]):
            points.append((place, interval["mean"], interval["low"], interval["high"]))
    return Line(label, sorted(points), kind=kind)


def _levels(models: Sequence[Cell], view: str) -> list[Level]:
    """The ceiling, the best baseline and popularity."""
    measured = sorted((m for m in models if known(ndcg(m, view))), key=lambda m: -ndcg(m, view))
    chosen = [m for m in measured if m["kind"] == "ceiling"]
    chosen += [m for m in measured if m["kind"] == "baseline"][:1]
    chosen += [m for m in measured if m["key"] == "popularity" and m not in chosen]
    return [Level(m["label"], m["kind"], ndcg(m, view)) for m in chosen]


def group_chart(by: str, view: str) -> str:
    """Name of the drawing of groups in one view."""
    return f"group: {by}, {view}"


def groups_of(cell: Cell, by: str, view: str = "new") -> Sequence[Cell]:
    """What ``cell`` holds of the groups by one attribute in one view."""
    groups: Sequence[Cell] = cell["groups" if view == "new" else "groups_all"][by]
    return groups


def group_of(cell: Cell, by: str, name: str, view: str = "new") -> Cell | None:
    """What ``cell`` holds of one group."""
    return next((group for group in groups_of(cell, by, view) if group["name"] == name), None)


def ndcg(cell: Cell, view: str = "new") -> float:
    """Mean NDCG@k; NaN where nobody was measured."""
    mean = cell[view]["ndcg_at_k"]["mean"]
    return math.nan if mean is None else float(mean)
