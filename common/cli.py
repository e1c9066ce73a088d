"""The ``fedprofile`` command: names its sub-commands, and loads one only when it is called.

A device that ranks must not load what a simulation needs, and ``--help`` must not load torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys

import click
import typer

from .errors import FedprofileError

# name → (module with a Typer ``app``, one line of help)
_COMMANDS = {
    "simulate": ("simulations.cli", "Train over simulated devices and explain the run."),
    "data": ("simulations.data_cli", "Look at interaction data before using it."),
}
_PACKAGE = __package__.rpartition(".")[0]
_INTERRUPTED = 130


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"{_PACKAGE}.{_COMMANDS[cmd_name][0]}")
        return typer.main.get_command(module.app)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("fedprofile"), prog_name="fedprofile")
def root() -> None:
    """Recommendations that learn from everyone and watch no one.

    \b
    Examples:
      fedprofile simulate                              built-in data, user-level DP
      fedprofile simulate --data log.csv --epsilon 2   your own interaction log
      fedprofile data describe log.csv                 what is in it, row by row
    """


def main() -> None:
    """Entry point: exits with the code of the outcome; bad input is one line, never a traceback."""
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
    except OSError as error:  # a full disk, a folder that vanished
        sys.exit(_refuse(f"{error.filename or 'input or output'}: {error.strerror}", 2))
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_refuse("interrupted", _INTERRUPTED))
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str, code: int) -> int:
    click.echo(f"error: {message}", err=True)
    return code
