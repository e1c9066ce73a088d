"""What a sweep runs: every combination of the values of its axes, several times over."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from ..common.config import RunConfig, load_config
from ..common.errors import ConfigError, RunFolderError
from ..common.files import write_atomically
from ..common.sections import validated
from .run_folder import RunFolder, check_same, check_writable
from .sweep_axes import SWEEP

SEEDS = 3
"""Runs of each combination, where nobody says how many."""

_KEYS = "docs/configuration.md"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        epsilon: its budget; infinite: no clip and no noise.
        share: of the users that take part.
        config: all of its configuration.
    """

    name: str
    epsilon: float
    share: float
    config: RunConfig


@dataclass(frozen=True)
class SweepPlan:
    """The axes of a sweep, ascending.

    Attributes:
        epsilons: budgets of a run; infinite: no clip and no noise.
        shares: of the users that take part.
        seeds: runs of each combination.
    """

    epsilons: tuple[float, ...]
    shares: tuple[float, ...]
    seeds: int

    @classmethod
    def of(
        cls, base: RunConfig, axes: Mapping[str, tuple[float, ...]], seeds: int | None
    ) -> SweepPlan:
        """The plan over ``axes``; where there is no axis, ``base`` has the one value.

        Raises:
            ConfigError: ``seeds`` is below 1.
        """
        if seeds is None:
            seeds = SEEDS
        if seeds < 1:
            raise ConfigError(f"--seeds must be 1 or more, got {seeds}")
        epsilon = base.privacy.epsilon if base.privacy.enabled else math.inf
        return cls(
            epsilons=axes.get("epsilon", (epsilon,)),
            shares=axes.get("users", (base.data.user_share,)),
            seeds=seeds,
        )

    def runs(self, base: RunConfig) -> list[PlannedRun]:
        """Every run, one of each combination before a second one of any.

        With a seed the runs of a combination have it and those that follow it; without one their noise
        is secret, as that of any run.

        Raises:
            ConfigError: a value makes no sense with the rest of ``base``.
        """
        return [
            self._run(base, number, epsilon, share)
            for number in range(self.seeds)
            for epsilon in self.epsilons
            for share in self.shares
        ]

    def _run(self, base: RunConfig, number: int, epsilon: float, share: float) -> PlannedRun:
        seed = None if base.seed is None else base.seed + number
        name = f"epsilon-{epsilon:.12g}" + (f"-users-{share:.12g}" if share < 1 else "")
        name += f"-run-{number + 1}" if seed is None else f"-seed-{seed}"
        content = base.model_dump()
        content["seed"] = seed
        content["data"]["user_share"] = share
        content["privacy"]["enabled"] = math.isfinite(epsilon)
        if math.isfinite(epsilon):
            content["privacy"]["epsilon"] = epsilon
        # A sweep measures all its runs together, beside models that no ε changes.
        content["evaluation"]["baselines"] = False
        config = validated(RunConfig, content, where=f"{name}: ", documented=_KEYS)
        return PlannedRun(name, epsilon, share, config)


@dataclass(frozen=True)
class SweepFolder:
    """Paths of a sweep.

    Attributes:
        path: the folder; every run has one of its own in it.
    """

    path: Path

    @property
    def plan(self) -> Path:
        """The axes."""
        return self.path / SWEEP

    @property
    def base(self) -> Path:
        """The configuration that all runs have in common."""
        return self.path / "base.toml"

    @property
    def references(self) -> Path:
        """What the runs are held against, as far as it was measured."""
        return self.path / "references.json"

    @property
    def results(self) -> Path:
        """All figures, for machines."""
        return self.path / "sweep.json"

    @property
    def page(self) -> Path:
        """All figures, for people."""
        return self.path / "sweep.html"

    def run(self, planned: PlannedRun) -> RunFolder:
        """The folder of one run."""
        return RunFolder(self.path / planned.name)

    def create(self, base: RunConfig, plan: SweepPlan) -> None:
        """Make the folder, with its plan.

        Raises:
            RunFolderError: it has been taken meanwhile, or can't be made.
        """
        RunFolder.new(self.path)
        axes = {"epsilon": plan.epsilons, "users": plan.shares, "seeds": plan.seeds}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.base, base.to_toml().encode())
            write_atomically(self.plan, tomli_w.dumps(axes).encode())
        except OSError as error:
            raise RunFolderError(
                f"{self.path}: can't write a sweep's folder ({error.strerror}); choose another --out"
            ) from error

    @classmethod
    def reopen(
        cls, path: Path, base: RunConfig, axes: Mapping[str, tuple[float, ...]], seeds: int | None
    ) -> tuple[SweepFolder, SweepPlan]:
        """The folder of a sweep that goes on, and its plan.

        Args:
            path: the folder.
            base: the configuration asked for.
            axes: the axes asked for; those that are missing are as they were.
            seeds: the runs of each combination asked for; None: as it was.

        Raises:
            RunFolderError: there is no sweep, or it is another one.
        """
        folder = cls(path)
        if not folder.plan.is_file():
            raise RunFolderError(
                f"{path}: no sweep to resume here ({SWEEP} is missing); leave --resume out to start one"
            )
        check_writable(path)
        check_same(path, load_config(folder.base), base)
        plan = folder._read_plan()
        for name, asked, known in (
            ("epsilon", axes.get("epsilon"), plan.epsilons),
            ("users", axes.get("users"), plan.shares),
            ("seeds", seeds, plan.seeds),
        ):
            if asked not in (None, known):
                raise RunFolderError(
                    f"{path}: is of another sweep ({name} was {_told(known)}); resume without --sweep "
                    "and --seeds, or choose another --out"
                )
        return folder, plan

    def _read_plan(self) -> SweepPlan:
        try:
            found = tomllib.loads(self.plan.read_text(encoding="utf-8"))
            return SweepPlan(
                tuple(map(float, found["epsilon"])),
                tuple(map(float, found["users"])),
                int(found["seeds"]),
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunFolderError(
                f"{self.plan}: not the plan of a sweep ({error}); choose another --out"
            ) from error


def _told(values: float | tuple[float, ...]) -> str:
    return ",".join(f"{v:g}" for v in values) if isinstance(values, tuple) else f"{values:g}"
