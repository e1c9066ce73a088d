"""The lock by which one process at a time runs a device, and others find out."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from typing import IO

from ..common.errors import DeviceError
from .device_folder import DeviceFolder


@contextlib.contextmanager
def service_lock(folder: DeviceFolder) -> Iterator[None]:
    """Hold the lock; a kill releases it.

    Raises:
        DeviceError: another process holds it.
    """
    with folder.service_lock.open("ab") as file:
        if not _taken(file):
            raise DeviceError(f"{folder.path}: another process runs this device; stop it first")
        yield


def is_served(folder: DeviceFolder) -> bool:
    """Whether a process runs the device now."""
    if not folder.service_lock.exists():
        return False
    with folder.service_lock.open("ab") as file:
        return not _taken(file)


def _taken(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
