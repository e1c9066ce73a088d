"""``fedprofile data``: what is in an interaction log, before anything is trained on it."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..common.config import load_config
from ..common.console import remark
from ..common.errors import FedprofileError
from .data_remarks import data_remarks
from .dataset import InteractionLog, QualityReport
from .loading import load_log

_HELP = """Clean the data and account for every row.

\b
Examples:
  fedprofile data describe log.csv
  fedprofile data describe log.csv --preset shop --items items.csv
  fedprofile data describe retail/ --json

Exit codes: 0 success; 2 wrong usage or bad input.
"""

app = typer.Typer(
    help="Look at interaction data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def data() -> None:
    """Look at interaction data."""


@app.command(help=_HELP)
def describe(
    path: Annotated[
        str, typer.Argument(help="a file, a folder of files, 'synthetic' or 'sequences'")
    ],
    preset: Annotated[str | None, typer.Option(help="layout or domain; told by columns")] = None,
    items: Annotated[str | None, typer.Option(help="item table file")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with a data section")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """See the help text above."""
    overrides = {"data": {"path": path, "preset": preset, "items": items}}
    try:
        settings = load_config(config, overrides).data
        log = load_log(settings)
    except FedprofileError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    for line in data_remarks(settings, log.quality):
        remark(line, style="yellow")
    if as_json:
        typer.echo(json.dumps(log.quality.to_dict(), ensure_ascii=False))
    else:
        _show(log, Console())


def _show(log: InteractionLog, console: Console) -> None:
    report = log.quality
    rows = Table("rows", "count", "", title=f"{report.source} ({report.preset})")
    rows.columns[1].justify = "right"
    for name, count in report.rows_per_file:
        rows.add_row(name, f"{count:,}", "read")
    rows.add_section()
    for rule in report.rules:
        changed = f"; {rule.changed:,} changed" if rule.changed else ""
        rows.add_row(rule.name, f"{-rule.removed:,}", rule.explanation + changed)
    rows.add_section()
    rows.add_row("kept", f"{report.rows_kept:,}", f"of {report.rows_read:,} read")
    console.print(rows)

    lengths = log.histories.lengths
    span = " to ".join(
        dt.datetime.fromtimestamp(time, dt.UTC).strftime("%Y-%m-%d")
        for time in (report.first_time, report.last_time)
    )
    types = np.bincount(log.histories.types, minlength=len(log.event_types))
    known = [name for name in log.catalogue.columns if name != "item_id"]
    facts = {
        "users": f"{report.users:,}",
        "items": f"{report.items:,} ({', '.join(known) or 'ids only'})",
        "events": f"{report.rows_kept:,}",
        "sessions": f"{report.sessions:,}",
        "time": span,
        "events a user": f"median {np.median(lengths):.0f}, {lengths.min()} to {lengths.max()}",
        "event types": ", ".join(
            f"{name} {count:,}" for name, count in zip(log.event_types, types, strict=True)
        ),
        "user attributes": ", ".join(log.users.columns[1:]) or "none",
        "unused columns": _unused(report),
    }
    summary = Table("log", "", show_header=False)
    for name, fact in facts.items():
        summary.add_row(name, escape(fact))
    console.print(summary)


def _unused(report: QualityReport) -> str:
    tables = [f"{', '.join(names)} ({table})" for table, names in report.unused_columns]
    if not tables:
        return "none"
    return (
        f"{'; '.join(tables)}. Set data.columns to read one as a role, data.group_column to group users "
        "by one"
    )
