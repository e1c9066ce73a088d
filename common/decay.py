"""Exponential decay of interests: one definition for device profiles and for training batches.

An event of age Δ counts 2^(−Δ/h) for a half-life h. Age is read off one of two clocks: ``days``,
the wall clock, and ``events``, the number of distinct event times since. A basket shares one time
and has no order inside, so it ages as one, and the newest basket has age 0 on the second clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError
from .histories import Histories

SECONDS_PER_DAY = 86_400.0
CONTENT_TEMPERATURE = 6.0
"""Score of a cosine of 1 before anything is trained: a softmax over thousands of items can be peaked."""
_GATHERED_VALUES = 1 << 20
"""Item-vector values gathered at a time: 4 MiB, so that a chunk stays in the cache."""


@dataclass(frozen=True)
class Scale:
    """A time scale of the decayed interest sums.

    Attributes:
        clock: ``days`` (wall clock) or ``events`` (distinct event times).
        half_life: in units of the clock, > 0.
    """

    clock: Literal["days", "events"]
    half_life: float

    def __post_init__(self) -> None:
        if self.clock not in ("days", "events"):
            raise ConfigError(f"time scale: unknown clock {self.clock!r}; use 'days' or 'events'")
        if not 0 < self.half_life < float("inf"):
            raise ConfigError(f"time scale: half-life {self.half_life} must be positive and finite")


def event_ages(
    histories: Histories, now: int | NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Age of every event on both clocks.

    Args:
        histories: events of n devices.
        now: seconds since 1970-01-01 UTC, one for all or int64 [n_devices]. Where it lies before a
            device's last event, that event's time counts instead: no age is negative.

    Returns:
        days float64 [n_events], and distinct later event times int64 [n_events].
    """
    days = np.zeros(histories.n_events)
    steps = np.zeros(histories.n_events, dtype=np.int64)
    if not histories.n_events:
        return days, steps
    lengths = histories.lengths
    active = np.flatnonzero(lengths)
    last = histories.offsets[1:][active] - 1
    latest = np.maximum(np.broadcast_to(now, lengths.shape)[active], histories.times[last])
    days = (np.repeat(latest, lengths[active]) - histories.times) / SECONDS_PER_DAY
    moved_on = np.ones(histories.n_events, dtype=bool)
    moved_on[1:] = np.diff(histories.times) != 0
    moved_on[histories.offsets[:-1][active]] = True
    rank = np.cumsum(moved_on)
    steps = np.repeat(rank[last], lengths[active]) - rank
    return days, steps


def decay(
    scales: Sequence[Scale], days: NDArray[np.float64] | float, steps: NDArray[np.int64] | int
) -> NDArray[np.float64]:
    """2^(−Δ/h) of every scale; float64 [n_scales, *shape of the ages]."""
    ages = {"days": np.asarray(days, np.float64), "events": np.asarray(steps, np.float64)}
    return np.stack([np.exp2(-ages[scale.clock] / scale.half_life) for scale in scales])


def decayed_weights(
    histories: Histories, now: int | NDArray[np.int64], scales: Sequence[Scale]
) -> NDArray[np.float32]:
    """w_e·2^(−Δ_e/h_s) of every event; float32 [n_scales, n_events].

    ``now`` is as in :func:`event_ages`.
    """
    weights = decay(scales, *event_ages(histories, now)) * histories.weights
    return weights.astype(np.float32)


def decayed_sums(
    histories: Histories,
    vectors: NDArray[np.float32],
    now: int | NDArray[np.int64],
    scales: Sequence[Scale],
) -> NDArray[np.float32]:
    """D_s = Σ_e w_e·2^(−Δ_e/h_s)·v of every device.

    Args:
        histories: events of n devices.
        vectors: float32 [n_items, k].
        now: as in :func:`event_ages`.
        scales: time scales, at least one.

    Returns:
        float32 [n_devices, n_scales, k]; zeros for a device without events.
    """
    k = vectors.shape[1]
    sums = np.zeros((histories.n_devices, len(scales), k), dtype=np.float32)
    weights = decayed_weights(histories, now, scales)
    lengths = histories.lengths
    # Devices of like length go together: a batched product over padded rows wastes little then.
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        chunk = order[start : start + max(1, _GATHERED_VALUES // (longest * k))]
        start += len(chunk)
        column = np.arange(longest)
        real = column < lengths[chunk, None]
        rows = np.where(real, histories.offsets[chunk, None] + column, 0)
        chunk_weights = (weights[:, rows] * real).transpose(1, 0, 2)
        sums[chunk] = np.matmul(chunk_weights, vectors[histories.items[rows]])
    return sums


def event_factors(
    scales: Sequence[Scale], seconds: int, steps: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How one more event changes decayed sums: ``sums · held + w · v · added``, O(k) an event.

    An event on time ages what is held; a late one arrives aged. On the ``events`` clock a late
    event doesn't age those before it, for their times are no longer known: build the sums anew
    from the history where that matters.

    Args:
        scales: time scales.
        seconds: time of the event minus time of the newest event so far; negative for a late one.
        steps: distinct event times from the older of the two to the newer: 1 for a newer event, 0
            for the same time, and for a late one the number of distinct times after it.

    Returns:
        held, added: float32 [n_scales] each; one of the two is all ones.
    """
    factors = decay(scales, abs(seconds) / SECONDS_PER_DAY, steps).astype(np.float32)
    ones = np.ones(len(scales), dtype=np.float32)
    return (ones, factors) if seconds < 0 else (factors, ones)
