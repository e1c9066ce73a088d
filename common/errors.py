"""Every error that fedprofile raises on purpose.

FedprofileError                    exit code 2: what was wrong, where, what to do
├── ConfigError                    a key, value or option
├── DataError                      a file, column or row
├── RunFolderError                 a run folder that exists, is missing or belongs to another run
├── DeviceError                    a device's folder, key, model or service
│   ├── Unreachable                the server can't be reached just now
│   ├── NotAdmitted                the server doesn't let the device in
│   ├── RunOver                    the server has given up the run that a message belongs to
│   ├── NotTaken                   the server broke off a reply that it had let come
│   └── StoreError                 a device's store that can't be opened or written
│       ├── StoreDamaged           it was damaged and is set aside
│       └── StoreFull              the disk is full; what was stored before can be read
├── ServerError                    a server's folder, keys, enrolment or processes
│   └── ServerFull                 its disk is full or can't be written; what was stored before can be read
├── LedgerError                    a ledger, its anchor or its key that can't be read or used
│   └── BadEntry                   a line of a ledger that doesn't hold, with its number
├── MessageError                   a message outside the wire format
│   ├── ReplyRejected              a reply refused before aggregation, with its reason
│   └── TaskRefused                a task that a device declines, with its reason
└── BudgetError                    exit code 3: a release would exceed the privacy budget
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a file meets that somebody else may have written, where it isn't what it should be."""


class FedprofileError(Exception):
    """Root of the tree; the message is one line for the user."""

    exit_code = 2


class ConfigError(FedprofileError):
    """A configuration key, value or option is unknown or out of range."""


class DataError(FedprofileError):
    """An input file can't be used; the message names file, column or row."""


class RunFolderError(FedprofileError):
    """A run folder exists already, is missing, or belongs to another configuration."""


class DeviceError(FedprofileError):
    """A device's folder, key, model or service is missing or can't be used."""


class Unreachable(DeviceError):
    """The server can't be reached just now; trying again later may help."""


class NotAdmitted(DeviceError):
    """The server doesn't let this device in: not enrolled, revoked, or a clock is off."""


class RunOver(DeviceError):
    """The server has given up the run that a message belongs to; nobody waits for an answer."""


class NotTaken(DeviceError):
    """The server broke off a reply that it had let come; offered again, it says whether it wants it."""


class StoreError(DeviceError):
    """A device's store can't be opened or written."""


class StoreDamaged(StoreError):
    """A device's store was damaged; it is set aside under a name that the message tells."""


class StoreFull(StoreError):
    """The disk is full; nothing was changed, and what was stored before can be read."""


class ServerError(FedprofileError):
    """A server's folder, keys, enrolment or processes are missing or can't be used."""


class ServerFull(ServerError):
    """A server's disk is full or can't be written; what was stored before can be read."""


class LedgerError(FedprofileError):
    """A ledger, its anchor or its key can't be read or used."""


class BadEntry(LedgerError):
    """A line of a ledger doesn't hold: its format, its place in the chain, or its pairing.

    Attributes:
        path: the file.
        line: its number in the file, from 1.
        why: what is wrong, without file and line.
    """

    def __init__(self, path: Path, line: int, why: str) -> None:
        super().__init__(f"{path}: line {line}: {why}")
        self.path = path
        self.line = line
        self.why = why


class MessageError(FedprofileError):
    """A message is outside the wire format."""


class ReplyRejected(MessageError):
    """A reply is refused before aggregation.

    Attributes:
        reason: one short word from a fixed set, used to count rejections.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


REFUSALS = frozenset(
    {
        "consent",  # the owner hasn't agreed, or no longer
        "paused",
        "power",  # runs on battery
        "battery",  # is low
        "idle",  # is being used
        "metered",  # every byte costs
        "quota",  # enough rounds for today
        "noise",  # less than the owner wants
        "clip",  # a larger bound than the owner wants
        "signature",  # not asked by the server the device was given
        "model",  # the weights aren't those that were signed
        "stale",  # an older round than the last one
        "failed",  # training ended without an update
    }
)
"""Why a device declines a task: all that it says, and one word of it."""


class TaskRefused(MessageError):
    """A device declines a task.

    Attributes:
        reason: one of :data:`REFUSALS`; all that the server is told.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class BudgetError(FedprofileError):
    """A release would exceed the privacy budget.

    Attributes:
        epsilon_reached: the ε that the release would have led to.
    """

    exit_code = 3

    def __init__(self, message: str, *, epsilon_reached: float) -> None:
        super().__init__(message)
        self.epsilon_reached = epsilon_reached
