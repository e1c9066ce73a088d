"""A device host: one device on the edge, thousands in a simulation.

The host does what the sampled devices would each do alone, as one batch, and hands out nothing but
the sum of their clipped contributions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..common.config import ModelConfig
from ..common.errors import MessageError
from ..common.histories import Histories
from ..common.items import ItemTable
from ..common.messages import PopularityTask, TrainTask
from ..common.updates import ClippedUpdate
from .examples import build_examples
from .local_training import LocalTraining, Trainer
from .popularity import popularity_contribution


class DeviceHost:
    """Devices ``first`` … ``first + n − 1`` of the population.

    Args:
        histories: what each of the n devices recorded.
        keys: uint64 [n], each device's own key for its random choices. It stays the same wherever
            the device is hosted and whoever else takes part: with a key that follows from others, one
            user more or less would change what the rest contribute.
        first: number of the first device in the population, by which the server addresses them.
        table: the public item table.
        model: window and time scales of the encoder.
        trainer: trains devices in batches; hosts of one process may share it.
    """

    def __init__(
        self,
        histories: Histories,
        *,
        keys: NDArray[np.uint64],
        first: int,
        table: ItemTable,
        model: ModelConfig,
        trainer: Trainer,
    ) -> None:
        self._histories = histories
        self._keys = keys
        self._table = table
        self._model = model
        self._trainer = trainer
        self.devices = range(first, first + histories.n_devices)

    def contribute(self, task: PopularityTask) -> ClippedUpdate:
        """The devices' part in item popularity.

        Raises:
            MessageError: a device isn't hosted here, or the task is about another item table.
        """
        return popularity_contribution(
            self._histories.take(self._asked(task)),
            now=task.now,
            half_lives_days=task.half_lives_days,
            n_items=self._table.n_items,
            clip_norm=task.clip_norm,
        )

    def train(self, task: TrainTask) -> ClippedUpdate:
        """The sum of the devices' clipped updates after local training.

        Raises:
            MessageError: a device isn't hosted here, or the task is about another item table.
        """
        asked = self._asked(task)
        examples = build_examples(
            self._histories.take(asked),
            self._keys[asked],
            vectors=self._table.vectors,
            scales=self._model.scales,
            window=self._model.window,
            new_targets_only=task.new_targets_only,
            seed=task.seed,
        )
        training = LocalTraining(
            steps=task.steps,
            learning_rate=task.learning_rate,
            negatives=task.negatives,
            clip_norm=task.clip_norm,
            seed=task.seed,
        )
        return self._trainer.clipped_sum(task.weights, examples, task.prior, training)

    def _asked(self, task: PopularityTask | TrainTask) -> NDArray[np.int64]:
        """Places of the task's devices on this host."""
        if task.binding.items != self._table.content_hash:
            raise MessageError("the task is about another item table; fetch the current one")
        devices = task.devices
        inside = (devices >= self.devices.start) & (devices < self.devices.stop)
        # Twice in one sum is twice the sensitivity.
        if not inside.all() or len(np.unique(devices)) != len(devices):
            raise MessageError("a device is not hosted here, or is named twice")
        return devices - self.devices.start
