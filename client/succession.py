"""What comes next, by what was taken before: chances that were released, mixed with every other score.

    p(j) = q_j + (1 − Σ q) · softmax(s)_j,     q = Σ_e w_e · P(j | i_e)

over events e, with weights w that add up to 1. Where it is told what follows what, they are those that a
profile's window holds, and w halves every one and a half steps: a profile says what somebody likes; which
of it comes now is told by what came just before. Where it is told what goes with what is held, they are
all events, and w fades as habits do. Where nothing is known to follow, s stays as it is. It is worked out
on the device and costs no ε.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..common.decay import Scale, decay, event_ages
from ..common.histories import Histories
from ..common.items import ItemTable
from .profile import HABITS, Event, Profile
from .serving import TRAINED_BLOCK

SOON = Scale("events", 1.5)
"""How fast the last events give way. One and a half to two events were best where it was tuned on other
logs; here 1 to 2 are level under privacy, and shorter ones a little better without."""


def tells_next(table: ItemTable) -> bool:
    """Whether anything is known to follow on anything, and the encoder has no vector of each item's own
    that was trained: one that has learned what follows what, too, and is level or better alone."""
    known = table.successors is not None and len(table.successors) > 0
    return known and TRAINED_BLOCK not in table.blocks


def event_chances(profile: Profile, table: ItemTable, item: int) -> list[tuple[Event, float]]:
    """The recent events, and the part of each in q of one item, where it is told what follows what."""
    assert table.successors is not None, "ask tells_next first"
    items, weights = _recent(profile)
    parts = weights * table.successors.chances_of(items, item)
    return list(zip(profile.window, parts.tolist(), strict=True))


def held_chances(profile: Profile, table: ItemTable, item: int) -> list[tuple[int, float]]:
    """What is held, and the part of each in q of one item, where it is told what goes with what."""
    assert table.successors is not None, "ask tells_next first"
    items, weights = _held(profile)
    parts = weights * table.successors.chances_of(items, item)
    return list(zip(items.tolist(), parts.tolist(), strict=True))


def _held(profile: Profile) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """All items of a profile, and w of each."""
    rows = np.zeros(len(profile.items), dtype=np.int64)
    return profile.items, _shares(profile.frequencies.astype(np.float64), rows, 1)


def _recent(profile: Profile) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The items of the last events, and w of each."""
    recent = profile.window
    items = np.array([event.item for event in recent], dtype=np.int32)
    times = np.array([event.time for event in recent], dtype=np.int64)
    # Distinct later times, as the clock of events counts.
    distinct, place = np.unique(times, return_inverse=True)
    [weights] = decay([SOON], np.zeros(len(recent)), len(distinct) - 1 - place)
    return items, _shares(weights, np.zeros(len(recent), dtype=np.int64), 1)


def next_chances(profile: Profile, table: ItemTable) -> NDArray[np.float32]:
    """q of one user and all items, float32 [n_items]."""
    assert table.successors is not None, "ask tells_next first"
    items, weights = _held(profile) if table.whole else _recent(profile)
    told: NDArray[np.float32] = table.successors.after(items, weights, n_items=table.n_items)[0]
    return told


def next_matrix(table: ItemTable, histories: Histories, *, window: int) -> NDArray[np.float32]:
    """q of many users, float32 [n_devices, n_items]; the same as :func:`next_chances` of each.

    Args:
        table: of the items.
        histories: what each of them did.
        window: events that a profile holds.
    """
    assert table.successors is not None, "ask tells_next first"
    devices = histories.devices
    # The beginning of time lies before every event: ages count from each user's newest one.
    days, steps = event_ages(histories, np.iinfo(np.int64).min)
    [weights] = decay([HABITS if table.whole else SOON], days, steps)
    left = histories.offsets[1:][devices] - np.arange(histories.n_events) - histories.offsets[0]
    counted = np.flatnonzero((left <= window) | table.whole)
    rows = devices[counted]
    return table.successors.after(
        histories.items[counted],
        _shares(weights[counted], rows, histories.n_devices),
        n_items=table.n_items,
        rows=rows,
        n_rows=histories.n_devices,
    )


def mixed(logits: NDArray[np.float32], chances: NDArray[np.float32]) -> NDArray[np.float32]:
    """log p + log Σ exp(s): scores s with what comes next mixed in, on the scale of s.

    Args:
        logits: float32 [..., n_items], s of all items.
        chances: float32 [..., n_items], q.
    """
    told = chances.sum(axis=-1, keepdims=True)
    if not told.any():
        return logits
    found: NDArray[np.float32] = logits + np.log1p(-told)
    top = logits.max(axis=-1, keepdims=True)
    # log Σ exp(s) of each row.
    total = top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    # Of few items anything is known, and a logarithm of each of the others would be slow.
    known = np.nonzero(chances > 0)
    rows = (*known[:-1], np.zeros_like(known[-1]))
    softmax = np.exp(logits[known] - total[rows])
    found[known] = np.log((1 - told[rows]) * softmax + chances[known]) + total[rows]
    return found


def _shares(
    weights: NDArray[np.float64], rows: NDArray[np.int64], n_rows: int
) -> NDArray[np.float64]:
    """Of the weights of each row, 1 in all."""
    shares: NDArray[np.float64] = weights / np.bincount(rows, weights, n_rows)[rows]
    return shares
