"""A sweep: the same study at several budgets and with more or fewer users, each several times.

Every run is an ordinary one in a folder of its own, so it can be audited, replayed and resumed; the
sweep reads what they left, and measures them together.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.config import RunConfig
from ..common.console import remark
from ..common.errors import ConfigError, RunFolderError
from ..common.files import write_atomically
from ..common.formatting import duration
from .run_folder import RunFolder
from .run_ledger import check_keys, earlier_releases
from .simulate import SimulateOptions, prepare, read, simulate
from .sweep_plan import PlannedRun, SweepFolder, SweepPlan
from .sweep_quality import measure
from .sweep_report import write_sweep_report
from .sweep_results import sweep_document


def sweep(
    base: RunConfig,
    axes: Mapping[str, tuple[float, ...]],
    seeds: int | None,
    *,
    out: Path | None,
    resume: bool,
) -> dict[str, Any]:
    """Run every combination, measure all, and leave a folder; returns what ``sweep.json`` holds.

    A run that is finished is read and not repeated; one that was cut off goes on from its checkpoint.

    Args:
        base: what all runs have in common.
        axes: axis → values, as by :func:`.sweep_plan.parse_axes`.
        seeds: runs of each combination; None: as many as usual, or as before.
        out: folder of the sweep; None for a new one under ``runs``.
        resume: go on with the sweep in ``out``.

    Raises:
        FedprofileError: bad input, a folder in the way, or a budget that allows no release.
    """
    if base.evaluation.split == "none":
        raise ConfigError(
            "--sweep needs held-out targets to compare runs by: choose another --split"
        )
    if base.ledger.anchor is not None:
        raise ConfigError(
            "ledger.anchor (--anchor) is the place of one ledger's head, and each run of a sweep has a "
            "ledger of its own: leave it unset"
        )
    check_keys(base)
    if resume and out is not None:
        folder, plan = SweepFolder.reopen(out, base, axes, seeds)
        runs = plan.runs(base)
    else:
        folder = _new_folder(base, out)
        plan = SweepPlan.of(base, axes, seeds)
        runs = plan.runs(base)
        _check_first(runs[0], folder)
        folder.create(base, plan)
    remark(f"Sweep folder: {folder.path}, {len(runs)} runs")
    with _resumable(folder):
        metrics = _run_all(runs, folder)
        points, references = measure(folder, base, plan, runs)
    document = sweep_document(base, plan, runs, metrics, points, references, folder)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder.results, text.encode("utf-8", "backslashreplace"))
    write_sweep_report(document, folder.page)
    paths = {"sweep": folder.path, "results": folder.results, "report": folder.page}
    return {**document, "paths": {name: str(path) for name, path in paths.items()}}


def _new_folder(base: RunConfig, out: Path | None) -> SweepFolder:
    if out is None:
        return SweepFolder(RunFolder.stamped(f"sweep-{Path(base.data.path).stem or 'data'}").path)
    return SweepFolder(RunFolder.new(out).path)


def _check_first(run: PlannedRun, folder: SweepFolder) -> None:
    """Refuse at once what would fail: the first run has the fewest users and the least budget."""
    log, split, population = read(run.config)
    earlier = earlier_releases(run.config, folder.run(run), population_size=population.size)
    prepare(run.config, log, split, population, earlier)


def _run_all(runs: Sequence[PlannedRun], folder: SweepFolder) -> list[dict[str, Any]]:
    metrics: list[dict[str, Any]] = []
    started, ran = time.monotonic(), 0
    for number, run in enumerate(runs, 1):
        where = folder.run(run)
        if where.report.is_file():  # the last that a run writes
            remark(f"Run {number} of {len(runs)}: {run.name} is finished")
            metrics.append(_finished(where, run))
            continue
        left = ""
        if ran:
            seconds = (time.monotonic() - started) / ran * (len(runs) - number + 1)
            left = f", some {duration(seconds)} left"
        remark(f"Run {number} of {len(runs)}: {run.name}{left}")
        options = SimulateOptions(out=where.path, resume=where.config.is_file())
        metrics.append(simulate(run.config, options))
        ran += 1
    return metrics


def _finished(where: RunFolder, run: PlannedRun) -> dict[str, Any]:
    RunFolder.reopen(where.path, run.config)
    try:
        metrics: dict[str, Any] = json.loads(where.metrics.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{where.metrics}: can't be read ({error}); delete {where.report}, and the run is measured "
            "again"
        ) from error
    return metrics


@contextmanager
def _resumable(folder: SweepFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        path = shlex.quote(str(folder.path))
        remark(f"Go on with the sweep: fedprofile simulate --resume --out {path}")
        raise
