"""Whether what devices wrote down of their releases is what the server says it made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.errors import FedprofileError, LedgerError
from ..common.ledger_entries import Chain, Open, Reserve
from ..common.mechanism import Mechanism
from .accountants import MOST
from .bounded import Bounded, epsilon_within
from .chain_checks import check_chain
from .devices import USER
from .findings import Finding, judge
from .privacy_checks import releases_of
from .release_checks import Fault, contradictions

COMPLETE = "devices, complete"
DISTINCT = "devices, distinct"
_MOST_DELTA = 1e-6
"""δ that every device may count at, however large the server's population: a device's own default."""
Lifetime = tuple[float | None, bool]
"""What a device spent, None where that can't be told, and whether its owner allowed it."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What was found in a device's ledger.

    Attributes:
        path: the file.
        finding: on it alone.
        opening: its first entry; None where it isn't whole.
        identity: SHA-256 of its first line; None where it isn't whole.
        epsilon: what it spent over its lifetime; inf beyond 1,000, None where that can't be told.
        here: releases of the server's runs.
        others: releases of other runs.
        noise: least and largest noise multiplier; None where there is no release.
    """

    path: Path
    finding: Finding
    opening: Open | None = None
    identity: str | None = None
    epsilon: float | None = None
    here: int = 0
    others: int = 0
    noise: tuple[float, float] | None = None

    @property
    def unit(self) -> str | None:
        """Of its ledger; None where that can't be told."""
        return None if self.opening is None else self.opening.unit


def examine_all(server: Chain, folder: Path) -> list[Device]:
    """Every ledger in ``folder``, held against the server's; one that can't be read fails."""
    devices = []
    with Bounded(lifetime) as ask:
        for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
            try:
                devices.append(examine(server, path, ask))
            except LedgerError as error:
                finding = Finding(f"device {path.name}", "fails", str(error))
                devices.append(Device(path=path, finding=finding))
    return devices


def check_devices(
    server: Chain, folder: Path, *, kept: int = 0, devices: Sequence[Device] | None = None
) -> list[Finding]:
    """On the ledgers in ``folder``: those that don't hold, and one finding on the others of each unit.

    Args:
        server: the server's ledger.
        folder: of devices' ledgers.
        kept: how many devices keep a user-level ledger there, as the configuration says. All of them
            begin it before the first release, so one that isn't there was taken away.
        devices: what :func:`examine_all` found there, where it was asked before.

    Returns:
        Nothing where there are no ledgers and none are said to be.
    """
    devices = examine_all(server, folder) if devices is None else devices
    if not devices and not kept:
        return []
    findings = [device.finding for device in devices if device.finding.outcome == "fails"]
    held = [device for device in devices if device.finding.outcome != "fails"]
    # One that is broken may be of any unit, and is told of already.
    there = sum(device.unit in (USER, None) for device in devices)
    if there < kept and any(isinstance(entry, Reserve) for entry in server.entries):
        what = (
            f"{there:,} user-level ledgers in {folder}, the configuration has {kept:,} devices keep one; "
            "--device-folder names where they are now"
        )
        findings.append(Finding(COMPLETE, "fails", what))
    for unit in sorted({device.unit or USER for device in held}, reverse=True):
        findings.append(_of_unit(unit, [device for device in held if device.unit == unit]))
    return findings


def check_distinct(devices: Sequence[Device]) -> list[Finding]:
    """Fails where two ledgers are one, or of one key: a copy speaks for nobody else. Else nothing."""
    known: dict[str, Path] = {}
    for device in devices:
        if device.opening is None or device.identity is None:
            continue
        for name in (device.identity, device.opening.public_key):
            other = known.setdefault(name, device.path)
            if not other.samefile(device.path):
                what = (
                    f"{device.path} is of the same device as {other}: a copy is no second witness"
                )
                return [Finding(DISTINCT, "fails", what)]
    return []


def _of_unit(unit: str, devices: Sequence[Device]) -> Finding:
    here, others = sum(d.here for d in devices), sum(d.others for d in devices)
    most = _told(most_spent(devices))
    what = f"{len(devices):,} ledgers, {_releases(here, others, unit)}; {unit}-level ε of a device at most "
    return Finding(f"devices, {unit}-level", "holds" if here else "not run", what + most)


def most_spent(devices: Sequence[Device]) -> float | None:
    """The largest ε of them; None where one can't be told."""
    known = [device.epsilon for device in devices if device.epsilon is not None]
    return max(known) if len(known) == len(devices) else None


def examine(
    server: Chain, path: Path, ask: Callable[[Mapping[Mechanism, int], Open], Lifetime]
) -> Device:
    """Whether each release in a device's ledger is one that ``server`` reserved, as it was promised.

    Where it has none of the server's, that is no agreement: the check isn't run.

    Args:
        server: the server's ledger.
        path: of the device's.
        ask: :func:`lifetime`, :class:`~.bounded.Bounded`.

    Raises:
        LedgerError: the device's ledger can't be read, or is none.
    """
    name = f"device {path.name}"
    device, findings = check_chain(path)
    if device is None:
        bad = next(finding for finding in findings if finding.outcome == "fails")
        finding = Finding(name, "fails", f"its own ledger: {bad.what}", bad.line)
        return Device(path=path, finding=finding)
    opening = device.opening
    try:
        spent, allowed = ask(releases_of(device), opening)
    except FedprofileError:  # numbers that nobody would choose
        spent, allowed = None, opening.target_epsilon is None
    runs = {entry.run for entry in server.entries if isinstance(entry, Reserve)}
    releases = [entry for entry in device.entries if isinstance(entry, Reserve)]
    here = [entry for entry in releases if entry.run in runs]
    others = len(releases) - len(here)
    noise = [entry.mechanism.noise_multiplier for entry in releases]
    finding = judge(
        name,
        [
            *_foreign(server, device),
            *_terms(server, device),
            *contradictions(device),
            *_broken(server, device, here),
            *_overspent(opening, spent, allowed=allowed),
        ],
        otherwise=f"{_releases(len(here), others, opening.unit)}; its {opening.unit}-level ε is "
        + _told(spent),
    )
    if finding.outcome == "holds" and not here:
        finding = replace(finding, outcome="not run")
    return Device(
        path=path,
        finding=finding,
        opening=opening,
        identity=device.identity,
        epsilon=spent,
        here=len(here),
        others=others,
        noise=(min(noise), max(noise)) if noise else None,
    )


def _foreign(server: Chain, device: Chain) -> Iterator[Fault]:
    if server.opening.unit != USER:
        unit = server.opening.unit
        yield None, f"is held against a ledger of {unit}s; name the server's, which is of {USER}s"
    ours, theirs = server.opening.population, device.opening.population
    if ours != theirs:
        yield 1, f"is of population '{theirs}', not '{ours}'"


def _terms(server: Chain, device: Chain) -> Iterator[Fault]:
    """What makes the ε of a user-level ledger less than it is, whatever run its releases are of."""
    opening = device.opening
    if opening.unit != USER:
        return
    if opening.population_size != 1:
        yield 1, f"is for {opening.population_size:,} users, and a device is one"
    most = max(server.opening.delta, _MOST_DELTA)
    if opening.delta > most:
        yield 1, f"its ε is at δ = {opening.delta:.3g}, above {most:.3g}"
    before = [(1, r.mechanism) for other in opening.earlier for r in other.releases]
    own = [(e.sequence + 1, e.mechanism) for e in device.entries if isinstance(e, Reserve)]
    for line, mechanism in (*before, *own):
        if mechanism.sampler != "self-selected":
            yield line, "claims amplification by coins that a device can't check"


def _releases(here: int, others: int, unit: str) -> str:
    promise = ", at least as noisy as promised" if unit == USER else ""
    what = f"{here:,} releases are the server's{promise}" if here else "no release is the server's"
    return what + (f"; {others:,} are of other runs: verify those too" if others else "")


def _told(epsilon: float | None) -> str:
    if epsilon is None:
        return "unknown"
    return f"{epsilon:.4g}" if math.isfinite(epsilon) else f"infinite, or above {MOST:,.0f}"


def lifetime(releases: Mapping[Mechanism, int], opening: Open) -> Lifetime:
    """What a device's ``releases`` cost it; infinite above :data:`~.accountants.MOST`.

    Raises:
        ConfigError: there is next to no noise.
    """
    from ..common import accounting  # slow to load

    events: Counter[Any] = Counter()
    for mechanism, count in releases.items():
        events[mechanism.event()] += count
    delta, adjacency, target = opening.delta, opening.adjacency, opening.target_epsilon
    spent = epsilon_within(events, delta=delta, adjacency=adjacency, coarse=True)
    # The coarse grid's is above, and may be by more than is left.
    allowed = target is None or (
        math.isfinite(spent)
        and accounting.fits(events, delta=delta, target_epsilon=target, adjacency=adjacency)
    )
    return spent, allowed


def _overspent(opening: Open, spent: float | None, *, allowed: bool) -> Iterator[Fault]:
    if not allowed:
        yield (
            None,
            f"its ε is {_told(spent)}, and its owner allowed {opening.target_epsilon:g} over its lifetime",
        )


def _broken(server: Chain, device: Chain, releases: list[Reserve]) -> Iterator[Fault]:
    unit = device.opening.unit
    made: dict[tuple[str | None, str, int | None, str | None], list[Reserve]] = {}
    for entry in server.entries:
        if isinstance(entry, Reserve):
            made.setdefault(_name(entry), []).append(entry)
    answered = Counter[tuple[str | None, int]]()
    for entry in releases:
        line = entry.sequence + 1
        what = f"{entry.task}, round {entry.round}," if entry.round is not None else entry.task
        # Reserved twice where a run died: the device says which it answered.
        candidates = [
            release
            for release in made.get(_name(entry), [])
            if entry.answers in (None, release.sequence)
        ]
        if not candidates:
            number = "" if entry.answers is None else f" as release {entry.answers}"
            yield line, f"{what} isn't in the server's ledger with this model{number}"
            continue
        if unit != USER:
            continue
        if entry.answers is not None:
            answered[entry.run, entry.answers] += 1
            if answered[entry.run, entry.answers] > 1:
                yield line, f"{what} answers release {entry.answers} for the second time"
        promised = entry.mechanism
        if not any(c.mechanism.noise_multiplier >= promised.noise_multiplier for c in candidates):
            noise = max(c.mechanism.noise_multiplier for c in candidates)
            yield line, f"{what} had noise {noise:g}, promised was {promised.noise_multiplier:g}"
        elif not any(c.mechanism.clip_norm <= promised.clip_norm for c in candidates):
            clip = min(c.mechanism.clip_norm for c in candidates)
            yield line, f"{what} had clip norm {clip:g}, promised was {promised.clip_norm:g}"


def _name(entry: Reserve) -> tuple[str | None, str, int | None, str | None]:
    return entry.run, entry.task, entry.round, entry.model_before
