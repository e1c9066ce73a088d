"""The lock by which one process at a time runs a device, and others find out."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from typing import IO

from ..common.errors import DeviceError
from .device_folder import DeviceFolder

_PATIENCE, _PAUSE = 0.5, 0.01  # seconds in which those who only ask are done, and between two tries


@contextlib.contextmanager
def service_lock(folder: DeviceFolder) -> Iterator[None]:
    """Hold the lock; a kill releases it.

    Raises:
        DeviceError: another process holds it.
    """
    with folder.service_lock.open("ab") as file:
        until = time.monotonic() + _PATIENCE
        while not _taken(file, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise DeviceError(f"{folder.path}: another process runs this device; stop it first")
            time.sleep(_PAUSE)
        yield


def is_served(folder: DeviceFolder) -> bool:
    """Whether a process runs the device now."""
    if not folder.service_lock.exists():
        return False
    with folder.service_lock.open("rb") as file:
        # Shared, so that those who ask at once don't take one another for the process that serves.
        return not _taken(file, fcntl.LOCK_SH)


def _taken(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
