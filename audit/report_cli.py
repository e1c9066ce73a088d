"""``fedprofile audit report``: an audit on one page."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..common.formatting import printable
from ..common.signing import read_public_key
from .ledgers import find_evidence

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_FAILED = 1
_LONGEST = 2_000  # characters of a fault
_HELP = """Tell an audit on one HTML page that opens offline, and as JSON: what a lawyer can quote, every
check, what is left, and what nobody checked.

Results of probes and canaries are taken from the folder where they lie in it.

\b
Examples:
  fedprofile audit report runs/shop --out audits/shop
  fedprofile audit report ledger.jsonl --anchor /mnt/notary/a.json --out page
  fedprofile audit report runs/shop --device-ledger a.jsonl --out audits/shop
  fedprofile audit report runs/shop --canaries canaries/ --out page

Exit codes: 0 holds; 1 does not hold, which the page says in red; 2 wrong usage or unreadable.
"""


@app.command(name="report", help=_HELP)
def command(
    path: Annotated[
        Path,
        typer.Argument(metavar="LEDGER|DIR", help="ledger, or folder of a run or server"),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="for report.html and report.json; none yet in it")
    ],
    anchor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="where the head was published")
    ] = None,
    public_key: Annotated[
        str | None, typer.Option(metavar="HEX|PEM", help="of who should have signed")
    ] = None,
    device_ledger: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="of a device; may be repeated")
    ] = None,
    device_folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="of devices' ledgers; unset: as the run has it"),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what 'audit probe --out' kept")
    ] = None,
    canaries: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what 'audit canaries --out' kept")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object as the last line of standard output")
    ] = False,
) -> None:
    """See the help text above."""
    from .report import ReportOptions, check_free, make_report, write_report

    evidence = find_evidence(path, anchor=anchor, devices=device_folder)
    options = ReportOptions(
        path=path,
        command=shlex.join(["fedprofile", *sys.argv[1:]]),
        public_key=None if public_key is None else read_public_key(public_key),
        device_ledgers=tuple(device_ledger or ()),
        device_folder=device_folder,
        probes=probe,
        canaries=canaries,
    )
    check_free(out)
    document = make_report(evidence, options)
    paths = write_report(document, out)
    if as_json:
        text = json.dumps({**document, "paths": paths}, ensure_ascii=False, allow_nan=False)
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")
    else:
        holds = document["verdict"]["holds"]
        sentence = printable(document["verdict"]["sentence"], _LONGEST)
        typer.secho(sentence, bold=True, fg=None if holds else "red")
        for fault in document["verdict"]["faults"]:
            typer.echo(printable(f"{fault['title']}: {fault['text']}", _LONGEST))
        typer.echo(f"Report: {paths['page']}")
    if not document["verdict"]["holds"]:
        raise typer.Exit(_FAILED)
