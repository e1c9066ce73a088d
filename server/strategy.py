"""The Flower strategy: private averaging of client updates, one round as numbered steps.

Flower's own strategies draw cohorts of fixed size, weight clients by what they claim, divide by the
number of replies, and can't resume. Each of these breaks the user-level guarantee or loses a run, so
this one draws Poisson cohorts, weights users equally, divides by the expected cohort and goes on from
a checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray
from torch import Tensor, nn

from ..common.config import TrainingConfig
from ..common.errors import BudgetError
from ..common.ledger import Ledger
from ..common.mechanism import Mechanism
from ..common.messages import Binding, Sign, TrainTask, train_message
from ..common.randomness import NoiseSource
from ..common.user_level_optimizer import UserLevelDPOptimizer
from ..common.weights import hash_of_weights
from .checkpoint import Checkpoint, optimizer_moments, restore_moments
from .cohorts import sample_cohort, split_by_host
from .statistics import ItemStatistics
from .validation import Tally, add_up


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What is written down of a round; no figure in it comes from a device beyond counts.

    Attributes:
        round: from 1.
        sampled: devices drawn.
        trained: devices in the sum.
        rejected: reason → devices that are not.
        ignored: reason → replies that answer nothing asked, or answer twice.
        update_norm: L2 norm of the noisy mean update.
        noise_norm: expected L2 norm of the noise in it.
        seconds: wall-clock time.
    """

    round: int
    sampled: int
    trained: int
    rejected: dict[str, int]
    ignored: dict[str, int]
    update_norm: float
    noise_norm: float
    seconds: float


@dataclass(frozen=True, eq=False)
class _OpenRound:
    release: int
    sampled: int
    asked: dict[int, int]
    binding: Binding
    started: float


class PrivateAveraging(Strategy):
    """User-level DP-FedAvg and DP-FedAdam with Poisson cohorts (McMahan et al. 2018, algorithm 1).

    Args:
        run: name of the federation.
        training: rounds, local work, server optimizer.
        mechanism: clip, noise, sampling and divisor of every round.
        ledger: charged before and confirmed after each round.
        randomness: secret coins and noise.
        hosts: node → its devices.
        statistics: what was released of the items before.
        checkpoint: where the run stands.
        folder: where checkpoints go.
        on_round: called after each round with its record and the weights so far.
        enough: asked where the run stands: before the first round, or where it goes on, and after each.
            What it answers is why no further round is made; None to make one.
        before_round: called before a round costs anything; it may wait.
        sign: signs the tasks, for devices that ask for it.

    Attributes:
        checkpoint: where the run stands now.
        stopped: why it ended before its last round, None where it didn't.
    """

    def __init__(
        self,
        *,
        run: str,
        training: TrainingConfig,
        mechanism: Mechanism,
        ledger: Ledger,
        randomness: NoiseSource,
        hosts: Mapping[int, range],
        statistics: ItemStatistics,
        checkpoint: Checkpoint,
        folder: Path,
        on_round: Callable[[RoundRecord, dict[str, Tensor]], None],
        enough: Callable[[Checkpoint], str | None] = lambda _: None,
        before_round: Callable[[], None] = lambda: None,
        sign: Sign | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.stopped: str | None = None
        self._run = run
        self._training = training
        self._mechanism = mechanism
        self._ledger = ledger
        self._randomness = randomness
        self._hosts = hosts
        self._statistics = statistics
        self._folder = folder
        self._on_round = on_round
        self._enough = enough
        self._before_round = before_round
        self._sign = sign
        # By name: noise is drawn in this order, and a file of weights keeps none.
        self._parameters = {
            n: nn.Parameter(w.clone()) for n, w in sorted(checkpoint.weights.items())
        }
        self._optimizer = self._server_optimizer()
        restore_moments(self._optimizer, self._parameters, checkpoint.moments)
        self._open: _OpenRound | None = None

    def start(  # type: ignore[override]  # the rounds are the strategy's own: it resumes and stops
        self, grid: Grid, *, timeout: float = 3600
    ) -> Result:
        """Run the rounds that are left, or until it is enough; one that the budget doesn't allow ends
        the run, intact."""
        result = Result()
        while not self._ended():
            number = self.checkpoint.round + 1
            try:
                messages = self.configure_train(number, self._arrays(), ConfigRecord(), grid)
            except BudgetError as error:
                self.stopped = str(error)
                break
            replies = grid.send_and_receive(messages, timeout=timeout)
            arrays, metrics = self.aggregate_train(number, replies)
            result.arrays = arrays
            result.train_metrics_clientapp[number] = metrics
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Steps 1–3 of a round.

        Raises:
            BudgetError: the round would exceed the privacy budget; nothing has been sent.
        """
        self._before_round()
        started = time.monotonic()
        weights = self._weights()
        model = hash_of_weights(weights)
        # 1. Reserve the release: from here on the budget is charged, whatever happens.
        release = self._ledger.reserve(
            task="training",
            mechanism=self._mechanism,
            run=self._run,
            round=server_round,
            model_before=model,
        )
        # 2. Draw the cohort by secret coins.
        randomness = self._randomness.child(f"round/{server_round}")
        cohort = sample_cohort(self._mechanism, coins=randomness.child("cohort"))
        seed = int(randomness.child("local training").integers(1, below=2**62)[0])
        # 3. Tell each host which of its devices train on what.
        by_host = split_by_host(cohort, self._hosts)
        items = self.checkpoint.items
        binding = Binding(
            run=self._run, round=server_round, release=release, items=items, model=model
        )
        asked = {node: len(devices) for node, devices in by_host.items()}
        self._open = _OpenRound(release, len(cohort), asked, binding, started)
        training = self._training
        # Made as they are sent: each holds the weights.
        return (
            train_message(
                node,
                TrainTask(
                    binding=binding,
                    devices=devices,
                    weights=weights,
                    prior=self._statistics.long_run,
                    vectors=self._statistics.vectors,
                    steps=training.local_steps,
                    learning_rate=training.local_learning_rate,
                    negatives=training.negatives,
                    dropout=training.dropout,
                    new_targets_only=training.targets == "new",
                    clip_norm=self._mechanism.clip_norm,
                    noise_multiplier=self._mechanism.noise_multiplier,
                    seed=seed,
                ),
                sign=self._sign,
            )
            for node, devices in by_host.items()
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Steps 4–7 of a round."""
        opened = self._open
        assert opened is not None, "configure_train opens the round"
        # 4. Validate the replies and add up the clipped updates.
        tally = add_up(
            replies,
            asked=opened.asked,
            binding=opened.binding,
            shapes={name: tuple(p.shape) for name, p in self._parameters.items()},
            clip_norm=self._mechanism.clip_norm,
        )
        # 5. Add noise, divide by the expected cohort, and step: Opacus.
        update_norm = self._private_step(server_round, tally)
        # 6. Save what the round led to, whole or not at all.
        record = RoundRecord(
            round=server_round,
            sampled=opened.sampled,
            trained=tally.devices,
            rejected=tally.rejected,
            ignored=tally.ignored,
            update_norm=update_norm,
            noise_norm=self._noise_norm(),
            seconds=time.monotonic() - opened.started,
        )
        self._save(record, opened.release)
        # 7. Confirm the release in the ledger.
        self._ledger.commit(
            opened.release,
            cohort_size=opened.sampled,
            replies_counted=tally.devices,
            rejected=tally.rejected,
            model_after=hash_of_weights(self._weights()),
        )
        self._open = None
        self._on_round(record, self.checkpoint.weights)
        metrics = MetricRecord({"sampled": record.sampled, "trained": record.trained})
        return self._arrays(), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: metrics from devices would be releases of their own."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing, see :meth:`configure_evaluate`."""
        return None

    def summary(self) -> None:
        """Nothing to log: the run folder explains the run."""

    def _ended(self) -> bool:
        reason = self._enough(self.checkpoint)
        if self.checkpoint.round >= self._training.rounds:
            return True
        self.stopped = reason
        return reason is not None

    def _server_optimizer(self) -> torch.optim.Optimizer:
        rate = self._training.server_learning_rate
        if self._training.server_optimizer == "fedavg":
            return torch.optim.SGD(
                self._parameters.values(), lr=rate, momentum=self._training.server_momentum
            )
        # Reddi et al. 2021, algorithm 2; their β₂ for few rounds.
        return torch.optim.Adam(
            self._parameters.values(), lr=rate, betas=(self._training.server_momentum, 0.99)
        )

    def _private_step(self, server_round: int, tally: Tally) -> float:
        step = UserLevelDPOptimizer(
            self._optimizer,
            named_parameters=self._parameters,
            mechanism=self._mechanism,
            noise=self._randomness.child(f"round/{server_round}").child("noise"),
        )
        squares: list[float] = []

        def note(optimizer: Any) -> None:  # Opacus calls it on the noisy mean, before the step
            squares.extend(float(p.grad.square().sum()) for p in optimizer.params)

        step.attach_step_hook(note)
        step.step_from_sum({n: torch.from_numpy(t) for n, t in tally.total.items()})
        return math.sqrt(sum(squares))

    def _noise_norm(self) -> float:
        numbers = sum(p.numel() for p in self._parameters.values())
        return self._mechanism.noise_stddev * math.sqrt(numbers) / self._mechanism.expected_cohort

    def _save(self, record: RoundRecord, release: int) -> None:
        weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        last = self.checkpoint
        average, averaged = last.average, last.averaged
        rounds = self._training.rounds
        if record.round > rounds - round(self._training.averaging * rounds):
            average = {n: w + average[n] if averaged else w.clone() for n, w in weights.items()}
            averaged += 1
        self.checkpoint = replace(
            last,
            round=record.round,
            release=release,
            weights=weights,
            average=average,
            averaged=averaged,
            moments=optimizer_moments(self._optimizer, self._parameters),
            rounds=(*last.rounds, asdict(record)),
        )
        self.checkpoint.save(self._folder)

    def _weights(self) -> dict[str, NDArray[np.float32]]:
        return {name: p.detach().numpy().copy() for name, p in self._parameters.items()}

    def _arrays(self) -> ArrayRecord:
        return ArrayRecord({name: Array(value) for name, value in self._weights().items()})
