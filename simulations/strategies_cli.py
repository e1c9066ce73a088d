"""``fedprofile strategies``: ways to make a list from a run's model, side by side."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..common.console import remark, stage
from ..common.errors import ConfigError

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)

_HEADINGS = {
    "ndcg_at_k": "NDCG",
    "hr_at_k": "HR",
    "coverage_at_k": "coverage",
    "diversity_at_k": "diversity",
    "novelty_at_k": "novelty",
    "miscalibration_at_k": "off tags",
}
_CUT = {
    "mean_length": "items",
    "empty": "empty",
    "precision": "precision",
    "recall": "recall",
}
_SHARES = (0.2, 0.5)
_HELP = """Measure ways to make a list from a run's model, on new items of its test users.

content: cosine with the decayed profile. collaborative: from co-occurrence neighbours, pooled in one place,
and normalised, as ratings are predicted; released: what goes with what is held, as devices know it.
sequential: what follows on the last events, as released. neural: the encoder's profile vector alone.
hybrid: all of it with popularity and the nearest item, as devices do; and the last re-ranked for diversity
(maximal marginal relevance) and for calibration to the profile's tags. What a run has nothing for is left
out. It's the researcher's own measurement: nothing is released.

A second table is of lists that fedprofile device recommend --threshold T would make: how long they get, how
many stay empty, and what of them was taken. The scale is the model's own: of another model, measure again.

\b
Examples:
  fedprofile strategies runs/shop
  fedprofile strategies runs/shop --diversity 0.3 --calibration 0.3 --json
  fedprofile strategies runs/shop --threshold -3 --threshold -4
"""


@app.command(name="strategies", help=_HELP)
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    diversity: Annotated[
        list[float] | None,
        typer.Option(metavar="D", help="share from 0 to 1; may be repeated; unset: 0.2 and 0.5"),
    ] = None,
    calibration: Annotated[
        list[float] | None,
        typer.Option(metavar="C", help="share from 0 to 1; may be repeated; unset: 0.2 and 0.5"),
    ] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(
            metavar="T",
            help="cut lists there; may be repeated; unset: where they have 1, 5, 10 and 50 items "
            "on average",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object as the last line of standard output")
    ] = False,
) -> None:
    """See the help text above."""
    from ..client.reranking import Aims

    for value in threshold or ():
        if not math.isfinite(value):
            raise ConfigError(f"--threshold must be a finite number, got {value}")
    if diversity is None and calibration is None:
        diversity, calibration = list(_SHARES), list(_SHARES)
    aims = [Aims(diversity=share) for share in diversity or ()]
    aims += [Aims(calibration=share) for share in calibration or ()]
    if diversity and calibration:
        aims.append(Aims(diversity[0], calibration[0]))
    import torch  # slow to load: --help and mistakes needn't wait

    from .simulate import read
    from .strategies import compare_strategies, ways
    from .thresholds import cut_lists, typical_thresholds
    from .trained import find_run, load_scorer

    torch.set_num_threads(1)
    folder, config = find_run(run)
    with contextlib.redirect_stdout(sys.stderr):
        log, split, population = read(config)
        if not split.test.n_users:
            raise ConfigError(
                f"{run}: nothing is held out (evaluation.split = '{config.evaluation.split}'); measure a "
                "run with another split"
            )
        scorer = load_scorer(folder, config, log, population)
        if not any(scorer.table.tags):
            if calibration:
                remark("No item has a tag: lists calibrated to tags are left out.")
            aims = [aim for aim in aims if not aim.calibration]
        with stage("Measuring", ways(scorer.table) + len(aims) + 1) as progress:
            strategies = compare_strategies(
                scorer,
                split,
                k=config.evaluation.k,
                samples=config.evaluation.bootstrap_samples,
                aims=aims,
                on_strategy=progress.advance,
            )
            if threshold is None:
                threshold = typical_thresholds(scorer, split.test)
            cuts = cut_lists(scorer, split.test, threshold)
            progress.advance("thresholds")
    found = [strategy.to_dict() for strategy in strategies]
    cut = [one.to_dict() for one in cuts]
    k = config.evaluation.k
    if as_json:
        typer.echo(json.dumps({"run": str(run), "k": k, "strategies": found, "thresholds": cut}))
    else:
        out = Console(highlight=False)
        _show(found, k, out)
        out.print()
        _show_cuts(cut, out)


def _show(found: list[dict[str, Any]], k: int, out: Console) -> None:
    users = found[0]["users"]
    title = f"Lists of {k} new items for {users:,} test users"
    table = Table("list", title=title, title_justify="left", box=None)
    table.columns[0].min_width = 17  # "+ calibration 0.2" on a line
    for heading in _HEADINGS.values():
        table.add_column(heading, justify="right")
    for strategy in found:
        cells = (_number(strategy[measure]) for measure in _HEADINGS)
        table.add_row(strategy["name"] + ("" if strategy["private"] else "*"), *cells)
    out.print(table)
    out.print(
        "hybrid: what devices do, and below it re-ranked; off tags: how far a list's tags are from the "
        "profile's own (Kullback-Leibler in nats, 0 is exact); novelty in bits; * needs everybody's data "
        "in one place, for comparison only",
        soft_wrap=True,
    )


def _show_cuts(cuts: list[dict[str, Any]], out: Console) -> None:
    if not cuts:
        out.print("Lists cut at a threshold: none, for nothing new scores for any test user")
        return
    title = f"Lists cut at a threshold, for {cuts[0]['users']:,} test users"
    table = Table(title=title, title_justify="left", box=None)
    for heading in ("threshold", *_CUT.values()):
        table.add_column(heading, justify="right")
    for cut in cuts:
        # In full: rounded once more, it would cut other lists.
        table.add_row(str(cut["threshold"]), *(_number(cut[measure]) for measure in _CUT))
    out.print(table)
    out.print(
        "threshold: as of fedprofile device recommend --threshold, on the scale of this model alone; "
        "items: of a list, on average; empty: share of users with nothing listed; precision: share of all "
        "listed items that were taken next; recall: share of the new items taken next that were listed",
        soft_wrap=True,
    )


def _number(value: dict[str, float | None] | float | None) -> str:
    mean = value["mean"] if isinstance(value, dict) else value
    return "–" if mean is None else f"{mean:.4f}" if mean < 1 else f"{mean:.3f}"
