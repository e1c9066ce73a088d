"""How well the runs of a sweep recommend, together: over runs and users, by size, and by group.

Every run's released model is read from its folder and asked for the same test users, so what one
user's lists are worth is compared across runs and never written down: files hold means over users.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..common.config import RunConfig
from ..common.console import stage
from ..common.errors import RunFolderError
from ..common.files import write_atomically
from .baselines import Popularity
from .bootstrap import crossed_interval
from .comparison import CLASSICAL, LABELS, Candidate, references
from .dataset import InteractionLog
from .evaluation import Evaluation, Scorer, View, evaluate
from .fairness import Group, by_activity, by_value
from .population import Population
from .simulate import prepare, read
from .splits import Split
from .subsample import taking_part
from .sweep_plan import PlannedRun, SweepFolder, SweepPlan
from .trained import load_scorer

ACTIVITY = "training events"
"""What users are always grouped by."""


@dataclass(frozen=True, eq=False)
class Panel:
    """The test users of those who take part at one share.

    Two sets of test users are measured. The ``own`` ones take part at this share. The ``common``
    ones take part at the smallest share of the sweep, and so at every one: only they tell what more
    participants are worth, for they are the same people everywhere, and part of every training.

    Attributes:
        config: of a run at this share.
        log: the data.
        split: of those who take part.
        population: their devices.
        common: bool [users of the log], who takes part at the smallest share.
        popularity: float [n_items], by how many of those who take part an item was taken.
    """

    config: RunConfig
    log: InteractionLog
    split: Split
    population: Population
    common: NDArray[np.bool_]
    popularity: NDArray[np.float32]

    @classmethod
    def at(cls, config: RunConfig, *, smallest: float) -> Panel:
        """The panel of those who take part in a run of ``config``."""
        log, split, population = read(config)
        common = taking_part(log.user_ids, smallest)
        popularity = Popularity.fit(split.train, population.table).counts
        return cls(config, log, split, population, common, popularity)

    def evaluate(self, scorer: Scorer) -> Evaluation:
        """NDCG@k of every test user."""
        return evaluate(
            scorer,
            self.split.test,
            self.population.table,
            self.popularity,
            k=self.config.evaluation.k,
            bootstrap_samples=0,
        )

    def describe(
        self, found: Sequence[Evaluation], against: Sequence[Evaluation] | None = None
    ) -> dict[str, Any]:
        """Means of one or several models of a kind with intervals, JSON-ready.

        ``new`` and ``all`` are views over the own test users; ``common`` is new items over the common
        ones, ``groups`` new items over groups of the own ones, and ``groups_all`` all items over groups of
        those who took any: as more people did, groups may be cut elsewhere. With ``against``, as many
        models of another kind, each has its ``difference`` to those, paired by user. The two kinds were
        trained independently, so any pairing of their models gives the variance of both.
        """
        new, every = (
            (_matrix(found, view), None if against is None else _matrix(against, view))
            for view in ("new_items", "all_items")
        )
        users, any_users = found[0].new_items.ranks.users, found[0].all_items.ranks.users
        return {
            "new": self._cell(*new),
            "all": self._cell(*every),
            "common": self._cell(*new, rows=np.flatnonzero(self.common[users])),
            "groups": self._by_group(users, *new),
            "groups_all": self._by_group(any_users, *every),
        }

    def _cell(
        self,
        values: NDArray[np.float64],
        against: NDArray[np.float64] | None,
        rows: NDArray[np.int64] | slice = slice(None),
    ) -> dict[str, Any]:
        def interval(of: NDArray[np.float64]) -> dict[str, float | None]:
            samples = self.config.evaluation.bootstrap_samples
            return crossed_interval(of[:, rows], samples=samples).to_dict()

        return {
            "users": values[:, rows].shape[1],
            "ndcg_at_k": interval(values),
            "difference": None if against is None else interval(values - against),
        }

    def _by_group(
        self,
        users: NDArray[np.int64],
        values: NDArray[np.float64],
        against: NDArray[np.float64] | None,
    ) -> dict[str, list[dict[str, Any]]]:
        return {
            by: [{"name": g.name, **self._cell(values, against, rows=g.rows)} for g in groups]
            for by, groups in self._groups(users).items()
        }

    def _groups(self, users: NDArray[np.int64]) -> dict[str, list[Group]]:
        groups = {ACTIVITY: by_activity(self.split.train.lengths[users])}
        column = self.config.data.group_column
        if column is not None:
            groups[column] = by_value(self.log.users[column].cast(pl.String)[users].to_list())
        return groups


def measure(
    folder: SweepFolder, base: RunConfig, plan: SweepPlan, runs: Sequence[PlannedRun]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every combination of ε and share, and every model that these are held against.

    The latter are kept in the folder as they come, one share after another: what no ε changes is
    measured once. Central training and devices alone are measured at the largest share only.

    Raises:
        FedprofileError: the data or a run can't be used.
    """
    smallest, largest = plan.shares[0], plan.shares[-1]
    points: list[dict[str, Any]] = []
    known = _References(folder.references)
    for share in plan.shares:
        of_share = [run for run in runs if run.share == share]
        panel = Panel.at(of_share[0].config, smallest=smallest)
        points += _points(folder, panel, of_share)
        if base.evaluation.baselines:
            known.complete(share, _makers(panel, everything=share == largest), panel)
    return points, known.models


def _points(
    folder: SweepFolder, panel: Panel, runs: Sequence[PlannedRun]
) -> Iterator[dict[str, Any]]:
    found: dict[float, list[Evaluation]] = {}
    with stage("Measuring", len(runs)) as progress:
        for run in runs:
            scorer = load_scorer(folder.run(run), run.config, panel.log, panel.population)
            found.setdefault(run.epsilon, []).append(panel.evaluate(scorer))
            progress.advance(run.name)
    without = found.get(math.inf)
    for epsilon, evaluations in found.items():
        private = math.isfinite(epsilon)
        yield {
            "epsilon": epsilon if private else None,
            "share": panel.config.data.user_share,
            "population_size": panel.population.size,
            **panel.describe(evaluations, without if private else None),
            "runs": [
                {
                    "name": run.name,
                    "new": _mean(evaluation.new_items),
                    "all": _mean(evaluation.all_items),
                }
                for run, evaluation in zip(
                    (run for run in runs if run.epsilon == epsilon), evaluations, strict=True
                )
            ],
        }


def _makers(panel: Panel, *, everything: bool) -> dict[str, Callable[[], list[Candidate]]]:
    # Only what is shared and trained without noise counts here, so no noise need be calibrated.
    privacy = panel.config.privacy.model_copy(update={"enabled": False})
    prepared = prepare(
        panel.config.model_copy(update={"privacy": privacy}),
        panel.log,
        panel.split,
        panel.population,
    )
    makers = references(
        panel.config,
        split=panel.split,
        population=panel.population,
        trainer=prepared.trainer,
        encoder=prepared.encoder,
    )
    return makers if everything else {CLASSICAL: makers[CLASSICAL]}


class _References:
    """What was measured of models that no ε changes, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.models: list[dict[str, Any]] = []
        if path.is_file():
            try:
                self.models = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise RunFolderError(
                    f"{path}: can't be read ({error}); delete it, and it is measured again"
                ) from error
            # What was measured before there were groups on all items is measured again.
            self.models = [model for model in self.models if "groups_all" in model]

    def complete(
        self, share: float, makers: dict[str, Callable[[], list[Candidate]]], panel: Panel
    ) -> None:
        """Measure what is missing, and write it down."""
        known = {(model["share"], model["part"]) for model in self.models}
        missing = {part: make for part, make in makers.items() if (share, part) not in known}
        if not missing:
            return
        with stage("Baselines", len(missing)) as progress:
            for part, make in missing.items():
                self.models += [
                    {
                        "share": share,
                        "part": part,
                        "key": candidate.key,
                        "label": LABELS[candidate.key],
                        "kind": candidate.kind,
                        "settings": candidate.settings,
                        "aside": candidate.aside,
                        **panel.describe([panel.evaluate(candidate.scorer)]),
                    }
                    for candidate in make()
                ]
                text = json.dumps(self.models, indent=2, ensure_ascii=False, allow_nan=False)
                write_atomically(self._path, text.encode())
                progress.advance(part)


def _mean(view: View) -> float | None:
    return float(view.ranks.ndcg.mean()) if len(view.ranks.users) else None


def _matrix(found: Sequence[Evaluation], view: str) -> NDArray[np.float64]:
    """NDCG of each model on each user, float64 [models, p]."""
    return np.stack([getattr(evaluation, view).ranks.ndcg for evaluation in found])
