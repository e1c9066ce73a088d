"""What a device learns from: what it took next, again and again, as ragged arrays for a whole cohort.

A *moment* is all that a session has at one time: a basket, or a single click. A *query* stands before a
moment; its *targets* are the items of that moment. The device knows everything before the query: the
decayed sums over its whole past, and a window of its recent events. So whatever order a log has is
learned from, inside a session, too, where most of it is.
Choices that are random (which stretch of a long history, which targets of a large basket) depend on the
round's seed and the device's own key alone, so a device learns the same wherever it is hosted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ..common.decay import SECONDS_PER_DAY, Scale, event_ages
from ..common.histories import Histories


@dataclass(frozen=True, eq=False)
class Examples:
    """Training examples of n devices, ragged by window event, query and target.

    Attributes:
        window_offsets: int64 [n + 1] into the ``window_…`` arrays.
        window_items: int32, items of each window, in order.
        window_gaps: float32, log(1 + days) since the device's event before.
        window_types: int16, event types.
        window_weights: float32, event weights.
        query_offsets: int64 [n + 1] into ``query_…``.
        query_positions: int64, number of window events known at the query.
        query_sums: float32 [queries, S, k], decayed interest sums over all that is known.
        target_offsets: int64 [n + 1] into ``target_…``.
        target_queries: int64, query of each target, counted within the device.
        target_items: int32, the item to predict.
        known: sparse bool [n, n_items], items in the device's history, never used as its negatives.
        vectors: float32 [n_items, k], the item vectors that they are about.
    """

    window_offsets: NDArray[np.int64]
    window_items: NDArray[np.int32]
    window_gaps: NDArray[np.float32]
    window_types: NDArray[np.int16]
    window_weights: NDArray[np.float32]
    query_offsets: NDArray[np.int64]
    query_positions: NDArray[np.int64]
    query_sums: NDArray[np.float32]
    target_offsets: NDArray[np.int64]
    target_queries: NDArray[np.int64]
    target_items: NDArray[np.int32]
    known: sparse.csr_matrix
    vectors: NDArray[np.float32]


def build_examples(
    histories: Histories,
    keys: NDArray[np.uint64],
    *,
    vectors: NDArray[np.float32],
    scales: tuple[Scale, ...],
    window: int,
    new_targets_only: bool,
    seed: int,
) -> Examples:
    """Examples of every device in ``histories``; a device without a second moment has none.

    Args:
        histories: n devices.
        keys: uint64 [n], a key of each device's own for its random choices, whoever else there is.
        vectors: float32 [n_items, k], the item table.
        scales: time scales of the decayed sums.
        window: most recent events the encoder reads, and most targets a device uses.
        new_targets_only: learn first encounters only.
        seed: the round's public seed.
    """
    device = histories.devices
    starts = _moments(histories)
    owner = device[starts]
    local_start = starts - histories.offsets[owner]
    last = _last_query(owner, local_start, histories.n_devices, keys, window, seed)

    # Window: up to `window` events before the last query's moment.
    has = last >= 0
    stop = histories.offsets[:-1].copy()
    stop[has] = starts[last[has]]
    begin = np.maximum(stop - window, histories.offsets[:-1])
    window_offsets, window_rows = _ranges(begin, stop)

    # Queries: moments that begin inside the window or right after it, with something known before
    # and something to learn.
    chosen = has[owner] & (starts >= begin[owner]) & (starts <= stop[owner]) & (local_start > 0)
    query_start, query_device = starts[chosen], owner[chosen]

    targets, target_query = _targets(histories, starts, chosen, new_targets_only)
    target_device = query_device[target_query]
    # Salted by the place within the device: places in the cohort depend on who else is in it.
    places = targets - histories.offsets[target_device]
    kept = _at_most(target_device, window, _uniforms(keys[target_device], places, seed))
    targets, target_query, target_device = targets[kept], target_query[kept], target_device[kept]
    # Where nothing is asked nothing need be worked out: of clicks on known items, most queries.
    asked, target_query = np.unique(target_query, return_inverse=True)
    query_start, query_device = query_start[asked], query_device[asked]
    query_offsets = _offsets(query_device, histories.n_devices)

    times = histories.times.astype(np.float64)
    gaps = np.diff(times, prepend=times[:1]) / SECONDS_PER_DAY
    gaps[histories.offsets[:-1][histories.lengths > 0]] = 0.0
    events = len(histories.items)
    known = sparse.csr_matrix(
        # A copy: scipy sorts the indices in place, and the history's order is its meaning.
        (np.ones(events, dtype=bool), histories.items.copy(), histories.offsets),
        shape=(histories.n_devices, len(vectors)),
    )
    return Examples(
        window_offsets=window_offsets,
        window_items=histories.items[window_rows],
        window_gaps=np.log1p(gaps[window_rows]).astype(np.float32),
        window_types=histories.types[window_rows],
        window_weights=histories.weights[window_rows],
        query_offsets=query_offsets,
        query_positions=query_start - begin[query_device],
        query_sums=_query_sums(histories, query_start, query_device, vectors, scales),
        target_offsets=_offsets(target_device, histories.n_devices),
        target_queries=target_query - query_offsets[target_device],
        target_items=histories.items[targets],
        known=known,
        vectors=vectors,
    )


def _moments(histories: Histories) -> NDArray[np.int64]:
    """First event of every moment, over all devices."""
    if not histories.n_events:
        return np.zeros(0, dtype=np.int64)
    change = np.ones(histories.n_events, dtype=bool)
    change[1:] = (np.diff(histories.times) != 0) | (np.diff(histories.sessions) != 0)
    change[histories.offsets[:-1][histories.lengths > 0]] = True
    return np.flatnonzero(change)


def _last_query(
    owner: NDArray[np.int64],
    local_start: NDArray[np.int64],
    n_devices: int,
    keys: NDArray[np.uint64],
    window: int,
    seed: int,
) -> NDArray[np.int64]:
    """Per device the moment that ends its stretch: the last one where the past fits into the window,
    else any moment that a full window precedes, or -1 where nothing precedes any moment."""
    moments = _offsets(owner, n_devices)
    last = moments[1:] - 1
    eligible_from = np.full(n_devices, -1, dtype=np.int64)
    full = np.flatnonzero(local_start >= window)
    # The first moment with a full window before it; later ones have one too.
    first_full = np.unique(owner[full], return_index=True)
    eligible_from[first_full[0]] = full[first_full[1]]
    spread = eligible_from >= 0
    pick = np.floor(
        _uniforms(keys, np.zeros(n_devices, dtype=np.int64), seed) * (last - eligible_from + 1)
    ).astype(np.int64)
    chosen = np.where(spread, eligible_from + pick, last)
    count = np.diff(moments)
    return np.where(count >= 2, chosen, -1)


def _targets(
    histories: Histories,
    starts: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    new_only: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Event rows of the chosen moments, and the query (counted over all devices) each belongs to."""
    stops = np.append(starts[1:], histories.n_events)
    offsets, rows = _ranges(starts[chosen], stops[chosen])
    query = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    if new_only:
        fresh = first_encounters(histories)[rows]
        rows, query = rows[fresh], query[fresh]
    return rows, query


def first_encounters(histories: Histories) -> NDArray[np.bool_]:
    """bool [n_events]: the device meets this item for the first time."""
    pair = histories.devices * (int(histories.items.max(initial=0)) + 1) + histories.items
    _, first = np.unique(pair, return_index=True)
    fresh = np.zeros(histories.n_events, dtype=bool)
    fresh[first] = True
    return fresh


def _query_sums(
    histories: Histories,
    query_start: NDArray[np.int64],
    query_device: NDArray[np.int64],
    vectors: NDArray[np.float32],
    scales: tuple[Scale, ...],
) -> NDArray[np.float32]:
    """Decayed sums at each query, float32 [queries, S, k].

    Each event is read once: the sum over a stretch between two queries is one sparse row, and a
    query's sum is the one before, decayed, plus its stretch.
    """
    queries = len(query_start)
    sums = np.zeros((queries, len(scales), vectors.shape[1]), dtype=np.float32)
    if not queries:
        return sums
    first = np.r_[True, query_device[1:] != query_device[:-1]]
    stretch_start = np.where(first, histories.offsets[query_device], np.r_[0, query_start[:-1]])
    offsets, rows = _ranges(stretch_start, query_start)
    owner = np.repeat(np.arange(queries), np.diff(offsets))
    rank = np.arange(queries) - np.flatnonzero(first)[np.cumsum(first) - 1]
    days, steps = event_ages(histories, now=np.iinfo(np.int64).min)
    for s, scale in enumerate(scales):
        # Both clocks count back from the device's last event; a query reads the wall clock at its
        # moment's time, and the event clock at the last event it knows.
        if scale.clock == "days":
            event_clock, query_clock = -days, -days[query_start]
        else:
            event_clock = -steps.astype(np.float64)
            query_clock = event_clock[query_start - 1]
        decay = np.exp2((event_clock[rows] - query_clock[owner]) / scale.half_life)
        strengths = (histories.weights[rows] * decay).astype(np.float32)
        stretch = sparse.csr_matrix(
            (strengths, histories.items[rows], offsets), shape=(queries, len(vectors))
        )
        sums[:, s] = stretch @ vectors
        since = np.where(first, 0.0, query_clock - np.r_[0.0, query_clock[:-1]])
        carry = np.exp2(-since / scale.half_life)
        for step in range(1, int(rank.max()) + 1):
            at = np.flatnonzero(rank == step)
            sums[at, s] += carry[at, None].astype(np.float32) * sums[at - 1, s]
    return sums


def _ranges(
    begin: NDArray[np.int64], stop: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of the ragged array of ranges, and its rows ``begin[i]…stop[i] - 1``."""
    lengths = stop - begin
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.repeat(begin - offsets[:-1], lengths) + np.arange(offsets[-1])
    return offsets, rows


def _offsets(owner: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Offsets of a ragged array whose rows are sorted by ``owner``."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=n))]).astype(np.int64)


def _at_most(owner: NDArray[np.int64], limit: int, order: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows to keep so that each owner has at most ``limit``: those lowest in ``order``, in place."""
    by_order = np.lexsort((order, owner))
    first = np.searchsorted(owner, owner)  # owner is sorted: first row of each owner
    rank = np.arange(len(owner)) - first
    return np.sort(by_order[rank < limit])


def _uniforms(keys: NDArray[np.uint64], salts: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """One uniform in [0, 1) per (seed, key, salt): SplitMix64 (Steele et al. 2014, fig. 14)."""
    state = keys ^ np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF)
    for salt in (np.uint64(0), salts.astype(np.uint64)):
        state = (state + np.uint64(0x9E37_79B9_7F4A_7C15)) ^ salt
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53
