"""The privacy ledger: what was released from user data, written down before it happens.

An append-only file of signed JSON lines, each holding the SHA-256 of the line before. A release is
reserved durably before it is made and committed after; a crash in between leaves it charged, never
refunded, because nobody can know whether it got out. docs/ledger.md describes the format.
"""

from __future__ import annotations

import errno
import fcntl
import io
import math
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from . import accounting
from .anchor import Anchor, is_behind
from .errors import BudgetError, ConfigError, LedgerError
from .files import sync_folder
from .ledger_entries import (
    NEIGHBOURS,
    Chain,
    Earlier,
    Entry,
    Open,
    Reserve,
    Stop,
    Unit,
    events_of,
    follow,
    seal,
    signed_by,
)
from .mechanism import Mechanism, Randomness
from .signing import SigningKey

if TYPE_CHECKING:
    from dp_accounting import DpEvent


class Ledger:
    """A ledger open for writing, by one writer at a time.

    Make one with :meth:`create` or :meth:`open`; it is a context manager that closes the file.

    Attributes:
        torn_bytes: length of an unfinished last line that :meth:`open` cut off; 0: there was none.
    """

    def __init__(
        self,
        path: Path,
        *,
        descriptor: int,
        signing_key: SigningKey,
        anchor: Path | None,
        code_version: str,
    ) -> None:
        self._path = path
        self._descriptor = descriptor
        self._signing_key = signing_key
        self._anchor = anchor
        self._code_version = code_version
        self._chain = Chain()
        self._events: Counter[DpEvent] = Counter()
        self.torn_bytes = 0

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        signing_key: SigningKey,
        population: str,
        population_size: int,
        delta: float,
        target_epsilon: float | None,
        randomness: Randomness,
        code_version: str,
        config_digest: str,
        unit: Unit = "user",
        anchor: Path | None = None,
        earlier: Sequence[Earlier] = (),
    ) -> Ledger:
        """Start a ledger with its ``open`` entry.

        Args:
            path: the new file.
            signing_key: signs every entry.
            population: name of the users the budget is for, the same in all their ledgers.
            population_size: N, users the budget is for.
            delta: δ at which ε is stated.
            target_epsilon: the budget; None records without enforcing (runs without privacy).
            randomness: where noise and cohorts come from.
            code_version: of the program.
            config_digest: hash of the configuration.
            unit: whose contribution each release hides.
            anchor: a new file, where the head is published after every entry; None: nowhere.
            earlier: what ledgers of the same population had reserved before; see ``earlier.py``.

        Raises:
            LedgerError: ``path`` or ``anchor`` exists or can't be written.
            ConfigError: a value is out of range.
        """
        if anchor is not None and anchor.exists():
            raise LedgerError(
                f"{anchor}: anchors a ledger already; put back that ledger, or name another anchor"
            )
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError as error:
            raise LedgerError(
                f"{path}: a ledger exists already; open it or name another"
            ) from error
        except OSError as error:
            raise LedgerError(f"{path}: can't create the ledger ({error.strerror})") from error
        ledger = cls(
            path,
            descriptor=descriptor,
            signing_key=signing_key,
            anchor=anchor,
            code_version=code_version,
        )
        try:
            ledger._lock()
            ledger._append(
                kind="open",
                version=2,
                unit=unit,
                adjacency=NEIGHBOURS[unit],
                population=population,
                population_size=population_size,
                delta=delta,
                target_epsilon=target_epsilon,
                randomness=randomness,
                code_version=code_version,
                config_digest=config_digest,
                public_key=signing_key.public_key,
                nonce=secrets.token_hex(16),  # two ledgers may be alike in all else
                earlier=[_plain(other) for other in earlier],
            )
            ledger._events = events_of(ledger.entries)
            sync_folder(path.parent)
        except BaseException:
            ledger.close()
            path.unlink()
            raise
        return ledger

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        signing_key: SigningKey,
        code_version: str,
        anchor: Path | None = None,
    ) -> Ledger:
        """Go on with a ledger, after checking every line of it and the last signature.

        Bytes after the last newline are an append that a crash cut short. They are cut off:
        appending returns only once the whole line is on disk, so nothing was done on the strength
        of them. An anchor one entry behind is what a crash between the two leaves; it is brought up
        to date. One that is ahead tells of entries that are gone, and with them of budget spent.

        Args:
            path: the file.
            signing_key: the one the ledger was created with.
            code_version: of the program that goes on.
            anchor: where the head is published; None: nowhere.

        Raises:
            LedgerError: the file is missing, locked by another writer, or doesn't hold together; it
                is of another key, or the anchor tells of another ledger or a longer one.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            raise LedgerError(f"{path}: can't open the ledger ({error.strerror})") from error
        ledger = cls(
            path,
            descriptor=descriptor,
            signing_key=signing_key,
            anchor=anchor,
            code_version=code_version,
        )
        try:
            ledger._lock()
            content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            ledger._chain = follow(path, io.BytesIO(content))
            ledger._events = events_of(ledger._chain.entries)
            ledger._check_key()
            behind = anchor is not None and is_behind(anchor, path, ledger._chain)
            complete = content.rfind(b"\n") + 1
            ledger.torn_bytes = len(content) - complete
            if ledger.torn_bytes:
                os.ftruncate(descriptor, complete)
                os.fsync(descriptor)
            if behind:
                ledger._publish()
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

    def events(self) -> Counter[DpEvent]:
        """Event → how often it was reserved, here or in earlier ledgers of the population."""
        return self._events.copy()

    def epsilon_spent(self) -> float:
        """ε at the ledger's δ of :meth:`events`, committed or not; inf without privacy."""
        opening = self.opening
        return accounting.epsilon(self._events, delta=opening.delta, adjacency=opening.adjacency)

    def reserve(
        self,
        *,
        task: str,
        mechanism: Mechanism,
        run: str | None = None,
        round: int | None = None,  # noqa: A002
        model_before: str | None = None,
        answers: int | None = None,
    ) -> int:
        """Charge a release, durably, before it is made.

        Args:
            task: what is released, say ``training`` or ``statistics/popularity``.
            mechanism: how.
            run: name of the run as its devices are told it, None where they are told none.
            round: number of the round, None where there are none.
            model_before: hash of the model that the release starts from, None where there is none.
            answers: in a device's ledger, number of the release in the server's; else None.

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
            events, delta = self._events + Counter([mechanism.event()]), opening.delta
            target = opening.target_epsilon
            adjacency = opening.adjacency
            if not accounting.fits(events, delta=delta, target_epsilon=target, adjacency=adjacency):
                reached = accounting.epsilon(events, delta=delta, adjacency=adjacency)
                what = task if round is None else f"{task}, round {round},"
                raise BudgetError(
                    f"{what} would bring ε to {reached:.6g}, above the target of {target:.6g}; "
                    "raise epsilon, add noise, or release less",
                    epsilon_reached=reached,
                )
        reserved = self._append(
            kind="reserve",
            run=run,
            task=task,
            round=round,
            mechanism=mechanism.describe(),
            divisor=mechanism.expected_cohort,
            weighting="equal",
            model_before=model_before,
            code_version=self._code_version,
            answers=answers,
        ).sequence
        self._events[mechanism.event()] += 1
        return reserved

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
            model_after: hash of the model or statistic that it led to, None where there is none.

        Raises:
            LedgerError: the release isn't pending, or the ledger is stopped, closed or unwritable.
        """
        self._append(
            kind="commit",
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
        self._append(kind="stop", reason=reason, epsilon=finite)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LedgerError(
                f"{self._path}: another process is writing to this ledger; let it finish first"
            ) from error

    def _check_key(self) -> None:
        public_key = self.opening.public_key
        if public_key != self._signing_key.public_key:
            raise LedgerError(
                f"{self._path}: was signed with another key; go on with the key it was made with"
            )
        # The last signature is over a line that holds the hash of the one before, and so of all.
        if not signed_by(self._chain.entries[-1], public_key):
            raise LedgerError(f"{self._path}: the last line isn't signed with the ledger's key")

    def _publish(self) -> None:
        if self._anchor is not None:
            Anchor.publish(
                self._anchor,
                ledger=self._chain.identity,
                sequence=self._chain.entries[-1].sequence,
                head=self._chain.head,
                signing_key=self._signing_key,
            )

    def _append(self, **values: Any) -> Entry:
        if self._descriptor < 0:
            raise LedgerError(f"{self._path}: the ledger is closed; open it again")
        linked = {
            "sequence": len(self._chain.entries),
            "previous": self._chain.head,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            entry, line = seal({**linked, **values}, self._signing_key)
        except ConfigError as error:
            raise ConfigError(f"{self._path}: {error}") from error
        if objection := self._chain.objection(entry):
            raise LedgerError(f"{self._path}: {objection}")
        try:
            written = os.write(self._descriptor, line + b"\n")
            if written <= len(line):
                what = f"only {written} of {len(line) + 1} bytes written"
                raise OSError(errno.ENOSPC, what)
            os.fsync(self._descriptor)
            self._chain.add(entry, line)
            # The ledger first: an anchor ahead of it would look like a tail cut off.
            self._publish()
        except BaseException as error:
            # What the disk holds is unknown now; opening again reads it, and cuts off a torn line.
            self.close()
            if isinstance(error, OSError):
                raise LedgerError(f"{self._path}: can't append to the ledger ({error})") from error
            raise
        return entry


def _plain(earlier: Earlier) -> dict[str, Any]:
    releases = [{"mechanism": r.mechanism.describe(), "count": r.count} for r in earlier.releases]
    return {**asdict(earlier), "releases": releases}
