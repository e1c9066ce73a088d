"""``fedprofile simulate``: the researcher's command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from ..common.config import RunConfig, load_config
from ..common.console import console
from ..common.errors import ConfigError
from .simulate import SimulateOptions, simulate

app = typer.Typer(pretty_exceptions_enable=False)

_EXAMPLES = """Train a shared encoder over simulated devices, with user-level privacy, and explain the run.

\b
Examples:
  fedprofile simulate
  fedprofile simulate --data log.csv --items items.csv --epsilon 2 --out runs/mine
  fedprofile simulate --data retail/ --preset online-retail-ii --no-privacy
  fedprofile simulate --config study.toml --seed 1 --json
  fedprofile simulate --resume --out runs/mine
  fedprofile simulate --data log.csv --split none --recommendations lists.parquet --top-k 20
"""


@app.command(name="simulate", help=_EXAMPLES)
def command(
    config: Annotated[
        Path | None, typer.Option(help="TOML file, see docs/configuration.md")
    ] = None,
    data: Annotated[str | None, typer.Option(help="'synthetic', a file or a folder")] = None,
    preset: Annotated[str | None, typer.Option(help="layout or domain of the data")] = None,
    items: Annotated[str | None, typer.Option(help="item table file")] = None,
    split: Annotated[
        Literal["global-time", "leave-one-out", "none"] | None,
        typer.Option(help="what is held out"),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="budget of the run")] = None,
    no_privacy: Annotated[
        bool, typer.Option("--no-privacy", help="no clip, no noise: research only")
    ] = False,
    delta: Annotated[float | None, typer.Option(help="unset: population^-1.1")] = None,
    rounds: Annotated[int | None, typer.Option(help="rounds of training")] = None,
    seed: Annotated[
        int | None, typer.Option(help="repeatable run; its noise is then no secret")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"] | None, typer.Option(help="in this process, or Flower's Ray engine")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; unset: a new one in runs/")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    recommendations: Annotated[
        Path | None, typer.Option(help="Parquet file for every user's list")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="length of those lists")] = 10,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="lists may repeat items of the history")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object as the last line of output")
    ] = False,
) -> None:
    """See the help text above."""
    if no_privacy and epsilon is not None:
        raise ConfigError("--epsilon and --no-privacy exclude each other: give one of them")
    if resume and out is None:
        raise ConfigError("--resume needs --out: the folder of the run to go on with")
    overrides: dict[str, dict[str, Any]] = {
        "": {"seed": seed},
        "data": {"path": data, "preset": preset, "items": items},
        "training": {"rounds": rounds},
        "privacy": {"epsilon": epsilon, "delta": delta, "enabled": False if no_privacy else None},
        "evaluation": {"split": split},
        "engine": {"kind": engine},
    }
    source = config
    if resume and config is None and out is not None and (out / "config.toml").is_file():
        source = out / "config.toml"
    settings = load_config(source, overrides)
    options = SimulateOptions(
        out=out,
        resume=resume,
        recommendations=recommendations,
        top_k=top_k,
        include_seen=include_seen,
    )
    metrics = simulate(settings, options)
    if as_json:
        summary = {key: metrics[key] for key in ("paths", "models", "privacy", "run", "data")}
        typer.echo(json.dumps(summary, ensure_ascii=False))
    else:
        _show(settings, metrics)


def _show(config: RunConfig, metrics: dict[str, Any]) -> None:
    out = Console(highlight=False)
    if metrics["models"]:
        k = config.evaluation.k
        table = Table("model", title="Test users, full ranking, 95 % intervals over users")
        for heading in (f"NDCG@{k} new items", f"HR@{k} new", f"NDCG@{k} all items"):
            table.add_column(heading, justify="right")
        for model in metrics["models"]:
            new, every = model["test"]["new"], model["test"]["all"]
            cells = [
                _interval(new["ndcg_at_k"]),
                _mean(new["hr_at_k"]),
                _interval(every["ndcg_at_k"]),
            ]
            table.add_row(model["label"], *cells, style="bold" if model["kind"] == "ours" else "")
        out.print(table)
    privacy = metrics["privacy"]
    if privacy["enabled"]:
        out.print(
            f"Privacy: user-level (ε = {privacy['epsilon']:.3f}, δ = {privacy['delta']:.2e}), "
            f"{privacy['population_size']:,} users, Poisson cohorts, {privacy['randomness']} noise"
        )
        if privacy["randomness"] == "seeded":
            console.print(
                "The noise of a seeded run is no secret: for research only.", style="yellow"
            )
    else:
        console.print("No privacy: this run protects nobody.", style="bold red")
    out.print(f"Report: {metrics['paths']['report']}", soft_wrap=True)


def _interval(value: dict[str, float | None]) -> str:
    if value["mean"] is None:
        return "–"
    if value["low"] is None or value["high"] is None:
        return f"{value['mean']:.4f}"
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _mean(value: dict[str, float | None]) -> str:
    return "–" if value["mean"] is None else f"{value['mean']:.3f}"
