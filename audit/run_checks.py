"""Whether a run folder tells the same story as its ledger: figures, rounds and weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..common.config import load_config
from ..common.errors import ConfigError
from ..common.ledger_entries import Chain, Commit, Reserve
from ..common.weights import hash_of_weights
from .findings import Finding, judge
from .privacy_checks import Cost

SAME = 1e-6
"""Relative, between two computations of one ε."""
Fault = tuple[int | None, str]


def check_run(folder: Path, chain: Chain, cost: Cost) -> list[Finding]:
    """Findings on configuration, metrics and the last checkpoint of a run folder."""
    return [
        _check_config(folder / "config.toml", chain),
        _check_metrics(folder / "metrics.json", chain, cost),
        check_checkpoint(folder / "checkpoints", chain),
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
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        return Finding("checkpoint", "not run", "there is none")
    try:
        with safe_open(paths[-1], framework="np") as file:
            state = json.loads(file.metadata()["state"])
            keys = [key for key in file.keys() if key.startswith("weights/")]  # noqa: SIM118
            weights = {key.removeprefix("weights/"): file.get_tensor(key) for key in keys}
        faults = list(_checkpoint_faults(state, weights, chain))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        return Finding("checkpoint", "fails", f"{paths[-1].name} isn't a checkpoint ({error})")
    what = f"its {len(state['rounds'])} releases are in the ledger, the last led to its weights"
    return judge("checkpoint", faults, otherwise=what)


def _checkpoint_faults(
    state: dict[str, Any], weights: dict[str, NDArray[np.float32]], chain: Chain
) -> Iterator[Fault]:
    committed = _committed(chain)
    commits = {e.release: e for e in chain.entries if isinstance(e, Commit)}
    sizes: dict[int, set[int]] = {}
    for release, reserve in committed.items():
        sizes.setdefault(reserve.round or 0, set()).add(commits[release].cohort_size)
    last = state["release"]
    for record in state["rounds"]:
        number, sampled = record["round"], record["sampled"]
        if number not in sizes:
            pending = chain.pending.get(last)
            if pending is None or (pending.round or 0) != number:
                yield None, f"round {number} was made, and the ledger has no release of it"
        elif sampled not in sizes[number]:
            line = max(r for r in committed if (committed[r].round or 0) == number) + 1
            yield line, f"round {number} had a cohort of {sampled:,}, the ledger tells another"
    if last in commits and state["round"]:
        commit = commits[last]
        if commit.model_after != hash_of_weights(weights):
            yield (
                commit.sequence + 1,
                f"round {state['round']} led to other weights than those kept",
            )


def _committed(chain: Chain) -> dict[int, Reserve]:
    """Number → release that was committed."""
    return {
        e.sequence: e
        for e in chain.entries
        if isinstance(e, Reserve) and e.sequence not in chain.pending
    }
