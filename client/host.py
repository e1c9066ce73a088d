"""A device host: one device on the edge, thousands in a simulation.

The host does what the sampled devices would each do alone, as one batch, and hands out nothing but
the sum of their clipped contributions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.config import ModelConfig
from ..common.errors import BudgetError, MessageError
from ..common.histories import Histories
from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from ..common.messages import CooccurrenceTask, StatisticsTask, TrainTask
from ..common.updates import ClippedUpdate
from .cooccurrence import pairs_contribution
from .examples import build_examples
from .lifetime import BudgetOf, Charge, no_budget, promised
from .local_privacy import PrivateTrainer
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
        budget_of: device → its lifetime budget. One whose budget is spent doesn't answer, nor does one
            that has answered the same release before.
        private_trainer: trains in place of ``trainer``, with event-level privacy; None: there is none.
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
        budget_of: BudgetOf = no_budget,
        private_trainer: PrivateTrainer | None = None,
    ) -> None:
        self._histories = histories
        self._keys = keys
        self._table = table
        self._model = model
        self._trainer = trainer
        self._budget_of = budget_of
        self._private_trainer = private_trainer
        self.devices = range(first, first + histories.n_devices)

    def contribute(self, task: StatisticsTask) -> ClippedUpdate:
        """The devices' part in a one-shot statistic.

        Raises:
            MessageError: a device isn't hosted here, the task is about another item table or items that
                aren't in it, or devices hide single events, which this release doesn't.
            BudgetError: no device is left whose budget allows it.
        """
        if self._private_trainer is not None:
            raise MessageError("statistics would go out without event-level noise; ask for none")
        if isinstance(task, CooccurrenceTask):
            self._check_head(task.head)
        with self._charged(task) as answering:
            histories = self._histories.take(answering)
            if isinstance(task, CooccurrenceTask):
                return pairs_contribution(
                    histories, table=self._table, head=task.head, clip_norm=task.clip_norm
                )
            return popularity_contribution(
                histories,
                now=task.now,
                half_lives_days=task.half_lives_days,
                n_items=self._table.n_items,
                clip_norm=task.clip_norm,
            )

    def train(self, task: TrainTask) -> ClippedUpdate:
        """The sum of the devices' clipped updates after local training.

        Raises:
            MessageError: a device isn't hosted here, or the task is about another item table.
            DataError: the vectors that were released don't fit the item table.
            BudgetError: no device is left whose budget allows it.
        """
        training = LocalTraining(
            steps=task.steps,
            learning_rate=task.learning_rate,
            negatives=task.negatives,
            clip_norm=task.clip_norm,
            seed=task.seed,
            dropout=task.dropout,
        )
        table = self._table
        if COOCCURRENCE_BLOCK in table.blocks:
            table = table.with_values(COOCCURRENCE_BLOCK, task.vectors)
        with self._charged(task) as answering:
            histories, keys = self._histories.take(answering), self._keys[answering]
            if self._private_trainer is not None:
                return self._private_trainer.clipped_sum(histories, keys, task)
            examples = build_examples(
                histories,
                keys,
                vectors=table.vectors,
                scales=self._model.scales,
                window=self._model.window,
                new_targets_only=task.new_targets_only,
                seed=task.seed,
            )
            return self._trainer.clipped_sum(task.weights, examples, task.prior, training)

    def _check_head(self, head: NDArray[np.int64]) -> None:
        if len(head) > CooccurrenceTask.largest_head(whole=self._table.whole):
            raise MessageError(f"the task names {len(head):,} items, more than a device compares")
        inside = (head >= 0) & (head < self._table.n_items)
        if not inside.all() or len(np.unique(head)) != len(head):
            raise MessageError("the task names an item that isn't there, or one twice")

    @contextmanager
    def _charged(self, task: StatisticsTask | TrainTask) -> Iterator[NDArray[np.int64]]:
        """Places of the asked devices that may answer: charged before, committed after."""
        charges: list[tuple[BudgetOf, int, Charge]] = []
        answering: list[int] = []
        refusal: BudgetError | None = None
        for place in self._asked(task).tolist():
            device = self.devices.start + place
            try:
                paid = self._charges(task, device)
            except BudgetError as error:
                refusal = error
                continue
            if not any(charge.answered for *_, charge in paid):
                charges += paid
                answering.append(place)
        if not answering:
            raise refusal or MessageError("answered before: what was sent then is the answer")
        yield np.array(answering, dtype=np.int64)
        for budget_of, device, charge in charges:
            budget = budget_of(device)
            assert budget is not None, "it had one a moment ago"
            with budget:
                budget.commit(charge)

    def _charges(
        self, task: StatisticsTask | TrainTask, device: int
    ) -> list[tuple[BudgetOf, int, Charge]]:
        """What an answer costs a device, paid in each unit that it keeps a ledger for, or in none."""
        promise = promised(clip_norm=task.clip_norm, noise_multiplier=task.noise_multiplier)
        costs = [(self._budget_of, promise, 1)]
        if self._private_trainer is not None and isinstance(task, TrainTask):
            local = self._private_trainer
            costs.append((local.budget_of, local.privacy.mechanism, task.steps))
        with ExitStack() as ledgers:
            bills = []
            for budget_of, mechanism, times in costs:
                budget = budget_of(device)
                if budget is not None:
                    ledgers.enter_context(budget)
                    bill: dict[str, Any] = {
                        "task": task.name,
                        "binding": task.binding,
                        "mechanism": mechanism,
                        "times": times,
                    }
                    budget.check(**bill)
                    bills.append((budget_of, budget, bill))
            return [(of, device, budget.charge(**bill)) for of, budget, bill in bills]

    def _asked(self, task: StatisticsTask | TrainTask) -> NDArray[np.int64]:
        """Places of the task's devices on this host."""
        if task.binding.items != self._table.content_hash:
            raise MessageError("the task is about another item table; fetch the current one")
        devices = task.devices
        inside = (devices >= self.devices.start) & (devices < self.devices.stop)
        # Twice in one sum is twice the sensitivity.
        if not inside.all() or len(np.unique(devices)) != len(devices):
            raise MessageError("a device is not hosted here, or is named twice")
        return devices - self.devices.start
