"""Small federations that the probes watch: the same objects as a simulation, on a grid that looks on.

Nothing here computes what it observes: cohorts and replies are read off the wire, what was released off
the checkpoints, and what was declared off the ledger on disk. Of co-occurrence, a checkpoint holds only
vectors: its noisy sum is looked at where it is made, and the vectors are held against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..client.local_training import Trainer
from ..common.config import RunConfig, StatisticsConfig
from ..common.encoder import Encoder, build_encoder
from ..common.errors import BudgetError, ConfigError
from ..common.ledger_entries import Reserve, read_ledger
from ..common.mechanism import Mechanism
from ..common.messages import CooccurrenceTask, PopularityTask, TrainTask
from ..server.app import OnStatistic
from ..server.budget import BudgetPlan, plan_budget
from ..server.checkpoint import Checkpoint
from ..server.item_vectors import build_item_table, with_room
from ..server.split import COHERENT, Sizes
from ..server.statistics import ItemStatistics
from .federate import run_federation
from .population import Population
from .presets import PRESETS
from .probe_ledger import Key, Told, open_ledger, reserved
from .probe_observed import Floats, Observed, Release
from .probe_populations import busy_histories, idle_histories, population_of
from .released_step import missteps, released_mean
from .released_vectors import strayed
from .synthetic import synthesise
from .watched_grid import Meddling, Task, WatchedGrid, untouched

_BUSY_DEVICES = 16
_ITEMS = 300
_FEWEST_IDLE, _MOST_IDLE = 2_000, 1_000_000
_LEAST_COHORT = 20  # expected idle devices a round, as far as that many devices allow it
_IDLE_HOSTS = 4
_BUSY_PER_HOST = 2
_BUSY_RATE = 0.75  # of eight hosts, three or more are asked in all but two rounds in a million
_HOSTILE_RATE = 1e4  # local learning rate, in C: brings every device that learns to the clip


class Crash(Exception):
    """Ends a federation between reserve and commit."""


@dataclass(frozen=True, eq=False)
class Probed:
    """What all federations of a probe share; make it with :meth:`of`.

    Attributes:
        config: of the user.
        plan: noise of a run of this configuration over ``idle``'s population.
        idle: devices without any event, whose updates are zero.
        busy: devices with short and long histories.
        encoder: the untrained shared encoder.
        trainer: of all devices.
    """

    config: RunConfig
    plan: BudgetPlan
    idle: Population
    busy: Population
    encoder: Encoder
    trainer: Trainer

    @classmethod
    def of(cls, config: RunConfig) -> Probed:
        """Populations and plan for a configuration; its data is not read.

        Raises:
            ConfigError: privacy is switched off, or the budget allows no release.
        """
        if not config.privacy.enabled:
            raise ConfigError("privacy.enabled = false: there is no mechanism to probe")
        training = config.training
        rate = training.rate(config.data.synthetic_users)
        size = min(_MOST_IDLE, max(_FEWEST_IDLE, math.ceil(_LEAST_COHORT / rate)))
        log = synthesise(_BUSY_DEVICES, _ITEMS, 0)
        # Vectors are public input, whatever text encoder made them; a pretrained one isn't needed here.
        items = config.items
        if items.text_encoder == "sentence":
            items = items.model_copy(update={"text_encoder": "tfidf"})
        table = build_item_table(log.catalogue, items)
        statistics = _as_released(config)
        table = with_room(
            table,
            statistics,
            config.privacy,
            population_size=size,
            trained=config.model.item_ids,
        )
        busy = population_of(busy_histories(log.histories), table, config)
        encoder = build_encoder(
            config.model, blocks=table.blocks, n_items=table.n_items, n_types=1, seed=0
        )
        try:
            plan = plan_budget(
                config.privacy,
                training.model_copy(update={"sampling_probability": rate}),
                population_size=size,
                # Co-occurrence comes on top, with noise that this population has room for.
                sizes=replace(Sizes.of(encoder, config.statistics, table), cooccurrence=False),
            )
        except BudgetError as error:
            raise ConfigError(str(error)) from error
        if plan.popularity and table.compares:
            together = _comparing(plan.popularity, table.n_items)
            plan = replace(plan, cooccurrence=together)
        trainer = busy.trainer(threads=config.engine.threads, compiled=False)
        return cls(
            config, plan, population_of(idle_histories(size), table, config), busy, encoder, trainer
        )

    def run_idle(self, folder: Path, *, rounds: int, secret: bool = False) -> Observed:
        """All updates are zero: what is released is noise.

        Args:
            folder: new, for ledger and checkpoints.
            rounds: of training.
            secret: draw from the operating system, whatever seed the configuration has.
        """
        config = _changed(self.config, rounds=rounds, hosts=-(-self.idle.size // _IDLE_HOSTS))
        if secret:
            config = config.model_copy(update={"seed": None})
        return self._observe(folder, config, self.idle, self.plan)

    def run_twins(self, folder: Path) -> list[Observed]:
        """Two runs of noise alone, one round each, both drawn from the operating system."""
        return [self.run_idle(folder / name, rounds=1, secret=True) for name in ("one", "another")]

    def run_busy(self, folder: Path, *, meddling: Mapping[int, Meddling], noise: bool) -> Observed:
        """Devices learn at a rate that brings all of them to the clip, in one round for each meddling.

        Args:
            folder: new, for ledger and checkpoints.
            meddling: round, from 1, or 0 for each statistic → what becomes of its replies.
            noise: without noise the release is the exact clipped mean.
        """
        training = self.config.training
        changed = {"local_learning_rate": _HOSTILE_RATE * self.plan.training.clip_norm}
        if training.server_optimizer == "fedavg" and not training.server_momentum:
            # This step is read off the weights themselves; it has to stand out from their rounding.
            changed["server_learning_rate"] = 1.0
        config = _changed(self.config, rounds=max(meddling), hosts=_BUSY_PER_HOST, **changed)
        return self._observe(folder, config, self.busy, self._busy_plan(noise), meddling)

    def run_crashed(self, folder: Path) -> int:
        """Crash in the second of two rounds, after its reserve; go on as a resumed run does.

        Returns:
            Rounds that the ledger charges in the end.
        """
        config = _changed(self.config, rounds=2, hosts=_BUSY_PER_HOST)
        plan = self._busy_plan(noise=True)

        def crash(tasks: list[Task]) -> None:
            if any(isinstance(task, TrainTask) and task.binding.round == 2 for task in tasks):
                raise Crash

        folder.mkdir()
        try:
            self._federate(folder, config, self.busy, plan, before=crash)
        except Crash:
            self._federate(folder, config, self.busy, plan)
        entries = read_ledger(folder / "ledger.jsonl")
        return sum(isinstance(entry, Reserve) and entry.task == "training" for entry in entries)

    def _busy_plan(self, noise: bool) -> BudgetPlan:
        def fitted(mechanism: Mechanism, q: float) -> Mechanism:
            return replace(
                mechanism,
                population_size=self.busy.size,
                sampling_probability=q,
                noise_multiplier=mechanism.noise_multiplier if noise else 0.0,
            )

        popularity = fitted(self.plan.popularity, 1.0) if self.plan.popularity else None
        together = self.plan.cooccurrence and popularity
        if together and noise:
            together = _comparing(together, self.busy.table.n_items)
        training = fitted(self.plan.training, _BUSY_RATE)
        return replace(self.plan, popularity=popularity, cooccurrence=together, training=training)

    def _observe(
        self,
        folder: Path,
        config: RunConfig,
        population: Population,
        plan: BudgetPlan,
        meddling: Mapping[int, Meddling] | None = None,
    ) -> Observed:
        folder.mkdir()
        ledger, checkpoints = folder / "ledger.jsonl", folder / "checkpoints"
        unreserved, moved = [], []
        released: dict[str, dict[str, Floats]] = {}
        first_round = sum(
            statistic is not None for statistic in (plan.popularity, plan.cooccurrence)
        )

        def before(tasks: list[Task]) -> None:
            unreserved.append(not reserved(ledger, tasks))

        def after_round() -> None:
            paths = sorted(checkpoints.glob("round-*.safetensors"))[-2:]
            earlier, later = (Checkpoint.load(path) for path in paths)
            mean = released_mean(earlier, later, config.training)
            moved.append((mean, missteps(earlier, later, mean, config.training)))

        def on_statistic(task: str, noisy: Mapping[str, Tensor]) -> None:
            released[task] = {name: total.double().numpy().copy() for name, total in noisy.items()}

        grid, statistics = self._federate(
            folder,
            config,
            population,
            plan,
            before=before,
            meddle=lambda number: (meddling or {}).get(max(0, number - first_round + 1), untouched),
            after_round=after_round,
            on_statistic=on_statistic,
        )
        told, asked = Told.by(ledger), iter(grid.releases)
        releases: dict[Key, Release] = {}
        key: Key
        if plan.popularity:
            kept = Checkpoint.latest(
                checkpoints,
                config_digest=config.digest(),
                items=population.table.content_hash,
            )
            assert kept is not None, "a federation that ran has checkpoints"
            total = {"popularity": kept.popularity.double().numpy()}
            key = PopularityTask.name, None
            mechanism = told.mechanisms.get(key, plan.popularity)
            releases[key] = Release(mechanism, next(asked), total)
        if plan.cooccurrence:
            key = CooccurrenceTask.name, None
            mechanism = told.mechanisms.get(key, plan.cooccurrence)
            releases[key] = Release(mechanism, next(asked), released[CooccurrenceTask.name])
        for number, (exchanges, (mean, _)) in enumerate(zip(asked, moved, strict=True), start=1):
            key = TrainTask.name, number
            mechanism = told.mechanisms.get(key, plan.training)
            divisor = mechanism.sampling_probability * mechanism.population_size
            total = {name: array * divisor for name, array in mean.items()}
            releases[key] = Release(mechanism, exchanges, total)
        one_shot = {task: release for (task, number), release in releases.items() if number is None}
        together = one_shot.get(CooccurrenceTask.name)
        return Observed(
            statistics={task.partition("/")[2]: release for task, release in one_shot.items()},
            rounds=[release for (_, number), release in releases.items() if number is not None],
            unreserved=sum(unreserved),
            miscounted=told.miscounted(releases),
            missteps=sum(wrong for _, wrong in moved),
            strayed=strayed(together, statistics, population.table) if together else 0.0,
            grid=grid,
        )

    def _federate(
        self,
        folder: Path,
        config: RunConfig,
        population: Population,
        plan: BudgetPlan,
        *,
        before: Callable[[list[Task]], None] = lambda _: None,
        meddle: Callable[[int], Meddling] = lambda _: untouched,
        after_round: Callable[[], None] = lambda: None,
        on_statistic: OnStatistic = lambda *_: None,
    ) -> tuple[WatchedGrid, ItemStatistics]:
        grids = []

        def watched(*arguments: Any, **settings: Any) -> WatchedGrid:
            grids.append(WatchedGrid(*arguments, **settings, before=before, meddle=meddle))
            return grids[-1]

        def on_round(*_: object) -> None:
            after_round()

        with open_ledger(folder / "ledger.jsonl", config, plan) as ledger:
            result = run_federation(
                config,
                name="probe",
                population=population,
                trainer=self.trainer,
                encoder=self.encoder,
                plan=plan,
                ledger=ledger,
                checkpoints=folder / "checkpoints",
                now=int(self.busy.histories.times.max()) + 1,
                on_round=on_round,
                on_statistic=on_statistic,
                grid=watched,
            )
        return grids[-1], result.statistics


def _as_released(config: RunConfig) -> StatisticsConfig:
    """What decides which pairs are released; made-up items have texts, those of a shop may have none."""
    kind, statistics = PRESETS.get(config.data.preset), config.statistics
    if kind is None or not kind.goods or config.model.item_ids:
        return statistics
    if statistics.cooccurrence is not None or statistics.whole_histories is not None:
        return statistics
    return statistics.model_copy(update={"whole_histories": True})


def _comparing(popularity: Mechanism, n_items: int) -> Mechanism:
    """The release of co-occurrence after that of ``popularity``.

    With as much noise as all items can be compared under: more of it, and fewer are, down to none.
    """
    return replace(popularity, noise_multiplier=COHERENT * popularity.population_size / n_items)


def _changed(config: RunConfig, *, rounds: int, hosts: int, **training: Any) -> RunConfig:
    """The configuration for some rounds in this process, ``hosts`` devices a host."""
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"rounds": rounds, **training}),
            "engine": config.engine.model_copy(update={"kind": "local", "devices_per_host": hosts}),
        }
    )
