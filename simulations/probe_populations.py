"""Who is probed: devices without data, and devices with too much."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from ..common.config import RunConfig
from ..common.histories import Histories
from ..common.items import ItemTable
from .population import Population

_HOSTILE_WEIGHT = 1e30


def population_of(histories: Histories, table: ItemTable, config: RunConfig) -> Population:
    """Devices with these histories, each keyed by its place."""
    return Population(
        histories=histories,
        users=np.arange(histories.n_devices),
        keys=np.arange(histories.n_devices, dtype=np.uint64),
        table=table,
        model=config.model,
        n_types=1,
    )


def idle_histories(n_devices: int) -> Histories:
    """Devices without an event."""
    none = {f.name: np.zeros(0) for f in fields(Histories)[1:]}
    kinds = {"items": np.int32, "times": np.int64, "sessions": np.int32, "types": np.int16}
    columns = {name: column.astype(kinds.get(name, np.float32)) for name, column in none.items()}
    return Histories(offsets=np.zeros(n_devices + 1, dtype=np.int64), **columns)


def busy_histories(histories: Histories) -> Histories:
    """From two events to all; one device claims that its events weigh more than all others' together.

    All begin with the same two items, so that something is known to follow on something.
    """
    place = np.arange(histories.n_events) - np.repeat(histories.offsets[:-1], histories.lengths)
    kept = histories.where(place < 2 + 4 * histories.devices)
    starts = kept.offsets[:-1]
    kept.items[starts], kept.items[starts + 1] = 0, 1
    kept.weights[kept.offsets[-2] :] = _HOSTILE_WEIGHT
    return kept
