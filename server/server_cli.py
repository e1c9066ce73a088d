"""``fedprofile server``: make a server, admit devices, run it, look at it."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.console import remark
from ..common.errors import ServerError
from ..common.flower_switches import quieten_flower
from ..common.sections import read_toml, validated
from ..common.server_config import ServerConfig
from ..common.stopping import stopped_by_signals
from ..common.strength import Statement
from .enrolment import Enrolment
from .folder import ServerFolder
from .moment import check_moment

_JSON = typer.Option("--json", help="one JSON object as the last line of standard output")
_DIR = typer.Argument(metavar="DIR", help="folder of the server")

_INIT = """Make a server: certificate authority, keys, item table, and the bundle for devices.

\b
Examples:
  fedprofile server init shop --host federation.example.org --population 2000 --items items.csv
  fedprofile server init trial                  on this machine, with a built-in catalogue
  fedprofile server init shop --config shop.toml

Hand DIR/bundle.zip to devices the way you would hand over a key. Exit codes: 0 success; 2 bad input.
"""
_ENROLL = """Admit a device by the public key that 'fedprofile device enroll' made on it.

\b
Examples:
  fedprofile server enroll shop --name till-3 --public-key node.pub

Takes effect at once, also while the server runs. Exit codes: 0 success; 2 bad input.
"""
_REVOKE = """Shut a device out, at once. Its number is never given to another.

\b
Examples:
  fedprofile server revoke shop --name till-3

Exit codes: 0 success; 2 no such device.
"""
_RUN = """Run the federation to its last round, and keep it running whatever dies.

\b
Examples:
  fedprofile server run shop
  fedprofile server run trial --rounds 3 --epsilon 4      before the first round only

Goes on where it was stopped or killed. Where three releases in a row were lost to crashes it ends;
--after-crashes goes on. Exit codes: 0 finished or stopped; 2 it can't run; 3 no budget.
"""
_STATUS = """Tell where the federation stands: round, cohort, rejections, ε spent and left.

\b
Examples:
  fedprofile server status shop
  fedprofile server status shop --json

Exit codes: 0 success; 2 no server, or its ledger doesn't hold.
"""


def _app() -> typer.Typer:
    return typer.Typer(rich_markup_mode=None, add_completion=False)


init_app, enroll_app, revoke_app, run_app, status_app = (_app() for _ in range(5))


@init_app.command(help=_INIT)
def init(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="new folder")],
    host: Annotated[str | None, typer.Option(help="name or address devices connect to")] = None,
    port: Annotated[int | None, typer.Option(help="port devices connect to")] = None,
    name: Annotated[str | None, typer.Option(help="of the federation")] = None,
    population: Annotated[int | None, typer.Option(metavar="N", help="devices at most")] = None,
    items: Annotated[Path | None, typer.Option(help="CSV or Parquet; unset: built in")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with more settings")] = None,
) -> None:
    """See the help text above."""
    from .setup import create_server

    content: dict[str, Any] = {} if config is None else read_toml(config)
    given = {"host": host, "port": port, "name": name, "population_size": population}
    _lay_over(content, "federation", given)
    today = _today()
    if isinstance(content.setdefault("statistics", {}), dict):
        content["statistics"].setdefault("as_of", today)
    where = "" if config is None else f"{config}: "
    settings = validated(
        ServerConfig, content, where=where, documented="docs/server-configuration.md"
    )
    dated = list(check_moment(settings.statistics, today=today, where=where))
    folder = create_server(path, settings, items=items)
    remark(
        f"Server: {path}, devices connect to {settings.federation.host}:{settings.federation.port}"
    )
    remark(f"Hand to devices: {folder.bundle}")
    _warn([*settings.warnings(), *dated])


@enroll_app.command(help=_ENROLL)
def enroll(
    path: Annotated[Path, _DIR],
    name: Annotated[str, typer.Option(help="what to call the device")],
    public_key: Annotated[Path, typer.Option(metavar="FILE", help="node.pub of the device")],
) -> None:
    """See the help text above."""
    quieten_flower()
    from .admission import apply_enrolment

    folder = ServerFolder.open(path)
    try:
        content = public_key.read_bytes()
    except OSError as error:
        raise ServerError(f"{public_key}: can't read the key ({error.strerror})") from error
    device = _enrolment(folder).enrol(name, content, source=str(public_key))
    apply_enrolment(folder)
    remark(f"{name} is device {device.number} of {folder.config.federation.population_size}")


@revoke_app.command(help=_REVOKE)
def revoke(
    path: Annotated[Path, _DIR], name: Annotated[str, typer.Option(help="of the device")]
) -> None:
    """See the help text above."""
    quieten_flower()
    from .admission import apply_enrolment

    folder = ServerFolder.open(path)
    _enrolment(folder).revoke(name)
    apply_enrolment(folder)
    remark(f"{name} is shut out")


@run_app.command(help=_RUN)
def run(
    path: Annotated[Path, _DIR],
    rounds: Annotated[int | None, typer.Option(help="of training")] = None,
    epsilon: Annotated[float | None, typer.Option(help="budget of the whole federation")] = None,
    after_crashes: Annotated[
        bool, typer.Option("--after-crashes", help="go on although the last releases were all lost")
    ] = False,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """See the help text above."""
    quieten_flower()
    from .crashes import accept_crashes
    from .status import read_standing
    from .supervisor import supervise

    folder = ServerFolder.open(path)
    dated: list[Statement] = []
    if not folder.begun:  # afterwards the statistics are out, or paid for
        where = f"{folder.config_file}: "
        dated += check_moment(folder.config.statistics, today=_today(), where=where)
    _settle(folder, rounds=rounds, epsilon=epsilon)
    folder = ServerFolder.open(path)
    if after_crashes:
        accept_crashes(folder)
    _warn([*folder.config.warnings(), *dated])
    with stopped_by_signals() as stop:
        supervise(folder, stop)
    standing = read_standing(folder)
    if as_json:
        typer.echo(json.dumps(standing.describe(), ensure_ascii=False))
    else:
        remark(f"Round {standing.round} of {standing.rounds} is done")


@status_app.command(help=_STATUS)
def status(path: Annotated[Path, _DIR], as_json: Annotated[bool, _JSON] = False) -> None:
    """See the help text above."""
    quieten_flower()
    from .status import read_standing

    standing = read_standing(ServerFolder.open(path))
    if as_json:
        typer.echo(json.dumps(standing.describe(), ensure_ascii=False))
        return
    rejected = ", ".join(f"{reason} {n}" for reason, n in sorted(standing.rejected.items()))
    spent = "no privacy"
    if standing.epsilon is not None:
        spent = (
            f"{standing.epsilon:.3f} of {standing.target:g} at δ = {standing.delta:.3g}, "
            f"{standing.left:.3f} left"
        )
    lines = {
        "federation": standing.federation,
        "server": "runs" if standing.running else "does not run",
        "round": f"{standing.round} of {standing.rounds}",
        "last cohort": "none yet"
        if standing.cohort is None
        else f"{standing.cohort} sampled, {standing.counted} counted",
        "rejected": rejected or "none",
        "ε": spent,
        "lost releases": f"{standing.lost}, charged",
        "devices": f"{standing.enrolled} enrolled of {standing.population}, "
        f"{standing.revoked} revoked, {'?' if standing.online is None else standing.online} online",
        "release": standing.release or "none yet",
        "ended": standing.stopped or "no",
        "signing key": standing.signing_key,
        "CA, SHA-256": standing.ca_sha256,
    }
    for name, text in lines.items():
        typer.echo(f"{name:14} {text}")


def _enrolment(folder: ServerFolder) -> Enrolment:
    size = folder.config.federation.population_size
    return Enrolment(folder.devices, population_size=size)


def _settle(folder: ServerFolder, *, rounds: int | None, epsilon: float | None) -> None:
    """Write rounds and budget into the configuration, while nothing has been spent under another.

    Raises:
        ServerError: the federation has begun with others.
    """
    content = folder.config.model_dump(mode="json", exclude_none=True)
    _lay_over(content, "training", {"rounds": rounds})
    _lay_over(content, "privacy", {"epsilon": epsilon})
    wanted = validated(ServerConfig, content, where="", documented="docs/server-configuration.md")
    if wanted == folder.config:
        return
    if folder.begun:
        raise ServerError(
            f"{folder.path}: the federation has begun with {folder.config.training.rounds} rounds and "
            f"ε = {folder.config.privacy.epsilon:g}; leave --rounds and --epsilon out"
        )
    folder.write_config(wanted)


def _lay_over(content: dict[str, Any], section: str, given: dict[str, Any]) -> None:
    target = content.setdefault(section, {})
    if isinstance(target, dict):
        target.update({key: value for key, value in given.items() if value is not None})


def _today() -> dt.date:
    return dt.datetime.now(dt.UTC).date()


def _warn(warnings: Iterable[Statement]) -> None:
    for warning in warnings:
        remark(f"{warning.title}. {warning.text}", style="yellow")
