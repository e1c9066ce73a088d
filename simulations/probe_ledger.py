"""The ledger of a probed federation: it records without enforcing, and is held against what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..common.code_version import code_version
from ..common.config import RunConfig
from ..common.ledger import Ledger
from ..common.ledger_entries import Commit, Reserve, read_ledger
from ..common.mechanism import Mechanism
from ..common.messages import TrainTask
from ..common.signing import SigningKey
from ..server.budget import BudgetPlan
from .probe_observed import Release
from .watched_grid import Task

Key = tuple[str, int | None]
"""A release by its task and, where it has one, its round."""


@dataclass(frozen=True)
class Told:
    """What the ledger on disk tells in the end.

    Attributes:
        mechanisms: of each release that was reserved.
        commits: of each release that was reserved, None where there is none.
    """

    mechanisms: Mapping[Key, Mechanism]
    commits: Mapping[Key, Commit | None]

    @classmethod
    def by(cls, path: Path) -> Told:
        """By the ledger at ``path``."""
        entries = read_ledger(path)
        reserves = {(e.task, e.round): e for e in entries if isinstance(e, Reserve)}
        commits = {entry.release: entry for entry in entries if isinstance(entry, Commit)}
        return cls(
            {key: reserve.mechanism for key, reserve in reserves.items()},
            {key: commits.get(reserve.sequence) for key, reserve in reserves.items()},
        )

    def miscounted(self, seen: Mapping[Key, Release]) -> int:
        """Releases, seen or told, of which it doesn't tell what was seen of them."""
        return sum(
            not _agree(seen.get(key), self.commits.get(key))
            for key in seen.keys() | self.commits.keys()
        )


def open_ledger(path: Path, config: RunConfig, plan: BudgetPlan) -> Ledger:
    """A new ledger, or the one that goes on.

    How the mechanism runs is looked at here, and for that a few rounds are made whether or not the
    budget of the configuration has room for them.
    """
    kept = path.with_name("signing_key.pem")
    if path.exists():
        return Ledger.open(path, signing_key=SigningKey.load(kept), code_version=code_version())
    return Ledger.create(
        path,
        signing_key=SigningKey.create(kept),
        population="probe",
        population_size=plan.training.population_size,
        delta=plan.delta,
        target_epsilon=None,
        randomness="csprng" if config.seed is None else "seeded",
        code_version=code_version(),
        config_digest=config.digest(),
    )


def reserved(path: Path, tasks: list[Task]) -> bool:
    """Whether the ledger on disk ends with the reserve of what is about to be asked."""
    last = read_ledger(path)[-1]
    if not isinstance(last, Reserve):
        return False
    for task in tasks:
        named = (last.task, last.round, last.model_before, last.mechanism.clip_norm)
        training, binding = isinstance(task, TrainTask), task.binding
        round_, model = (binding.round, binding.model) if training else (None, None)
        if named != (task.name, round_, model, task.clip_norm):
            return False
    return True


def _agree(release: Release | None, commit: Commit | None) -> bool:
    if release is None or commit is None:
        return release is None and commit is None
    told = (commit.cohort_size, commit.replies_counted)
    return told == (len(release.cohort), release.contributed()[1])
