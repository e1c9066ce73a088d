"""A device's part in which items are taken together: all that is known of items without content.

What follows shortly on an item is told by many devices that took both, and by no text. The sum over
devices, denoised on the server, gives every item a vector such that items taken together are alike, and
the items that follow it more often than that tells. Of goods, which go together for as long as they are
held, whole histories tell more: what goes with what.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ..common.histories import Histories
from ..common.items import ItemTable
from ..common.messages import CooccurrenceTask
from ..common.successors import ORDER_SHARE
from ..common.updates import ClippedUpdate

_LAGS = 6
"""Events that a pair may lie apart; each further one counts half as much as the one before."""


def pairs_contribution(
    histories: Histories, *, table: ItemTable, head: NDArray[np.int64], clip_norm: float
) -> ClippedUpdate:
    """What devices send of pairs, of the kind that the item table says."""
    contribution = together_contribution if table.whole else cooccurrence_contribution
    return contribution(histories, head=head, n_items=table.n_items, clip_norm=clip_norm)


def cooccurrence_contribution(
    histories: Histories, *, head: NDArray[np.int64], n_items: int, clip_norm: float
) -> ClippedUpdate:
    """Sum over devices of the pairs of head items they took close together, scaled per device.

    A device counts each ordered pair of distinct items by 2^−(lag − 1) for every time the second is
    taken ``lag`` ≤ 6 events after the first; events of one time have no order, and count half each way. It
    takes the square root m_ij, so that a pair it takes all
    the time doesn't drown the others. It sends m_ij + m_ji of each pair, and κ·(m_ij − m_ji), all of it
    scaled to norm C: with κ = 0.3 the order costs 4 % of the signal.

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
        One array, ``cooccurrence``: float32 [K (K − 1)], the sums of all pairs i < j, row by row of the
        upper triangle, and then the differences.
    """
    _check_clip(clip_norm)
    places, device = _places(histories, head, n_items), histories.devices
    n_pairs = CooccurrenceTask.pairs(len(head))
    owners, columns, weights = [], [], []
    for lag in range(1, _LAGS + 1):
        one, other = places[:-lag], places[lag:]
        real = (device[:-lag] == device[lag:]) & (one != other) & (one >= 0) & (other >= 0)
        low, high = np.minimum(one[real], other[real]), np.maximum(one[real], other[real])
        pair = low * (2 * len(head) - low - 1) // 2 + high - low - 1
        # Those that are taken in the order of the head come first.
        forward = one[real] < other[real]
        at_once = 0.5 * (histories.times[:-lag] == histories.times[lag:])[real]
        for ordered, share in ((forward, 1 - at_once), (~forward, at_once)):
            owners.append(device[lag:][real])
            columns.append(np.where(ordered, pair, n_pairs + pair))
            weights.append(share * 0.5 ** (lag - 1))
    entries = np.concatenate(weights), (np.concatenate(owners), np.concatenate(columns))
    # Building the matrix adds up what is in one place.
    counts = sparse.csr_matrix(entries, shape=(histories.n_devices, 2 * n_pairs))
    roots = counts.sqrt()
    there, back = roots[:, :n_pairs], roots[:, n_pairs:]
    parts = sparse.hstack([there + back, ORDER_SHARE * (there - back)], format="csr")
    norms = np.sqrt(np.asarray(parts.multiply(parts).sum(axis=1)).ravel())
    scale = np.divide(clip_norm, norms, out=np.zeros_like(norms), where=norms > 0)
    total = np.asarray(parts.T @ scale, dtype=np.float32)
    return ClippedUpdate(
        arrays={"cooccurrence": total}, devices=histories.n_devices, clip_norm=clip_norm
    )


def together_contribution(
    histories: Histories, *, head: NDArray[np.int64], n_items: int, clip_norm: float
) -> ClippedUpdate:
    """Sum over devices of the pairs of head items they hold, scaled per device.

    A device that holds n of the items at all holds n (n − 1) / 2 pairs, and sends the same number for
    each, C / √(n (n − 1) / 2).

    Sensitivity: a device's part has norm C, or 0 where it holds no two head items; adding or removing
    the device moves the sum by no more than C.

    Args:
        histories: n devices.
        head: int64 [K], distinct items; pairs with any other are left out.
        n_items: size of the item table.
        clip_norm: C, finite.

    Raises:
        ValueError: C is not a positive, finite number.

    Returns:
        One array, ``cooccurrence``: float32 [K (K − 1) / 2], the sums of all pairs i < j, row by row of
        the upper triangle.
    """
    _check_clip(clip_norm)
    places = _places(histories, head, n_items)
    known = places >= 0
    entries = np.ones(known.sum()), (histories.devices[known], places[known])
    held = sparse.csr_matrix(entries, shape=(histories.n_devices, len(head)))
    held.data[:] = 1  # what is taken again is added up
    n_held = held.getnnz(axis=1)
    n_pairs = n_held * (n_held - 1) / 2
    scale = np.divide(clip_norm, np.sqrt(n_pairs), out=np.zeros(len(n_held)), where=n_pairs > 0)
    sums = (held.T @ sparse.diags(scale) @ held).toarray()
    total = sums[np.triu_indices(len(head), 1)].astype(np.float32)
    return ClippedUpdate(
        arrays={"cooccurrence": total}, devices=histories.n_devices, clip_norm=clip_norm
    )


def _check_clip(clip_norm: float) -> None:
    if not 0 < clip_norm < math.inf:
        raise ValueError(f"a part is scaled to the clip, which must be finite, not {clip_norm}")


def _places(histories: Histories, head: NDArray[np.int64], n_items: int) -> NDArray[np.int64]:
    """Place of each event's item in the head, −1 where it isn't there."""
    place = np.full(n_items, -1, dtype=np.int64)
    place[head] = np.arange(len(head))
    found: NDArray[np.int64] = place[histories.items]
    return found
