"""Interaction histories of one or many devices, held as columns.

One device's history and a million devices' histories have the same type: six arrays and the
offsets of each device. Slices are views, so a population costs its bytes once, can be memory-mapped,
and never becomes a Python object per device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Histories:
    """Events of ``n`` devices, ordered by device, then time, then session.

    Attributes:
        offsets: int64 [n + 1]; events of device d are ``offsets[d]:offsets[d + 1]``.
        items: int32 [events], index into the item table.
        times: int64 [events], seconds since 1970-01-01 UTC, non-decreasing within a device.
        sessions: int32 [events], basket or session number within the device, from 0, non-decreasing.
        weights: float32 [events], strength of the event (event-type weight × normalised value), > 0.
        types: int16 [events], index into the log's event-type names.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    times: NDArray[np.int64]
    sessions: NDArray[np.int32]
    weights: NDArray[np.float32]
    types: NDArray[np.int16]

    @property
    def n_devices(self) -> int:
        """Number of devices, those without events included."""
        return len(self.offsets) - 1

    @property
    def n_events(self) -> int:
        """Number of events over all devices."""
        return int(self.offsets[-1] - self.offsets[0])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [n_devices], events per device."""
        return np.diff(self.offsets)

    @property
    def devices(self) -> NDArray[np.int64]:
        """int64 [n_events], the device of each event."""
        return np.repeat(np.arange(self.n_devices, dtype=np.int64), self.lengths)

    def device(self, index: int) -> Histories:
        """One device's history, as views of the columns."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        columns = {f.name: getattr(self, f.name)[start:stop] for f in fields(self)[1:]}
        return Histories(offsets=np.array([0, stop - start], dtype=np.int64), **columns)

    def take(self, devices: NDArray[np.int64]) -> Histories:
        """Histories of the named devices, in the order given (a copy)."""
        return self.prefixes(devices, self.offsets[devices + 1] - self.offsets[devices])

    def prefixes(self, devices: NDArray[np.int64], lengths: NDArray[np.int64]) -> Histories:
        """The first ``lengths`` (int64 [m]) events of ``devices`` (int64 [m]); one may come twice."""
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = np.repeat(self.offsets[devices] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Histories(
            offsets=offsets, **{f.name: getattr(self, f.name)[rows] for f in fields(self)[1:]}
        )

    def where(self, keep: NDArray[np.bool_]) -> Histories:
        """Only the events with ``keep`` (bool [n_events]); devices stay, perhaps without events."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        offsets = kept[self.offsets].astype(np.int64)
        return Histories(
            offsets=offsets, **{f.name: getattr(self, f.name)[keep] for f in fields(self)[1:]}
        )

    def before(self, time: int) -> Histories:
        """Only the events before ``time`` (seconds since 1970-01-01 UTC)."""
        return self.where(self.times < time)

    def __iter__(self) -> Iterator[Histories]:
        return (self.device(index) for index in range(self.n_devices))
