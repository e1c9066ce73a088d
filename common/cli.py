"""The ``fedprofile`` command: names its sub-commands, and loads one only when it is called.

A device that ranks must not load what a simulation needs, and ``--help`` must not load torch.
"""

from __future__ import annotations

import importlib.metadata
import signal
import sys

import click

from .errors import FedprofileError
from .formatting import printable
from .lazy_group import LazyGroup

# name → (module and what it calls its Typer app, one line of help)
_COMMANDS = {
    "simulate": ("simulations.cli:app", "Train over simulated devices and explain the run."),
    "replay": ("simulations.replay_cli:app", "What it is worth that profiles follow every event."),
    "strategies": (
        "simulations.strategies_cli:app",
        "Ways to make a list, side by side.",
    ),
    "data": ("simulations.data_cli:app", "Look at interaction data before using it."),
    "server": ("common.cli:server", "Run a federation over enrolled devices, with TLS."),
    "device": ("common.cli:device", "Record, profile and rank on a device, offline."),
    "audit": ("common.cli:audit", "Check what was spent, whether it was so, and what is left."),
}
# What needs a running federation is driven from simulations; the rest needs neither torch nor Flower.
_AUDITS = {
    "verify": ("audit.cli:verify_app", "Check a ledger or a run, trusting nobody."),
    "report": ("audit.report_cli:app", "Tell an audit on one page, for people and machines."),
    "compose": ("audit.cli:compose_app", "Joint cost of several ledgers over the same users."),
    "forecast": ("audit.cli:forecast_app", "Rounds left of a budget, and what more would cost."),
    "probe": ("simulations.probe_cli:app", "Measure whether the mechanism runs as declared."),
    "canaries": (
        "simulations.canaries_cli:app",
        "Measure what a run gives away, by made-up users.",
    ),
}
_SERVER = {
    "init": ("server.server_cli:init_app", "Make a server: keys, items, bundle for devices."),
    "enroll": ("server.server_cli:enroll_app", "Admit a device by its public key."),
    "revoke": ("server.server_cli:revoke_app", "Shut a device out."),
    "run": ("server.server_cli:run_app", "Run the federation, whatever dies."),
    "status": ("server.server_cli:status_app", "Round, cohort, rejections, ε spent and left."),
}
_DEVICE = {
    "init": ("client.device_cli:init_app", "Make a device: folder, key, encrypted store."),
    "model": ("client.device_cli:model_app", "Install a model to profile and rank with."),
    "enroll": ("client.enrol_cli:enroll_app", "Join a server, and make the key it knows you by."),
    "run": ("client.device_cli:run_app", "Serve the device's applications, take part in training."),
    "status": ("client.device_cli:status_app", "What it holds, and what its owner allows."),
    "record": ("client.profile_cli:record_app", "Record one interaction."),
    "import": ("client.profile_cli:import_app", "Record the interactions of a file."),
    "profile": ("client.profile_cli:profile_app", "Show what the device knows of its owner."),
    "recommend": ("client.profile_cli:recommend_app", "Rank items for the owner."),
    "consent": ("client.device_cli:consent_app", "Agree to take part in training, or no longer."),
    "pause": ("client.device_cli:pause_app", "Suspend taking part in training."),
    "resume": ("client.device_cli:resume_app", "Take part again."),
    "forget": ("client.profile_cli:forget_app", "Erase an item, a period or everything."),
    "export": ("client.profile_cli:export_app", "Write everything that is stored as JSON."),
}
# package → the extra that brings it; the light install has none of them.
_EXTRAS = {
    **dict.fromkeys(("google", "grpc", "grpc_health", "sqlcipher3", "threadpoolctl"), "score"),
    **dict.fromkeys(("dp_accounting", "jinja2", "matplotlib", "scipy"), "audit"),
    **dict.fromkeys(
        ("fastexcel", "flwr", "opacus", "polars", "prometheus_client", "sklearn", "torch"), "train"
    ),
}
_INTERRUPTED = 130
_LONGEST = 10_000  # characters of a message
_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.command(cls=LazyGroup, table=_COMMANDS, context_settings=_SETTINGS)
@click.version_option(importlib.metadata.version("fedprofile"), prog_name="fedprofile")
def root() -> None:
    """Recommendations that learn from everyone and watch no one.

    \b
    Examples:
      fedprofile simulate                              built-in data, user-level DP
      fedprofile simulate --data log.csv --epsilon 2   your own interaction log
      fedprofile replay runs/shop                      profiles that follow every event
      fedprofile data describe log.csv                 what is in it, row by row
      fedprofile audit verify runs/shop                what was spent, and whether it was so
    """


@click.command(cls=LazyGroup, table=_AUDITS, context_settings=_SETTINGS)
def audit() -> None:
    """Check what was spent, whether it was really so, and what is left.

    \b
    Examples:
      fedprofile audit verify runs/shop
      fedprofile audit report runs/shop --out audits/shop
      fedprofile audit forecast runs/shop --epsilon 4
      fedprofile audit compose runs/first runs/second
      fedprofile audit probe --config runs/shop/config.toml
      fedprofile audit canaries --data log.csv --epsilon 2
    """


@click.command(cls=LazyGroup, table=_SERVER, context_settings=_SETTINGS)
def server() -> None:
    """Run a federation over enrolled devices.

    \b
    Examples:
      fedprofile server init shop --host federation.example.org --items items.csv
      fedprofile server enroll shop --name till-3 --public-key node.pub
      fedprofile server run shop
      fedprofile server status shop
    """


@click.command(cls=LazyGroup, table=_DEVICE, context_settings=_SETTINGS)
def device() -> None:
    """Record, profile and rank on a device, offline; take part in training, if you agree.

    \b
    Examples:
      fedprofile device init phone --model runs/shop
      fedprofile device record phone --item tea-01 --event purchase
      fedprofile device recommend phone --top-k 5 --explain
      fedprofile device forget phone --item tea-01
    """


def main() -> None:
    """Entry point: exits with the code of the outcome; bad input is one line, never a traceback."""
    # What a service manager sends stops a command as cleanly as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Not standalone, for click would turn an interrupt into exit code 1.
        code = root.main(prog_name="fedprofile", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "fedprofile"
        sys.exit(_refuse(f"{error.format_message()} See {command} --help.", error.exit_code))
    except FedprofileError as error:
        sys.exit(_refuse(str(error), error.exit_code))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        extra = f"pip install 'fedprofile[{_EXTRAS[package]}]'"
        sys.exit(_refuse(f"this command needs {package}, which isn't installed: {extra}", 2))
    except OSError as error:  # a full disk, a folder that vanished
        sys.exit(_refuse(f"{error.filename or 'input or output'}: {error.strerror}", 2))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_refuse("interrupted", _INTERRUPTED))
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str, code: int) -> int:
    # It may quote a file of strangers, who must not have a say in how the terminal looks.
    click.echo(f"error: {printable(message, _LONGEST)}", err=True)
    return code
