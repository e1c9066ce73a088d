"""Erasing from a store: the profile is built anew, the bytes are gone, and a full disk doesn't stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..common.errors import DeviceError, StoreDamaged, StoreFull
from ..common.files import write_atomically
from . import records
from .device_config import StoreConfig
from .profile_keeper import ProfileKeeper
from .store import Store

_BALLAST = 1 << 20  # bytes
_DAY = 86_400
_PENDING = "erasing"  # set while deleted rows are still to be made unreadable

T = TypeVar("T")


class Eraser:
    """Erases from one store.

    Args:
        store: events.
        keeper: of the profile; None without a model.
        ballast: a file that is given up where the disk is full: deleting takes room, too.
        withdraw: deletes what was made of events and lies elsewhere, or raises DeviceError.
        now: seconds since 1970-01-01 UTC.
    """

    def __init__(
        self,
        store: Store,
        keeper: ProfileKeeper | None,
        ballast: Path,
        *,
        withdraw: Callable[[], None],
        now: int,
    ) -> None:
        self._store, self._keeper, self._ballast, self._now = store, keeper, ballast, now
        self._withdraw = withdraw

    def erase(self, delete: Callable[[], int]) -> int:
        """What ``delete`` deletes is in neither profile nor file afterwards; returns its count.

        Deleting and profile are one transaction. A kill between it and the overwriting is made
        good by :meth:`tidy`.

        Raises:
            StoreFull: the disk is full even so; the message tells how far it came.
            DeviceError: the events are erased, but what was made of them or their bytes can't be yet.
        """

        def delete_and_rebuild() -> int:
            with self._store.transaction():
                count = delete()
                records.set_setting(self._store, _PENDING, True, now=self._now)
                if self._keeper is None:
                    records.drop_profile(self._store)
                else:
                    self._keeper.rebuild()
            if self._keeper is not None:
                self._keeper.keep(None)
            return count

        count = self.with_room(delete_and_rebuild)
        try:
            self.with_room(self._overwrite)
        except StoreFull as error:
            raise StoreFull(
                f"{self._store.path}: {count} events are erased from the profile, but the disk is "
                "too full to overwrite their bytes; make room, and the device does it soon"
            ) from error
        return count

    def with_room(self, action: Callable[[], T]) -> T:
        """Do what must be possible on a full disk."""
        try:
            return action()
        except StoreFull:
            self._ballast.unlink(missing_ok=True)
            return action()
        finally:
            self._keep_ballast()

    def tidy(self, limits: StoreConfig) -> bool:
        """Finish what was cut off, and erase what is kept no longer.

        Returns:
            False where the disk is full, another process reads, or answers can't be deleted: it has
            to be done later, and recording and ranking go on meanwhile.

        Raises:
            StoreDamaged: a page doesn't hold.
        """
        self._keep_ballast()
        count, oldest, _ = records.count_events(self._store)
        try:
            if records.setting(self._store, _PENDING).on:
                self._overwrite()
            if limits.retention_days is not None and oldest is not None:
                first = self._now - limits.retention_days * _DAY
                if oldest < first:
                    self.erase(lambda: records.delete_before(self._store, first))
            most = limits.retention_events
            if most is not None and count > most:
                self.erase(lambda: records.delete_all_but_newest(self._store, most))
        except StoreDamaged:
            raise
        except DeviceError:
            return False
        return True

    def _overwrite(self) -> None:
        self._withdraw()
        self._store.scrub()
        with self._store.transaction():
            records.set_setting(self._store, _PENDING, False, now=self._now)

    def _keep_ballast(self) -> None:
        if not self._ballast.exists():
            with contextlib.suppress(OSError):  # no room for it now
                write_atomically(self._ballast, bytes(_BALLAST), mode=0o600)
