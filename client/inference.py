"""From histories to profile vectors with the shared encoder, many devices at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from ..common.decay import SECONDS_PER_DAY, Scale, decayed_sums
from ..common.encoder import Encoder, EncoderInputs
from ..common.histories import Histories
from ..common.items import ItemTable

_CHUNK = 256
PRIOR_BLOCK, ID_BLOCK = "popularity", "item_ids"


def serving_table(
    table: ItemTable, *, prior: NDArray[np.float32], ids: NDArray[np.float32] | None
) -> ItemTable:
    """The table to rank with: public vectors, trained vectors if any, and log popularity.

    A score stays one inner product: U has a coordinate for each trained column and a 1 for popularity.
    """
    served = table if ids is None else table.with_block(ID_BLOCK, ids)
    return served.with_block(PRIOR_BLOCK, prior[:, None])


def profile_vectors(
    encoder: Encoder,
    weights: Mapping[str, Tensor],
    histories: Histories,
    now: NDArray[np.int64],
    *,
    table: ItemTable,
    scales: tuple[Scale, ...],
    window: int,
) -> NDArray[np.float32]:
    """U of every device at its moment, for :func:`serving_table`.

    Args:
        encoder: architecture.
        weights: name → weights to use in place of the encoder's own.
        histories: m devices.
        now: int64 [m], seconds since 1970 UTC.
        table: the public item table.
        scales: time scales of the decayed sums.
        window: recent events the encoder reads.

    Returns:
        float32 [m, k (+ ID dimension) + 1].
    """
    sums = decayed_sums(histories, table.vectors, now, scales)
    vectors = torch.from_numpy(table.vectors)
    parts = []
    with torch.no_grad():
        for start in range(0, histories.n_devices, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, histories.n_devices))
            inputs = _inputs(histories, rows, sums[rows], vectors, window)
            parts.append(functional_call(encoder, dict(weights), (inputs,))[:, 0].numpy())
    width = table.dimension
    if encoder.item_ids is not None:
        width += encoder.item_ids.embedding_dim
    found = np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.float32)
    return np.concatenate([found, np.ones((len(found), 1), dtype=np.float32)], axis=1)


def _inputs(
    histories: Histories,
    rows: NDArray[np.int64],
    sums: NDArray[np.float32],
    vectors: Tensor,
    window: int,
) -> EncoderInputs:
    start, stop = histories.offsets[rows], histories.offsets[rows + 1]
    known = np.minimum(stop - start, window)
    real = np.arange(int(known.max())) < known[:, None]
    index = np.where(real, (stop - known)[:, None] + np.arange(real.shape[1]), 0)
    before = np.where(real, np.maximum(index - 1, start[:, None]), 0)
    # Padding points at event 0, perhaps another device's: its gap is no gap.
    seconds = np.where(real, histories.times[index] - histories.times[before], 0)
    gaps = np.log1p(seconds / SECONDS_PER_DAY)
    items = torch.from_numpy(histories.items[index].astype(np.int64))
    mask = torch.from_numpy(real.astype(np.float32))
    return EncoderInputs(
        vectors=vectors[items] * mask.unsqueeze(-1),
        rows=items,
        gaps=torch.from_numpy(gaps.astype(np.float32)),
        types=torch.from_numpy(histories.types[index].astype(np.int64)),
        weights=torch.from_numpy(histories.weights[index]) * mask,
        positions=torch.from_numpy(known)[:, None],
        sums=torch.from_numpy(sums)[:, None],
    )
