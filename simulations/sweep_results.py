"""All figures of a sweep as one JSON-ready document: ``sweep.json``, from which the page is made."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import accounting
from ..common.config import RunConfig
from ..common.ledger_entries import Earlier, Reserve, read_chain
from .comparison import left_out
from .fairness import MINIMUM
from .results import provenance
from .sweep_plan import PlannedRun, SweepFolder, SweepPlan

if TYPE_CHECKING:
    from dp_accounting import DpEvent


def sweep_document(
    base: RunConfig,
    plan: SweepPlan,
    runs: Sequence[PlannedRun],
    metrics: Sequence[Mapping[str, Any]],
    points: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
    folder: SweepFolder,
) -> dict[str, Any]:
    """The document; infinite ε are None in it.

    Args:
        base: what all runs have in common.
        plan: the axes.
        runs: all of them.
        metrics: of each of them, as in its ``metrics.json``.
        points: every combination, measured.
        references: what they are held against, measured.
        folder: of the sweep.
    """
    first = metrics[0]
    most = next(m for run, m in zip(runs, metrics, strict=True) if run.share == plan.shares[-1])
    return {
        "sweep": {
            **provenance(base),
            "name": folder.path.name,
            "repeat": _repeat(plan, folder),
            "dataset": base.data.path,
            "encoder": first["run"]["encoder"],
            "parameters": first["run"]["parameters"],
            "epsilon": [_finite(epsilon) for epsilon in plan.epsilons],
            "users": list(plan.shares),
            "seeds": plan.seeds,
            "k": base.evaluation.k,
            "split": base.evaluation.split,
            "repeated_targets": most["data"].get("repeated_targets"),
            "smallest_group": MINIMUM,
            "group_column": base.data.group_column,
            "seconds": sum(run["run"]["seconds"] for run in metrics),
        },
        "points": list(points),
        "references": list(references),
        "runs": [_run(run, found) for run, found in zip(runs, metrics, strict=True)],
        "privacy": joint_cost({folder.run(run).ledger: math.isfinite(run.epsilon) for run in runs}),
        "notes": [
            *first["notes"],
            # Runs of a sweep have no baselines of their own, and say nothing of them.
            *left_out(base, first["data"]["items"], first["data"].get("content", True)),
        ],
    }


def joint_cost(ledgers: Mapping[Path, bool]) -> dict[str, Any]:
    """What everybody who takes part in all runs pays for all of them.

    All releases of all ledgers are composed at the smallest of their δ; what earlier ledgers that
    they name had released counts once. Who takes part in fewer runs pays less.

    Args:
        ledgers: of the runs → whether the run is private.

    Raises:
        LedgerError: a ledger can't be read or doesn't hold together.
    """
    chains = {path: read_chain(path) for path in ledgers}
    delta = min(chain.opening.delta for chain in chains.values())
    before: dict[str, Earlier] = {}
    private: Counter[DpEvent] = Counter()
    for path, chain in chains.items():
        before |= {earlier.ledger: earlier for earlier in chain.opening.earlier}
        if ledgers[path]:
            for entry in chain.entries:
                if isinstance(entry, Reserve):
                    private[entry.mechanism.event()] += 1
    for earlier in before.values():
        private += earlier.events()
    number = sum(ledgers.values())
    # The coarse grid's figure is never below; many runs on the fine one take minutes.
    cost = accounting.epsilon(private, delta=delta, coarse=True) if number else math.inf
    return {
        "delta": delta,
        "private_runs": number,
        "other_runs": len(ledgers) - number,
        "epsilon_of_private_runs": _finite(cost),
        "epsilon": _finite(cost) if number == len(ledgers) else None,
        "repeatable": any(c.opening.randomness == "seeded" for c in chains.values()),
    }


def _repeat(plan: SweepPlan, folder: SweepFolder) -> str:
    """The command that runs the same sweep again, where it was run: paths are as they were given."""
    axes = {"epsilon": plan.epsilons, "users": plan.shares}
    options = [
        word
        for axis, values in axes.items()
        for word in ("--sweep", f"{axis}=" + ",".join(f"{value:.12g}" for value in values))
    ]
    words = ["fedprofile", "simulate", "--config", str(folder.base), *options, "--seeds"]
    return shlex.join([*words, str(plan.seeds)])


def _run(run: PlannedRun, metrics: Mapping[str, Any]) -> dict[str, Any]:
    privacy, own = metrics["privacy"], metrics["run"]
    return {
        "name": run.name,
        "seed": own["seed"],
        "share": run.share,
        "population_size": privacy["population_size"],
        "target_epsilon": _finite(run.epsilon),
        "epsilon": privacy["epsilon"] if privacy["enabled"] else None,
        "delta": privacy["delta"],
        "rounds_done": own["rounds_done"],
        "rounds_planned": own["rounds_planned"],
        "stopped": own["stopped"],
        "seconds": own["seconds"],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
