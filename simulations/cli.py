"""``fedprofile simulate``: the researcher's command."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from ..common.config import RunConfig, load_config
from ..common.console import remark
from ..common.errors import ConfigError
from ..common.formatting import epsilon as epsilon_text
from ..common.formatting import scientific
from .claims import event_level
from .claims import warnings as warnings_of
from .sweep_axes import SWEEP, parse_axes
from .tables import WIDE, interval, mean

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)

_TALKATIVE = ("absl", "flwr", "ray")  # loggers of libraries whose remarks are no help to a user
_HELP = """Train a shared encoder over simulated devices, with user-level privacy, and explain the run.

\b
Examples:
  fedprofile simulate
  fedprofile simulate --data log.csv --items items.csv --epsilon 2
  fedprofile simulate --data retail/ --preset online-retail-ii --no-privacy
  fedprofile simulate --config study.toml --seed 1 --json
  fedprofile simulate --data log.csv --epsilon 2 --plan
  fedprofile simulate --resume --out runs/synthetic-20260131-120000
  fedprofile simulate --data log.csv --split none --recommendations a.parquet
  fedprofile simulate --data log.csv --sweep epsilon=1,2,4,8,inf --seeds 3
  fedprofile simulate --sweep epsilon=2,inf --sweep users=0.5,1

Exit codes: 0 success; 2 wrong usage or bad input; 3 the budget doesn't allow the first release;
130 interrupted.
"""


@app.command(name="simulate", help=_HELP)
def command(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file; options given here override it")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="'synthetic' (the default), 'sequences', a file or a folder"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="layout or domain of the data; unset: by its columns"),
    ] = None,
    items: Annotated[
        str | None, typer.Option(metavar="FILE", help="item table: item_id, text, category, price")
    ] = None,
    split: Annotated[
        Literal["global-time", "leave-one-out", "none"] | None,
        typer.Option(help="what is held out; unset: global-time"),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="budget of the whole run, user-level")
    ] = None,
    no_privacy: Annotated[
        bool, typer.Option("--no-privacy", help="no clip, no noise: for research only")
    ] = False,
    delta: Annotated[
        float | None, typer.Option(metavar="D", help="of the guarantee; unset: population^-1.1")
    ] = None,
    rounds: Annotated[int | None, typer.Option(metavar="R", help="rounds of training")] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="S", help="repeatable run; its noise is then no secret"),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"] | None, typer.Option(help="this process, or Flower's Ray engine")
    ] = None,
    earlier: Annotated[
        list[str] | None,
        typer.Option(metavar="LEDGER", help="of an earlier run on the same users; may be repeated"),
    ] = None,
    signing_key: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="signs the ledger; unset: one in the run folder"),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="second place for the ledger's head; unset: run folder"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="run folder; unset: a new one in runs/")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=V,V,…",
            help="run every combination: epsilon=1,2,4,8,inf or users=0.25,0.5,1; may be repeated",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="K", help="runs of each combination; unset: 3")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="of users, such as country: a sweep's fairness by it"),
    ] = None,
    recommendations: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet file for every user's list")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="length of those lists; unset: 10")
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="lists may repeat items of the history")
    ] = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="show releases, noise and ε of the run, and release nothing"),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object as the last line of standard output")
    ] = False,
) -> None:
    """See the help text above."""
    if no_privacy and epsilon is not None:
        raise ConfigError("--epsilon and --no-privacy exclude each other: give one of them")
    if resume and out is None:
        raise ConfigError("--resume needs --out: the folder of the run to go on with")
    if recommendations is None and (top_k is not None or include_seen):
        raise ConfigError(
            "--top-k and --include-seen need --recommendations: the file of the lists"
        )
    sweeps = bool(sweep) or (resume and out is not None and (out / SWEEP).is_file())
    if not sweeps and (seeds is not None or group is not None):
        raise ConfigError("--seeds and --group need --sweep: one run has one seed, and no groups")
    if sweeps and recommendations is not None:
        raise ConfigError(
            "--recommendations needs one run: leave --sweep out, or resume one run of the sweep"
        )
    axes = parse_axes(sweep or ())
    if "epsilon" in axes and (epsilon is not None or no_privacy):
        raise ConfigError(
            "--sweep epsilon excludes --epsilon and --no-privacy: put the value into the sweep, where "
            "no privacy is inf"
        )
    if plan and recommendations is not None:
        raise ConfigError("--plan makes no lists: leave --recommendations out")
    if plan and sweeps:
        raise ConfigError("--plan is of one run: leave --sweep out")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"--top-k must be 1 or more, got {top_k}")
    overrides: dict[str, dict[str, Any]] = {
        "": {"seed": seed},
        "data": {"path": data, "preset": preset, "items": items, "group_column": group},
        "training": {"rounds": rounds},
        "privacy": {"epsilon": epsilon, "delta": delta, "enabled": False if no_privacy else None},
        "evaluation": {"split": split},
        "ledger": {"earlier": earlier or None, "signing_key": signing_key, "anchor": anchor},
        "engine": {"kind": engine},
    }
    source = config
    if resume and config is None and out is not None:
        kept = out / ("base.toml" if sweeps else "config.toml")
        source = kept if kept.is_file() else None
    settings = load_config(source, overrides)
    import torch  # slow to load: --help and mistakes needn't wait

    from .simulate import SimulateOptions, simulate

    # Chunks of devices run side by side; a second level of threads inside them only gets in the way,
    # and on a busy machine costs tenfold.
    torch.set_num_threads(1)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="opacus")
    if plan:
        _plan(settings, out, as_json)
        return
    options = SimulateOptions(
        out=out,
        resume=resume,
        recommendations=recommendations,
        top_k=top_k or 10,
        include_seen=include_seen,
    )
    # Whatever a library prints meanwhile is no result.
    if sweeps:
        from .sweep import sweep as run_sweep
        from .sweep_cli import show_sweep

        with contextlib.redirect_stdout(sys.stderr):
            found = run_sweep(settings, axes, seeds, out=out, resume=resume)
        show_sweep(found, as_json=as_json)
        return
    with contextlib.redirect_stdout(sys.stderr):
        metrics = simulate(settings, options)
    if as_json:
        typer.echo(json.dumps(_summary(metrics)))
    else:
        _show(settings, metrics, Console(highlight=False))


def _plan(settings: RunConfig, folder: Path | None, as_json: bool) -> None:
    from .plan import plan, show
    from .run_folder import RunFolder

    # Without --out there is no folder yet, and nothing in it that could count.
    with contextlib.redirect_stdout(sys.stderr):
        planned = plan(settings, RunFolder(folder or Path("runs") / "planned"))
    if as_json:
        typer.echo(json.dumps(planned))
    else:
        show(planned, Console(highlight=False))


def _summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """Paths, what the models reached, and what it cost; ``metrics.json`` has the rest."""
    return {
        "paths": metrics["paths"],
        "metrics": {model["key"]: model["test"] for model in metrics["models"]},
        "privacy": {key: v for key, v in metrics["privacy"].items() if key != "releases"},
        "run": metrics["run"],
        "data": metrics["data"],
    }


def _show(config: RunConfig, metrics: dict[str, Any], out: Console) -> None:
    if metrics["models"]:
        wide = out.width >= WIDE
        table = Table("model", title="Test users, full ranking, 95 % intervals over users")
        k = config.evaluation.k
        for heading in (f"NDCG@{k}\nnew items", f"HR@{k}\nnew items", f"NDCG@{k}\nall items"):
            table.add_column(heading, justify="right")
        for model in metrics["models"]:
            new, every = model["test"]["new"], model["test"]["all"]
            cells = (
                interval(new["ndcg_at_k"]),
                mean(new["hr_at_k"]),
                (interval if wide else mean)(every["ndcg_at_k"]),
            )
            table.add_row(model["key"], *cells, style="bold" if model["kind"] == "ours" else None)
        out.print(table)
    privacy = metrics["privacy"]
    if privacy["enabled"]:
        out.print(
            f"Privacy: user-level (ε = {epsilon_text(privacy['epsilon'])}, "
            f"δ = {scientific(privacy['delta'])}), "
            f"{privacy['population_size']:,} users, Poisson cohorts, {privacy['randomness']} noise",
            soft_wrap=True,
        )
    if privacy["local"]:
        out.print(event_level(privacy["local"]), soft_wrap=True)
    for warning in warnings_of(metrics["run"], privacy):
        style = {"bad": "bold red", "warn": "yellow"}.get(warning.level)
        remark(f"{warning.title}. {warning.text}", style=style)
    out.print(f"Report: {metrics['paths']['report']}", soft_wrap=True, markup=False)
