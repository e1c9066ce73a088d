"""Keeps a server alive: SuperLink and ServerApp as processes, started again when they die."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..common.console import remark
from ..common.errors import ServerError, ServerFull
from ..common.flower_switches import quieten_flower
from .folder import ServerFolder
from .journal import JournalReader, keep_journal, note
from .pki import ensure_certificate
from .ports import await_predecessor, check_ports
from .room import check_room

TRY_AGAIN = 75
"""Exit code of a process whose trouble may pass (EX_TEMPFAIL of sysexits.h)."""

CANT_WRITE = 74
"""Exit code of a process that can't write to its disk (EX_IOERR)."""

FINAL = 70
"""Exit code of a process that refuses to go on, for a reason that another start won't change."""

_POLL = 0.2
_LONGEST_PAUSE = 30.0
_HEALTHY = 60.0  # seconds after which a restart counts as the first again
_TRIES = 4  # starts in a row that end with an error of ours: it won't pass by itself
_LAST_WORDS = 30.0  # seconds for a process to end when asked to
_TAIL = 2000  # bytes of a log that tell why


class _Process:
    """One of the two, whichever time it is started."""

    def __init__(self, name: str, folder: ServerFolder) -> None:
        self.name = name
        self.failures = 0
        self._folder = folder
        self._log = folder.run / f"{name}.log"
        self._running: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._next = 0.0

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running else None

    def tend(self) -> int | None:
        """Start it if it is due; the exit code if it ended since the last call."""
        if self._running is None:
            if time.monotonic() >= self._next:
                self._start()
            return None
        code = self._running.poll()
        if code is None:
            return None
        self._running = None
        if time.monotonic() - self._started > _HEALTHY:
            self.failures = 0
        self.failures += 1
        self._next = time.monotonic() + min(2.0 ** (self.failures - 1), _LONGEST_PAUSE)
        return code

    def end(self) -> None:
        """Ask it to end, and make it."""
        if self._running is None:
            return
        self._running.terminate()
        try:
            self._running.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.wait()
        self._running = None

    def last_words(self) -> str:
        """Last line of its log."""
        lines = self._log.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "no word in its log"

    def _start(self) -> None:
        module = f"{__package__}.{self.name}"
        with self._log.open("wb") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-m", module, str(self._folder.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process, which passes it on in order
            )
        self._started = time.monotonic()


def supervise(folder: ServerFolder, stop: threading.Event) -> None:
    """Run the server until its federation is finished or ``stop`` is set.

    Raises:
        ServerError: a server runs in this folder already, a port is taken, or a process fails for good.
        ServerFull: the disk is full, or became so.
    """
    keep_journal(folder.log)
    with _only_one(folder):
        await_predecessor(folder)
        check_ports(folder)
        check_room(folder)
        ensure_certificate(folder)
        quieten_flower(folder.flower)
        link, service = _Process("superlink", folder), _Process("service", folder)
        journal = JournalReader(folder.log)
        note("started", pid=os.getpid())
        try:
            while not stop.wait(_POLL):
                _tell(journal)
                code = link.tend()
                if code is not None:
                    _ended(folder, link, code)
                code = service.tend()
                if code == 0:
                    return
                if code is not None:
                    _ended(folder, service, code)
        finally:
            service.end()
            link.end()
            note("ended")
            _tell(journal)


def _tell(journal: JournalReader) -> None:
    """What an operator who looks on wants to know."""
    for entry in journal.news():
        if entry["event"] == "round":
            epsilon = entry["epsilon"]
            remark(
                f"Round {entry['round']}: {entry['sampled']} sampled, {entry['trained']} counted, "
                f"{entry['seconds']:.1f} s" + ("" if epsilon is None else f", ε {epsilon:.3f}")
            )
        elif entry["event"] == "waiting":
            remark(f"Waiting for devices: {entry['online']} of {entry['quorum']} are online")
        elif entry["event"] == "delivered":
            remark(f"Handed the model to {entry['devices']} of {entry['enrolled']} devices")
        elif entry["event"] == "died" and entry["code"] not in (FINAL, CANT_WRITE):
            remark(f"{entry['process']} ended with code {entry['code']}; it is started again")


def _ended(folder: ServerFolder, process: _Process, code: int) -> None:
    """Note a death; trouble of the process's own making is tolerated a few times.

    Raises:
        ServerError: too often, or the process refused to go on.
        ServerFull: the disk is full or can't be written: the next try would cost what this one did.
    """
    note("died", process=process.name, code=code, failures=process.failures)
    if code > 0:
        check_room(folder)
    words = process.last_words().removeprefix("error: ")
    if code == CANT_WRITE:
        raise ServerFull(words)
    if code == FINAL:
        raise ServerError(words)
    if 0 < code < TRY_AGAIN and process.failures >= _TRIES:
        raise ServerError(f"{process.name} fails: {words}")


@contextmanager
def _only_one(folder: ServerFolder) -> Iterator[None]:
    with folder.lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(
                f"{folder.path}: a server runs here already; stop it first"
            ) from error
        yield


def follow_parent() -> None:
    """End this process, as if asked to, soon after the one that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
