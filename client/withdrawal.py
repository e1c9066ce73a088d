"""Erasing reaches the answers that were made of the erased events, in whatever process they are made.

An answer lies in the outbox in clear until it is sent. One that is being made leaves a mark there first,
and is stored only while its mark stands: erasing takes away answers and marks alike. It takes no
room on the disk and doesn't wait for training to end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

from ..common.errors import DeviceError
from ..common.files import sync_folder
from .device_folder import DeviceFolder


@contextlib.contextmanager
def undisturbed(folder: DeviceFolder) -> Iterator[None]:
    """Look into the outbox and write to it while nobody withdraws answers; made anew where it's missing.

    Raises:
        OSError: it can't be made or read.
    """
    folder.outbox.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder.outbox, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def begin_answer(folder: DeviceFolder, name: str) -> None:
    """Mark the answer ``name`` as one in the making, before any event is read for it."""
    with undisturbed(folder):
        (folder.outbox / f"{name}.making").touch(mode=0o600)


def finish_answer(folder: DeviceFolder, name: str, store: Callable[[], None]) -> bool:
    """Store the answer, unless something was erased since it was begun.

    Returns:
        Whether it was stored.
    """
    mark = folder.outbox / f"{name}.making"
    with undisturbed(folder):
        if not mark.exists():
            return False
        store()
        mark.unlink()
        return True


def forget_mark(folder: DeviceFolder, name: str) -> None:
    """Take away the mark of an answer whose maker was killed."""
    (folder.outbox / f"{name}.making").unlink(missing_ok=True)


def withdraw_answers(folder: DeviceFolder) -> None:
    """Delete what was made of events. The diary stays: what was begun is never made again.

    Raises:
        DeviceError: something there can't be deleted.
    """
    try:
        with undisturbed(folder):
            for file in folder.outbox.iterdir():
                if file != folder.diary:
                    file.unlink(missing_ok=True)
            sync_folder(folder.outbox)
        folder.fit_log.unlink(missing_ok=True)
    except OSError as error:
        raise DeviceError(
            f"{folder.outbox}: erased from the profile, but an answer made of it can't be deleted "
            f"({error.strerror}: {error.filename}); take it away, and the device does the rest soon"
        ) from error
