"""From histories to profile vectors with the shared encoder, many devices at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.func import functional_call

from ..common.decay import SECONDS_PER_DAY, Scale, decayed_sums
from ..common.encoder import Encoder, EncoderInputs
from ..common.histories import Histories
from ..common.items import ItemTable

_CHUNK = 256


def profile_vectors(
    encoder: Encoder,
    weights: Mapping[str, Tensor],
    histories: Histories,
    *,
    table: ItemTable,
    scales: tuple[Scale, ...],
    window: int,
) -> NDArray[np.float32]:
    """U of every device as of its last event, for :func:`serving_table`.

    Time that passed since scales all of a device's sums alike, and U follows from their directions; as of
    a later moment, the shorter scales of those who were long away would be nothing but rounding errors.

    Args:
        encoder: architecture.
        weights: name → weights to use in place of the encoder's own.
        histories: m devices.
        table: the public item table.
        scales: time scales of the decayed sums.
        window: recent events the encoder reads.

    Returns:
        float32 [m, k (+ ID dimension) + 1].
    """
    sums = decayed_sums(histories, table.vectors, np.iinfo(np.int64).min, scales)
    vectors = torch.from_numpy(table.vectors)
    parts = []
    with torch.no_grad():
        for start in range(0, histories.n_devices, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, histories.n_devices))
            inputs = encoder_inputs(histories, rows, sums[rows], vectors, window)
            parts.append(functional_call(encoder, dict(weights), (inputs,))[:, 0].numpy())
    width = table.dimension
    if encoder.item_ids is not None:
        width += encoder.item_ids.embedding_dim
    found = np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.float32)
    return np.concatenate([found, np.ones((len(found), 1), dtype=np.float32)], axis=1)


def encoder_inputs(
    histories: Histories,
    rows: NDArray[np.int64],
    sums: NDArray[np.float32],
    vectors: Tensor,
    window: int,
) -> EncoderInputs:
    """What the encoder reads of the devices ``rows``: one query each, after all they know.

    Args:
        histories: devices.
        rows: int64 [m], which of them.
        sums: float32 [m, S, k], their decayed interest sums.
        vectors: float [n_items, k].
        window: recent events to read.
    """
    start, stop = histories.offsets[rows], histories.offsets[rows + 1]
    known = np.minimum(stop - start, window)
    column = np.arange(max(1, int(known.max())))  # a window of nothing still has a column
    real = column < known[:, None]
    index = ((stop - known)[:, None] + column)[real]
    before = np.maximum(index - 1, np.repeat(start, known))
    gaps = np.log1p((histories.times[index] - histories.times[before]) / SECONDS_PER_DAY)

    def padded(values: NDArray[Any], kind: DTypeLike) -> Tensor:
        column = np.zeros(real.shape, dtype=kind)
        column[real] = values
        return torch.from_numpy(column)

    items = padded(histories.items[index], np.int64)
    return EncoderInputs(
        vectors=vectors[items] * torch.from_numpy(real).unsqueeze(-1),
        rows=items,
        gaps=padded(gaps, np.float32),
        types=padded(histories.types[index], np.int64),
        weights=padded(histories.weights[index], np.float32),
        positions=torch.from_numpy(known)[:, None],
        sums=torch.from_numpy(sums)[:, None],
    )
