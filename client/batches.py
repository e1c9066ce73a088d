"""Padded batches of training examples: ragged arrays in, tensors with a device dimension out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ..common.encoder import EncoderInputs
from .examples import Examples

_KNOWN = -1e4
"""Logit of a negative that is left out: finite, so that a device that knows them all has a loss."""


class Batch(NamedTuple):
    """C devices, padded to T window events, Q queries and M targets.

    Attributes:
        inputs: what the encoder reads.
        target_queries: int64 [C, M], query of each target.
        target_vectors: float [C, M, k].
        target_rows: int64 [C, M], row of each target in the device's part of the ID table.
        target_priors: float [C, M], log popularity.
        target_weights: float [C, M], 1 / targets of the device, 0 where padded.
    """

    inputs: EncoderInputs
    target_queries: Tensor
    target_vectors: Tensor
    target_rows: Tensor
    target_priors: Tensor
    target_weights: Tensor


class Negatives(NamedTuple):
    """Random items of one local step, shared by the cohort.

    Attributes:
        vectors: float [K, k].
        rows: int64 [K], row of each in a device's part of the ID table: the same on all devices.
        bias: float [C, K], added to their logits.
    """

    vectors: Tensor
    rows: Tensor
    bias: Tensor


class Cohort:
    """Examples of a cohort, dealt out in chunks of devices and padded to batches.

    Args:
        examples: n devices.
        priors: float [n_items], log popularity.
        drawn: int64 [S, K], the random items of each local step.
    """

    def __init__(self, examples: Examples, priors: Tensor, drawn: NDArray[np.int64]) -> None:
        self._examples, self._priors = examples, priors
        self._vectors = torch.from_numpy(examples.vectors)
        self._drawn = drawn
        self._known: sparse.csr_matrix = examples.known[:, self._drawn.ravel()]
        self._longest = tuple(
            int(np.diff(offsets).max(initial=1))
            for offsets in (
                examples.window_offsets,
                examples.query_offsets,
                examples.target_offsets,
            )
        )

    def chunks(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Devices with something to learn, of like length together, so that padding wastes little.

        Chunks of at most ``size``, as equal as can be, so that threads have equal work.
        """
        offsets = self._examples
        targets = np.diff(offsets.target_offsets)
        work = np.diff(offsets.window_offsets) + np.diff(offsets.query_offsets) + targets
        order = np.flatnonzero(targets)
        order = order[np.argsort(-work[order], kind="stable")]
        yield from np.array_split(order, max(1, -(-len(order) // size))) if len(order) else ()

    def batch(
        self, devices: NDArray[np.int64], fixed: int | None
    ) -> tuple[Batch, Tensor, list[Negatives]]:
        """Padded arrays of a chunk, the items of each device's part of the ID table, and the steps.

        With ``fixed`` there are that many devices, those beyond the chunk with weight 0, in one of
        four shapes.
        """
        examples, n = self._examples, len(devices)
        devices = np.concatenate([devices, np.repeat(devices[:1], (fixed or n) - n)])
        ragged = (examples.window_offsets, examples.query_offsets, examples.target_offsets)
        needed = [int((o[devices + 1] - o[devices]).max(initial=1)) for o in ragged]
        sizes = needed if fixed is None else self._shape(needed)
        window, in_window = _padded(ragged[0], devices, sizes[0])
        query, in_query = _padded(ragged[1], devices, sizes[1])
        target, in_target = _padded(ragged[2], devices, sizes[2])
        weights = in_target / in_target.sum(axis=1, keepdims=True)
        weights[n:] = 0
        items = np.where(in_window, examples.window_items[window], 0).astype(np.int64)
        targets = np.where(in_target, examples.target_items[target], 0).astype(np.int64)
        # The negatives come first, so that their rows are the same on all devices.
        pool = np.broadcast_to(self._drawn.ravel(), (len(devices), self._drawn.size))
        held = np.concatenate([pool, items, targets], axis=1)
        bounds = [pool.shape[1], pool.shape[1] + sizes[0]]
        drawn_rows, item_rows, target_rows = (
            torch.from_numpy(np.ascontiguousarray(part))
            for part in np.split(_first_places(held), bounds, axis=1)
        )
        real = torch.from_numpy(in_window.astype(np.float32))
        batch = Batch(
            inputs=EncoderInputs(
                vectors=self._vectors[torch.from_numpy(items)] * real.unsqueeze(-1),
                rows=item_rows,
                gaps=torch.from_numpy(examples.window_gaps[window] * in_window),
                types=torch.from_numpy(examples.window_types[window].astype(np.int64)),
                weights=torch.from_numpy(examples.window_weights[window]) * real,
                positions=torch.from_numpy(examples.query_positions[query] * in_query),
                sums=torch.from_numpy(examples.query_sums[query] * in_query[..., None, None]),
            ),
            target_queries=torch.from_numpy(examples.target_queries[target] * in_target),
            target_vectors=self._vectors[torch.from_numpy(targets)],
            target_rows=target_rows,
            target_priors=self._priors[torch.from_numpy(targets)],
            target_weights=torch.from_numpy(weights.astype(np.float32)),
        )
        return batch, torch.from_numpy(held), self._negatives(devices, drawn_rows[0])

    def _negatives(self, devices: NDArray[np.int64], rows: Tensor) -> list[Negatives]:
        drawn = torch.from_numpy(self._drawn)
        known = torch.from_numpy(self._known[devices].toarray()).view(-1, *drawn.shape)
        # log(V/K): the sampled sum stands for the sum over the whole catalogue.
        offset = math.log(len(self._vectors) / drawn.shape[1])
        bias = (self._priors[drawn] + offset).expand_as(known).masked_fill(known, _KNOWN)
        return [
            Negatives(self._vectors[items], places, bias[:, step].contiguous())
            for step, (items, places) in enumerate(zip(drawn, rows.view(drawn.shape), strict=True))
        ]

    def _shape(self, needed: list[int]) -> list[int]:
        """The smallest that fits of four shapes: quarters of the cohort's longest device."""
        for quarters in (1, 2, 3):
            sizes = [-(-longest * quarters // 16) * 4 for longest in self._longest]
            if all(n <= size for n, size in zip(needed, sizes, strict=True)):
                return sizes
        return list(self._longest)


def _padded(
    offsets: NDArray[np.int64], rows: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index [len(rows), size] into a ragged array, and where it is real."""
    column = np.arange(size)
    real = column < (offsets[rows + 1] - offsets[rows])[:, None]
    return np.where(real, offsets[rows][:, None] + column, 0), real


def _first_places(items: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each entry of [C, R] the place in its row where the same item stands first."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    opens = np.ones(items.shape, dtype=bool)
    opens[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    opening = np.maximum.accumulate(np.where(opens, np.arange(items.shape[1]), 0), axis=1)
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.take_along_axis(order, opening, axis=1), axis=1)
    return places
