"""The privacy ledger: what was released from user data, written down before it happens.

An append-only file of JSON lines, each holding the SHA-256 of the line before. A release is
reserved durably before it is made and committed after; a crash in between leaves it charged, never
refunded, because nobody can know whether it got out. docs/ledger.md describes the format.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from . import accounting
from .errors import BudgetError, ConfigError, LedgerError
from .files import sync_folder
from .mechanism import Mechanism
from .randomness import Kind

FIRST = "0" * 64
"""What the first entry names as the one before."""


def _mechanism(value: Mechanism | dict[str, Any]) -> Mechanism:
    if isinstance(value, Mechanism):
        return value
    try:
        return Mechanism.from_description(value)
    except (ConfigError, TypeError) as error:
        raise ValueError(str(error)) from error


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    sequence: NonNegativeInt
    previous: str = Field(pattern="^[0-9a-f]{64}$")
    time: str


class Open(_Entry):
    """First entry: the population, its budget, and what runs on it."""

    kind: Literal["open"] = "open"
    version: Literal[1] = 1
    unit: Literal["user"] = "user"
    adjacency: Literal["add-or-remove-one"] = "add-or-remove-one"
    population_size: int = Field(ge=1)
    delta: float = Field(gt=0, lt=1)
    target_epsilon: float | None = Field(gt=0)
    randomness: Kind
    code_version: str
    config_digest: str


class Reserve(_Entry):
    """A release is about to be made, and costs from here on; ``sequence`` is its number."""

    kind: Literal["reserve"] = "reserve"
    task: str = Field(min_length=1)
    round: int | None = Field(ge=0)
    mechanism: Annotated[Mechanism, PlainValidator(_mechanism), PlainSerializer(Mechanism.describe)]
    model_before: str | None


class Commit(_Entry):
    """A reserved release was made."""

    kind: Literal["commit"] = "commit"
    release: NonNegativeInt
    cohort_size: NonNegativeInt
    replies_counted: NonNegativeInt
    rejected: dict[str, NonNegativeInt]
    model_after: str | None


class Stop(_Entry):
    """Last entry: nothing is released any more."""

    kind: Literal["stop"] = "stop"
    reason: str = Field(min_length=1)
    epsilon: float | None


Entry = Open | Reserve | Commit | Stop
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


class _Chain:
    """Entries that hold together, and what the next one must continue."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.head = FIRST
        self.pending: dict[int, Reserve] = {}

    def objection(self, entry: Entry) -> str | None:
        """Why ``entry`` can't come next, None where it can."""
        if entry.sequence != len(self.entries) or entry.previous != self.head:
            return "doesn't continue the line before; lines were changed, removed or reordered"
        if isinstance(entry, Open) != (not self.entries):
            return "an 'open' entry must come first and only there"
        if self.entries and isinstance(self.entries[-1], Stop):
            return "the ledger is stopped; nothing can follow"
        if isinstance(entry, Commit) and entry.release not in self.pending:
            return f"release {entry.release} isn't pending: never reserved, or committed before"
        return None

    def add(self, entry: Entry, line: bytes) -> None:
        self.entries.append(entry)
        self.head = hashlib.sha256(line).hexdigest()
        if isinstance(entry, Reserve):
            self.pending[entry.sequence] = entry
        elif isinstance(entry, Commit):
            del self.pending[entry.release]

    @property
    def opening(self) -> Open:
        first = self.entries[0]
        assert isinstance(first, Open)
        return first


class Ledger:
    """A ledger open for writing, by one writer at a time.

    Make one with :meth:`create` or :meth:`open`; it is a context manager that closes the file.

    Attributes:
        torn_bytes: length of an unfinished last line that :meth:`open` cut off; 0: there was none.
    """

    def __init__(self, path: Path, *, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._chain = _Chain()
        self.torn_bytes = 0

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        population_size: int,
        delta: float,
        target_epsilon: float | None,
        randomness: Kind,
        code_version: str,
        config_digest: str,
    ) -> Ledger:
        """Start a ledger with its ``open`` entry.

        Args:
            path: the new file.
            population_size: N, users the budget is for.
            delta: δ at which ε is stated.
            target_epsilon: the budget; None records without enforcing (runs without privacy).
            randomness: where noise and cohorts come from.
            code_version: of the program.
            config_digest: hash of the configuration.

        Raises:
            LedgerError: ``path`` exists or can't be written.
            ConfigError: a value is out of range.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError as error:
            raise LedgerError(
                f"{path}: a ledger exists already; open it or name another"
            ) from error
        except OSError as error:
            raise LedgerError(f"{path}: can't create the ledger ({error.strerror})") from error
        ledger = cls(path, descriptor=descriptor)
        try:
            ledger._lock()
            ledger._append(
                Open,
                population_size=population_size,
                delta=delta,
                target_epsilon=target_epsilon,
                randomness=randomness,
                code_version=code_version,
                config_digest=config_digest,
            )
            sync_folder(path.parent)
        except BaseException:
            ledger.close()
            path.unlink()
            raise
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Go on with a ledger, after checking every line of it.

        Bytes after the last newline are an append that a crash cut short. They are cut off:
        appending returns only once the whole line is on disk, so nothing was done on the strength
        of them.

        Raises:
            LedgerError: the file is missing, locked by another writer, or doesn't hold together.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            raise LedgerError(f"{path}: can't open the ledger ({error.strerror})") from error
        ledger = cls(path, descriptor=descriptor)
        try:
            ledger._lock()
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            complete = content.rfind(b"\n") + 1
            ledger._chain = _parse(path, content[:complete])
            ledger.torn_bytes = len(content) - complete
            if ledger.torn_bytes:
                os.ftruncate(descriptor, complete)
                os.fsync(descriptor)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the file and let other writers in; closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._chain.entries)

    @property
    def opening(self) -> Open:
        """The first entry."""
        return self._chain.opening

    @property
    def head(self) -> str:
        """SHA-256 of the last line; kept elsewhere, it fixes all the ledger says so far."""
        return self._chain.head

    @property
    def stopped(self) -> Stop | None:
        """The ``stop`` entry, where there is one."""
        last = self._chain.entries[-1]
        return last if isinstance(last, Stop) else None

    def pending(self) -> tuple[Reserve, ...]:
        """Releases reserved but never committed: charged, perhaps made."""
        return tuple(self._chain.pending.values())

    def epsilon_spent(self) -> float:
        """ε at the ledger's δ of all reserved releases, committed or not; inf without privacy."""
        return accounting.epsilon(self._events(), delta=self.opening.delta)

    def reserve(
        self,
        *,
        task: str,
        mechanism: Mechanism,
        round: int | None = None,  # noqa: A002
        model_before: str | None = None,
    ) -> int:
        """Charge a release, durably, before it is made.

        Args:
            task: what is released, say ``training`` or ``statistics/popularity``.
            mechanism: how.
            round: number of the round, None where there are none.
            model_before: hash of the model that the release starts from, None where there is none.

        Returns:
            The release's number, for :meth:`commit`.

        Raises:
            BudgetError: ε of all reserved and this would exceed the target; nothing is written.
            ConfigError: the mechanism is for another population size.
            LedgerError: the ledger is stopped, closed, or can't be written.
        """
        opening = self.opening
        if mechanism.population_size != opening.population_size:
            raise ConfigError(
                f"a mechanism for {mechanism.population_size} users can't be charged to "
                f"{self._path}, which is for {opening.population_size}"
            )
        if opening.target_epsilon is not None:
            events, delta = [*self._events(), mechanism.event()], opening.delta
            target = opening.target_epsilon
            if not accounting.fits(events, delta=delta, target_epsilon=target):
                reached = accounting.epsilon(events, delta=delta)
                what = task if round is None else f"{task}, round {round},"
                raise BudgetError(
                    f"{what} would bring ε to {reached:.6g}, above the target of {target:.6g}; "
                    "raise epsilon, add noise, or release less",
                    epsilon_reached=reached,
                )
        return self._append(
            Reserve,
            task=task,
            round=round,
            mechanism=mechanism,
            model_before=model_before,
        ).sequence

    def commit(
        self,
        release: int,
        *,
        cohort_size: int,
        replies_counted: int,
        rejected: Mapping[str, int],
        model_after: str | None = None,
    ) -> None:
        """Record that a reserved release was made.

        Args:
            release: number that :meth:`reserve` returned.
            cohort_size: users that were sampled.
            replies_counted: users whose contribution is in the sum.
            rejected: reason → users whose contribution was refused.
            model_after: hash of the resulting model, None where there is none.

        Raises:
            LedgerError: the release isn't pending, or the ledger is stopped, closed or unwritable.
        """
        self._append(
            Commit,
            release=release,
            cohort_size=cohort_size,
            replies_counted=replies_counted,
            rejected=dict(rejected),
            model_after=model_after,
        )

    def stop(self, *, reason: str, epsilon: float | None = None) -> None:
        """End the ledger: nothing can be reserved or committed afterwards.

        Args:
            reason: why.
            epsilon: ε that the release refused last would have led to, None where none was refused.

        Raises:
            LedgerError: the ledger is stopped already, closed, or can't be written.
        """
        finite = None if epsilon is None or math.isinf(epsilon) else epsilon
        self._append(Stop, reason=reason, epsilon=finite)

    def _events(self) -> list[Any]:
        entries = self._chain.entries
        return [entry.mechanism.event() for entry in entries if isinstance(entry, Reserve)]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LedgerError(
                f"{self._path}: another process is writing to this ledger; let it finish first"
            ) from error

    def _append(self, kind: type[Entry], **values: Any) -> Entry:
        if self._descriptor < 0:
            raise LedgerError(f"{self._path}: the ledger is closed; open it again")
        try:
            entry = kind(
                sequence=len(self._chain.entries),
                previous=self._chain.head,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                **values,
            )
        except ValidationError as error:
            raise ConfigError(f"{self._path}: {_explain(error)}") from error
        if objection := self._chain.objection(entry):
            raise LedgerError(f"{self._path}: {objection}")
        line = _canonical(entry)
        try:
            written = os.write(self._descriptor, line + b"\n")
            if written <= len(line):
                raise OSError(f"only {written} of {len(line) + 1} bytes written")
            os.fsync(self._descriptor)
            self._chain.add(entry, line)
        except BaseException as error:
            # What the disk holds is unknown now; opening again reads it, and cuts off a torn line.
            self.close()
            if isinstance(error, OSError):
                raise LedgerError(f"{self._path}: can't append to the ledger ({error})") from error
            raise
        return entry


def read_ledger(path: Path) -> list[Entry]:
    """Read and check a ledger without locking or changing it, also while it is being written.

    A line without its newline isn't an entry yet and is left out.

    Raises:
        LedgerError: the file can't be read, or a line, its hash, number or pairing is wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: can't read the ledger ({error.strerror})") from error
    return _parse(path, content[: content.rfind(b"\n") + 1]).entries


def _parse(path: Path, content: bytes) -> _Chain:
    chain = _Chain()
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            entry = _ENTRY.validate_json(line)
        except ValidationError as error:
            raise LedgerError(f"{path}: line {number}: {_explain(error)}") from error
        if _canonical(entry) != line:
            raise LedgerError(f"{path}: line {number}: not canonical JSON, so changed afterwards")
        if objection := chain.objection(entry):
            raise LedgerError(f"{path}: line {number}: {objection}")
        chain.add(entry, line)
    if not chain.entries:
        raise LedgerError(f"{path}: holds no complete entry; delete it and start a new ledger")
    return chain


def _canonical(entry: Entry) -> bytes:
    return json.dumps(
        entry.model_dump(),
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    ).encode()


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
