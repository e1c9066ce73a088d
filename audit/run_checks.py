"""Whether a run folder tells the same story as its ledger: figures, rounds, weights and items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..common.config import load_config
from ..common.errors import ConfigError, DataError
from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from ..common.ledger_entries import Chain, Commit, Reserve
from ..common.weights import hash_of_weights
from .checkpoints import COOCCURRENCE, Checkpoint
from .findings import Finding, judge
from .privacy_checks import Cost

SAME = 1e-6
"""Relative, between two computations of one ε."""
Fault = tuple[int | None, str]


def check_run(folder: Path, chain: Chain, cost: Cost) -> list[Finding]:
    """Findings on configuration, metrics, the last checkpoint, and the model and items to rank with."""
    return [
        _check_config(folder / "config.toml", chain),
        _check_metrics(folder / "metrics.json", chain, cost),
        check_checkpoint(folder / "checkpoints", chain),
        _check_model(folder / "model.safetensors", folder / "checkpoints", chain),
        _check_items(folder / "items.safetensors", chain),
    ]


def _check_config(path: Path, chain: Chain) -> Finding:
    if not path.is_file():
        return Finding("configuration", "not run", "config.toml is missing")
    try:
        digest = load_config(path).digest()
    except ConfigError as error:
        return Finding("configuration", "fails", str(error))
    if digest != chain.opening.config_digest:
        return Finding(
            "configuration", "fails", f"{path.name} isn't what the ledger was opened for", 1
        )
    return Finding("configuration", "holds", "is the one the ledger was opened for")


def _check_metrics(path: Path, chain: Chain, cost: Cost) -> Finding:
    if not path.is_file():
        return Finding("metrics", "not run", "metrics.json is missing: the run isn't finished")
    try:
        metrics = json.loads(path.read_bytes())
        faults = list(_metrics_faults(metrics, chain, cost))
    except (ValueError, KeyError, TypeError) as error:
        return Finding("metrics", "fails", f"{path.name} isn't the metrics of a run ({error!r})")
    return judge("metrics", faults, otherwise=f"{path.name} tells the ledger's ε and rounds")


def _metrics_faults(metrics: dict[str, Any], chain: Chain, cost: Cost) -> Iterator[Fault]:
    told, opening = metrics["privacy"], chain.opening
    declared = cost.to_dict()["epsilon_pld"]
    if (told["epsilon"] is None) != (declared is None) or (
        declared is not None and abs(told["epsilon"] - declared) > SAME * max(1.0, declared)
    ):
        yield None, f"metrics.json tells ε = {told['epsilon']}, the ledger comes to {declared}"
    if (told["delta"], told["population_size"]) != (opening.delta, opening.population_size):
        yield None, "metrics.json tells another δ or population size than the ledger"
    rounds = max((r.round or 0 for r in _committed(chain).values()), default=0)
    if metrics["run"]["rounds_done"] != rounds:
        done = metrics["run"]["rounds_done"]
        yield None, f"metrics.json tells {done} rounds, the ledger has {rounds} committed"


def check_checkpoint(folder: Path, chain: Chain) -> Finding:
    """Whether the last of the checkpoints in ``folder`` holds what the ledger's releases led to."""
    try:
        checkpoint = Checkpoint.last(folder)
    except DataError as error:
        return Finding("checkpoint", "fails", str(error))
    if checkpoint is None:
        return Finding("checkpoint", "not run", "there is none")
    what = f"its {len(checkpoint.rounds)} releases are in the ledger, "
    if not checkpoint.round:
        what += "none of them is a round: weights are not compared"
    elif _led_to(checkpoint, chain) is None:
        what += "the last isn't committed: its weights are not compared"
    else:
        what += "the last led to its weights"
    return judge("checkpoint", _checkpoint_faults(checkpoint, chain), otherwise=what)


def _checkpoint_faults(checkpoint: Checkpoint, chain: Chain) -> Iterator[Fault]:
    committed = _committed(chain)
    commits = {e.release: e for e in chain.entries if isinstance(e, Commit)}
    sizes: dict[int, set[int]] = {}
    for release, reserve in committed.items():
        sizes.setdefault(reserve.round or 0, set()).add(commits[release].cohort_size)
    for record in checkpoint.rounds:
        number, sampled = record["round"], record["sampled"]
        if number not in sizes:
            pending = None if checkpoint.release is None else chain.pending.get(checkpoint.release)
            if pending is None or (pending.round or 0) != number:
                yield None, f"round {number} was made, and the ledger has no release of it"
        elif sampled not in sizes[number]:
            line = max(r for r in committed if (committed[r].round or 0) == number) + 1
            yield line, f"round {number} had a cohort of {sampled:,}, the ledger tells another"
    for task, statistic in checkpoint.statistics.items():
        commit = _statistic(task, chain)
        if commit is not None and commit.model_after not in (None, hash_of_weights(statistic)):
            yield commit.sequence + 1, f"{task} led to other numbers than those kept"
    commit = _led_to(checkpoint, chain)
    if commit is not None and commit.model_after != hash_of_weights(checkpoint.weights):
        line = commit.sequence + 1
        yield line, f"round {checkpoint.round} led to other weights than those kept"


def _led_to(checkpoint: Checkpoint, chain: Chain) -> Commit | None:
    """The commit of the round that the checkpoint was made after; None where there is none."""
    if not checkpoint.round:
        return None
    found = (e for e in chain.entries if isinstance(e, Commit) and e.release == checkpoint.release)
    return next(found, None)


def _statistic(task: str, chain: Chain) -> Commit | None:
    """The last commit of a statistic, None where there is none; a crash may have cost one before."""
    committed = _committed(chain)
    found = [
        e for e in chain.entries if isinstance(e, Commit) and committed[e.release].task == task
    ]
    return found[-1] if found else None


def _check_model(path: Path, checkpoints: Path, chain: Chain) -> Finding:
    """Whether the released weights are those that the last round led to, or the average that was kept.

    The ledger names the weights that each round led to and no average of them, so that can be held
    against the checkpoint only.
    """
    if not path.is_file():
        return Finding("model", "not run", f"{path.name} is missing: the run isn't finished")
    try:
        held, kept = hash_of_weights(load_file(path)), Checkpoint.last(checkpoints)
    except (OSError, SafetensorError, ValueError) as error:
        return Finding("model", "fails", f"{path.name} isn't a model ({error})")
    except DataError as error:
        return Finding("model", "not run", str(error))
    rounds = {release for release, made in _committed(chain).items() if made.round}
    commits = (e for e in chain.entries if isinstance(e, Commit) and e.release in rounds)
    models = [e.model_after for e in commits if e.model_after]
    if models and held == models[-1]:
        return Finding("model", "holds", "has the weights that the last round led to")
    if kept is None:
        return Finding("model", "not run", "no checkpoint to hold the average of rounds against")
    if held != hash_of_weights(kept.average):
        return Finding("model", "fails", f"{path.name} has other weights than the run ended with")
    what = "its weights are those of the last checkpoint"
    if kept.averaged:
        what = f"its weights are the average of {kept.averaged} rounds in the last checkpoint"
    why = "names no average" if kept.round else "has no round"
    return Finding("model", "holds", f"{what}; not compared with the ledger, which {why}")


def _check_items(path: Path, chain: Chain) -> Finding:
    """Whether the items have the vectors that were released; the public ones have their own hash only."""
    if not path.is_file():
        return Finding("items", "not run", f"{path.name} is missing: the run isn't finished")
    try:
        table = ItemTable.load(path)
    except DataError as error:
        return Finding("items", "fails", str(error))
    own, released = "agree with the hash beside them", _statistic(COOCCURRENCE, chain)
    if released is None or released.model_after is None or COOCCURRENCE_BLOCK not in table.blocks:
        what = f"{own}; not compared with the ledger, which names no vectors of items"
        return Finding("items", "holds", what)
    start, stop = table.blocks[COOCCURRENCE_BLOCK]
    if hash_of_weights({"vectors": table.vectors[:, start:stop]}) != released.model_after:
        what = f"{path.name} has other vectors of co-occurrence than were released"
        return Finding("items", "fails", what, released.sequence + 1)
    return Finding("items", "holds", f"{own}, and have the vectors that were released")


def _committed(chain: Chain) -> dict[int, Reserve]:
    """Number → release that was committed."""
    return {
        e.sequence: e
        for e in chain.entries
        if isinstance(e, Reserve) and e.sequence not in chain.pending
    }
