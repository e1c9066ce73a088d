"""Who uses the files of a store, and who may put others in their place.

Several processes may have one store open: the service, the process that trains, a command. SQLite keeps
them from one another's pages, and knows nothing of a file that is set aside, made anew or destroyed
under a connection: what is committed there is acknowledged and gone. So whoever commits shares this
lock, and whoever replaces files holds it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ..common.errors import StoreError

_PATIENCE = {
    fcntl.LOCK_SH: 5.0,
    fcntl.LOCK_EX: 20.0,
}  # seconds; of the first as SQLite's busy_timeout
_PAUSE = 0.005  # between two tries


class StoreLock:
    """A lock on the folder of a store; one thread at a time may use it, nested as it likes.

    Args:
        folder: where the store's files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._alone = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Nobody replaces the files within.

        Raises:
            StoreError: somebody replaces them for longer than five seconds, or the folder is gone.
        """
        with self._held(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody commits to the files within; asked for under :meth:`shared`, others may come between.

        Raises:
            StoreError: others are at work for longer than twenty seconds, or the folder is gone.
        """
        with self._held(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _held(self, kind: int) -> Iterator[None]:
        if self._descriptor is not None:
            if kind == fcntl.LOCK_EX and not self._alone:
                self._take(self._descriptor, kind)
            yield
            return
        try:
            self._descriptor = os.open(self._folder, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{self._folder}: can't be opened ({error.strerror})") from error
        try:
            self._take(self._descriptor, kind)
            yield
        finally:
            os.close(self._descriptor)
            self._descriptor, self._alone = None, False

    def _take(self, descriptor: int, kind: int) -> None:
        until = time.monotonic() + _PATIENCE[kind]
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > until:
                    with contextlib.suppress(OSError):  # it was given up for this one
                        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    raise StoreError(
                        f"{self._folder}: another process holds the store; do it again when it is done"
                    ) from error
                time.sleep(_PAUSE)
            except OSError as error:
                raise StoreError(f"{self._folder}: can't be locked ({error.strerror})") from error
            else:
                self._alone = kind == fcntl.LOCK_EX
                return
