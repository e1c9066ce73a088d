"""The trained encoder as a scorer, and the encoder trained without a federation: ceiling and floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..client.examples import build_examples
from ..client.inference import profile_vectors, serving_table
from ..client.local_training import LocalTraining, Trainer
from ..client.scoring import mix_repeats, score_matrix
from ..common.config import ModelConfig, TrainingConfig
from ..common.encoder import Encoder
from ..common.histories import Histories
from ..common.items import ItemTable

ID_TABLE = "item_ids.weight"
_CENTRAL_EPOCHS, _CENTRAL_BATCH, _CENTRAL_RATE = 8, 64, 2e-3


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
        users = profile_vectors(
            self.encoder,
            self.weights,
            history,
            now,
            table=self.table,
            scales=self.model.scales,
            window=self.model.window,
        )
        ids = self.weights[ID_TABLE].detach().numpy() if ID_TABLE in self.weights else None
        served = serving_table(self.table, prior=self.prior, ids=ids)
        return mix_repeats(score_matrix(users, served), history)


def train_centrally(
    encoder: Encoder,
    histories: Histories,
    *,
    table: ItemTable,
    prior: NDArray[np.float32],
    model: ModelConfig,
    training: TrainingConfig,
    trainer: Trainer,
    seed: int,
    on_epoch: Callable[[int, dict[str, Tensor]], None],
) -> None:
    """The same encoder, loss and examples with Adam on pooled data: what a federation can hope for.

    One user's gradient is one device's local step; nothing is clipped and no noise is added.
    ``on_epoch`` gets the weights after each epoch, to stop on validation.
    """
    parameters = {n: nn.Parameter(p.detach().clone()) for n, p in encoder.named_parameters()}
    optimizer = torch.optim.Adam(parameters.values(), lr=_CENTRAL_RATE)
    rng = np.random.default_rng(seed)
    users = np.flatnonzero(histories.lengths)
    for epoch in range(1, _CENTRAL_EPOCHS + 1):
        order = rng.permutation(users)
        for start in range(0, len(order), _CENTRAL_BATCH):
            batch = order[start : start + _CENTRAL_BATCH]
            step_seed = int(rng.integers(2**62))
            examples = build_examples(
                histories.take(batch),
                batch.astype(np.uint64),
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
            )
            weights = {n: p.detach().numpy() for n, p in parameters.items()}
            update = trainer.clipped_sum(weights, examples, prior, one_step)
            for name, parameter in parameters.items():
                parameter.grad = torch.from_numpy(update.arrays[name]) / len(batch)
            optimizer.step()
        on_epoch(epoch, {n: p.detach().clone() for n, p in parameters.items()})


@dataclass(frozen=True, eq=False)
class LocalOnly:
    """Each device on its own: the encoder trained on its history alone, without popularity.

    Attributes:
        encoder: architecture and initial weights.
        table: public item table.
        model: window and time scales.
        training: local learning rate, negatives and targets.
        trainer: of this encoder.
        steps: local steps.
    """

    encoder: Encoder
    table: ItemTable
    model: ModelConfig
    training: TrainingConfig
    trainer: Trainer
    steps: int = 3

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability of each item to come next, float32 [m, n_items]."""
        flat = np.zeros(self.table.n_items, dtype=np.float32)
        initial = {n: p.detach().numpy() for n, p in self.encoder.named_parameters()}
        local = LocalTraining(
            steps=self.steps,
            learning_rate=self.training.local_learning_rate,
            negatives=self.training.negatives,
            clip_norm=float("inf"),
            seed=0,
        )
        rows = []
        for device in range(history.n_devices):
            alone = history.take(np.array([device]))
            examples = build_examples(
                alone,
                np.array([device], dtype=np.uint64),
                vectors=self.table.vectors,
                scales=self.model.scales,
                window=self.model.window,
                new_targets_only=self.training.targets == "new",
                seed=0,
            )
            update = self.trainer.clipped_sum(initial, examples, flat, local)
            own = {n: torch.from_numpy(w - update.arrays[n]) for n, w in initial.items()}
            scorer = EncoderScorer(self.encoder, own, self.table, flat, self.model)
            rows.append(scorer.scores(alone, now[device : device + 1]))
        return np.concatenate(rows)
