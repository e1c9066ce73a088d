"""Whether what a server listens on is free, before anything is started that needs it."""

from __future__ import annotations

import errno
import fcntl
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from ..common.console import remark
from ..common.errors import ServerError
from .folder import ServerFolder

_PATIENCE = 30.0  # seconds for the processes of a server that was killed to end
_POLL = 0.2


def check_ports(folder: ServerFolder) -> None:
    """Bind the public port and that of the metrics, and let go of them again.

    Raises:
        ServerError: one is in use, or its address isn't one of this host.
    """
    federation, file = folder.config.federation, folder.config_file
    with ExitStack() as held:
        _bind(
            federation.listen or federation.host,
            federation.port,
            key=f"federation.port in {file}",
            held=held,
            taken="or make the server anew with another --port: devices know this one from bundle.zip",
            elsewhere="set federation.listen to one of its own, or to 0.0.0.0",
        )
        if federation.metrics_port:
            _bind(
                "127.0.0.1",
                federation.metrics_port,
                key=f"federation.metrics_port in {file}",
                held=held,
                taken="or set another port",
                elsewhere="bring up the loopback interface",
            )


def await_predecessor(folder: ServerFolder) -> None:
    """Give the processes of a server that was killed the moment that they need to notice and end."""
    deadline = time.monotonic() + _PATIENCE
    told = False
    while _answers(folder.socket) or _locked(folder.ledger):
        if time.monotonic() > deadline:
            return  # who goes on meets them, and says what is in the way
        if not told:
            remark("Waiting for the processes of a server that was killed here")
            told = True
        time.sleep(_POLL)


def _bind(host: str, port: int, *, key: str, held: ExitStack, taken: str, elsewhere: str) -> None:
    """Take every address of ``host``, as the server will, until ``held`` is closed."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ServerError(
            f"{shown} ({key}): no such address ({error.strerror}); {elsewhere}"
        ) from error
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            trial = held.enter_context(socket.socket(family, kind, protocol))
            # As asyncio does: connections that have ended don't count, listeners do.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                what = f"in use; stop what listens there, {taken}"
            elif error.errno == errno.EADDRNOTAVAIL:
                what = f"not an address of this host; {elsewhere}"
            else:
                what = f"can't listen there ({error.strerror}); {taken.removeprefix('or ')}"
            raise ServerError(f"{shown} ({key}): {what}") from error


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(str(path))
        except OSError:
            return False
        return True


def _locked(path: Path) -> bool:
    """Whether a process has the ledger open for writing."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # there is none, or whoever opens it says what is wrong
    return False
