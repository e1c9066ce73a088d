"""The encrypted store of one device: opened whole or not at all, and erased so that bytes are gone.

SQLCipher with a raw key: every page is authenticated, so a flipped byte is found and not read. The
write-ahead log with ``synchronous=FULL`` loses nothing that a commit acknowledged. A file that doesn't
hold is set aside under another name, never deleted and never written to.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlcipher3

from ..common.errors import StoreDamaged, StoreError, StoreFull
from ..common.files import sync_folder
from .store_lock import StoreLock
from .store_log import LogFrames, read_log

_SETUP = (
    "PRAGMA cipher_log_level = NONE",  # what went wrong comes as an error, not on standard error
    "PRAGMA cipher_memory_security = OFF",  # locking pages costs a fifth of the speed
    "PRAGMA temp_store = MEMORY",  # VACUUM leaves no copy on the disk
    "PRAGMA secure_delete = ON",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA foreign_keys = ON",
)
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # A number that only grows tells the order of recording; `id` keeps a retry from counting twice.
        """CREATE TABLE events (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            item TEXT NOT NULL,
            event TEXT NOT NULL,
            time INTEGER NOT NULL,
            value REAL,
            strength REAL NOT NULL,
            session TEXT
        ) STRICT""",
        "CREATE INDEX events_by_time ON events (time, seq)",
        "CREATE INDEX events_by_item ON events (item)",
        "CREATE INDEX events_by_value ON events (event, value) WHERE value IS NOT NULL",
        "CREATE TABLE declared (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
        """CREATE TABLE settings (
            name TEXT PRIMARY KEY, value INTEGER NOT NULL, since INTEGER NOT NULL
        ) STRICT""",
        """CREATE TABLE profile (
            one INTEGER PRIMARY KEY CHECK (one = 1), basis TEXT NOT NULL, state BLOB NOT NULL
        ) STRICT""",
    ),
)
"""Statements that lead from each version of the schema to the next; ``user_version`` counts them."""

_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_FULL_BELOW = 1 << 16  # bytes; with less left on the disk a failed write means that it is full


class Store:
    """An open store; make one with :meth:`open`. One thread at a time may use it.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, connection: sqlcipher3.Connection, lock: StoreLock) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._file = _identity(path)

    @classmethod
    def open(cls, path: Path, key: bytes, *, lock: StoreLock | None = None) -> Store:
        """The store in ``path``, checked and brought to the current schema; a new one where none is.

        Args:
            path: the file.
            key: 32 bytes.
            lock: of the folder, where the caller holds it; unset: one of its own.

        Raises:
            StoreDamaged: it doesn't hold, or ``key`` isn't its key, and is set aside; or its log
                doesn't, and is.
            StoreError: it is in use, can't be read, or a newer program wrote it.
        """
        lock = lock or StoreLock(path.parent)
        if not path.exists():
            with lock.alone():
                if not path.exists():  # nobody made it meanwhile
                    cls._make(path, key, lock)
        with lock.shared():
            return cls._open(path, key, lock, new=False)

    @classmethod
    def _make(cls, path: Path, key: bytes, lock: StoreLock) -> None:
        for stray in store_files(path):  # the log of a store that somebody took away
            with contextlib.suppress(FileNotFoundError):
                stray.rename(cls._aside(stray))
        # Made whole under another name: whatever stands under this one was complete once.
        made = path.with_name(f".{path.name}.new")
        for old in store_files(made):
            old.unlink(missing_ok=True)
        _create_file(made)
        cls._open(made, key, lock, new=True).close()
        made.rename(path)
        sync_folder(path.parent)

    @classmethod
    def _open(cls, path: Path, key: bytes, lock: StoreLock, *, new: bool) -> Store:
        log = path.with_name(f"{path.name}-wal")
        written = read_log(log)
        connection = sqlcipher3.connect(path, isolation_level=None, check_same_thread=False)
        store = cls(path, connection, lock)
        try:
            with store._guarded():
                store._connection.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
                for statement in _SETUP:
                    store._connection.execute(statement).fetchall()
                if broken := store.query("PRAGMA cipher_integrity_check"):
                    raise store._set_aside(f"{len(broken)} of its pages don't hold")
                if not new and store.query("PRAGMA user_version") == [(0,)]:
                    raise store._set_aside("it is empty")
                store.query("PRAGMA journal_mode = WAL")
                store.query("PRAGMA synchronous = FULL")
                store._check_log(log, written)
                store._migrate()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close it; what was committed is in the file then, and the log is gone."""
        with contextlib.ExitStack() as held:
            # SQLite deletes the log by its name: it must not be that of a new store by then.
            with contextlib.suppress(StoreError):
                held.enter_context(self._lock.shared())
            with contextlib.suppress(sqlcipher3.Error):  # a full disk, or a file that doesn't hold
                self._connection.close()

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of one statement.

        Raises:
            StoreError: as :meth:`transaction`.
        """
        with self._guarded():
            return self._connection.execute(statement, parameters).fetchall()

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement that changes rows, and tell how many; within :meth:`transaction`."""
        with self._guarded():
            return int(self._connection.execute(statement, parameters).rowcount)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is executed within is committed durably, or nothing is.

        Raises:
            StoreFull: the disk is full; nothing was changed.
            StoreDamaged: a page doesn't hold; the store is set aside and closed.
            StoreError: another process holds the store for longer than five seconds or has put another in
                its place, or it can't be written.
        """
        with self._lock.shared():
            if self.replaced():
                raise StoreError(
                    f"{self.path}: another process put a new store in its place; do it again"
                )
            self.query("BEGIN IMMEDIATE")
            try:
                yield
                self.query("COMMIT")
            except BaseException:
                # A full disk may have rolled back already, and a store set aside is closed.
                with contextlib.suppress(sqlcipher3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def replaced(self) -> bool:
        """Whether the file is no longer the one that was opened: set aside, destroyed or made anew."""
        return _identity(self.path) != self._file

    def version(self) -> int:
        """A number that is another one once another connection has committed something."""
        return int(self.query("PRAGMA data_version")[0][0])

    def scrub(self) -> None:
        """Make deleted rows unreadable, in the file and in its log.

        After a DELETE the log holds every row still, and pages that are no longer used may. The
        log is cut to nothing, which a full disk allows too; then the file is written anew.

        Raises:
            StoreFull: the disk has no room for it.
            StoreError: another process reads the store.
        """
        self._cut_log()
        self.query("VACUUM")
        self._cut_log()

    def _cut_log(self) -> None:
        if self.query("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
            raise StoreError(
                f"{self.path}: erased from the profile, but another process reads the store, so that its "
                "log still holds the bytes; once it has ended, the device overwrites them"
            )

    def _check_log(self, log: Path, written: LogFrames | None) -> None:
        """Recovery must have found all that ``log`` held when it was read.

        Where it seems to have found less, another process may be about to commit what is in the log
        already, or have emptied it, begun its next round or deleted it. Nobody does within a transaction:
        what two of them see alike stood in the log between them, too.
        """
        if written is None or self._recovered() >= written.committed:
            return
        with self.transaction():
            before = read_log(log)
        recovered = self._recovered()
        with self.transaction():
            if before is None or recovered >= before.committed or read_log(log) != before:
                return
            aside = self._aside(log)
            shutil.copyfile(log, aside)  # closing the store deletes it
            aside.chmod(0o600)
        raise StoreDamaged(
            f"{self.path}: its log was damaged, or cut by a power failure; the last events may be "
            f"missing. The log is set aside as {aside.name}, and the store goes on without"
        )

    def _recovered(self) -> int:
        """Number of the last frame of the log that counts."""
        return int(self.query("PRAGMA wal_checkpoint(NOOP)")[0][1])

    def _migrate(self) -> None:
        version = int(self.query("PRAGMA user_version")[0][0])
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path}: written by a newer fedprofile (schema {version}, this one knows "
                f"{len(MIGRATIONS)}); install the newer one"
            )
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            with self.transaction():
                for statement in statements:
                    self.execute(statement)
                self.execute(f"PRAGMA user_version = {number}")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlcipher3.Error as error:
            name = getattr(error, "sqlite_errorname", "") or ""
            if name.startswith(_DAMAGED):
                raise self._set_aside(str(error)) from error
            if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and self._no_room()):
                raise StoreFull(
                    f"{self.path}: the disk is full; nothing was changed, and what was stored "
                    "before can be read: make room and do it again"
                ) from error
            if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise StoreError(
                    f"{self.path}: another process holds the store; do it again when it is done"
                ) from error
            raise StoreError(f"{self.path}: {error}; nothing was changed") from error

    def _no_room(self) -> bool:
        return shutil.disk_usage(self.path.parent).free < _FULL_BELOW

    @staticmethod
    def _aside(file: Path) -> Path:
        stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S%f")
        return file.with_name(f"{file.name}.damaged-{stamp}")

    def _set_aside(self, why: str) -> StoreDamaged:
        aside = self._aside(self.path)
        with self._lock.alone():
            self.close()
            if self.replaced():  # it isn't this one's to set aside
                raise StoreError(
                    f"{self.path}: was damaged, and another process has seen to it; do it again"
                )
            for file in store_files(self.path):
                with contextlib.suppress(FileNotFoundError):  # a log that SQLite took away
                    file.rename(aside.with_name(file.name.replace(self.path.name, aside.name, 1)))
            sync_folder(self.path.parent)
        return StoreDamaged(
            f"{self.path}: the store is damaged or its key is another ({why}). It is set aside as "
            f"{aside.name}; a new, empty one is made when the device is used next, with consent off"
        )


def store_files(path: Path) -> list[Path]:
    """The files of the store in ``path`` that exist: itself and its log."""
    names = (path.name, f"{path.name}-wal", f"{path.name}-shm")
    return [file for name in names if (file := path.with_name(name)).exists()]


def stores_aside(path: Path) -> list[Path]:
    """Damaged stores that were set aside from ``path``, with their logs."""
    return sorted(path.parent.glob(f"{path.name}*.damaged-*"))


def _identity(path: Path) -> tuple[int, int] | None:
    """By which a file is told from another of the same name; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _create_file(path: Path) -> None:
    """An empty file for its owner's eyes; SQLite gives its log the same permissions."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise StoreError(f"{path}: can't make the store ({error.strerror})") from error
