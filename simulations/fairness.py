"""Groups of test users, so that it can be seen whom a model serves well, and whom privacy costs most.

A figure of few people tells what these few did. So no group below :data:`MINIMUM` is shown by itself:
small groups are put together, and where they are still too few, the next larger one joins them; or else
a group left out could be had by subtracting the others from the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MINIMUM = 20
"""Users of the smallest group that has a figure."""

UNKNOWN = "unknown"
"""Group of those of whom the data says none."""


@dataclass(frozen=True, eq=False)
class Group:
    """Some of ``p`` users.

    Attributes:
        name: what they have in common.
        rows: int64 [m], who of the ``p`` it is, increasing.
    """

    name: str
    rows: NDArray[np.int64]


def by_activity(events: NDArray[np.int64]) -> list[Group]:
    """Thirds by number of events (int64 [p]); equal numbers stay together, so they differ in size.

    Names tell where thirds are cut, and not the least and the most, each of which is some one user's.
    """
    if len(events) == 0:
        return []
    cuts = np.quantile(events, [1 / 3, 2 / 3], method="inverted_cdf")
    thirds = np.searchsorted(cuts, events, side="left")
    lower, upper = cuts.tolist()
    middle = f"{upper:,}" if upper == lower + 1 else f"{lower + 1:,}–{upper:,}"
    names = (f"up to {lower:,}", middle, f"more than {upper:,}")
    groups = [Group(f"{name} events", np.flatnonzero(thirds == n)) for n, name in enumerate(names)]
    return large_enough([group for group in groups if len(group.rows)])


def by_value(values: Sequence[str | None]) -> list[Group]:
    """Those of equal value (one of each of ``p`` users), the largest first."""
    names = np.array([UNKNOWN if value is None else value for value in values], dtype=object)
    groups = [Group(str(name), np.flatnonzero(names == name)) for name in sorted(set(names))]
    return large_enough(sorted(groups, key=lambda group: -len(group.rows)))


def large_enough(groups: Sequence[Group], *, minimum: int = MINIMUM) -> list[Group]:
    """``groups`` in their order, the small ones put together at the end; none where one would be left.

    Every user of ``groups`` is in exactly one of those returned, and each has ``minimum`` or more.
    """
    small = [group for group in groups if len(group.rows) < minimum]
    large = [group for group in groups if len(group.rows) >= minimum]
    while small and large and sum(len(group.rows) for group in small) < minimum:
        joining = min(large, key=lambda group: len(group.rows))
        large.remove(joining)
        small.append(joining)
    if small:
        rows = np.sort(np.concatenate([group.rows for group in small]))
        large.append(Group(f"others ({len(small)} groups)", rows))
    return large if len(large) > 1 else []
