"""All figures of a run as one JSON-ready document: ``metrics.json``, from which the page is made."""

from __future__ import annotations

import datetime as dt
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..common import accounting
from ..common.code_version import code_version
from ..common.config import RunConfig
from ..common.encoder import Encoder
from ..common.errors import ConfigError
from ..common.items import ItemTable
from ..common.ledger import Ledger
from ..common.ledger_entries import Commit, Reserve
from ..server.app import FederationResult
from .comparison import ModelResult, left_out
from .dataset import InteractionLog
from .federate import time_is_read_off_data
from .splits import Split

_NOTES = (
    "Item texts, prices and the list of items count as a public catalogue; where they were read off "
    "transactions, that covers the whole log, the held-out part included.",
    "The minimum-activity rules of the cleaning, each user's medians that event weights are relative "
    "to, and cuts at quantiles look at the whole log, the held-out part included.",
)


def provenance(config: RunConfig) -> dict[str, str]:
    """What a result is of: when, by which program and command, under which configuration."""
    return {
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "version": code_version(),
        "config_digest": config.digest(),
        "command": shlex.join(["fedprofile", *sys.argv[1:]]),
    }


def run_metrics(
    config: RunConfig,
    *,
    name: str,
    seconds: float,
    log: InteractionLog,
    split: Split,
    table: ItemTable,
    encoder: Encoder,
    result: FederationResult,
    validation: Mapping[int, float | None],
    best_round: int | None,
    models: Sequence[ModelResult],
    ledger: Ledger,
    local: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The document; NaN and infinite numbers are None in it.

    Args:
        config: of the run.
        name: of the run.
        seconds: it took.
        log: the data.
        split: what was held out.
        table: public item table.
        encoder: architecture.
        result: of the federation.
        validation: round → mean NDCG@k on validation.
        best_round: the one whose model validation chose, None where it chose none.
        models: the comparison, the run's own model first.
        ledger: of the run.
        local: what the event-level layer came to, None where there was none.
    """
    releases, told = _releases(ledger), result.statistics
    paired = told.successors is not None
    spent = {r["round"]: r["epsilon_after"] for r in releases if r["round"] is not None}
    document = {
        "run": {
            **provenance(config),
            "name": name,
            "seconds": round(seconds, 1),
            "seed": config.seed,
            "engine": config.engine.kind,
            "encoder": config.model.encoder,
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "rounds_planned": config.training.rounds,
            "rounds_done": result.checkpoint.round,
            "stopped": result.stopped,
            "best_round": best_round,
            # What goes with what has a voice of its own; of close pairs, what content tells counts once.
            "whole_histories": bool(told.successors) and table.whole,
            "beyond_content": told.beyond_content if paired and not table.whole else None,
            "dataset": config.data.path,
        },
        "data": {**_data(log, split, config), "content": table.has_content},
        "privacy": {**_privacy(config, ledger, releases), "local": local},
        "curve": [
            {
                **{key: value for key, value in record.items() if key != "round"},
                "round": record["round"],
                "epsilon": spent.get(record["round"]),
                "validation_ndcg": validation.get(record["round"]),
            }
            for record in result.checkpoint.rounds
            if record["round"] > 0
        ],
        "models": [model.to_dict() for model in models],
        "notes": [*_NOTES, *_sampled(config), *left_out(config, table.n_items, table.has_content)],
    }
    cleaned: dict[str, Any] = _finite(document)
    return cleaned


def _sampled(config: RunConfig) -> Iterator[str]:
    if config.data.user_share < 1:
        yield (
            f"Of the users of the log, a share of {config.data.user_share:g} takes part "
            "(data.user_share), chosen by a hash of their ids; the catalogue, the cuts and the cleaning "
            "are those of all."
        )


def _data(log: InteractionLog, split: Split, config: RunConfig) -> dict[str, Any]:
    def day(seconds: int | None) -> str | None:
        if seconds is None:
            return None
        return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="minutes")

    return {
        "quality": log.quality.to_dict(),
        "users": log.n_users,
        "items": log.n_items,
        "events": log.histories.n_events,
        "train_events": split.train.n_events,
        "train_users": int((split.train.lengths > 0).sum()),
        "validation_users": split.validation.n_users,
        "test_users": split.test.n_users,
        "cold_users": split.test.cold_users,
        "repeated_targets": split.test.repeated,
        "split": config.evaluation.split,
        "refitted": split.refitted,
        "validation_from": day(split.validation_time),
        "test_from": day(split.test_time),
    }


def _privacy(config: RunConfig, ledger: Ledger, releases: list[dict[str, Any]]) -> dict[str, Any]:
    opening = ledger.opening
    events = ledger.events()
    checks: dict[str, float | None] = {"epsilon_prv": None, "epsilon_rdp": None}
    if config.privacy.enabled and events:
        checks["epsilon_rdp"] = accounting.epsilon_rdp(events, delta=opening.delta)
        try:
            checks["epsilon_prv"] = accounting.epsilon_prv(events, delta=opening.delta)
        except ConfigError:
            checks["epsilon_prv"] = None  # Opacus can't express this composition
    return {
        "enabled": config.privacy.enabled,
        "epsilon": ledger.epsilon_spent(),
        "delta": opening.delta,
        "target_epsilon": opening.target_epsilon,
        "unit": opening.unit,
        "adjacency": opening.adjacency,
        "randomness": opening.randomness,
        "sampler": "poisson",
        "accountant": "PLD (dp_accounting)",
        **checks,
        "population_size": opening.population_size,
        "time_read_off_data": time_is_read_off_data(config)
        and any(release["task"] == "statistics/popularity" for release in releases),
        "releases": releases,
    }


def _releases(ledger: Ledger) -> list[dict[str, Any]]:
    commits = {e.release: e for e in ledger.entries if isinstance(e, Commit)}
    reserves = [e for e in ledger.entries if isinstance(e, Reserve)]
    events = [entry.mechanism.event() for entry in reserves]
    before = list((ledger.events() - Counter(events)).elements())  # of earlier ledgers
    spent = accounting.epsilon_after_each([*before, *events], delta=ledger.opening.delta)
    found = []
    for entry, epsilon in zip(reserves, spent[len(before) :], strict=True):
        commit = commits.get(entry.sequence)
        found.append(
            {
                "task": entry.task,
                "round": entry.round,
                "noise_multiplier": entry.mechanism.noise_multiplier,
                "clip_norm": entry.mechanism.clip_norm,
                "sampling_probability": entry.mechanism.sampling_probability,
                "epsilon_after": epsilon,
                "cohort": commit.cohort_size if commit else None,
                "replies": commit.replies_counted if commit else None,
                "rejected": dict(commit.rejected) if commit else {},
            }
        )
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
