"""Sums over what anybody may have written: within a time, and not where they would take all memory.

A ledger can ask for figures that take hours, or more memory than there is. So they are worked out in a
process that is ended when its time is up: the audit goes on, and says what it wasn't told.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Generic, ParamSpec, Self, TypeVar

from ..common.errors import ConfigError, FedprofileError, LedgerError
from ..common.mechanism import Adjacency
from .accountants import MOST, PATIENCE

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_MOST_MEMORY = 4 << 30  # bytes of address space
P = ParamSpec("P")
R = TypeVar("R")


class Bounded(Generic[P, R]):
    """A function that runs in a process of its own, which keeps what it has learned between calls.

    A context manager that doesn't leave the process behind. Arguments and result must pickle.
    """

    def __init__(self, work: Callable[P, R]) -> None:
        self._work = work
        self._worker: tuple[multiprocessing.process.BaseProcess, Connection] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._worker is not None:
            process, ours = self._worker
            self._worker = None
            process.kill()
            process.join()
            ours.close()

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """What the function returns.

        Raises:
            LedgerError: it takes too long, or more memory than there is, or its numbers overflow.
            FedprofileError: the function raised it.
        """
        if self._worker is None:
            # A fork has what this process loaded, and doesn't load it for every ledger again.
            context = multiprocessing.get_context("fork")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(self._work, theirs, ours), daemon=True)
            process.start()
            theirs.close()
            self._worker = process, ours
        connection = self._worker[1]
        try:
            connection.send((arguments, named))
            if not connection.poll(PATIENCE):
                raise TimeoutError
            result: R | Exception = connection.recv()
        except (OSError, EOFError) as error:  # its time is up, or it has ended
            self._end()
            raise LedgerError(
                "what it cost takes too long or too much memory to work out"
            ) from error
        if isinstance(result, Exception):
            raise result
        return result


def epsilon_within(
    events: Mapping[DpEvent, int], *, delta: float, adjacency: Adjacency, coarse: bool = False
) -> float:
    """ε by PLD; infinite where Rényi DP has it above :data:`~.accountants.MOST`, as without noise."""
    from dp_accounting import NonPrivateDpEvent

    from ..common import accounting

    if any(isinstance(event, NonPrivateDpEvent) for event in events):
        return float("inf")
    if events and accounting.epsilon_rdp(events, delta=delta) > MOST:
        return float("inf")
    return accounting.epsilon(events, delta=delta, coarse=coarse, adjacency=adjacency)


def _serve(work: Callable[P, R], calls: Connection, other_end: Connection) -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system has it
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, resource.RLIM_INFINITY))
    other_end.close()  # or it would never hear that nobody calls any more
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries warn of numbers nobody would choose
    while True:
        try:
            arguments, named = calls.recv()
        except EOFError:
            return
        # Where the audit is killed meanwhile, nobody else ends it.
        until = math.ceil(time.process_time() + PATIENCE)
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        try:
            calls.send(work(*arguments, **named))
        except ConfigError as error:
            calls.send(ConfigError(str(error)))
        except FedprofileError as error:  # some can't be pickled
            calls.send(LedgerError(str(error)))
        except ImportError as error:
            calls.send(error)
        except (ArithmeticError, MemoryError, ValueError, RuntimeError):
            calls.send(LedgerError("its numbers are beyond what can be worked out"))
