"""How long a device takes to learn one event and to make one list, on this machine.

It is the devices' own code, with the run's model and the histories that were replayed. What a device
does besides, storing events safely and answering over a socket, isn't in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..client.model_bundle import ModelBundle
from ..client.nearest import NearestHeld
from ..client.profile import Event, build, update
from ..client.scoring import score, top_k
from ..common.histories import Histories
from .replay import moments_after, some_of

MOMENTS = 300
"""Moments that are measured at most."""
_WARM_UP = 10  # the first calls load code and fill caches


@dataclass(frozen=True)
class Spread:
    """Times of many calls.

    Attributes:
        median: milliseconds.
        p95: milliseconds, which 95 % of the calls don't exceed.
    """

    median: float
    p95: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Spread:
        """Of one value a call, at least one."""
        median, p95 = np.quantile(1e3 * seconds, [0.5, 0.95]).tolist()
        return cls(median, p95)


@dataclass(frozen=True)
class Latency:
    """What it takes to follow every event.

    Attributes:
        moments: how many were measured.
        update: from an event to the new profile vector.
        ranking: from the new profile to a list of new items.
    """

    moments: int
    update: Spread
    ranking: Spread

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content, in milliseconds."""
        return {
            "moments": self.moments,
            "update_ms": vars(self.update),
            "list_ms": vars(self.ranking),
        }


def measure_latency(
    bundle: ModelBundle, histories: Histories, *, start: int, k: int, most: int = MOMENTS
) -> Latency | None:
    """Update profiles by events after ``start`` and make a list after each; None where there are none.

    Args:
        bundle: the run's model, as a device holds it.
        histories: whole log, with the items and event types of the bundle.
        start: the cut, seconds since 1970 UTC.
        k: length of the list.
        most: moments to measure, the first event of each; of more, a random choice with a fixed seed.
    """
    moments = some_of(moments_after(histories, start), most)
    if not moments.size:
        return None
    order = np.arange(moments.size)
    with threadpool_limits(1, "blas"):  # as a device ranks
        for row in order[:_WARM_UP]:
            _times(bundle, histories, moments.users[row], moments.known[row], k)
        seconds = [
            _times(bundle, histories, moments.users[row], moments.known[row], k) for row in order
        ]
    updates, rankings = np.array(seconds).T
    return Latency(moments.size, Spread.of(updates), Spread.of(rankings))


def _times(
    bundle: ModelBundle, histories: Histories, user: np.int64, known: np.int64, k: int
) -> tuple[float, float]:
    """Seconds for the event after the first ``known`` of a user, and for the list that comes of it."""
    before = build(
        histories.prefixes(np.array([user]), np.array([known])),
        table=bundle.public,
        scales=bundle.config.scales,
        window_size=bundle.config.window,
        encode=bundle.encode,
    )
    nearest = NearestHeld(bundle.served)
    if nearest.asked:
        nearest.to(before.items)  # a device keeps it from list to list
    place = histories.offsets[user] + known
    columns = (histories.items, histories.times, histories.weights, histories.types)
    event = Event(*(column[place].item() for column in columns))
    began = time.perf_counter()
    after = update(before, event, table=bundle.public, encode=bundle.encode)
    learned = time.perf_counter()
    scores = score(after, bundle.served, nearest=nearest)
    top_k(after, bundle.served, k, scores=scores)
    return learned - began, time.perf_counter() - learned
