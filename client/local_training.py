"""Local training of many devices as one batch.

Every device has its own copy of the trainable weights, stacked along a first dimension: one forward
pass of the encoder over the stack and one backward pass give each device's own gradient, and S steps of
SGD each device's own update, exactly as if it had trained alone. Opacus clips the updates before they
are summed; an update of one device never leaves this module unclipped.

Of a trainable ID table a device holds the rows it touches: its own items and the shared negatives. All
other rows have gradient zero, so plain SGD on these rows is SGD on the table.

Where hidden layers leave something out (:mod:`.dropout`), it is the same for all devices, drawn from public
numbers: an update is still one device's own, and clipped as a whole.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import local

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from ..common.encoder import Encoder, TransformerEncoder
from ..common.errors import ReplyRejected
from ..common.updates import ClippedUpdate
from ..common.user_level_optimizer import clip_and_sum
from .batches import Batch, Cohort, Negatives
from .dropout import Masks, draw_masks
from .examples import Examples
from .native_build import native_library
from .native_step import NativeRound, has_native_step
from .stacked import StackedWeights, linear_weights, stacked_embedding

ID_TABLE = "item_ids.weight"
_CHUNK = 64
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
        seed: the round's public seed; decides the negatives, and what is left out.
        dropout: share of the numbers of each hidden layer that is left out in a step.
    """

    steps: int
    learning_rate: float
    negatives: int
    clip_norm: float
    seed: int
    dropout: float = 0.0


Weights = dict[str, Tensor]
Loss = Callable[[Weights, Batch, Negatives, Tensor | None], Tensor]
Updates = Callable[[NDArray[np.int64]], tuple[Weights, Tensor]]
"""Of these devices the unclipped updates, [C, *shape] each, and the items [C, R] of each device's part
of the ID table."""


class Trainer:
    """Trains devices in batches on a resident encoder.

    Args:
        encoder: gives the architecture; its own weights are not changed.
        threads: Python threads that train chunks at the same time; 0 means one per core.
        compiled: train by native code where there is some for the encoder
            (:func:`has_native_step`) and nothing is left out. It is built on first use: some seconds.

    Raises:
        ConfigError: the encoder has a layer that can't be trained in a batch, or native code is asked
            for where there is no C++ compiler, or it fails.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        threads: int = 0,
        compiled: bool = False,
    ) -> None:
        self._encoder = encoder
        self._threads = threads or os.cpu_count() or 1
        self._transposed = linear_weights(encoder)
        self._per_thread = local()
        self._native = encoder if compiled and has_native_step(encoder) else None
        if self._native is not None:
            native_library()  # a compiler is missed before anything is trained
        self._shared = sum(p.numel() for name, p in encoder.named_parameters() if name != ID_TABLE)

    def clipped_sum(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        examples: Examples,
        prior: NDArray[np.float32],
        training: LocalTraining,
    ) -> ClippedUpdate:
        """The sum of all devices' clipped updates (w_before − w_after, the sign of a gradient).

        A device without examples takes part with an update of zero. The result depends neither on
        the number of threads nor on their timing.

        Args:
            weights: name → the shared weights.
            examples: n devices.
            prior: float32 [n_items], log popularity, added to every logit: the encoder learns what
                popularity doesn't explain.
            training: what each device does.
        """
        shared = self._held(weights)
        cohort = self._cohort(examples, prior, training)
        total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in shared.items()}
        updates_of = self._updates_of(shared, cohort, training)

        def train(devices: NDArray[np.int64]) -> tuple[Weights, Tensor, Tensor | None]:
            return self._train(updates_of, devices, training)

        # Sums come back by chunk number, whichever thread was faster.
        with _one_core_each(), ThreadPoolExecutor(self._threads) as pool:
            chunks = cohort.chunks(self._chunk(training))
            for sums, items, rows in pool.map(train, chunks):
                for name, value in sums.items():
                    total[name] += value
                if rows is not None:
                    total[ID_TABLE].index_add_(0, items, rows.double())
        return ClippedUpdate(
            arrays={
                name: np.ascontiguousarray(
                    (value.T if name in self._transposed else value).float().numpy()
                )
                for name, value in total.items()
            },
            devices=len(examples.window_offsets) - 1,
            clip_norm=training.clip_norm,
        )

    def local_weights(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        examples: Examples,
        prior: NDArray[np.float32],
        training: LocalTraining,
    ) -> Iterator[tuple[NDArray[np.int64], Weights]]:
        """Devices with examples, a chunk at a time, and their own weights after local training.

        For use where the devices are, inside :class:`StackedWeights`; arguments as
        :meth:`clipped_sum`, without a trainable ID table.
        """
        shared = self._held(weights)
        cohort = self._cohort(examples, prior, training)
        chunks = list(cohort.chunks(self._chunk(training)))
        updates_of = self._updates_of(shared, cohort, training)

        with ThreadPoolExecutor(self._threads) as pool:
            # No further ahead than there are threads: weights of all devices would fill the memory.
            for start in range(0, len(chunks), self._threads):
                ready = chunks[start : start + self._threads]
                with _one_core_each():
                    found = list(pool.map(updates_of, ready))
                for devices, (moved, _) in zip(ready, found, strict=True):
                    yield devices, {name: shared[name] - w for name, w in moved.items()}

    def losses(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        examples: Examples,
        prior: NDArray[np.float32],
        training: LocalTraining,
    ) -> NDArray[np.float64]:
        """Each device's loss at the shared weights in its first local step; NaN without examples.

        Nothing is left out, whatever ``training.dropout`` says: who guesses by losses has the released
        model, and that is whole.

        A loss is raw data: it stays where the device is. Arguments as :meth:`clipped_sum`.

        Returns:
            float64 [n].
        """
        shared = self._held(weights)
        cohort = self._cohort(examples, prior, training)
        losses_of = _losses_of(self._encoder)
        found = np.full(len(examples.window_offsets) - 1, np.nan)
        with torch.no_grad():
            for devices in cohort.chunks(self._chunk(training)):
                batch, items, steps = cohort.batch(devices)
                own = {
                    name: w[items] if name == ID_TABLE else w.expand(len(items), *w.shape)
                    for name, w in shared.items()
                }
                found[devices] = losses_of(own, batch, steps[0], None).double().numpy()
        return found

    def _native_for(self, training: LocalTraining) -> TransformerEncoder | None:
        """The encoder, where native code does this training: it can't leave anything out."""
        return None if training.dropout else self._native

    def _chunk(self, training: LocalTraining) -> int:
        """Most devices of a chunk."""
        # Value, gradient and update of each weight, and about 1 MiB of activations a device; of the
        # native step the updates alone.
        batched = self._native_for(training) is None
        kept = 3 * 4 * self._shared + 2**20 if batched else 4 * self._shared
        return max(1, min(_CHUNK, _CHUNK_BYTES // kept))

    def _cohort(
        self, examples: Examples, prior: NDArray[np.float32], training: LocalTraining
    ) -> Cohort:
        drawn = draw_negatives(
            n_items=len(examples.vectors),
            steps=training.steps,
            count=training.negatives,
            seed=training.seed,
        )
        return Cohort(examples, torch.from_numpy(prior), drawn)

    def _held(self, weights: Mapping[str, NDArray[np.float32]]) -> Weights:
        return {
            name: torch.from_numpy(value.T.copy() if name in self._transposed else value)
            for name, value in weights.items()
        }

    def _train(
        self, updates_of: Updates, devices: NDArray[np.int64], training: LocalTraining
    ) -> tuple[Weights, Tensor, Tensor | None]:
        """Clipped sums of the shared weights, and of the ID table items [n] and rows [n, dimension]."""
        updates, items = updates_of(devices)
        try:
            sums, norms = clip_and_sum(updates, clip_norm=training.clip_norm)
        except ReplyRejected:
            # A device whose training diverged contributes nothing; the others' work stands.
            norms = torch.stack([u.flatten(1).norm(dim=1) for u in updates.values()]).norm(dim=0)
            for update in updates.values():
                update[~norms.isfinite()] = 0.0
            sums, norms = clip_and_sum(updates, clip_norm=training.clip_norm)
        if ID_TABLE not in sums:
            return sums, items, None
        # Row r is another item on each device: these rows are clipped here and added up by item.
        del sums[ID_TABLE]
        factors = (training.clip_norm / (norms + 1e-6)).clamp(max=1.0)
        rows = updates[ID_TABLE] * factors.view(-1, 1, 1)
        return sums, items.flatten(), rows.flatten(0, 1)

    def _updates_of(self, shared: Weights, cohort: Cohort, training: LocalTraining) -> Updates:
        encoder = self._native_for(training)
        if encoder is None:
            masks = draw_masks(
                self._encoder,
                rows=cohort.longest,
                steps=training.steps,
                share=training.dropout,
                seed=training.seed,
            )
            return partial(self._batched, shared, cohort, masks, training.learning_rate)
        native = NativeRound(encoder, shared, cohort, learning_rate=training.learning_rate)
        return lambda devices: (native.updates(devices), torch.empty(0))

    def _batched(
        self,
        shared: Weights,
        cohort: Cohort,
        masks: Masks,
        learning_rate: float,
        devices: NDArray[np.int64],
    ) -> tuple[Weights, Tensor]:
        """What :data:`Updates` are, of all devices as one batch."""
        batch, items, steps = cohort.batch(devices)
        start = {
            name: w[items] if name == ID_TABLE else w.expand(len(items), *w.shape)
            for name, w in shared.items()
        }
        rate = torch.tensor(learning_rate)
        moved: list[Tensor] = []
        for negatives, left in zip(steps, masks, strict=True):
            if moved:
                own = [w - m for w, m in zip(start.values(), moved, strict=True)]
            else:
                own = [w.clone(memory_format=torch.contiguous_format) for w in start.values()]
            leaves = {name: w.requires_grad_() for name, w in zip(start, own, strict=True)}
            # Devices share no weight, so the gradient of the sum is every device's own gradient.
            loss = self._loss()(leaves, batch, negatives, left)
            gradients = torch.autograd.grad(loss, tuple(leaves.values()), grad_outputs=rate)
            if moved:
                torch._foreach_add_(moved, gradients)
            else:
                moved = list(gradients)
        return dict(zip(start, moved, strict=True)), items

    def _loss(self) -> Loss:
        if not hasattr(self._per_thread, "loss"):
            self._per_thread.loss = _loss_of(self._encoder)
        loss: Loss = self._per_thread.loss
        return loss


def _loss_of(encoder: Encoder) -> Loss:
    """Sum over devices of the loss, as a function of stacked weights; for one thread at a time."""
    losses = _losses_of(encoder)
    return lambda weights, batch, negatives, left: losses(weights, batch, negatives, left).sum()


def _losses_of(encoder: Encoder) -> Loss:
    """Each device's loss, [C], as a function of stacked weights; for one thread at a time."""
    # A shell to put weights into. It shares the encoder's own, which are never used.
    shell = copy.deepcopy(encoder, {id(p): p for p in encoder.parameters()})

    def losses(
        weights: Weights, batch: Batch, negatives: Negatives, masks: Tensor | None
    ) -> Tensor:
        with StackedWeights():
            profiles = functional_call(shell, weights, (batch.inputs, masks))
        return next_item_losses(profiles, batch, negatives, weights.get(ID_TABLE))

    return losses


def next_item_losses(
    profiles: Tensor, batch: Batch, negatives: Negatives, ids: Tensor | None
) -> Tensor:
    """Sampled softmax cross-entropy of each device, averaged over its targets: [C].

    The logit of an item is ⟨U, v⟩ + log popularity; negatives carry log(n_items / K) besides, so that
    K of them stand for the whole catalogue (Bengio & Senécal 2008, eq. 7). One that the device knows
    is left out.

    Args:
        profiles: float [C, Q, k (+ ID dimension)], U at each query.
        batch: the devices' targets.
        negatives: random items of this step.
        ids: float [C, R, ID dimension], each device's part of the trainable ID table, if any.
    """
    k = negatives.vectors.shape[1]
    content, learnt = profiles[..., :k], profiles[..., k:]
    others = negatives.vectors.T.expand(len(profiles), -1, -1)
    logits = torch.baddbmm(negatives.bias.unsqueeze(1), content, others)
    scores = content @ batch.target_vectors.transpose(1, 2)
    if ids is not None:
        logits = logits + learnt @ ids[:, negatives.rows].transpose(1, 2)
        scores = scores + learnt @ stacked_embedding(batch.target_rows, ids).transpose(1, 2)
    rest = torch.logsumexp(logits, dim=-1).gather(1, batch.target_queries)
    target = scores.gather(1, batch.target_queries.unsqueeze(1)).squeeze(1) + batch.target_priors
    # −log(e^t / (e^t + e^r)) = log(1 + e^(r − t))
    return (batch.target_weights * functional.softplus(rest - target)).sum(dim=1)


def draw_negatives(*, n_items: int, steps: int, count: int, seed: int) -> NDArray[np.int64]:
    """int64 [steps, count] random items, shared by a cohort: uniform over the whole catalogue.

    The pool is public and the same for everyone; one that left out held-out items would tell a model
    the answers.
    """
    return np.random.default_rng(seed).integers(0, n_items, size=(steps, count))


@contextmanager
def _one_core_each() -> Iterator[None]:
    """Threads that start inside compute on one core each; torch's own setting comes back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
