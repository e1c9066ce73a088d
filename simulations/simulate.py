"""A whole run, step by step: data in, federation, evaluation, a folder that explains it."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..client.local_training import Trainer
from ..client.serving import serving_table
from ..common.config import RunConfig
from ..common.console import remark, stage
from ..common.encoder import Encoder, build_encoder
from ..common.errors import ConfigError, DataError
from ..common.ledger import Ledger
from ..common.ledger_entries import Earlier
from ..common.weights import hash_of_weights
from ..server.app import FederationResult
from ..server.budget import BudgetPlan, plan_budget
from ..server.checkpoint import Checkpoint
from ..server.item_vectors import build_item_table, with_room
from ..server.split import Sizes
from ..server.statistics import ItemStatistics
from ..server.strategy import RoundRecord
from .comparison import ModelResult, compare, mean_ndcg
from .data_remarks import data_remarks
from .dataset import InteractionLog
from .device_ledgers import open_device_ledgers
from .event_layer import EventLayer, event_metrics, open_event_layer
from .federate import randomness, run_federation, statistics_time
from .loading import load_log
from .models import ID_TABLE, EncoderScorer
from .population import Population
from .presets import PRESETS
from .progress import Progress, measured_rounds
from .recommendations import check_recommendations, write_recommendations
from .report import write_report
from .results import run_metrics
from .run_folder import RunFolder
from .run_ledger import check_checkpoints, check_keys, earlier_releases, has_rounds, open_ledger
from .splits import Split, make_split
from .subsample import taking_part


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """What a run is asked for besides its configuration.

    Attributes:
        out: run folder; None for a new one under ``runs``.
        resume: go on with the run in ``out``.
        recommendations: Parquet file to write lists to, if any.
        top_k: length of those lists.
        include_seen: whether they may hold items of the user's history.
    """

    out: Path | None = None
    resume: bool = False
    recommendations: Path | None = None
    top_k: int = 10
    include_seen: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that a federation over a log needs."""

    log: InteractionLog
    split: Split
    population: Population
    encoder: Encoder
    trainer: Trainer
    earlier: tuple[Earlier, ...]
    plan: BudgetPlan


def simulate(config: RunConfig, options: SimulateOptions) -> dict[str, Any]:
    """Run a federated simulation and leave its folder; returns what ``metrics.json`` holds.

    Raises:
        FedprofileError: bad input, a folder in the way, or a budget that allows no release.
    """
    started = time.monotonic()
    # 1. Refuse at once what would fail in the end.
    folder = _find_folder(config, options)
    check_keys(config)
    check_checkpoints(folder)
    if options.recommendations is not None:
        check_recommendations(options.recommendations)
    # 2. Read, clean, split; build the public item table. Bad input ends here, nothing is written.
    log, split, population = read(config)
    earlier = earlier_releases(config, folder, population_size=population.size)
    prepared = prepare(config, log, split, population, earlier)
    # 3. Make the run folder and its ledger.
    if not options.resume:
        folder.create(config)
    remark(f"Run folder: {folder.path}")
    ledger = open_ledger(
        folder,
        config,
        plan=prepared.plan,
        population_size=prepared.population.size,
        earlier=prepared.earlier,
    )
    layer = open_event_layer(
        folder,
        config,
        population=population,
        sampling_probability=prepared.plan.training.sampling_probability,
    )
    with _resumable(folder), ledger:
        progress = Progress.open(
            folder.progress, log, patience=config.training.patience, begun=has_rounds(ledger)
        )
        # 4. Run the federation: statistics, then private rounds.
        result = _federate(config, prepared, folder, ledger, layer, progress)
        # 5. Measure it beside baselines on the same split.
        scorer = _scorer(config, prepared, result.weights, result.statistics)
        models = []
        if config.evaluation.split != "none":
            chosen = "" if progress.best is None else f"round {progress.best}"
            models = _compare(config, prepared, scorer, chosen)
        # 6. Write what explains the run.
        metrics = run_metrics(
            config,
            name=folder.path.name,
            seconds=time.monotonic() - started,
            log=prepared.log,
            split=prepared.split,
            table=prepared.population.table,
            encoder=prepared.encoder,
            result=result,
            validation=progress.validation,
            best_round=progress.best,
            models=models,
            ledger=ledger,
            local=None if layer is None else event_metrics(layer, config),
        )
    _write(folder, prepared, result, metrics)
    # 7. Lists for every user, on request.
    if options.recommendations is not None:
        write_recommendations(
            options.recommendations,
            scorer,
            prepared.log,
            k=options.top_k,
            include_seen=options.include_seen,
        )
    return {**metrics, "paths": _paths(folder, options)}


def read(config: RunConfig) -> tuple[InteractionLog, Split, Population]:
    """Read, clean and split the log; build the public item table.

    Raises:
        FedprofileError: the data can't be used.
    """
    remark(f"Reading {config.data.path}")
    log = load_log(config.data)
    for line in data_remarks(config.data, log.quality):
        remark(line, style="yellow")
    members = None
    if config.data.user_share < 1:
        members = taking_part(log.user_ids, config.data.user_share)
    split = make_split(log.histories, config.evaluation, members)
    if config.training.patience is not None and split.validation.repeated == 1:
        raise ConfigError(
            f"training.patience: all that users took in the validation part of {config.data.path} they had "
            "before, and validation asks for new items; leave patience unset, or move the cuts"
        )
    population = Population.of(
        split.train,
        user_ids=log.user_ids,
        table=build_item_table(log.catalogue, config.items),
        model=config.model,
        n_types=len(log.event_types),
    )
    if population.size < 2:
        raise DataError(
            f"{config.data.path}: {population.size} user has events before the cut; a federation "
            "needs two or more: give more data or a later cut"
        )
    kind = PRESETS.get(log.quality.preset)
    table = with_room(
        population.table,
        config.statistics,
        config.privacy,
        population_size=population.size,
        goods=kind is not None and kind.goods,
        trained=config.model.item_ids,
    )
    return log, split, replace(population, table=table)


def prepare(
    config: RunConfig,
    log: InteractionLog,
    split: Split,
    population: Population,
    earlier: tuple[Earlier, ...] = (),
) -> Prepared:
    """Calibrate the noise and build the untrained encoder for ``population``.

    ``earlier`` is what was spent on it before.

    Raises:
        FedprofileError: a value is out of range, or the budget allows no release.
    """
    init = randomness(config, label="model")
    encoder = build_encoder(
        config.model,
        blocks=population.table.blocks,
        n_items=population.table.n_items,
        n_types=len(log.event_types),
        seed=int(init.integers(1, below=2**62)[0]),
    )
    plan = plan_budget(
        config.privacy,
        config.training,
        population_size=population.size,
        sizes=Sizes.of(encoder, config.statistics, population.table),
        earlier=sum((other.events() for other in earlier), Counter()),
    )
    trainer = population.trainer(threads=config.engine.threads, compiled=config.engine.compile)
    remark(
        f"{population.size:,} devices, {log.n_items:,} items, {population.histories.n_events:,} "
        f"events to learn from; {sum(p.numel() for p in encoder.parameters()):,} shared weights"
    )
    if not population.table.has_content:
        _advise_on_bare_ids(config, plan)
    return Prepared(log, split, population, encoder, trainer, earlier, plan)


def _advise_on_bare_ids(config: RunConfig, plan: BudgetPlan) -> None:
    known = "Nothing is known of the items but ids: "
    if config.privacy.enabled:
        if plan.cooccurrence and config.training.rounds:
            remark(
                f"{known}rounds add little to what statistics tell of them. "
                "With [training] rounds = 0 the whole budget is theirs"
            )
    elif not config.model.item_ids:
        remark(
            f"{known}without privacy, trained vectors tell most of them. Set [model] item_ids = true, and "
            "the rounds of docs/quality.md"
        )


def _find_folder(config: RunConfig, options: SimulateOptions) -> RunFolder:
    if options.out is None:
        return RunFolder.stamped(Path(config.data.path).stem or "run")
    return RunFolder.reopen(options.out, config) if options.resume else RunFolder.new(options.out)


@contextmanager
def _resumable(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        remark("Interrupted. What was released stays charged.")
        remark(f"Go on with: fedprofile simulate --resume --out {shlex.quote(str(folder.path))}")
        raise


def _federate(
    config: RunConfig,
    prepared: Prepared,
    folder: RunFolder,
    ledger: Ledger,
    layer: EventLayer | None,
    kept: Progress,
) -> FederationResult:
    rounds, k = config.training.rounds, config.evaluation.k
    after = measured_rounds(rounds)
    held_out = prepared.split.validation.n_users and not prepared.split.refitted

    def measure(number: int, weights: Mapping[str, Tensor], statistics: ItemStatistics) -> str:
        if number not in after or not held_out:
            return ""
        scorer = _scorer(config, prepared, weights, statistics)
        quality = mean_ndcg(scorer, prepared.split.validation, k=k)
        kept.add(number, quality, weights)
        return f", validation NDCG@{k} {quality or 0:.4f}"

    def enough(checkpoint: Checkpoint, statistics: ItemStatistics) -> str | None:
        if checkpoint.round not in kept.validation:  # a kill came after the round and before this
            measure(checkpoint.round, checkpoint.weights, statistics)
        return kept.enough()

    with stage("Training", rounds) as progress:

        def on_round(
            record: RoundRecord, weights: Mapping[str, Tensor], statistics: ItemStatistics
        ) -> None:
            note = f"{record.trained:,} devices, {record.seconds:.1f} s"
            note += measure(record.round, weights, statistics)
            progress.advance(note, to=record.round)

        result = run_federation(
            config,
            name=folder.path.name,
            population=prepared.population,
            trainer=prepared.trainer,
            encoder=prepared.encoder,
            plan=prepared.plan,
            ledger=ledger,
            checkpoints=folder.checkpoints,
            now=statistics_time(config, prepared.split, prepared.population),
            on_round=on_round,
            enough=enough,
            budget_of=open_device_ledgers(
                folder,
                config,
                population=prepared.population,
                delta=prepared.plan.delta,
                randomness=randomness(config, label="device ledgers"),
            ),
            events=layer,
        )
    if ledger.stopped is None:
        ledger.stop(reason=result.stopped or "completed")
    elif result.stopped is None and ledger.stopped.reason != "completed":
        # A statistic that was refused isn't asked for again once there are rounds.
        result = replace(result, stopped=ledger.stopped.reason)
    if result.stopped:
        remark(f"Stopped before its last round: {result.stopped}")
    if kept.best is None:
        return result
    remark(
        f"Of the models measured on validation that of round {kept.best} was best: it is the result"
    )
    return replace(result, weights=kept.weights())


def _scorer(
    config: RunConfig,
    prepared: Prepared,
    weights: Mapping[str, Tensor],
    statistics: ItemStatistics,
) -> EncoderScorer:
    return EncoderScorer(
        encoder=prepared.encoder,
        weights=weights,
        table=statistics.fill(prepared.population.table),
        prior=statistics.current,
        model=config.model,
    )


def _write(
    folder: RunFolder, prepared: Prepared, result: FederationResult, metrics: dict[str, Any]
) -> None:
    weights = result.weights
    folder.write_model(
        weights,
        {
            "model": prepared.population.model.model_dump_json(),
            "blocks": json.dumps(prepared.population.table.blocks),
            "event_types": json.dumps(prepared.log.event_types),
            "item_table": prepared.population.table.content_hash,
            "hash": hash_of_weights({name: weight.numpy() for name, weight in weights.items()}),
        },
    )
    ids = weights[ID_TABLE].numpy() if ID_TABLE in weights else None
    table = result.statistics.fill(prepared.population.table)
    served = serving_table(table, prior=result.statistics.current, ids=ids)
    served.save(folder.items)
    folder.write_metrics(metrics)
    write_report(metrics, folder.report)


def _compare(
    config: RunConfig, prepared: Prepared, scorer: EncoderScorer, chosen: str
) -> list[ModelResult]:
    return compare(
        config,
        scorer=scorer,
        chosen=chosen,
        split=prepared.split,
        population=prepared.population,
        trainer=prepared.trainer,
        encoder=prepared.encoder,
    )


def _paths(folder: RunFolder, options: SimulateOptions) -> dict[str, str]:
    names = ("config", "metrics", "ledger", "anchor", "model", "items", "checkpoints", "report")
    paths = {"run": str(folder.path), **{name: str(getattr(folder, name)) for name in names}}
    if options.recommendations is not None:
        paths["recommendations"] = str(options.recommendations)
    return paths
