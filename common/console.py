"""What a person sees while work goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
"""Progress and remarks go to standard error; standard output is for results."""


class Stage:
    """A stretch of work with a known number of steps."""

    def __init__(self, name: str, total: int, bar: Progress | None) -> None:
        self._name, self._total, self._bar = name, total, bar
        self._done = 0
        self._task = bar.add_task(name, total=total) if bar else None

    def advance(self, remark: str = "") -> None:
        """One step is done; off a terminal about ten lines a stage are printed."""
        self._done += 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, description=f"{self._name} {remark}".strip())
            return
        tenth = max(1, self._total // 10)
        if self._done % tenth == 0 or self._done == self._total:
            print(f"{self._name} {self._done}/{self._total} {remark}".rstrip(), file=sys.stderr)


@contextmanager
def stage(name: str, total: int) -> Iterator[Stage]:
    """Show ``total`` steps of ``name``."""
    if not console.is_terminal:
        yield Stage(name, total, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        yield Stage(name, total, bar)


def remark(text: str) -> None:
    """One line about what is going on."""
    console.print(text, markup=False, soft_wrap=True)
