"""A device's part in which items are taken close together: all that is known of items without content.

What follows shortly on an item is told by many devices that took both, and by no text. The sum over
devices, denoised on the server, gives every item a vector such that items taken together are alike.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ..common.histories import Histories
from ..common.messages import CooccurrenceTask
from ..common.updates import ClippedUpdate

_LAGS = 6
"""Events that a pair may lie apart; each further one counts √½ as much as the one before."""


def cooccurrence_contribution(
    histories: Histories, *, head: NDArray[np.int64], n_items: int, clip_norm: float
) -> ClippedUpdate:
    """Sum over devices of the pairs of head items they took close together, scaled per device.

    A device counts each pair of distinct items by 2^(−(lag − 1)/2) for every time they are ``lag`` ≤ 6
    events apart, takes the square root, so that a pair it takes all the time doesn't drown the others,
    and scales the whole to norm C. The order within a pair is left out.

    Sensitivity: a device's part has norm C, or 0 where it took no two head items; adding or removing
    the device moves the sum by no more than C.

    Args:
        histories: n devices.
        head: int64 [K], distinct items; pairs with any other are left out.
        n_items: size of the item table.
        clip_norm: C, finite.

    Raises:
        ValueError: C is not a positive, finite number.

    Returns:
        One array, ``cooccurrence``: float32 [K (K − 1) / 2], row by row of the upper triangle.
    """
    if not 0 < clip_norm < math.inf:
        raise ValueError(f"a part is scaled to the clip, which must be finite, not {clip_norm}")
    place = np.full(n_items, -1, dtype=np.int64)
    place[head] = np.arange(len(head))
    places, device = place[histories.items], histories.devices
    owners, columns, weights = [], [], []
    for lag in range(1, _LAGS + 1):
        one, other = places[:-lag], places[lag:]
        real = (device[:-lag] == device[lag:]) & (one != other) & (one >= 0) & (other >= 0)
        low, high = np.minimum(one[real], other[real]), np.maximum(one[real], other[real])
        owners.append(device[lag:][real])
        columns.append(low * (2 * len(head) - low - 1) // 2 + high - low - 1)
        weights.append(np.full(len(low), 0.5 ** ((lag - 1) / 2)))
    entries = np.concatenate(weights), (np.concatenate(owners), np.concatenate(columns))
    counts = sparse.csr_matrix(
        entries, shape=(histories.n_devices, CooccurrenceTask.pairs(len(head)))
    )
    # Building the matrix has added up what is in one place. Squares of the roots are the counts.
    norms = np.sqrt(np.asarray(counts.sum(axis=1)).ravel())
    scale = np.divide(clip_norm, norms, out=np.zeros_like(norms), where=norms > 0)
    total = np.asarray(counts.sqrt().T @ scale, dtype=np.float32)
    return ClippedUpdate(
        arrays={"cooccurrence": total}, devices=histories.n_devices, clip_norm=clip_norm
    )
