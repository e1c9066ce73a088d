"""Whether what devices wrote down of their releases is what the server says it made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import ConfigError, LedgerError
from ..common.ledger_entries import Chain, Reserve, events_of
from .chain_checks import check_chain
from .findings import Finding, judge

_USER = "user"
_MOST = 1_000.0
"""ε above which none is worked out: it would take memory without bound."""


@dataclass(frozen=True)
class _Device:
    """What was found in a device's ledger.

    Attributes:
        finding: by itself.
        unit: of its ledger.
        epsilon: what it spent over its lifetime; inf beyond 1,000, None where that can't be told.
        here: releases of the server's runs.
        others: releases of other runs.
    """

    finding: Finding
    unit: str = ""
    epsilon: float | None = None
    here: int = 0
    others: int = 0


def check_device(server: Chain, path: Path) -> Finding:
    """Whether each release in a device's ledger is one that ``server`` reserved, as it was promised.

    Raises:
        LedgerError: the device's ledger can't be read.
    """
    return _examine(server, path).finding


def check_devices(server: Chain, folder: Path, *, kept: int = 0) -> list[Finding]:
    """The same of all ledgers in ``folder``: those that don't hold, and one finding on the others.

    Args:
        server: the server's ledger.
        folder: of devices' ledgers.
        kept: how many devices keep a user-level ledger there, as the configuration says. All of them
            begin it before the first release, so one that isn't there was taken away.
    """
    paths = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not paths and not kept:
        return [Finding("devices", "not run", "no device's ledger: nobody but the server speaks")]
    held: list[_Device] = []
    bad: list[_Device] = []
    for path in paths:
        try:
            device = _examine(server, path)
        except LedgerError as error:
            device = _Device(Finding(f"device {path.name}", "fails", str(error)))
        (bad if device.finding.outcome == "fails" else held).append(device)
    findings = [device.finding for device in bad]
    # One that is broken may be of any unit, and is told of already.
    there = sum(device.unit in (_USER, "") for device in (*held, *bad))
    if there < kept and any(isinstance(entry, Reserve) for entry in server.entries):
        what = f"{there:,} user-level ledgers in {folder}, the configuration has {kept:,} devices keep one"
        findings.append(Finding("devices, complete", "fails", what))
    for unit in sorted({device.unit for device in held}, reverse=True):
        of_unit = [device for device in held if device.unit == unit]
        here, others = sum(d.here for d in of_unit), sum(d.others for d in of_unit)
        known = [d.epsilon for d in of_unit if d.epsilon is not None]
        most = _told(max(known) if len(known) == len(of_unit) else None)
        what = (
            f"{len(of_unit):,} ledgers, {_releases(here, others, unit)}; {unit}-level ε of a device"
        )
        findings.append(Finding(f"devices, {unit}-level", "holds", f"{what} at most {most}"))
    return findings


def _examine(server: Chain, path: Path) -> _Device:
    name = f"device {path.name}"
    device, findings = check_chain(path)
    if device is None:
        bad = next(finding for finding in findings if finding.outcome == "fails")
        return _Device(Finding(name, "fails", f"its own ledger: {bad.what}", bad.line))
    ours, theirs = server.opening, device.opening
    if ours.population != theirs.population:
        what = f"is of population '{theirs.population}', not '{ours.population}'"
        return _Device(Finding(name, "fails", what, 1))
    runs = {entry.run for entry in server.entries if isinstance(entry, Reserve)}
    releases = [entry for entry in device.entries if isinstance(entry, Reserve)]
    here = [entry for entry in releases if entry.run in runs]
    others = len(releases) - len(here)
    spent = _spent(device)
    finding = judge(
        name,
        [*_broken(server, device, here), *_overspent(device, spent)],
        otherwise=f"{_releases(len(here), others, theirs.unit)}; its {theirs.unit}-level ε is "
        + _told(spent),
    )
    return _Device(finding, theirs.unit, spent, len(here), others)


def _releases(here: int, others: int, unit: str) -> str:
    promise = ", at least as noisy as promised" if unit == _USER else ""
    what = f"{here:,} releases are the server's{promise}"
    return what + (f"; {others:,} are of other runs: verify those too" if others else "")


def _told(epsilon: float | None) -> str:
    if epsilon is None:
        return "unknown"
    return f"{epsilon:.4g}" if math.isfinite(epsilon) else f"above {_MOST:,.0f}"


def _spent(device: Chain) -> float | None:
    """ε over the device's lifetime."""
    from ..common import accounting  # slow to load

    events, delta = events_of(device.entries), device.opening.delta
    adjacency = device.opening.adjacency
    if not events:
        return 0.0
    try:
        if not accounting.fits(events, delta=delta, target_epsilon=_MOST, adjacency=adjacency):
            return math.inf
        return accounting.epsilon(events, delta=delta, coarse=True, adjacency=adjacency)
    except ConfigError:  # next to no noise
        return None


def _overspent(device: Chain, spent: float | None) -> Iterator[tuple[int | None, str]]:
    from ..common import accounting

    target = device.opening.target_epsilon
    if target is None:
        return
    fits = spent is not None and accounting.fits(
        events_of(device.entries),
        delta=device.opening.delta,
        target_epsilon=target,
        adjacency=device.opening.adjacency,
    )
    if not fits:
        yield None, f"its ε is {_told(spent)}, and its owner allowed {target:g} over its lifetime"


def _broken(
    server: Chain, device: Chain, releases: list[Reserve]
) -> Iterator[tuple[int | None, str]]:
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
        if unit != _USER:
            continue
        if entry.answers is not None:
            answered[entry.run, entry.answers] += 1
            if answered[entry.run, entry.answers] > 1:
                yield line, f"{what} answers release {entry.answers} for the second time"
        promised = entry.mechanism
        if promised.sampler != "self-selected":
            yield line, f"{what} claims amplification by coins that a device can't check"
        elif not any(c.mechanism.noise_multiplier >= promised.noise_multiplier for c in candidates):
            noise = max(c.mechanism.noise_multiplier for c in candidates)
            yield line, f"{what} had noise {noise:g}, promised was {promised.noise_multiplier:g}"
        elif not any(c.mechanism.clip_norm <= promised.clip_norm for c in candidates):
            clip = min(c.mechanism.clip_norm for c in candidates)
            yield line, f"{what} had clip norm {clip:g}, promised was {promised.clip_norm:g}"


def _name(entry: Reserve) -> tuple[str | None, str, int | None, str | None]:
    return entry.run, entry.task, entry.round, entry.model_before
