"""A group of commands that loads one only when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click
import typer
import typer.core

_PACKAGE = __package__.rpartition(".")[0]
# Where rich is installed, Typer 0.20 escapes brackets for it also in plain help.
typer.core.HAS_RICH = False


class LazyGroup(click.Group):
    """Sub-commands by name.

    Args:
        table: name → ("module:attribute" with a Typer app or a click command, one line of help).
    """

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str]], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, loaded now."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name][0].partition(":")
        found = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), attribute)
        return typer.main.get_command(found) if isinstance(found, typer.Typer) else found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the sub-commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._table.items()])
