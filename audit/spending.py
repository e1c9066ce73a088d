"""What was released and how ε grew with it: equal releases that follow one another, told together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ..common.accounting import epsilon, epsilon_along, epsilon_without_amplification
from ..common.errors import FedprofileError
from ..common.ledger_entries import Chain, Commit, Reserve
from ..common.mechanism import Adjacency, Mechanism
from .bounded import Bounded
from .privacy_checks import Cost

_POINTS = 80
"""Of a curve: as many as can be told apart."""


@dataclass(kw_only=True)
class Group:
    """Releases that follow one another and differ in nothing but their round.

    Attributes:
        first: the first of them.
        releases: how many.
        last_round: of the last one.
        last_line: of its ``reserve`` in the file, from 1.
        committed: how many were.
        cohorts: smallest and largest cohort; None where none was committed.
        sampled: users over all cohorts.
        replies: contributions over all sums.
        rejected: reason → contributions that were refused.
    """

    first: Reserve
    releases: int = 0
    last_round: int | None = None
    last_line: int = 0
    committed: int = 0
    cohorts: tuple[int, int] | None = None
    sampled: int = 0
    replies: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def fits(self, entry: Reserve) -> bool:
        """Whether ``entry`` goes on with this group: the next round, or the same one repeated."""
        first = self.first
        alike = (first.run, first.task, first.mechanism, first.code_version)
        if alike != (entry.run, entry.task, entry.mechanism, entry.code_version):
            return False
        if self.last_round is None or entry.round is None:
            return self.last_round is entry.round is None
        return entry.round in (self.last_round, self.last_round + 1)

    def add(self, entry: Reserve, commit: Commit | None) -> None:
        """One more release."""
        self.releases += 1
        self.last_round, self.last_line = entry.round, entry.sequence + 1
        if commit is None:
            return
        self.committed += 1
        low, high = self.cohorts or (commit.cohort_size, commit.cohort_size)
        self.cohorts = min(low, commit.cohort_size), max(high, commit.cohort_size)
        self.sampled += commit.cohort_size
        self.replies += commit.replies_counted
        self.rejected.update(commit.rejected)

    def to_dict(self, epsilon_after: float | None) -> dict[str, Any]:
        """JSON-ready content; ``epsilon_after`` is ε of all releases up to the last of these."""
        first = self.first
        return {
            "run": first.run,
            "task": first.task,
            "releases": self.releases,
            "rounds": None if first.round is None else [first.round, self.last_round],
            "lines": [first.sequence + 1, self.last_line],
            "mechanism": first.mechanism.describe(),
            "divisor": first.divisor,
            "weighting": first.weighting,
            "code_version": first.code_version,
            "committed": self.committed,
            "cohorts": list(self.cohorts) if self.cohorts else None,
            "sampled": self.sampled,
            "replies": self.replies,
            "rejected": dict(self.rejected),
            "epsilon_after": epsilon_after,
        }


def group_releases(chain: Chain) -> list[Group]:
    """All releases of ``chain``, in its order."""
    commits = {e.release: e for e in chain.entries if isinstance(e, Commit)}
    groups: list[Group] = []
    for entry in chain.entries:
        if isinstance(entry, Reserve):
            if not groups or not groups[-1].fits(entry):
                groups.append(Group(first=entry))
            groups[-1].add(entry, commits.get(entry.sequence))
    return groups


def spent_along(chain: Chain, groups: Sequence[Group], cost: Cost) -> dict[int, float]:
    """Number of releases → ε of as many, credited as ``cost`` is; the last is its figure.

    0 stands for what earlier ledgers had spent. Ends of groups are among the numbers where they aren't
    too many. Nothing is told where ε is unknown or infinite, or the curve can't be worked out.
    """
    total = cost.credited
    releases = [e.mechanism for e in chain.entries if isinstance(e, Reserve)]
    if total is None or not math.isfinite(total) or not releases:
        return {}
    ends = _places(len(releases), groups)
    before = Counter[Mechanism]()
    for earlier in chain.opening.earlier:
        for counted in earlier.releases:
            before[counted.mechanism] += counted.count
    stretches = [before, *(Counter(releases[low:high]) for low, high in pairwise([0, *ends]))]
    try:
        with Bounded(_figures) as ask:
            figures = ask(stretches, chain.opening.adjacency, cost)
    except FedprofileError:  # numbers that nobody would choose
        return {}
    return dict(zip([0, *ends], figures, strict=True))


def _figures(
    stretches: Sequence[Mapping[Mechanism, int]], adjacency: Adjacency, cost: Cost
) -> list[float]:
    total = cost.credited
    assert total is not None
    if total != cost.pld:
        return _unamplified(stretches, delta=cost.delta)
    if adjacency == "replace-one":
        return _replacing(stretches, delta=cost.delta, total=total)
    return epsilon_along([_events(s) for s in stretches], delta=cost.delta, total=total)


def _places(releases: int, groups: Sequence[Group]) -> list[int]:
    step = -(-releases // _POINTS)
    places = {*range(step, releases, step), releases}
    if len(groups) <= _POINTS:
        ends = 0
        for group in groups:
            ends += group.releases
            places.add(ends)
    return sorted(places)


def _events(stretch: Mapping[Mechanism, int]) -> Counter[Any]:
    events: Counter[Any] = Counter()
    for mechanism, count in stretch.items():
        events[mechanism.event()] += count
    return events


def _replacing(
    stretches: Iterable[Mapping[Mechanism, int]], *, delta: float, total: float
) -> list[float]:
    so_far: Counter[Any] = Counter()
    figures = []
    for stretch in stretches:
        so_far += _events(stretch)
        figure = epsilon(so_far, delta=delta, coarse=True, adjacency="replace-one")
        figures.append(min(figure, total))  # the coarse grid's is above
    return [*figures[:-1], total]


def _unamplified(stretches: Iterable[Mapping[Mechanism, int]], *, delta: float) -> list[float]:
    so_far: Counter[Mechanism] = Counter()
    figures = []
    for stretch in stretches:
        so_far.update(stretch)
        figures.append(epsilon_without_amplification(so_far, delta=delta))
    return figures
