"""``fedprofile device``: what the owner of a device sets up, switches and looks at."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import platform
import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from ..common.console import remark
from ..common.errors import FedprofileError
from ..common.formatting import printable
from ..common.stopping import stopped_by_signals
from .answers import GetStatusResponse
from .connect import connect
from .device import Device
from .device_config import DeviceConfig, StoreConfig
from .device_folder import DeviceFolder
from .membership import Lifetime, Membership, read_lifetime, read_membership
from .model_bundle import ModelBundle, install_bundle

DEVICE = typer.Argument(metavar="DIR", help="folder of the device", show_default=False)
JSON = typer.Option("--json", help="one JSON object as the last line of standard output")
_HOUR = 3600.0  # seconds between two looks at retention while nobody calls

init_app = typer.Typer(rich_markup_mode=None, add_completion=False)
model_app = typer.Typer(rich_markup_mode=None, add_completion=False)
run_app = typer.Typer(rich_markup_mode=None, add_completion=False)
status_app = typer.Typer(rich_markup_mode=None, add_completion=False)
consent_app = typer.Typer(rich_markup_mode=None, add_completion=False)
pause_app = typer.Typer(rich_markup_mode=None, add_completion=False)
resume_app = typer.Typer(rich_markup_mode=None, add_completion=False)

_INIT = """Make a device: a folder with its configuration, an encrypted store and the store's key.

\b
Examples:
  fedprofile device init phone
  fedprofile device init phone --name "kitchen tablet" --model runs/shop
  fedprofile device init phone --server-bundle bundle.zip     a server's device
  fedprofile device init phone --keyring

Exit codes: 0 success; 2 the folder is in use, or the model can't be used.
"""
_MODEL = """Install a model to profile and rank with: a run folder, or a folder with its two files.

\b
Examples:
  fedprofile device model phone runs/shop

Exit codes: 0 success; 2 no usable model; the one in use stays.
"""
_RUN = """Serve the device's applications until stopped: gRPC on the Unix socket in its folder.

A device that is enrolled takes part in its server's rounds meanwhile, as far as its owner allows.

\b
Examples:
  fedprofile device run phone

Exit codes: 0 stopped; 2 another process runs it, or the store can't be opened.
"""
_STATUS = """Tell how a device is: what it holds, what its owner allows, which server it has joined, and
what taking part has cost of its lifetime budget.

\b
Examples:
  fedprofile device status phone
  fedprofile device status phone --json

Exit codes: 0 success; 2 no device, or a store that can't be opened.
"""
_CONSENT = """Agree to take part in training, or no longer; off until it is set.

\b
Examples:
  fedprofile device consent phone on

Exit codes: 0 success; 2 it couldn't be stored.
"""
_PAUSE = """Suspend taking part in training; recording and recommending go on.

\b
Examples:
  fedprofile device pause phone

Exit codes: 0 success; 2 it couldn't be stored.
"""
_RESUME = """Take part in training again, after a pause.

\b
Examples:
  fedprofile device resume phone

Exit codes: 0 success; 2 it couldn't be stored.
"""


@init_app.command(help=_INIT)
def init(
    path: Annotated[Path, DEVICE],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="what to call it; unset: the host's name")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="RUN", help="model to install: a run folder")
    ] = None,
    server_bundle: Annotated[
        Path | None, typer.Option(metavar="FILE", help="bundle.zip of the server to join")
    ] = None,
    keyring: Annotated[
        bool, typer.Option("--keyring", help="keep the store's key in the OS keyring")
    ] = False,
) -> None:
    """See the help text above."""
    if model is not None:
        ModelBundle.load(model)  # before anything is made
    entry = f"device-{secrets.token_hex(8)}" if keyring else None
    config = DeviceConfig(
        name=name or platform.node()[:64] or "device", store=StoreConfig(keyring=entry)
    )
    folder = DeviceFolder.create(path, config)
    try:
        if server_bundle is not None:
            from .model_delivery import join_server  # Flower, which nothing else here needs

            join_server(folder, server_bundle)
        if model is not None:
            install_bundle(folder, model)
        with Device(folder) as device:
            found = device.status()  # makes the key and the store
    except BaseException:  # a package that is missing and an interrupt, too
        shutil.rmtree(path)  # it was new, and in half it would be in the way of another try
        raise
    remark(f"Made {folder.config_file}. Consent to training is off.")
    if found.model is None:
        remark(f"No model yet; install one with: fedprofile device model {path} RUN")


@model_app.command(help=_MODEL)
def model(
    path: Annotated[Path, DEVICE],
    source: Annotated[Path, typer.Argument(metavar="RUN", help="folder with the model")],
) -> None:
    """See the help text above."""
    bundle = install_bundle(DeviceFolder.open(path), source)
    with connect(path) as device:
        found = device.status()  # builds the profile anew
    remark(f"Model {bundle.name}: ranks {found.items:,} items, learned {found.learned:,} events")


@run_app.command(help=_RUN)
def run(path: Annotated[Path, DEVICE]) -> None:
    """See the help text above."""
    from .api import ProfileServer  # gRPC, which no other command loads without need
    from .participation import taking_part

    folder = DeviceFolder.open(path)
    # One user's products are small: threads that wait for one another take longer on a busy machine.
    with stopped_by_signals() as stop, threadpool_limits(1, "blas"):
        device = Device(folder)
        with ProfileServer(device):
            remark(f"Serving {folder.socket}")
            with taking_part(folder, device):
                while not stop.wait(_HOUR):
                    try:
                        device.status()  # retention holds on a device that nobody uses, too
                    except (
                        FedprofileError
                    ) as error:  # a store in use, say: the next look may do better
                        remark(str(error), style="bold red")
    remark("Stopped.")


@status_app.command(help=_STATUS)
def status(path: Annotated[Path, DEVICE], as_json: Annotated[bool, JSON] = False) -> None:
    """See the help text above."""
    with connect(path) as device:
        found = device.status()
    folder = DeviceFolder.open(path)
    joined, lifetime = read_membership(folder), read_lifetime(folder)
    if as_json:
        more = {"server": joined, "lifetime": lifetime}
        told = {name: value and dataclasses.asdict(value) for name, value in more.items()}
        tell({**dataclasses.asdict(found), **told})
    else:
        _show(found, joined, lifetime, Console(highlight=False))


def _show(
    found: GetStatusResponse, joined: Membership | None, lifetime: Lifetime | None, out: Console
) -> None:
    table = Table(show_header=False, box=None)
    rows = {
        "device": f"{found.name}, fedprofile {found.version}",
        "process": "running" if found.service else "not running",
        "events": f"{found.events:,}, learned from {found.learned:,}",
        "period": "–"
        if found.oldest is None or found.newest is None
        else f"{moment(found.oldest)} … {moment(found.newest)}",
        "model": "none yet" if found.model is None else f"{found.model}, {found.items:,} items",
        "event types": ", ".join(found.event_types) or "–",
        "consent": _switched(found.consent, found.consent_since),
        "paused": _switched(found.paused, found.paused_since),
        "store": f"{found.store_bytes / 1e6:.1f} MB",
        **_taking_part(joined, lifetime),
    }
    for name, value in rows.items():
        table.add_row(name, plain(value))
    out.print(table)
    if found.set_aside:
        remark(
            f"Damaged and set aside: {', '.join(found.set_aside)}. Events in there are not in use; "
            "delete the files, or keep them for a repair.",
            style="bold red",
        )
    if lifetime is not None and lifetime.problem:
        remark(f"No round can be charged: {lifetime.problem}", style="bold red")


def _taking_part(joined: Membership | None, lifetime: Lifetime | None) -> dict[str, str]:
    if joined is None or lifetime is None:
        return {"server": "none; device enroll joins one"}
    broken = f", {joined.broken_off} replies broken off" if joined.broken_off else ""
    spent = "unknown" if lifetime.epsilon is None else f"{lifetime.epsilon:.3f}"
    return {
        "server": f"{printable(joined.federation)} at {printable(joined.address)}"
        + ("" if joined.key else "; no key yet, device enroll makes one"),
        "signing key": joined.signing_key,
        "CA, SHA-256": joined.ca_sha256,
        "rounds today": f"{joined.rounds_today} of {joined.rounds_per_day}{broken}",
        "lifetime ε": f"{spent} of {lifetime.allowed:g} at δ = {lifetime.delta:.3g}, "
        f"{lifetime.releases} releases",
    }


def _switched(on: bool, since: int | None) -> str:
    return ("on" if on else "off") + ("" if since is None else f" since {moment(since)}")


@consent_app.command(help=_CONSENT)
def consent(
    path: Annotated[Path, DEVICE],
    switch: Annotated[Literal["on", "off"], typer.Argument(help="on or off", show_default=False)],
) -> None:
    """See the help text above."""
    with connect(path) as device:
        device.set_consent(switch == "on")
    remark(f"Consent to training is {switch}.")


@pause_app.command(help=_PAUSE)
def pause(path: Annotated[Path, DEVICE]) -> None:
    """See the help text above."""
    with connect(path) as device:
        device.set_paused(True)
    remark("Paused: no part in training until fedprofile device resume.")


@resume_app.command(help=_RESUME)
def resume(path: Annotated[Path, DEVICE]) -> None:
    """See the help text above."""
    with connect(path) as device:
        device.set_paused(False)
        agreed = device.status().consent
    remark("Resumed." if agreed else "Resumed; consent to training is off, so it takes no part.")


def tell(answer: Any) -> None:
    """One JSON object as the last line of standard output."""
    content = answer if isinstance(answer, dict) else dataclasses.asdict(answer)
    typer.echo(json.dumps(content, ensure_ascii=False, allow_nan=False))


def plain(text: str) -> str:
    """``text`` with rich's markup taken literally."""
    return text.replace("[", "\\[")


def moment(seconds: int) -> str:
    """A time for people, UTC."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M")
    return str(seconds)
