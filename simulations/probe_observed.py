"""What a probe sees of a federation, from outside: replies on the wire, releases, the ledger's word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ReplyRejected
from ..common.mechanism import Mechanism
from .watched_grid import Exchange, WatchedGrid

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Release:
    """One release, as seen from outside.

    Attributes:
        declared: its mechanism, by the ledger.
        exchanges: with each host that was asked.
        total: name → what was released, on the scale of the sum of contributions.
    """

    declared: Mechanism
    exchanges: list[Exchange]
    total: dict[str, Floats]

    @property
    def cohort(self) -> NDArray[np.int64]:
        """Devices that were asked, ascending."""
        asked = [exchange.task.devices for exchange in self.exchanges]
        return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *asked]))

    def contributed(self) -> tuple[dict[str, Floats], int]:
        """Sum of the updates that reached the server unchanged, and the devices in it."""
        total = {name: np.zeros_like(array) for name, array in self.total.items()}
        devices = 0
        for exchange in self.exchanges:
            if not exchange.delivered:
                continue
            try:
                update = exchange.update()
            except ReplyRejected:
                continue
            devices += update.devices
            for name, array in update.arrays.items():
                total[name] += array
        return total, devices

    def residual(self) -> dict[str, Floats]:
        """What was released beyond the contributions: noise, and nothing else."""
        contributed, _ = self.contributed()
        return {name: array - contributed[name] for name, array in self.total.items()}


@dataclass(frozen=True, eq=False)
class Observed:
    """One federation, as seen from outside.

    Attributes:
        statistics: name → one-shot release, those that the configuration has.
        rounds: releases of training.
        unreserved: releases asked for before the ledger on disk held their reserve.
        miscounted: releases without a commit that tells what passed on the wire.
        missteps: weights that didn't move along what was released, over all rounds.
        strayed: how far item vectors are from those that released co-occurrence leads to; 0 without it.
        grid: to ask the hosts aside.
    """

    statistics: dict[str, Release]
    rounds: list[Release]
    unreserved: int
    miscounted: int
    missteps: int
    strayed: float
    grid: WatchedGrid


def flat(arrays: Mapping[str, Floats]) -> Floats:
    """All coordinates in a row."""
    return np.concatenate([array.reshape(-1) for array in arrays.values()])
