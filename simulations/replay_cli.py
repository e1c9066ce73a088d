"""``fedprofile replay``: what it is worth that profiles follow their owners in real time."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..common.console import stage
from ..common.errors import ConfigError

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)

_WIDE = 110  # columns of a terminal that has room for intervals
_HELP = """Replay what happened after a run's cut, in time order: predict, then let the profile learn it.

Compares devices whose profile is frozen at the cut, updated at midnight, and updated with every event, by
how long the cut is past, how much is known of the user, and whether interests have turned.
The encoder stays as the run released it. It's the researcher's own measurement: nothing is released.

\b
Examples:
  fedprofile replay runs/shop
  fedprofile replay runs/shop --moments 5000 --json
"""


@app.command(name="replay", help=_HELP)
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    moments: Annotated[
        int, typer.Option(metavar="N", help="replay so many moments, chosen at random if fewer")
    ] = 20_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object as the last line of standard output")
    ] = False,
) -> None:
    """See the help text above."""
    if moments < 1:
        raise ConfigError(f"--moments must be 1 or more, got {moments}")
    import torch  # slow to load: --help and mistakes needn't wait

    from .replay import replay, steps
    from .simulate import read
    from .trained import find_run, load_scorer

    torch.set_num_threads(1)
    folder, config = find_run(run)
    with contextlib.redirect_stdout(sys.stderr):
        log, split, population = read(config)
        if split.test_time is None:
            raise ConfigError(
                f"{run}: evaluation.split = '{config.evaluation.split}' has no moment from which on "
                "everything is held out; replay a run with split 'global-time'"
            )
        scorer = load_scorer(folder, config, log, population)
        total = steps(log.histories, start=split.test_time, most=moments)
        with stage("Replaying", total) as progress:
            groups = replay(
                scorer,
                log.histories,
                start=split.test_time,
                vectors=scorer.table.vectors,
                scales=config.model.scales,
                k=config.evaluation.k,
                most=moments,
                samples=config.evaluation.bootstrap_samples,
                on_chunk=progress.advance,
            )
    found = {view: [group.to_dict() for group in of] for view, of in groups.items()}
    if as_json:
        typer.echo(json.dumps({"run": str(run), "k": config.evaluation.k, "replay": found}))
    else:
        _show(found, config.evaluation.k, Console(highlight=False))


def _show(found: dict[str, list[dict[str, Any]]], k: int, out: Console) -> None:
    wide = out.width >= _WIDE
    for view, groups in found.items():
        table = Table("", title=f"NDCG@{k}, {view} items, mean over users", title_justify="left")
        for heading in ("moments", *groups[0]["ndcg_at_k"], "gain"):
            table.add_column(heading, justify="right")
        for group in groups:
            if group["moments"]:
                means = (_number(value["mean"]) for value in group["ndcg_at_k"].values())
                gain = _gain(group["gain"], wide=wide)
                table.add_row(group["name"], f"{group['moments']:,}", *means, gain)
        out.print(table)
    out.print(
        "gain: profile that follows every event, against the frozen one"
        + ("" if wide else "; * where the 95 % interval excludes 0")
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _gain(gain: dict[str, float | None], *, wide: bool) -> str:
    mean, low, high = gain["mean"], gain["low"], gain["high"]
    if mean is None or low is None or high is None:
        return "–" if mean is None else f"{mean:+.4f}"
    if wide:
        return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    return f"{mean:+.4f}{'*' if low > 0 or high < 0 else ' '}"
