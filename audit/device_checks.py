"""Whether what devices wrote down of their releases is what the server says it made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..common.ledger_entries import Chain, Reserve
from .chain_checks import check_chain
from .findings import Finding, judge


def check_device(server: Chain, path: Path) -> Finding:
    """Whether each release in a device's ledger is one that ``server`` reserved, as it was promised.

    Raises:
        LedgerError: the device's ledger can't be read.
    """
    name = f"device {path.name}"
    device, findings = check_chain(path)
    if device is None:
        bad = next(finding for finding in findings if finding.outcome == "fails")
        return Finding(name, "fails", f"its own ledger: {bad.what}", bad.line)
    ours, theirs = server.opening, device.opening
    if ours.population != theirs.population:
        return Finding(
            name, "fails", f"is of population '{theirs.population}', not '{ours.population}'", 1
        )
    runs = {entry.run for entry in server.entries if isinstance(entry, Reserve)}
    releases = [entry for entry in device.entries if isinstance(entry, Reserve)]
    here = [entry for entry in releases if entry.run in runs]
    others = len(releases) - len(here)
    return judge(
        name,
        _broken(server, here),
        otherwise=f"{len(here):,} releases are the server's, at least as noisy as promised"
        + (f"; {others:,} are of other runs: verify those too" if others else ""),
    )


def _broken(server: Chain, releases: list[Reserve]) -> Iterator[tuple[int, str]]:
    made: dict[tuple[str | None, str, int | None, str | None], list[Reserve]] = {}
    for entry in server.entries:
        if isinstance(entry, Reserve):
            made.setdefault(_name(entry), []).append(entry)
    for entry in releases:
        line = entry.sequence + 1
        what = f"{entry.task}, round {entry.round}," if entry.round is not None else entry.task
        candidates = made.get(_name(entry))
        if candidates is None:
            yield line, f"{what} isn't in the server's ledger with this model"
            continue
        promised = entry.mechanism
        # Reserved twice where a run died: the device answered one of them.
        if not any(c.mechanism.noise_multiplier >= promised.noise_multiplier for c in candidates):
            noise = max(c.mechanism.noise_multiplier for c in candidates)
            yield line, f"{what} had noise {noise:g}, promised was {promised.noise_multiplier:g}"
        elif not any(c.mechanism.clip_norm <= promised.clip_norm for c in candidates):
            clip = min(c.mechanism.clip_norm for c in candidates)
            yield line, f"{what} had clip norm {clip:g}, promised was {promised.clip_norm:g}"


def _name(entry: Reserve) -> tuple[str | None, str, int | None, str | None]:
    return entry.run, entry.task, entry.round, entry.model_before
