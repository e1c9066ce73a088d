"""A device's part in item popularity: which items it met for the first time, and how long ago.

Discoveries say more about the next discovery than purchases do: a staple that everybody re-buys
would drown what people are turning to now.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ..common.decay import SECONDS_PER_DAY
from ..common.histories import Histories
from ..common.updates import ClippedUpdate
from .examples import first_encounters

_ALL_TIME = 0.1  # of the squared clip, where there are recent scales beside it


def popularity_contribution(
    histories: Histories,
    *,
    now: int,
    half_lives_days: tuple[float, ...],
    n_items: int,
    clip_norm: float,
) -> ClippedUpdate:
    """Sum over devices of their discoveries, decayed on each time scale, clipped per device.

    Sensitivity: a device's part on scale s is scaled down to norm ≤ C·√a_s with Σ a_s = 1, so its whole
    part has norm ≤ √(Σ a_s · C²) = C; adding or removing the device moves the sum by no more.

    All time has a = 1/10 and the recent scales share the rest: to the one every device adds something,
    to the others only those that were active lately, against the same noise.

    Args:
        histories: n devices.
        now: ages count back from here, seconds since 1970 UTC.
        half_lives_days: time scales besides "all time", which is always first.
        n_items: size of the item table.
        clip_norm: C; inf leaves the parts as they are.

    Returns:
        One array, ``popularity``: float32 [1 + time scales, n_items].
    """
    fresh = first_encounters(histories)
    age = np.maximum(now - histories.times, 0) / SECONDS_PER_DAY
    scales = (np.inf, *half_lives_days)
    recent = len(half_lives_days)
    shares = [_ALL_TIME, *[(1 - _ALL_TIME) / recent] * recent] if recent else [1.0]
    total = np.zeros((len(scales), n_items), dtype=np.float32)
    for row, (half_life, share) in enumerate(zip(scales, shares, strict=True)):
        weights = np.where(fresh, np.exp2(-age / half_life), 0.0)
        total[row] = _clipped_sum(histories, weights, n_items, clip_norm * math.sqrt(share))
    return ClippedUpdate(
        arrays={"popularity": total}, devices=histories.n_devices, clip_norm=clip_norm
    )


def _clipped_sum(
    histories: Histories, weights: NDArray[np.float64], n_items: int, bound: float
) -> NDArray[np.float64]:
    parts = sparse.csr_matrix(
        # A copy: scipy may sort the indices in place, and the history's order is its meaning.
        (weights, histories.items.copy(), histories.offsets),
        shape=(histories.n_devices, n_items),
    )
    norms = np.sqrt(np.asarray(parts.multiply(parts).sum(axis=1)).reshape(-1))
    factors = np.divide(bound, norms, out=np.ones_like(norms), where=norms > bound)
    summed: NDArray[np.float64] = parts.T @ factors
    return summed
