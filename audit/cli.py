"""``fedprofile audit verify``, ``compose`` and ``forecast``: the privacy officer's commands."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.errors import BadEntry, LedgerError
from ..common.formatting import epsilon as epsilon_text
from ..common.formatting import printable
from ..common.signing import read_public_key
from .findings import Finding
from .ledgers import Evidence, find_evidence

if TYPE_CHECKING:
    from ..common.ledger_entries import Chain
    from .verify import Verification

_FAILED = 1
_LONGEST = 2_000  # characters of a finding
_STYLES = {"holds": "green", "fails": "bold red", "not run": "yellow"}
_JSON = typer.Option("--json", help="one JSON object as the last line of standard output")
_ANCHOR = typer.Option(metavar="FILE", help="where the head was published")
_EITHER = typer.Argument(metavar="LEDGER|DIR", help="ledger, or folder of a run or server")

verify_app = typer.Typer(rich_markup_mode=None, add_completion=False)
compose_app = typer.Typer(rich_markup_mode=None, add_completion=False)
forecast_app = typer.Typer(rich_markup_mode=None, add_completion=False)

_VERIFY = """Check a ledger, trusting nobody: is it whole, was it signed, what did it cost, did it run so.

\b
Examples:
  fedprofile audit verify runs/shop
  fedprofile audit verify shop          the folder of a server, running or not
  fedprofile audit verify ledger.jsonl --anchor /mnt/notary/shop.json
  fedprofile audit verify runs/shop --public-key federation.pem
  fedprofile audit verify runs/shop --device-ledger a.jsonl

Exit codes: 0 holds; 1 does not hold, with the first bad entry; 2 wrong usage or unreadable.
"""
_COMPOSE = """Tell the joint cost of several ledgers over the same users.

\b
Examples:
  fedprofile audit compose runs/first runs/second
  fedprofile audit compose a.jsonl b.jsonl --json

Exit codes: 0 success; 1 a ledger does not hold, with the finding; 2 unreadable, or ledgers of different
populations.
"""
_FORECAST = """Tell how many rounds are left at the current setting, and what more rounds would cost.

\b
Examples:
  fedprofile audit forecast runs/shop
  fedprofile audit forecast runs/shop --epsilon 4
  fedprofile audit forecast ledger.jsonl --rounds 50 --rounds 500

Exit codes: 0 success; 1 the ledger does not hold, with the finding; 2 unreadable, or nothing to forecast
from.
"""


@verify_app.command(help=_VERIFY)
def verify(
    path: Annotated[Path, _EITHER],
    anchor: Annotated[Path | None, _ANCHOR] = None,
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
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """See the help text above."""
    from .verify import verify as run

    evidence = find_evidence(path, anchor=anchor, devices=device_folder)
    key = None if public_key is None else read_public_key(public_key)
    found = run(evidence, public_key=key, device_ledgers=device_ledger or ())
    if as_json:
        _tell(found.to_dict())
    else:
        _show(found)
    if not found.holds:
        raise typer.Exit(_FAILED)


@compose_app.command(help=_COMPOSE)
def compose(
    paths: Annotated[
        list[Path], typer.Argument(metavar="LEDGER…", help="ledgers or folders with one")
    ],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """See the help text above."""
    from .compose import compose as run

    ledgers = [find_evidence(path) for path in paths]
    for evidence in ledgers:
        _whole(evidence, as_json=as_json)
    try:
        found = run([evidence.ledger for evidence in ledgers])
    except BadEntry as error:
        finding = Finding("earlier", "fails", f"line {error.line}: {error.why}", error.line)
        _reject(error.path, [finding], as_json=as_json)
    if as_json:
        _tell(found.to_dict())
        return
    table = Table("ledger", "ε", box=None)
    table.columns[1].justify = "right"
    for path, figure in found.each:
        table.add_row(_plain(str(path)), epsilon_text(figure))
    table.add_section()
    table.add_row("added up", epsilon_text(found.total))
    table.add_row("together", epsilon_text(found.joint), style="bold")
    out = Console(highlight=False)
    out.print(table)
    out.print(
        _plain(
            f"Population '{found.population}', {found.population_size:,} users, δ = {found.delta:.3g}"
            + (f"; {found.others} more ledgers count that these name" if found.others else "")
        ),
        soft_wrap=True,
    )
    for path, target in found.exceeded:
        out.print(
            _plain(
                f"Together they are above the target of {path}, ε = {target:g}: it didn't count the others"
            ),
            soft_wrap=True,
        )


@forecast_app.command(help=_FORECAST)
def forecast(
    path: Annotated[Path, _EITHER],
    epsilon: Annotated[
        float | None, typer.Option(metavar="E", help="budget; unset: the ledger's own")
    ] = None,
    anchor: Annotated[Path | None, _ANCHOR] = None,
    rounds: Annotated[
        list[int] | None, typer.Option(metavar="R", help="tell ε after R more; may be repeated")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """See the help text above."""
    from .forecast import forecast as run

    evidence = find_evidence(path, anchor=anchor)
    chain = _whole(evidence, as_json=as_json)
    found = run(chain, ledger=evidence.ledger, target=epsilon, rounds=rounds or ())
    if as_json:
        _tell(found.to_dict())
        return
    table = Table(f"more {found.rounds}", "ε", box=None)
    for column in table.columns:
        column.justify = "right"
    table.add_row("0", epsilon_text(found.spent))
    for more, figure in found.after:
        table.add_row(f"{more:,}", epsilon_text(figure))
    out = Console(highlight=False)
    out.print(table)
    mechanism = found.mechanism
    setting = f"σ = {mechanism.noise_multiplier:.4g}, q = {mechanism.sampling_probability:.4g}, "
    setting += f"{mechanism.sampler} cohorts, δ = {found.delta:.3g}"
    left = "no target is set"
    if found.target is not None:
        beyond = "or more " if found.beyond else ""
        left = f"{found.rounds_left:,} {beyond}{found.rounds} are left of ε = {found.target:g}"
    out.print(f"{left}, at {setting}", markup=False, soft_wrap=True)


def _whole(evidence: Evidence, *, as_json: bool) -> Chain:
    """The entries of a ledger that is whole; of another the findings are told, and the command ends.

    Raises:
        LedgerError: what its sampler saves can't be told.
    """
    from .chain_checks import check_whole
    from .cohort_test import check_cohorts
    from .privacy_checks import check_sampler, cohorts_of

    chain, findings = check_whole(evidence)
    believed = False
    if chain is not None:
        cohorts = cohorts_of(chain)
        test = None if cohorts is None else check_cohorts(**vars(cohorts))
        sampler, believed = check_sampler(chain, cohorts, test)
        findings.append(sampler)
    if chain is None or any(finding.outcome == "fails" for finding in findings):
        _reject(evidence.ledger, findings, as_json=as_json)
    if not believed:
        raise LedgerError(
            f"{evidence.ledger}: {sampler.what}, and what the sampler saves isn't known"
        )
    return chain


def _reject(ledger: Path, findings: Sequence[Finding], *, as_json: bool) -> NoReturn:
    """Tell the findings on a ledger that doesn't hold, and end the command."""
    from .verify import Verification

    found = Verification(ledger, tuple(findings))
    if as_json:
        _tell(found.to_dict())
    else:
        typer.echo(f"{printable(str(ledger), _LONGEST)}:")
        _show(found)
    raise typer.Exit(_FAILED)


def _show(found: Verification) -> None:
    table = Table("check", "outcome", box=None)
    table.add_column("found", overflow="fold")
    for finding in found.findings:
        outcome = Text(finding.outcome, style=_STYLES[finding.outcome])
        table.add_row(_plain(finding.check), outcome, _plain(finding.what))
    out = Console(highlight=False)
    out.print(table)
    out.print(_plain(_verdict(found)), style="bold")


def _verdict(found: Verification) -> str:
    failed = [finding.check for finding in found.findings if finding.outcome == "fails"]
    if failed:
        return f"Does not hold: {', '.join(failed)}."
    cost = found.cost
    if cost is None or cost.credited is None or math.isinf(cost.credited):
        # Who reads the last line only must not take a whole ledger for a promise.
        return "The ledger holds, and it promises no privacy: ε is infinite."
    return "The ledger holds."


def _tell(content: dict[str, Any]) -> None:
    typer.echo(json.dumps(content, ensure_ascii=False, allow_nan=False))


def _plain(text: str) -> Text:
    """Text of strangers: a ledger must not have a say in how the terminal looks."""
    return Text(printable(text, _LONGEST))
