"""``fedprofile audit probe``: does the mechanism run as it is declared?"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..common.config import RunConfig, SplitConfig, load_config
from ..common.console import remark, stage
from ..common.errors import RunFolderError
from ..common.files import write_atomically
from ..common.formatting import number
from ..common.ledger_entries import Reserve, read_chain
from ..common.sections import read_toml
from ..common.server_config import load_server_config

if TYPE_CHECKING:
    from .probe_report import Report

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)

# Of libraries; and our own devices, which the probes make refuse on purpose.
_TALKATIVE = ("absl", "flwr", "fedprofile")
_DOES_NOT_HOLD = 1
_POPULARITY = "statistics/popularity"
_HELP = """Run small federations of made-up users and measure whether the mechanism runs as declared.

Encoder, clip, noise, sampling rate, local training and server optimizer are those of the
configuration, of a run or of a server; its data is not read.

\b
Examples:
  fedprofile audit probe
  fedprofile audit probe --config study.toml
  fedprofile audit probe --config runs/shop/config.toml --json
  fedprofile audit probe --config shop --out shop       a server's folder
  fedprofile audit probe --config runs/shop/config.toml --out runs/shop

Exit codes: 0 every probe holds; 1 one doesn't; 2 wrong usage or bad input.
"""


@app.command(name="probe", help=_HELP)
def command(
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML, or a folder of a run or server; unset: defaults"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="where results are kept; in a folder as probe.json"),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object as the last line of standard output")
    ] = False,
) -> None:
    """See the help text above."""
    settings, probed = _read(config)
    import torch  # slow to load: --help and mistakes needn't wait

    from .probe import STEPS, run_probes
    from .results import provenance

    kept = _new_file(out) if out is not None else None
    torch.set_num_threads(1)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="opacus")
    # Whatever a library prints meanwhile is no result.
    with contextlib.redirect_stdout(sys.stderr), stage("Probing", STEPS) as progress:
        report = run_probes(probed, advance=progress.advance)
    found = {**report.describe(), "run": provenance(settings)}
    if kept is not None:
        text = json.dumps(found, indent=2, ensure_ascii=False)
        write_atomically(kept, text.encode("utf-8", "backslashreplace"))
        remark(f"Results: {kept}")
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _show(report, Console(highlight=False))
    if not report.holds:
        raise typer.Exit(_DOES_NOT_HOLD)


def _read(path: Path | None) -> tuple[RunConfig, RunConfig]:
    """A configuration, and what is probed of it.

    The two differ for a server, whose sampling rate and δ follow from the size of its population, and
    where a ledger lies beside it: then noise, rate and δ are those that were released with.
    """
    if path is not None and path.is_dir():
        server = path / "server.toml"
        path = server if server.is_file() else path / "config.toml"
    if path is None or "federation" not in read_toml(path):
        settings = load_config(path)
        return settings, settings if path is None else _as_released(settings, path)
    deployed = load_server_config(path)
    settings = deployed.run()
    rate = settings.training.rate(deployed.federation.population_size)
    sections = {
        "training": settings.training.model_copy(update={"sampling_probability": rate}),
        "privacy": settings.privacy.model_copy(update={"delta": deployed.delta}),
    }
    return settings, _as_released(settings.model_copy(update=sections), path)


def _as_released(settings: RunConfig, path: Path) -> RunConfig:
    """``settings`` with the last releases of the ledger beside them: their noise may be calibrated."""
    ledger = path.with_name("ledger.jsonl")
    if not settings.privacy.enabled or not ledger.is_file():
        return settings
    chain = read_chain(ledger)
    made = {e.task: e.mechanism for e in chain.entries if isinstance(e, Reserve)}
    if "training" not in made:
        return settings
    delta, shares = chain.opening.delta, {"popularity": 0.0, "cooccurrence": 0.0}
    if _POPULARITY in made:
        from ..common.accounting import gaussian_mu  # slow to load

        # As a share of μ², which is what a configuration has: noise 1/√(share · μ²).
        mu = gaussian_mu(epsilon=settings.privacy.epsilon, delta=delta)
        for name in shares:
            if (mechanism := made.get(f"statistics/{name}")) is not None:
                shares[name] = (mechanism.noise_multiplier * mu) ** -2
    privacy = {
        "noise_multiplier": made["training"].noise_multiplier,
        "split": SplitConfig(**shares),
        "delta": delta,
    }
    rate = {"sampling_probability": made["training"].sampling_probability}
    return settings.model_copy(
        update={
            "training": settings.training.model_copy(update=rate),
            "privacy": settings.privacy.model_copy(update=privacy),
        }
    )


def _new_file(out: Path) -> Path:
    """Where results go, before anything is measured: nothing is overwritten."""
    from .run_folder import check_writable

    path = out / "probe.json" if out.is_dir() else out
    check_writable(path)
    if path.exists():
        raise RunFolderError(f"{path}: exists already; choose another --out")
    return path


def _show(report: Report, out: Console) -> None:
    # What must hold is a sentence each, and would leave no room for figures in 80 columns.
    table = Table("probe", "", box=None, title="Does the mechanism run as declared?")
    table.add_column("measured", justify="right")
    table.add_column("expected", justify="right")
    for probe in report.probes:
        result = probe.result
        table.add_row(
            probe.name,
            "holds" if probe.holds else "FAILS",
            number(result.measured),
            number(result.low)
            if result.low == result.high
            else f"{number(result.low)} to {number(result.high)}",
            style=None if probe.holds else "bold red",
        )
    out.print(table)
    failed = [probe for probe in report.probes if not probe.holds]
    for probe in failed:
        out.print(f"{probe.name}: {probe.sentence}", soft_wrap=True, markup=False)
    mechanism = report.declared
    out.print(
        f"{len(report.probes) - len(failed)} of {len(report.probes)} probes hold for noise "
        f"multiplier {number(mechanism['noise_multiplier'], 3)}, clip {mechanism['clip_norm']:g} and "
        f"sampling rate {mechanism['sampling_probability']:g}; chance alone fails one in "
        f"{number(100 * report.false_alarm_rate, 1)} % of runs at most.",
        soft_wrap=True,
    )
    if report.randomness == "seeded":
        remark("The noise of a seeded run is no secret: for research only.", style="yellow")
