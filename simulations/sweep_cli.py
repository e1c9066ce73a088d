"""What ``fedprofile simulate --sweep`` prints."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..common.formatting import epsilon as epsilon_text
from ..common.formatting import scientific
from .tables import WIDE, interval, mean


def show_sweep(found: dict[str, Any], *, as_json: bool) -> None:
    """Print the outcome of a sweep: for machines all of it on one line, for people a table."""
    if as_json:
        typer.echo(json.dumps(found))
        return
    out, sweep = Console(highlight=False), found["sweep"]
    wide = out.width >= WIDE
    several = len(sweep["users"]) > 1
    title = f"Test users, full ranking, {sweep['seeds']} runs each, 95 % intervals"
    table = Table("model", title=title)
    table.add_column("ε", justify="right")
    if several:
        table.add_column("users", justify="right")
    for heading in (f"NDCG@{sweep['k']}\nnew items", f"NDCG@{sweep['k']}\nall items"):
        table.add_column(heading, justify="right")
    for point in sorted(found["points"], key=lambda point: point["share"]):
        size = [f"{point['population_size']:,}"] if several else []
        budget = "∞" if point["epsilon"] is None else f"{point['epsilon']:g}"
        table.add_row("federated", budget, *size, *_cells(point, wide), style="bold")
    largest = max(sweep["users"])
    for model in found["references"]:
        if model["share"] == largest:
            table.add_row(model["key"], "–", *(["–"] if several else []), *_cells(model, wide))
    out.print(table)
    privacy = found["privacy"]
    if privacy["private_runs"]:
        number = privacy["private_runs"]
        runs = f"the {number} private runs together cost" if number > 1 else "the private run costs"
        out.print(
            f"Privacy: {runs} "
            f"ε = {epsilon_text(privacy['epsilon_of_private_runs'])}, "
            f"δ = {scientific(privacy['delta'])}; each run's own ε holds for that run alone. Choosing by "
            "these figures is covered by none.",
            soft_wrap=True,
        )
    out.print(f"Report: {found['paths']['report']}", soft_wrap=True, markup=False)


def _cells(model: dict[str, Any], wide: bool) -> list[str]:
    new, every = (model[view]["ndcg_at_k"] for view in ("new", "all"))
    return [interval(new), (interval if wide else mean)(every)]
