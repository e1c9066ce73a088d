"""``fedprofile audit canaries``: the privacy officer's experiment on a real run."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..common.config import load_config
from ..common.console import remark

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)

_MOST_CANARIES = (
    100_000  # a bound grows with log k: more of them cost memory and tell next to nothing
)
_TALKATIVE = ("absl", "flwr")  # loggers of libraries whose remarks are no help to a user
_VIEWS = {
    "final_model": "estimate, released model",
    "sum_of_releases": "estimate, sum of all releases",
    "largest_of_releases": "estimate, largest release (rough)",
}
_HELP = """Run a real simulation with made-up users in it, and measure how much it gives away.

Canaries are random updates of the largest norm allowed. A fair coin decides for each whether it takes part;
what is released must not tell which did, beyond the declared epsilon. A quarter of the users stay
outside the run, to try membership inference on.

\b
Examples:
  fedprofile audit canaries
  fedprofile audit canaries --data log.csv --epsilon 2 --canaries 2000
  fedprofile audit canaries --config study.toml --seed 1 --out audit/ --json

Exit codes: 0 the declared epsilon holds; 1 it doesn't, with the finding; 2 wrong usage or bad input; 3 the
budget doesn't allow the first release.
"""


@app.command(name="canaries", help=_HELP)
def command(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file; the options here go before it")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="'synthetic' (the default), 'sequences', a file or a folder"
        ),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="budget of the run, user-level")
    ] = None,
    canaries: Annotated[
        int,
        typer.Option(
            metavar="K",
            max=_MOST_CANARIES,
            help="made-up users; about half take part",
        ),
    ] = 1_000,
    seed: Annotated[
        int | None,
        typer.Option(metavar="S", help="repeatable run; its noise is then no secret"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="results, and the run in DIR/run; unset: in runs/"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object as the last line of standard output")
    ] = False,
) -> None:
    """See the help text above."""
    settings = load_config(
        config, {"": {"seed": seed}, "data": {"path": data}, "privacy": {"epsilon": epsilon}}
    )
    import torch  # slow to load: --help and mistakes needn't wait

    from .canaries import CanaryOptions, audit_canaries

    torch.set_num_threads(1)  # chunks of devices run side by side
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="opacus")
    # Whatever a library prints meanwhile is no result.
    with contextlib.redirect_stdout(sys.stderr):
        found = audit_canaries(settings, CanaryOptions(canaries=canaries, out=out))
    if as_json:
        typer.echo(json.dumps(_summary(found)))
    else:
        _show(found, Console(highlight=False))
    if not found["verdict"]["holds"]:
        raise typer.Exit(1)


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    """All but the cosine of each canary, which ``canaries.json`` has."""
    kept = {k: v for k, v in found["canaries"].items() if not k.startswith("cosines")}
    return {**found, "canaries": kept}


def _show(found: dict[str, Any], out: Console) -> None:
    declared, bounds, canaries = found["declared"], found["bounds"], found["canaries"]
    table = Table(
        "ε from",
        title=f"{canaries['count']:,} canaries, {canaries['included']:,} took part; ε at "
        f"δ = {declared['delta']:.2e}",
    )
    table.add_column("value", justify="right")
    table.add_column("interval", justify="right")
    table.add_row("declared by the ledger", f"{declared['epsilon']:.3f}", "", style="bold")
    level = f"at least, {bounds['confidence']:.0%} confidence"
    table.add_row(f"one-run game, Steinke et al., {level}", f"{bounds['steinke']:.3f}", "")
    table.add_row(f"one-run game, Mahloujifar et al., {level}", f"{bounds['mahloujifar']:.3f}", "")
    for name, label in _VIEWS.items():
        estimate = found["estimates"][name]
        table.add_row(
            label, f"{estimate['epsilon']:.3f}", f"[{estimate['low']:.3f}, {estimate['high']:.3f}]"
        )
    out.print(table)
    out.print(_membership(found["membership"]), soft_wrap=True)
    for finding in found["verdict"]["findings"]:
        remark(f"Does not hold: {finding}", style="bold red")
    if found["verdict"]["holds"]:
        out.print("Holds: nothing the canaries show speaks against the declared ε.")
    rate = found["verdict"]["false_alarm_rate"]
    out.print(f"A run that keeps what it declares fails with a chance of at most {rate:.0%}.")
    out.print(f"Results: {found['paths']['results']}", soft_wrap=True, markup=False)


def _membership(attacks: dict[str, Any] | None) -> str:
    if attacks is None:
        return "Membership inference: too few users to tell."
    best = max(attacks.values(), key=lambda attack: attack["auc"]["value"])
    auc, hits = best["auc"], best["true_positive_rate"]
    return (
        f"Membership inference on {best['members']:,} members and {best['others']:,} others: AUC "
        f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]; true positives at "
        f"{best['false_positive_rate']:.1%} false positives {hits['value']:.2%} "
        f"[{hits['low']:.2%}, {hits['high']:.2%}]"
    )
