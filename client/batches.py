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

KNOWN_LOGIT = -1e4
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

    Attributes:
        examples: n devices.
        priors: float [n_items], log popularity.
        drawn: int64 [S, K], the random items of each local step.
        vectors: float [n_items, k].
        known: sparse bool [n, S·K], drawn items that a device knows.
        negative_bias: float [S, K], added to the logits of drawn items that a device doesn't know.
    """

    def __init__(self, examples: Examples, priors: Tensor, drawn: NDArray[np.int64]) -> None:
        self.examples, self.priors, self.drawn = examples, priors, drawn
        self.vectors = torch.from_numpy(examples.vectors)
        self.known: sparse.csr_matrix = examples.known[:, drawn.ravel()]
        # log(V/K): the sampled sum stands for the sum over the whole catalogue.
        offset = math.log(len(self.vectors) / drawn.shape[1])
        self.negative_bias = priors[torch.from_numpy(drawn)] + offset

    @property
    def longest(self) -> int:
        """The most window events or queries of a device, 1 where nobody has any."""
        ragged = (self.examples.window_offsets, self.examples.query_offsets)
        return max(int(np.diff(offsets).max(initial=1)) for offsets in ragged)

    def chunks(self, size: int) -> Iterator[NDArray[np.int64]]:
        """Devices with something to learn, of like length together, so that padding wastes little.

        Chunks of at most ``size``, as equal as can be, so that threads have equal work.
        """
        offsets = self.examples
        targets = np.diff(offsets.target_offsets)
        work = np.diff(offsets.window_offsets) + np.diff(offsets.query_offsets) + targets
        order = np.flatnonzero(targets)
        order = order[np.argsort(-work[order], kind="stable")]
        yield from np.array_split(order, max(1, -(-len(order) // size))) if len(order) else ()

    def batch(self, devices: NDArray[np.int64]) -> tuple[Batch, Tensor, list[Negatives]]:
        """Padded arrays of a chunk, the items of each device's part of the ID table, and the steps."""
        examples = self.examples
        ragged = (examples.window_offsets, examples.query_offsets, examples.target_offsets)
        sizes = [int((o[devices + 1] - o[devices]).max(initial=1)) for o in ragged]
        window, in_window = _padded(ragged[0], devices, sizes[0])
        query, in_query = _padded(ragged[1], devices, sizes[1])
        target, in_target = _padded(ragged[2], devices, sizes[2])
        weights = in_target / in_target.sum(axis=1, keepdims=True)
        items = np.where(in_window, examples.window_items[window], 0).astype(np.int64)
        targets = np.where(in_target, examples.target_items[target], 0).astype(np.int64)
        # The negatives come first, so that their rows are the same on all devices.
        pool = np.broadcast_to(self.drawn.ravel(), (len(devices), self.drawn.size))
        held = np.concatenate([pool, items, targets], axis=1)
        bounds = [pool.shape[1], pool.shape[1] + sizes[0]]
        drawn_rows, item_rows, target_rows = (
            torch.from_numpy(np.ascontiguousarray(part))
            for part in np.split(_first_places(held), bounds, axis=1)
        )
        real = torch.from_numpy(in_window.astype(np.float32))
        batch = Batch(
            inputs=EncoderInputs(
                vectors=self.vectors[torch.from_numpy(items)] * real.unsqueeze(-1),
                rows=item_rows,
                gaps=torch.from_numpy(examples.window_gaps[window] * in_window),
                types=torch.from_numpy(examples.window_types[window].astype(np.int64)),
                weights=torch.from_numpy(examples.window_weights[window]) * real,
                positions=torch.from_numpy(examples.query_positions[query] * in_query),
                sums=torch.from_numpy(examples.query_sums[query] * in_query[..., None, None]),
            ),
            target_queries=torch.from_numpy(examples.target_queries[target] * in_target),
            target_vectors=self.vectors[torch.from_numpy(targets)],
            target_rows=target_rows,
            target_priors=self.priors[torch.from_numpy(targets)],
            target_weights=torch.from_numpy(weights.astype(np.float32)),
        )
        return batch, torch.from_numpy(held), self._negatives(devices, drawn_rows[0])

    def _negatives(self, devices: NDArray[np.int64], rows: Tensor) -> list[Negatives]:
        drawn = torch.from_numpy(self.drawn)
        known = torch.from_numpy(self.known[devices].toarray()).view(-1, *drawn.shape)
        bias = self.negative_bias.expand_as(known).masked_fill(known, KNOWN_LOGIT)
        return [
            Negatives(self.vectors[items], places, bias[:, step].contiguous())
            for step, (items, places) in enumerate(zip(drawn, rows.view(drawn.shape), strict=True))
        ]


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
