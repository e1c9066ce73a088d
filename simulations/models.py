"""The trained encoder as a scorer, and the encoder trained without a federation: ceiling and floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from ..client.examples import build_examples
from ..client.inference import encoder_inputs, profile_vectors
from ..client.local_training import LocalTraining, Trainer
from ..client.scoring import mix_repeats, score_matrix
from ..client.serving import serving_table
from ..client.stacked import StackedWeights
from ..common.config import ModelConfig, TrainingConfig
from ..common.decay import decayed_sums
from ..common.encoder import Encoder
from ..common.histories import Histories
from ..common.items import ItemTable

ID_TABLE = "item_ids.weight"
_CENTRAL_BATCH, _CENTRAL_RATE = 128, 1e-2


@dataclass(frozen=True, eq=False)
class EncoderScorer:
    """Ranks with the encoder's profile vector, popularity, and each device's own repeats.

    Attributes:
        encoder: architecture.
        weights: name → weights.
        table: public item table.
        prior: float32 [n_items], log popularity.
        model: window and time scales.
    """

    encoder: Encoder
    weights: Mapping[str, Tensor]
    table: ItemTable
    prior: NDArray[np.float32]
    model: ModelConfig

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability of each item to come next, float32 [m, n_items]."""
        served = self._served()
        logits = self._unmixed(history, served)
        return mix_repeats(logits, history, served, window=self.model.window)

    def unmixed(self, history: Histories) -> NDArray[np.float32]:
        """What a device without ``--include-seen`` ranks by, float32 [m, n_items]: new items stand in
        the same order as by :meth:`scores`."""
        return self._unmixed(history, self._served())

    def alone(self, history: Histories) -> NDArray[np.float32]:
        """⟨U, v⟩ of the encoder's profile vector, without popularity and all that is pooled with it."""
        silent = replace(self, prior=np.zeros_like(self.prior))
        logits: NDArray[np.float32] = self._profiles(history) @ silent._served().vectors.T
        return logits

    def _profiles(self, history: Histories) -> NDArray[np.float32]:
        return profile_vectors(
            self.encoder,
            self.weights,
            history,
            table=self.table,
            scales=self.model.scales,
            window=self.model.window,
        )

    def _unmixed(self, history: Histories, served: ItemTable) -> NDArray[np.float32]:
        users = self._profiles(history)
        return score_matrix(users, history, served, window=self.model.window)

    def _served(self) -> ItemTable:
        ids = self.weights[ID_TABLE].detach().numpy() if ID_TABLE in self.weights else None
        return serving_table(self.table, prior=self.prior, ids=ids)


def train_centrally(
    weights: Mapping[str, Tensor],
    histories: Histories,
    *,
    keys: NDArray[np.uint64],
    table: ItemTable,
    prior: NDArray[np.float32],
    model: ModelConfig,
    training: TrainingConfig,
    trainer: Trainer,
    seed: int,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The same encoder, loss and examples with Adam on pooled data: what a federation can hope for.

    One user's gradient is one device's local step; nothing is clipped and no noise is added.
    It begins with ``weights``. ``keys`` (uint64, one a device) decide the devices' random choices.

    Yields:
        Steps so far and the weights, after each epoch and without end: stop on validation.
    """
    parameters = {n: nn.Parameter(p.detach().clone()) for n, p in weights.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=_CENTRAL_RATE)
    rng = np.random.default_rng(seed)
    users = np.flatnonzero(histories.lengths)
    steps = 0
    while True:
        order = rng.permutation(users)
        for start in range(0, len(order), _CENTRAL_BATCH):
            batch = order[start : start + _CENTRAL_BATCH]
            step_seed = int(rng.integers(2**62))
            examples = build_examples(
                histories.take(batch),
                keys[batch],
                vectors=table.vectors,
                scales=model.scales,
                window=model.window,
                new_targets_only=training.targets == "new",
                seed=step_seed,
            )
            one_step = LocalTraining(
                steps=1,
                learning_rate=1.0,
                negatives=training.negatives,
                clip_norm=float("inf"),
                seed=step_seed,
                dropout=training.dropout,
            )
            now = {n: p.detach().numpy() for n, p in parameters.items()}
            update = trainer.clipped_sum(now, examples, prior, one_step)
            for name, parameter in parameters.items():
                parameter.grad = torch.from_numpy(update.arrays[name]) / len(batch)
            optimizer.step()
            steps += 1
        yield steps, {n: p.detach().clone() for n, p in parameters.items()}


@dataclass(frozen=True, eq=False)
class LocalOnly:
    """Each device on its own: the encoder trained on its history alone, without popularity.

    Not for a trainable ID table: alone, a device learns vectors of its own items only.

    Attributes:
        encoder: architecture and initial weights.
        table: public item table.
        model: window and time scales.
        training: local learning rate, negatives, dropout and targets.
        trainer: of this encoder.
        steps: local steps.
    """

    encoder: Encoder
    table: ItemTable
    model: ModelConfig
    training: TrainingConfig
    trainer: Trainer
    steps: int = 5

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability of each item to come next, float32 [m, n_items]."""
        flat = np.zeros(self.table.n_items, dtype=np.float32)
        model, table = self.model, self.table
        shared = dict(self.encoder.named_parameters())
        users = profile_vectors(
            self.encoder,
            shared,
            history,
            table=table,
            scales=model.scales,
            window=model.window,
        )
        examples = build_examples(
            history,
            # One key for all: who is asked together must not matter, and each is alone anyway.
            np.zeros(history.n_devices, dtype=np.uint64),
            vectors=table.vectors,
            scales=model.scales,
            window=model.window,
            new_targets_only=self.training.targets == "new",
            seed=0,
        )
        local = LocalTraining(
            steps=self.steps,
            learning_rate=self.training.local_learning_rate,
            negatives=self.training.negatives,
            clip_norm=float("inf"),
            seed=0,
            dropout=self.training.dropout,
        )
        sums = decayed_sums(history, table.vectors, np.iinfo(np.int64).min, model.scales)
        vectors = torch.from_numpy(table.vectors)
        initial = {n: p.detach().numpy() for n, p in shared.items()}
        for rows, own in self.trainer.local_weights(initial, examples, flat, local):
            inputs = encoder_inputs(history, rows, sums[rows], vectors, model.window)
            with torch.no_grad(), StackedWeights():
                found = functional_call(self.encoder, own, (inputs,))
            users[rows, : table.dimension] = found[:, 0].numpy()
        served = serving_table(table, prior=flat, ids=None)
        logits = score_matrix(users, history, served, window=model.window)
        return mix_repeats(logits, history, served, window=model.window)
