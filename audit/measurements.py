"""What ``audit probe`` and ``audit canaries`` found, read from where they kept it, and what it is of.

Such a file is signed by nobody. It says something about a ledger only as far as it is of the same code
version and configuration, and as far as whoever reads the report made it or trusts who did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..common.errors import DataError
from ..common.ledger_entries import Chain, Reserve, explain

_READ: ConfigDict = ConfigDict(extra="ignore", strict=False, allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a result is of."""

    __pydantic_config__: ClassVar = _READ

    created: str
    version: str
    config_digest: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One figure of the running mechanism, and the interval it must lie in."""

    __pydantic_config__: ClassVar = _READ

    name: str
    holds: bool
    measured: float | None
    expected: tuple[float | None, float | None]
    false_alarm_rate: Share
    sentence: str

    @property
    def sound(self) -> bool:
        """Whether it holds, and its figure says so too: nobody signs these files."""
        low, high = self.expected
        return (
            self.holds
            and self.measured is not None
            and (low is None or low <= self.measured)
            and (high is None or self.measured <= high)
        )


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Results of ``fedprofile audit probe``."""

    __pydantic_config__: ClassVar = _READ

    run: Origin
    randomness: str
    false_alarm_rate: float
    probes: Annotated[tuple[Probe, ...], Field(min_length=1)]

    @property
    def faults(self) -> list[str]:
        """What doesn't hold."""
        return [f"{probe.name}: {probe.sentence}" for probe in self.probes if not probe.sound]


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What the ledger of the canaries' run declares."""

    __pydantic_config__: ClassVar = _READ

    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class Joined:
    """How many canaries there were, and how many took part."""

    __pydantic_config__: ClassVar = _READ

    count: int
    included: int


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """An estimate of ε, and its interval."""

    __pydantic_config__: ClassVar = _READ

    epsilon: float
    low: float
    high: float
    level: Share


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """By Andrew et al. 2024."""

    __pydantic_config__: ClassVar = _READ

    final_model: Estimated
    sum_of_releases: Estimated
    largest_of_releases: Estimated


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Lower bounds on ε from one run."""

    __pydantic_config__: ClassVar = _READ

    confidence: Share
    steinke: float
    mahloujifar: float
    epsilon_p_value: Share
    declared_p_value: Share


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A share and its interval."""

    __pydantic_config__: ClassVar = _READ

    value: Share
    low: Share
    high: Share


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Membership inference by one score."""

    __pydantic_config__: ClassVar = _READ

    members: int
    others: int
    auc: Rate
    true_positive_rate: Rate
    false_positive_rate: Share
    level: Share


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Both attacks."""

    __pydantic_config__: ClassVar = _READ

    loss: Attack
    calibrated: Attack


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What speaks against the declared ε."""

    __pydantic_config__: ClassVar = _READ

    holds: bool
    findings: tuple[str, ...]
    false_alarm_rate: Share


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Results of ``fedprofile audit canaries``."""

    __pydantic_config__: ClassVar = _READ

    run: Origin
    declared: Declared
    canaries: Joined
    estimates: Estimates
    bounds: Bounds
    membership: Membership | None
    verdict: Verdict

    @property
    def faults(self) -> list[str]:
        """What speaks against the declared ε, by the verdict or by figures that it leaves out."""
        found = list(self.verdict.findings)
        found += [
            f"the estimate from {name.replace('_', ' ')} lies above the declared ε"
            for name in ("final_model", "sum_of_releases")
            if not found and getattr(self.estimates, name).low > self.declared.epsilon
        ]
        if not found and not self.verdict.holds:
            found = ["the canaries' verdict is that it doesn't hold"]
        return found


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A result and how it belongs to the ledger.

    Attributes:
        path: the file.
        result: what it holds.
        foreign: why it says nothing about the ledger's releases; None where it is of the same code
            version and configuration.
    """

    path: Path
    result: Probes | Canaries
    foreign: str | None

    @property
    def faults(self) -> list[str]:
        """What it has against the ledger's releases."""
        return [] if self.foreign else self.result.faults

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        content: dict[str, Any] = TypeAdapter(type(self.result)).dump_python(
            self.result, mode="json"
        )
        return {
            **content,
            "file": str(self.path),
            "foreign": self.foreign,
            "faults": self.result.faults,
        }


def read_probes(path: Path, chain: Chain | None) -> Measurement:
    """What probes found.

    Raises:
        DataError: the file can't be read or holds something else.
    """
    return _measurement(path, _read(path, Probes, "fedprofile audit probe --out"), chain)


def read_canaries(path: Path, chain: Chain | None) -> Measurement:
    """What canaries found.

    Raises:
        DataError: the file can't be read or holds something else.
    """
    return _measurement(path, _read(path, Canaries, "fedprofile audit canaries --out"), chain)


def find_results(named: Path | None, folder: Path | None, places: tuple[str, ...]) -> Path | None:
    """The file of ``named``, a file or a folder that has it; unset, that in ``folder``, if any.

    Args:
        named: by the officer.
        folder: of the run or server; None: none is known.
        places: where it may lie in a folder, the first that exists counts.
    """
    if named is not None and not named.is_dir():
        return named
    folder = named or folder
    if folder is None:
        return None
    found = next((folder / place for place in places if (folder / place).is_file()), None)
    return found if found is not None or named is None else folder / places[0]


def _read(path: Path, kind: type[T], maker: str) -> T:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    except ValidationError as error:
        raise DataError(f"{path}: isn't what '{maker}' writes ({explain(error)})") from error


def _measurement(path: Path, result: Probes | Canaries, chain: Chain | None) -> Measurement:
    return Measurement(path=path, result=result, foreign=_foreign(result.run, chain))


def _foreign(origin: Origin, chain: Chain | None) -> str | None:
    if chain is None:
        return "the ledger isn't whole"
    ours: Mapping[str, set[str]] = {
        "code version": {e.code_version for e in chain.entries if isinstance(e, Reserve)}
        or {chain.opening.code_version},
        "configuration": {chain.opening.config_digest},
    }
    theirs = {"code version": origin.version, "configuration": origin.config_digest}
    others = [
        f"{what} {theirs[what][:16]}, where the ledger has {', '.join(x[:16] for x in sorted(own))}"
        for what, own in ours.items()
        if own != {theirs[what]}
    ]
    return f"it is of {' and of '.join(others)}" if others else None
