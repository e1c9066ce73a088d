"""Local training of many devices as one batch.

Every device has its own copy of the trainable weights, stacked along a first dimension: one forward
pass through ``torch.func.vmap`` and one ordinary backward pass give each device's own gradient, and S
steps of SGD each device's own update, exactly as if it had trained alone. Opacus clips the updates
before they are summed; an update of one device never leaves this module unclipped.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, vmap

from ..common.encoder import Encoder, EncoderInputs
from ..common.updates import ClippedUpdate
from ..common.user_level_optimizer import clip_and_sum
from .examples import Examples

Weights = dict[str, Tensor]
_CHUNK_BYTES = 80 * 2**20
"""Stacked weights, gradients and activations of a chunk: larger chunks fall out of the cache."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """What a device does in a round.

    Attributes:
        steps: S, local SGD steps.
        learning_rate: of the local SGD.
        negatives: K, random items a step, drawn uniformly from the whole catalogue.
        clip_norm: bound on the L2 norm of a device's whole update; inf without privacy.
        seed: the round's public seed; decides the negatives.
    """

    steps: int
    learning_rate: float
    negatives: int
    clip_norm: float
    seed: int


class Batch(NamedTuple):
    """C devices, padded to T window events, Q queries and M targets; S local steps.

    Attributes:
        inputs: what the encoder reads.
        target_queries: int64 [C, M], query of each target.
        target_vectors: float [C, M, k].
        target_rows: int64 [C, M], row of each target in the trainable ID table.
        target_priors: float [C, M], log popularity.
        target_weights: float [C, M], 1 / targets of the device, 0 where padded.
        known: bool [C, S, K], the device has met this negative: it is left out.
    """

    inputs: EncoderInputs
    target_queries: Tensor
    target_vectors: Tensor
    target_rows: Tensor
    target_priors: Tensor
    target_weights: Tensor
    known: Tensor


class Negatives(NamedTuple):
    """Random items of one local step, shared by the cohort: vectors [K, k], rows [K], logits [K]."""

    vectors: Tensor
    rows: Tensor
    priors: Tensor


def draw_negatives(*, n_items: int, steps: int, count: int, seed: int) -> NDArray[np.int64]:
    """int64 [steps, count] random items, shared by a cohort: uniform over the whole catalogue.

    The pool is public and the same for everyone; one that left out held-out items would tell a model
    the answers.
    """
    return np.random.default_rng(seed).integers(0, n_items, size=(steps, count))


class Trainer:
    """Trains devices in batches on a resident encoder.

    Args:
        encoder: gives the architecture; its own weights are not changed.
        vectors: float32 [n_items, k], the item table.
        threads: Python threads that train chunks at the same time; 0 means one per core.
    """

    def __init__(self, encoder: Encoder, vectors: NDArray[np.float32], *, threads: int = 0) -> None:
        self._encoder = encoder
        self._vectors = torch.from_numpy(vectors)
        self._threads = threads or os.cpu_count() or 1
        self._per_thread = local()
        weights = sum(p.numel() for p in encoder.parameters())
        # Value, gradient and update of each weight, and about 1 MiB of activations a device.
        self._chunk = max(1, min(32, _CHUNK_BYTES // (3 * 4 * weights + 2**20)))

    def clipped_sum(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        examples: Examples,
        prior: NDArray[np.float32],
        training: LocalTraining,
    ) -> ClippedUpdate:
        """The sum of all devices' clipped updates (w_before − w_after, the sign of a gradient).

        A device without examples takes part with an update of zero.

        Args:
            weights: name → the shared weights.
            examples: n devices.
            prior: float32 [n_items], log popularity, added to every logit: the encoder learns what
                popularity doesn't explain.
            training: what each device does.
        """
        shared = {name: torch.from_numpy(value) for name, value in weights.items()}
        drawn = torch.from_numpy(
            draw_negatives(
                n_items=len(self._vectors),
                steps=training.steps,
                count=training.negatives,
                seed=training.seed,
            )
        )
        priors = torch.from_numpy(prior)

        def train(rows: NDArray[np.int64]) -> Weights:
            return self._train(shared, examples, rows, drawn, priors, training)

        # Sums come back by chunk number: the result doesn't depend on which thread was faster.
        with ThreadPoolExecutor(self._threads) as pool:
            total = {n: torch.zeros_like(w, dtype=torch.float64) for n, w in shared.items()}
            for chunk in pool.map(train, self._chunks(examples)):
                for name, value in chunk.items():
                    total[name] += value
        return ClippedUpdate(
            arrays={name: value.float().numpy() for name, value in total.items()},
            devices=len(examples.window_offsets) - 1,
            clip_norm=training.clip_norm,
        )

    def _chunks(self, examples: Examples) -> Iterator[NDArray[np.int64]]:
        """Devices with something to learn, of like length together, so that padding wastes little."""
        targets = np.diff(examples.target_offsets)
        work = np.diff(examples.window_offsets) + np.diff(examples.query_offsets) + targets
        order = np.flatnonzero(targets)
        order = order[np.argsort(-work[order], kind="stable")]
        for start in range(0, len(order), self._chunk):
            yield order[start : start + self._chunk]

    def _train(
        self,
        shared: Weights,
        examples: Examples,
        rows: NDArray[np.int64],
        drawn: Tensor,
        priors: Tensor,
        training: LocalTraining,
    ) -> Weights:
        batch = self._batch(examples, rows, drawn, priors)
        # log(V/K): the sampled sum stands for the sum over the whole catalogue.
        offset = math.log(len(self._vectors) / training.negatives)
        own = {name: w.expand(len(rows), *w.shape) for name, w in shared.items()}
        for step, items in enumerate(drawn):
            negatives = Negatives(self._vectors[items], items, priors[items] + offset)
            gradients = self._gradients(own, batch._replace(known=batch.known[:, step]), negatives)
            own = {
                name: (w - training.learning_rate * gradient).detach()
                for (name, w), gradient in zip(own.items(), gradients, strict=True)
            }
        updates = {name: shared[name] - w for name, w in own.items()}
        return clip_and_sum(updates, clip_norm=training.clip_norm)[0]

    def _gradients(self, own: Weights, batch: Batch, negatives: Negatives) -> tuple[Tensor, ...]:
        leaves = {name: w.detach().requires_grad_() for name, w in own.items()}
        losses = self._losses()(leaves, batch, negatives)
        # Devices share no weight, so the gradient of the sum is every device's own gradient.
        return torch.autograd.grad(losses.sum(), tuple(leaves.values()))

    def _losses(self) -> Callable[[Weights, Batch, Negatives], Tensor]:
        """One loss per device; each thread has a shell, for functional_call swaps its weights."""
        if not hasattr(self._per_thread, "losses"):
            shell = copy.deepcopy(self._encoder)

            def loss(weights: Weights, batch: Batch, negatives: Negatives) -> Tensor:
                profiles = functional_call(shell, weights, (batch.inputs,))
                return next_session_loss(profiles, batch, negatives, weights.get(ID_TABLE))

            self._per_thread.losses = vmap(loss, in_dims=(0, 0, None))
        losses: Callable[[Weights, Batch, Negatives], Tensor] = self._per_thread.losses
        return losses

    def _batch(
        self, examples: Examples, rows: NDArray[np.int64], drawn: Tensor, priors: Tensor
    ) -> Batch:
        window, in_window = _padded(examples.window_offsets, rows, multiple=8)
        query, in_query = _padded(examples.query_offsets, rows)
        target, in_target = _padded(examples.target_offsets, rows)
        items = torch.from_numpy(examples.window_items[window].astype(np.int64))
        targets = torch.from_numpy(examples.target_items[target].astype(np.int64))
        real = torch.from_numpy(in_window.astype(np.float32))
        known = examples.known[rows][:, drawn.reshape(-1).numpy()].toarray()
        weights = in_target / in_target.sum(axis=1, keepdims=True)
        return Batch(
            inputs=EncoderInputs(
                vectors=self._vectors[items] * real.unsqueeze(-1),
                rows=items,
                gaps=torch.from_numpy(examples.window_gaps[window]),
                types=torch.from_numpy(examples.window_types[window].astype(np.int64)),
                weights=torch.from_numpy(examples.window_weights[window]) * real,
                positions=torch.from_numpy(examples.query_positions[query] * in_query),
                sums=torch.from_numpy(examples.query_sums[query] * in_query[..., None, None]),
            ),
            target_queries=torch.from_numpy(examples.target_queries[target] * in_target),
            target_vectors=self._vectors[targets],
            target_rows=targets,
            target_priors=priors[targets],
            target_weights=torch.from_numpy(weights.astype(np.float32)),
            known=torch.from_numpy(known).reshape(len(rows), *drawn.shape),
        )


ID_TABLE = "item_ids.weight"


def next_session_loss(
    profiles: Tensor, batch: Batch, negatives: Negatives, ids: Tensor | None
) -> Tensor:
    """Sampled softmax cross-entropy of one device, averaged over its targets.

    The logit of an item is ⟨U, v⟩ + log popularity; negatives carry log(n_items / K) besides, so that
    K of them stand for the whole catalogue (Bengio & Senécal 2008, eq. 7).

    Args:
        profiles: float [Q, k (+ ID dimension)], U at each query.
        batch: the device's targets, without the leading dimension; ``known`` of this step, [K].
        negatives: random items, shared.
        ids: float [rows, ID dimension], the trainable ID table, if any.
    """
    others, targets = negatives.vectors, batch.target_vectors
    if ids is not None:
        others = torch.cat([others, ids[negatives.rows]], dim=-1)
        targets = torch.cat([targets, ids[batch.target_rows]], dim=-1)
    # A finite floor: a device that knows all negatives still has a finite loss.
    logits = (profiles @ others.T + negatives.priors).masked_fill(batch.known, -1e4)
    rest = torch.gather(torch.logsumexp(logits, dim=-1), 0, batch.target_queries)
    index = batch.target_queries.unsqueeze(-1).expand(-1, profiles.shape[-1])
    target = (torch.gather(profiles, 0, index) * targets).sum(dim=-1) + batch.target_priors
    return (batch.target_weights * (torch.logaddexp(target, rest) - target)).sum()


def _padded(
    offsets: NDArray[np.int64], rows: NDArray[np.int64], multiple: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index [len(rows), longest] into a ragged array, and where it is real."""
    lengths = offsets[rows + 1] - offsets[rows]
    longest = -(-max(1, int(lengths.max())) // multiple) * multiple
    column = np.arange(longest)
    real = column < lengths[:, None]
    return np.where(real, offsets[rows][:, None] + column, 0), real
