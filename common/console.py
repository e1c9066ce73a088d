"""What a person sees while work goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
"""Progress and remarks go to standard error; standard output is for results."""

_LINES = 10  # a stage prints about so many off a terminal


class Stage:
    """A stretch of work with a known number of steps."""

    def __init__(self, name: str, total: int, bar: Progress | None) -> None:
        self._name, self._total, self._bar = name, total, bar
        self._done = 0
        self._task = bar.add_task(name, total=total) if bar else None

    def advance(self, note: str = "", *, to: int | None = None) -> None:
        """One more step is done, or ``to`` steps are: a resumed run starts in the middle."""
        self._done = self._done + 1 if to is None else to
        if self._bar is not None and self._task is not None:
            description = f"{self._name} {note}".strip()
            self._bar.update(self._task, completed=self._done, description=description)
        elif self._done % max(1, self._total // _LINES) == 0 or self._done == self._total:
            remark(f"{self._name} {self._done}/{self._total} {note}".rstrip())


@contextmanager
def stage(name: str, total: int) -> Iterator[Stage]:
    """Show ``total`` steps of ``name``."""
    if not console.is_terminal:
        yield Stage(name, total, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Stage(name, total, bar)


def remark(text: str, *, style: str | None = None) -> None:
    """One line about what is going on."""
    console.print(text, markup=False, soft_wrap=True, style=style)
