"""Whether a round's results fit on the disk, asked before the round costs anything."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from ..common.errors import ServerFull
from .folder import ServerFolder

_LEAST = 16 * 2**20  # bytes: ledger, logs, messages on their way
_COPIES = 10  # of the model: two checkpoints with averages and moments, a release
_STATISTICS = 5  # copies of what was released of the items: two checkpoints, three releases

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def check_room(folder: ServerFolder) -> None:
    """Compare what is free on the disk of ``folder`` with what a round may write.

    Raises:
        ServerFull: it is less.
    """
    # The table of the items has room for their statistics, and is never smaller.
    need = _LEAST + _COPIES * _size(folder.model) + _STATISTICS * _size(folder.items)
    free = shutil.disk_usage(folder.path).free
    if free < need:
        raise ServerFull(
            f"{folder.path}: the disk is full: {free / 1e6:.1f} MB are free, and a round needs "
            f"{need / 1e6:.1f}; make room and start the server again, it goes on where it stands"
        )


def _size(path: Path) -> int:
    return path.stat().st_size


def of_the_disk(error: Exception) -> ServerFull | None:
    """What to say of an error that the disk made, by a quota or a fault say; None: it made none."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError) or cause.errno not in _OF_THE_DISK:
        return None
    words = f"{cause.filename}: {cause.strerror}" if error is cause else str(error)
    return ServerFull(f"{words}; make room and start the server again, it goes on where it stands")
