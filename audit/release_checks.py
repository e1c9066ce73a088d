"""Whether the releases of a ledger fit together: each in its place, each with its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from ..common.ledger_entries import Chain, Commit, Reserve, Stop
from .findings import Finding, judge

Fault = tuple[int | None, str]


def check_pairing(chain: Chain) -> Finding:
    """Whether rounds follow one another, each from the model that the one before led to, all from one.

    The first is round 1: a run that goes on does so in its own ledger, and one that names earlier
    ledgers is another run. A round may be reserved again, for a run that died goes on; but none can be
    made without the one before, so a gap in the numbers or in the models is a release that isn't in the
    ledger, or a ``commit`` that was left out. Devices see only some rounds: theirs are not asked.
    """
    releases = sum(isinstance(entry, Reserve) for entry in chain.entries)
    left = len(chain.pending)
    return judge(
        "pairing",
        _gaps(chain),
        otherwise=f"{releases:,} releases reserved, {releases - left:,} of them committed"
        + (f"; {left} stay charged without" if left else ""),
    )


def _gaps(chain: Chain) -> Iterator[Fault]:
    if chain.opening.unit == "event" or chain.opening.population_size == 1:
        return
    tasks: dict[tuple[str | None, str], dict[int, str | None]] = {}  # round → model it led to
    first: dict[tuple[str | None, str], str | None] = {}  # model that round 1 started from
    reserved: dict[int, Reserve] = {}
    for entry in chain.entries:
        if isinstance(entry, Reserve):
            reserved[entry.sequence] = entry
            if entry.round is None:
                continue
            committed = tasks.setdefault((entry.run, entry.task), {})
            line, before = entry.sequence + 1, entry.round - 1
            name = f"{entry.task}, round {entry.round},"
            if entry.round <= 1:
                began = first.setdefault((entry.run, entry.task), entry.model_before)
                if entry.model_before != began:
                    yield line, f"{name} is repeated from another model than it began with"
                continue
            if before not in committed:
                yield line, f"{name} follows no commit of round {before}"
            led_to = committed.get(before)
            if led_to is not None and entry.model_before not in (None, led_to):
                yield line, f"{name} doesn't start from the model that round {before} led to"
        elif isinstance(entry, Commit):
            release = reserved.pop(entry.release)
            known = tasks.get((release.run, release.task))
            if known is not None and release.round is not None:
                known[release.round] = entry.model_after


def check_arithmetic(chain: Chain) -> Finding:
    """Whether every number is one that the others allow."""
    return judge(
        "arithmetic",
        contradictions(chain),
        otherwise="population, cohorts, replies and divisors of all releases agree",
    )


def contradictions(chain: Chain) -> Iterator[Fault]:
    """Numbers that others of the ledger don't allow, each with its line."""
    population = chain.opening.population_size
    for other in chain.opening.earlier:
        for releases in other.releases:
            if releases.mechanism.population_size != population:
                size = releases.mechanism.population_size
                yield 1, f"earlier releases are for {size:,} users, the ledger for {population:,}"
    reserved: dict[int, Reserve] = {}
    for entry in chain.entries:
        line = entry.sequence + 1
        if isinstance(entry, Reserve):
            reserved[entry.sequence] = entry
            mechanism = entry.mechanism
            if mechanism.population_size != population:
                size = mechanism.population_size
                yield line, f"a release for {size:,} users, the ledger is for {population:,}"
            if entry.divisor != mechanism.expected_cohort:
                expected = mechanism.expected_cohort
                yield line, f"divisor {entry.divisor:g} isn't the expected cohort {expected:g}"
        elif isinstance(entry, Commit):
            mechanism = reserved.pop(entry.release).mechanism
            size, rejected = entry.cohort_size, sum(entry.rejected.values())
            if size > population:
                yield line, f"a cohort of {size:,} from a population of {population:,}"
            if entry.replies_counted + rejected > size:
                yield (
                    line,
                    f"{entry.replies_counted:,} replies and {rejected:,} rejected from {size:,} users",
                )
            # What was drawn of a device's own events isn't written down.
            everyone = mechanism.sampler == "poisson" and mechanism.sampling_probability == 1
            everyone = everyone and chain.opening.unit == "user"
            if everyone and size != population:
                yield line, f"a cohort of {size:,} where all {population:,} were to be in it"
        elif isinstance(entry, Stop) and entry.epsilon is not None:
            target = chain.opening.target_epsilon
            if target is None or entry.epsilon <= target:
                allowed = "no target" if target is None else f"the target of {target:g}"
                yield (
                    line,
                    f"a release to ε = {entry.epsilon:g} was refused, which {allowed} allows",
                )
