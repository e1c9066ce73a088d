"""Small federations that the probes watch: the same objects as a simulation, on a grid that looks on.

Nothing here computes what it observes: cohorts and replies are read off the wire, what was released off
the checkpoints, and what was declared off the ledger on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..client.local_training import Trainer
from ..common.config import RunConfig
from ..common.encoder import Encoder, build_encoder
from ..common.errors import BudgetError, ConfigError
from ..common.ledger import Ledger
from ..common.ledger_entries import Commit, Reserve, read_ledger
from ..common.mechanism import Mechanism
from ..common.messages import TrainTask
from ..common.signing import SigningKey
from ..server.budget import BudgetPlan, plan_budget
from ..server.checkpoint import Checkpoint
from ..server.item_vectors import build_item_table
from ..server.split import Sizes
from .federate import run_federation
from .population import Population
from .probe_observed import Observed, Release
from .probe_populations import busy_histories, idle_histories, population_of
from .released_step import missteps, released_mean
from .results import version
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
        busy = population_of(busy_histories(log.histories), table, config)
        encoder = build_encoder(
            config.model, blocks=table.blocks, n_items=table.n_items, n_types=1, seed=0
        )
        try:
            plan = plan_budget(
                config.privacy,
                training.model_copy(update={"sampling_probability": rate}),
                population_size=size,
                sizes=Sizes.of(encoder, config.statistics, table),
            )
        except BudgetError as error:
            raise ConfigError(str(error)) from error
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
        """Devices learn at a rate that brings all of them to the clip, one round for each meddling.

        Args:
            folder: new, for ledger and checkpoints.
            meddling: round, from 1 → what becomes of its replies.
            noise: without noise the release is the exact clipped mean.
        """
        training = self.config.training
        changed = {"local_learning_rate": _HOSTILE_RATE * self.plan.training.clip_norm}
        if training.server_optimizer == "fedavg" and not training.server_momentum:
            # This step is read off the weights themselves; it has to stand out from their rounding.
            changed["server_learning_rate"] = 1.0
        config = _changed(self.config, rounds=len(meddling), hosts=_BUSY_PER_HOST, **changed)
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

        popularity = self.plan.popularity
        return replace(
            self.plan,
            popularity=fitted(popularity, 1.0) if popularity else None,
            training=fitted(self.plan.training, _BUSY_RATE),
        )

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
        first_round = 1 if plan.popularity else 0

        def before(tasks: list[Task]) -> None:
            unreserved.append(not _reserved(ledger, tasks))

        def after_round() -> None:
            paths = sorted(checkpoints.glob("round-*.safetensors"))[-2:]
            earlier, later = (Checkpoint.load(path) for path in paths)
            mean = released_mean(earlier, later, config.training)
            moved.append((mean, missteps(earlier, later, mean, config.training)))

        grid = self._federate(
            folder,
            config,
            population,
            plan,
            before=before,
            meddle=lambda number: (meddling or {}).get(number - first_round + 1, untouched),
            after_round=after_round,
        )
        entries = read_ledger(ledger)
        reserves = [entry for entry in entries if isinstance(entry, Reserve)]
        declared = {entry.round: entry.mechanism for entry in reserves}
        exchanges = iter(grid.releases)
        popularity = None
        if plan.popularity:
            noisy = Checkpoint.latest(
                checkpoints,
                config_digest=config.digest(),
                items=population.table.content_hash,
            )
            assert noisy is not None, "a federation that ran has checkpoints"
            total = {"popularity": noisy.popularity.double().numpy()}
            popularity = Release(declared.get(None, plan.popularity), next(exchanges), total)
        rounds = []
        for number, (asked, (mean, _)) in enumerate(zip(exchanges, moved, strict=True), start=1):
            mechanism = declared.get(number, plan.training)
            divisor = mechanism.sampling_probability * mechanism.population_size
            total = {name: array * divisor for name, array in mean.items()}
            rounds.append(Release(mechanism, asked, total))
        releases: dict[int | None, Release | None] = {None: popularity}
        releases.update(enumerate(rounds, start=1))
        commits = {entry.release: entry for entry in entries if isinstance(entry, Commit)}
        told = {entry.round: commits.get(entry.sequence) for entry in reserves}
        return Observed(
            popularity=popularity,
            rounds=rounds,
            unreserved=sum(unreserved),
            miscounted=sum(not _told(release, told.get(n)) for n, release in releases.items()),
            missteps=sum(wrong for _, wrong in moved),
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
    ) -> WatchedGrid:
        grids = []

        def watched(*arguments: Any, **settings: Any) -> WatchedGrid:
            grids.append(WatchedGrid(*arguments, **settings, before=before, meddle=meddle))
            return grids[-1]

        def on_round(*_: object) -> None:
            after_round()

        with _ledger(folder / "ledger.jsonl", config, plan) as ledger:
            run_federation(
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
                grid=watched,
            )
        return grids[-1]


def _ledger(path: Path, config: RunConfig, plan: BudgetPlan) -> Ledger:
    """A new ledger, or the one that goes on; it records without enforcing.

    How the mechanism runs is looked at here, and for that a few rounds are made whether or not the
    budget of the configuration has room for them.
    """
    kept = path.with_name("signing_key.pem")
    if path.exists():
        return Ledger.open(path, signing_key=SigningKey.load(kept), code_version=version())
    return Ledger.create(
        path,
        signing_key=SigningKey.create(kept),
        population="probe",
        population_size=plan.training.population_size,
        delta=plan.delta,
        target_epsilon=None,
        randomness="csprng" if config.seed is None else "seeded",
        code_version=version(),
        config_digest=config.digest(),
    )


def _reserved(path: Path, tasks: list[Task]) -> bool:
    """Whether the ledger on disk ends with the reserve of what is about to be asked."""
    last = read_ledger(path)[-1]
    if not isinstance(last, Reserve):
        return False
    for task in tasks:
        training = isinstance(task, TrainTask)
        named = (last.task == "training", last.round, last.model_before, last.mechanism.clip_norm)
        binding = task.binding
        round_, model = (binding.round, binding.model) if training else (None, None)
        if named != (training, round_, model, task.clip_norm):
            return False
    return True


def _told(release: Release | None, commit: Commit | None) -> bool:
    """Whether the ledger tells of a release what was seen of it."""
    if release is None or commit is None:
        return release is None and commit is None
    told = (commit.cohort_size, commit.replies_counted)
    return told == (len(release.cohort), release.contributed()[1])


def _changed(config: RunConfig, *, rounds: int, hosts: int, **training: Any) -> RunConfig:
    """The configuration for some rounds in this process, ``hosts`` devices a host."""
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"rounds": rounds, **training}),
            "engine": config.engine.model_copy(update={"kind": "local", "devices_per_host": hosts}),
        }
    )
