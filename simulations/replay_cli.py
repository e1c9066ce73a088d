"""``fedprofile replay``: what it is worth that profiles follow their owners in real time."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..common.console import stage
from ..common.errors import ConfigError

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)

_HELP = """Replay what happened after a run's cut, in time order: predict, then let the profile learn it.

Compares devices whose profile is frozen at the cut, updated at midnight, and updated with every event, by
how long the cut is past, how much is known of the user, and whether interests have turned. Tells how long
a device takes to learn an event and to make a list, on this machine; and, for a cold start, what
lists are worth where profiles know only the last 0, 1, 2 or 5 events. No figure is of fewer than 20 users.
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

    from ..client.model_bundle import ModelBundle
    from .cold_start import cold_start, cold_steps
    from .fairness import MINIMUM
    from .latency import measure_latency
    from .replay import replay, steps
    from .replay_tables import show
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
        bundle = ModelBundle.load(folder.path)
        start, k = split.test_time, config.evaluation.k
        samples = config.evaluation.bootstrap_samples
        total = steps(log.histories, start=start, most=moments)
        with stage("Replaying", total) as progress:
            groups = replay(
                scorer,
                log.histories,
                start=start,
                vectors=scorer.table.vectors,
                scales=config.model.scales,
                k=k,
                most=moments,
                samples=samples,
                on_chunk=progress.advance,
            )
        with stage("Starting cold", cold_steps(split.test)) as progress:
            cold = cold_start(
                scorer,
                split.test,
                prior=scorer.prior,
                k=k,
                samples=samples,
                on_chunk=progress.advance,
            )
        latency = measure_latency(bundle, log.histories, start=start, k=k)
    found = {
        "run": str(run),
        "k": k,
        "smallest_group": MINIMUM,
        "replay": {view: [group.to_dict() for group in of] for view, of in groups.items()},
        "latency": latency.to_dict() if latency else None,
        "cold_start": cold.to_dict(),
    }
    if as_json:
        typer.echo(json.dumps(found))
    else:
        show(found, Console(highlight=False))
