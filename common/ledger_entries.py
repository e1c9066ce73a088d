"""The lines of a privacy ledger: what each says, how it is spelled, and what must follow what.

docs/ledger.md describes the format. Here lines are made and read; ``ledger.py`` writes them to disk.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

from .errors import BadEntry, ConfigError, LedgerError
from .mechanism import Adjacency, Mechanism, Randomness
from .signing import SigningKey, signature_holds

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Unit = Literal["user", "event"]
"""Whose contribution is hidden: all of a user's, or one event's in the history of one user."""

NEIGHBOURS: Mapping[Unit, Adjacency] = {"user": "add-or-remove-one", "event": "replace-one"}
"""What a ledger of each unit compares; of other pairs ε would be of nothing that anybody was promised."""

FIRST = "0" * 64
"""What the first entry names as the one before."""

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]
# Below 2⁵³, up to where every reader of JSON has whole numbers exactly (RFC 8259, §6).
Count = Annotated[int, Field(ge=0, lt=2**53)]


@lru_cache(maxsize=256, typed=True)
def _described(**description: Any) -> Mechanism:
    return Mechanism.from_description(description)  # a run has few, and thousands of rounds


def _mechanism(value: Any) -> Mechanism:
    try:
        return _described(**value)
    except (ConfigError, TypeError) as error:
        raise ValueError(str(error)) from error


Described = Annotated[
    Mechanism, PlainValidator(_mechanism), PlainSerializer(lambda mechanism: mechanism.describe())
]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Releases:
    """Equal releases, counted."""

    __pydantic_config__: ClassVar = _STRICT

    mechanism: Described
    count: Annotated[Count, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """What another ledger of the same population had reserved when this one was opened.

    Attributes:
        ledger: SHA-256 of its first line.
        head: SHA-256 of its last line then.
        releases: its own, without those that it names as earlier ones itself.
    """

    __pydantic_config__: ClassVar = _STRICT

    ledger: Hash
    head: Hash
    releases: tuple[Releases, ...]

    def events(self) -> Counter[DpEvent]:
        """Event → how often."""
        events: Counter[DpEvent] = Counter()
        for release in self.releases:
            events[release.mechanism.event()] += release.count
        return events


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    __pydantic_config__: ClassVar = _STRICT

    sequence: NonNegativeInt
    previous: Hash
    time: str
    signature: Signature


@dataclass(frozen=True, kw_only=True, slots=True)
class Open(_Entry):
    """First entry: the population, its budget, what runs on it, and who signs."""

    kind: Literal["open"]
    version: Literal[2]
    unit: Unit
    adjacency: Adjacency
    population: Annotated[str, Field(min_length=1)]
    population_size: Annotated[Count, Field(ge=1)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    target_epsilon: Annotated[float, Field(gt=0)] | None
    randomness: Randomness
    code_version: str
    config_digest: str
    public_key: Hash
    nonce: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    earlier: tuple[Earlier, ...]

    def __post_init__(self) -> None:
        if self.adjacency != NEIGHBOURS[self.unit]:
            raise ValueError(
                f"neighbours by {self.adjacency} in a ledger of unit '{self.unit}', for which they are by "
                f"{NEIGHBOURS[self.unit]}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserve(_Entry):
    """A release is about to be made, and costs from here on; ``sequence`` is its number."""

    kind: Literal["reserve"]
    run: str | None
    task: Annotated[str, Field(min_length=1)]
    round: NonNegativeInt | None
    mechanism: Described
    divisor: float
    weighting: Literal["equal"]
    model_before: str | None
    code_version: str
    answers: NonNegativeInt | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit(_Entry):
    """A reserved release was made."""

    kind: Literal["commit"]
    release: NonNegativeInt
    cohort_size: Count
    replies_counted: Count
    rejected: dict[str, Count]
    model_after: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop(_Entry):
    """Last entry: nothing is released any more."""

    kind: Literal["stop"]
    reason: Annotated[str, Field(min_length=1)]
    epsilon: float | None


Entry = Open | Reserve | Commit | Stop
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])

_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


class Chain:
    """Entries that hold together, and what the next one must continue.

    Attributes:
        entries: oldest first.
        head: SHA-256 of the last line.
        identity: SHA-256 of the first line, by which a ledger is told from others.
        pending: number → release that is reserved and not committed.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.head = FIRST
        self.identity = FIRST
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
        """Go on with ``entry``, that nothing is to be said against, spelled as ``line``."""
        self.entries.append(entry)
        self.head = hash_of(line)
        if isinstance(entry, Open):
            self.identity = self.head
        elif isinstance(entry, Reserve):
            self.pending[entry.sequence] = entry
        elif isinstance(entry, Commit):
            del self.pending[entry.release]

    @property
    def opening(self) -> Open:
        """The first entry."""
        first = self.entries[0]
        assert isinstance(first, Open)
        return first


def hash_of(line: bytes) -> str:
    """SHA-256 of a line without its newline, hex."""
    return hashlib.sha256(line).hexdigest()


def seal(values: Mapping[str, Any], key: SigningKey) -> tuple[Entry, bytes]:
    """An entry of ``values``, signed by ``key``, and its line without the newline.

    Raises:
        ConfigError: a value is out of range.
    """
    try:
        # As it will be read: 8 is 8.0 where a number is no count.
        unsigned = _ENTRY.validate_json(canonical({**values, "signature": "0" * 128}))
    except ValidationError as error:
        raise ConfigError(explain(error)) from error
    entry = replace(unsigned, signature=key.sign(_unsigned(unsigned)))
    return entry, canonical(_ENTRY.dump_python(entry))


def signed_by(entry: Entry, public_key: str) -> bool:
    """Whether the entry's signature is that of ``public_key`` (hex)."""
    return signature_holds(_unsigned(entry), signature=entry.signature, public_key=public_key)


def canonical(values: Mapping[str, Any]) -> bytes:
    """The one spelling of ``values``: UTF-8 JSON, keys sorted, no spaces, no NaN or infinity."""
    return _CANONICAL.encode(values).encode()


def read_chain(path: Path) -> Chain:
    """Read and check a ledger without locking or changing it, also while it is being written.

    Signatures are not looked at. A line without its newline isn't an entry yet and is left out.

    Raises:
        LedgerError: the file can't be read or holds no entry.
        BadEntry: a line, its hash, number or pairing is wrong.
    """
    try:
        with path.open("rb") as file:
            return follow(path, file)
    except OSError as error:
        raise LedgerError(f"{path}: can't read the ledger ({error.strerror})") from error


def read_ledger(path: Path) -> list[Entry]:
    """The entries of :func:`read_chain`."""
    return read_chain(path).entries


def follow(path: Path, lines: Iterable[bytes]) -> Chain:
    """The chain of ``lines``; see :func:`read_chain`."""
    chain = Chain()
    for number, line in enumerate(_complete(lines), start=1):
        try:
            entry = _ENTRY.validate_json(line)
        except ValidationError as error:
            raise BadEntry(path, number, _version_or(line, explain(error))) from error
        if canonical(_ENTRY.dump_python(entry)) != line:
            raise BadEntry(path, number, "not canonical JSON, so changed afterwards")
        if objection := chain.objection(entry):
            raise BadEntry(path, number, objection)
        chain.add(entry, line)
    if not chain.entries:
        raise LedgerError(
            f"{path}: holds no complete entry, so it is no ledger, or its writer died while it was begun"
        )
    return chain


def events_of(entries: Iterable[Entry]) -> Counter[DpEvent]:
    """Event → how often: all that the entries reserved, and what earlier ledgers had before."""
    events: Counter[DpEvent] = Counter()
    mechanisms: Counter[Mechanism] = Counter()
    for entry in entries:
        if isinstance(entry, Reserve):
            mechanisms[entry.mechanism] += 1
        elif isinstance(entry, Open):
            for other in entry.earlier:
                events += other.events()
    for mechanism, count in mechanisms.items():
        events[mechanism.event()] += count
    return events


def explain(error: ValidationError) -> str:
    """The first of what pydantic has to say, in one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _unsigned(entry: Entry) -> bytes:
    values = _ENTRY.dump_python(entry)
    del values["signature"]
    return canonical(values)


def _complete(lines: Iterable[bytes]) -> Iterator[bytes]:
    return (line[:-1] for line in lines if line.endswith(b"\n"))


def _version_or(line: bytes, why: str) -> str:
    try:
        version = json.loads(line)["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return why
    return why if version == 2 else f"format version {version!r}; this program reads version 2"
