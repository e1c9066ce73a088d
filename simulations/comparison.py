"""The run's model beside honest baselines, on the same split, users and metrics.

Baselines pool everybody's data and are not private; each has its settings chosen on validation, and
the encoder trained centrally is the ceiling of what a federation could learn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..client.local_training import Trainer
from ..common.config import RunConfig
from ..common.console import stage
from ..common.encoder import Encoder
from ..common.items import ItemTable
from ..common.ledger import Ledger
from ..common.signing import SigningKey
from ..server.budget import plan_budget
from ..server.split import Sizes
from .baselines import MAXIMUM_EASE_ITEMS, Popularity, tuned_baselines
from .bootstrap import Interval, paired_difference
from .evaluation import Evaluation, Scorer, evaluate, score_chunks
from .exact_statistics import exact_statistics
from .federate import run_federation, statistics_time
from .metrics import rank_metrics
from .models import EncoderScorer, LocalOnly, train_centrally
from .population import Population
from .splits import Split, Targets

LABELS = {
    "federated": "Federated encoder (this run)",
    "federated-no-dp": "Federated encoder without DP",
    "central": "Same encoder trained centrally",
    "local-only": "Same encoder, each device alone",
    "popularity": "Popularity",
    "recent-popularity": "Popularity of recent weeks",
    "content-cosine": "Content cosine",
    "item-knn": "Item-kNN on the decayed profile",
    "ease": "EASE on the decayed profile",
    "personal-frequency": "Personal frequency",
}
"""Key of a model → what people call it."""

CLASSICAL = "classical baselines"
"""Those of :mod:`.baselines`, in :func:`references`."""

_ASIDE = {"personal-frequency": "new items stand in popularity's order"}
"""Key of a baseline that adds nothing on new items → why."""

_EPOCHS, _STEPS_OF_IDS, _PATIENCE, _MOST_EPOCHS = 6, 500, 2, 100
"""Of central training: the least, without and with a table of ids; without a better one; the most."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that is to be measured; see :class:`ModelResult`."""

    key: str
    kind: str
    private: bool
    scorer: Scorer
    settings: str
    aside: str = ""


Maker = Callable[[], list[Candidate]]


@dataclass(frozen=True, eq=False)
class ModelResult:
    """One model in the comparison.

    Attributes:
        key: short name.
        kind: ``ours``, ``baseline`` or ``ceiling``.
        private: whether its release is covered by the run's guarantee.
        test: quality on the test targets.
        validation_ndcg: mean NDCG@k on new items of the validation targets; None where the model was
            trained on them.
        settings: what validation chose.
        difference: NDCG@k of the run's own model minus this one's, paired by user, new items.
        difference_all: the same on all items.
        aside: why the model doesn't count as a baseline on new items; empty where it does.
    """

    key: str
    kind: str
    private: bool
    test: Evaluation
    validation_ndcg: float | None
    settings: str
    difference: Interval | None
    difference_all: Interval | None
    aside: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return {
            "key": self.key,
            "label": LABELS[self.key],
            "kind": self.kind,
            "private": self.private,
            "test": self.test.to_dict(),
            "validation_ndcg": self.validation_ndcg,
            "settings": self.settings,
            "difference": self.difference.to_dict() if self.difference else None,
            "difference_all": self.difference_all.to_dict() if self.difference_all else None,
            "aside": self.aside,
        }


def compare(
    config: RunConfig,
    *,
    scorer: EncoderScorer,
    chosen: str,
    split: Split,
    population: Population,
    trainer: Trainer,
    encoder: Encoder,
) -> list[ModelResult]:
    """Measure the run's model, first, and unless switched off all it should be held against.

    ``chosen`` says what validation chose of the run's own model, if anything.
    """
    candidates = [Candidate("federated", "ours", config.privacy.enabled, scorer, chosen)]
    counts = Popularity.fit(split.train, population.table)
    if config.evaluation.baselines:
        makers: dict[str, Maker] = {}
        if config.privacy.enabled:
            makers["federated without DP"] = lambda: [
                _without_privacy(config, population, trainer, encoder, split)
            ]
        makers |= references(
            config, split=split, population=population, trainer=trainer, encoder=encoder
        )
        with stage("Baselines", len(makers)) as progress:
            for name, make in makers.items():
                candidates += make()
                progress.advance(name)
    # What devices rank with: what is taken together makes items alike too, once it is released.
    return _measure(candidates, config, split, scorer.table, counts)


def left_out(config: RunConfig, n_items: int, content: bool) -> Iterator[str]:
    """Which models a comparison goes without, and why, in words.

    Args:
        config: of the run or sweep.
        n_items: of the catalogue.
        content: whether anything is known of the items but ids.
    """
    if not config.evaluation.baselines or config.evaluation.split == "none":
        return
    if not content:
        yield (
            "Content cosine is not among the baselines: of the items nothing is known but ids, so there "
            "is no content to go by."
        )
    if config.model.item_ids:
        yield (
            "The encoder trained on each device alone is not among the baselines: alone, a device would "
            "learn vectors of its own items only."
        )
    if n_items > MAXIMUM_EASE_ITEMS:
        yield (
            f"EASE is not among the baselines: of more than {MAXIMUM_EASE_ITEMS:,} items it takes too much "
            "time and memory."
        )


def references(
    config: RunConfig,
    *,
    split: Split,
    population: Population,
    trainer: Trainer,
    encoder: Encoder,
) -> dict[str, Maker]:
    """What no ε changes: models that see everything in clear, or nothing of others, by what they are
    called together; each is made when it is asked for."""

    def local() -> list[Candidate]:
        table = population.table
        alone = LocalOnly(encoder, table, config.model, config.training, trainer)
        aside = "" if table.has_content else "ids tell a device alone nothing of new items"
        return [Candidate("local-only", "baseline", True, alone, "nothing is shared", aside)]

    def classical() -> list[Candidate]:
        without = () if population.table.has_content else ("content-cosine",)
        tuned = tuned_baselines(split, population.table, k=config.evaluation.k, without=without)
        return [
            Candidate(name, "baseline", False, model, _settings(model), _ASIDE.get(name, ""))
            for name, model in tuned.items()
        ]

    makers: dict[str, Maker] = {
        "central training": lambda: [_central(config, population, trainer, encoder, split)]
    }
    if not config.model.item_ids:
        makers["local only"] = local
    return {**makers, CLASSICAL: classical}


def _measure(
    candidates: Sequence[Candidate],
    config: RunConfig,
    split: Split,
    table: ItemTable,
    counts: Popularity,
) -> list[ModelResult]:
    evaluation = config.evaluation

    def ahead(view: str, test: Evaluation) -> Interval | None:
        """Of the run's own model, which is the first."""
        if not results:
            return None
        ours, theirs = (getattr(found, view).ranks for found in (results[0].test, test))
        return paired_difference(ours, theirs, samples=evaluation.bootstrap_samples)

    results: list[ModelResult] = []
    with stage("Measuring", len(candidates)) as progress:
        for candidate in candidates:
            test = evaluate(
                candidate.scorer,
                split.test,
                table,
                counts.counts,
                k=evaluation.k,
                bootstrap_samples=evaluation.bootstrap_samples,
            )
            validation = None
            if not split.refitted:
                validation = mean_ndcg(candidate.scorer, split.validation, k=evaluation.k)
            results.append(
                ModelResult(
                    candidate.key,
                    candidate.kind,
                    candidate.private,
                    test,
                    validation,
                    candidate.settings,
                    ahead("new_items", test),
                    ahead("all_items", test),
                    candidate.aside,
                )
            )
            progress.advance(candidate.key)
    return results


def mean_ndcg(scorer: Scorer, targets: Targets, *, k: int) -> float | None:
    """Mean NDCG@k on new items; None without targets."""
    found = [
        rank_metrics(scores, chunk, k=k, mask_seen=True).ndcg
        for chunk, scores in score_chunks(scorer, targets)
    ]
    values = np.concatenate(found) if found else np.zeros(0)
    return float(values.mean()) if len(values) else None


def _without_privacy(
    config: RunConfig,
    population: Population,
    trainer: Trainer,
    encoder: Encoder,
    split: Split,
) -> Candidate:
    """The same federation without clip and noise, in a scratch folder."""
    privacy = config.privacy.model_copy(update={"enabled": False})
    open_config = config.model_copy(update={"privacy": privacy})
    sizes = Sizes.of(encoder, config.statistics, population.table)
    plan = plan_budget(privacy, config.training, population_size=population.size, sizes=sizes)
    with tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch:
        ledger = Ledger.create(
            Path(scratch) / "ledger.jsonl",
            signing_key=SigningKey.generate(),
            population="without-privacy",
            population_size=population.size,
            delta=plan.delta,
            target_epsilon=None,
            randomness="csprng" if config.seed is None else "seeded",
            code_version="",
            config_digest=open_config.digest(),
        )
        with ledger:
            result = run_federation(
                open_config,
                name="without-privacy",
                population=population,
                trainer=trainer,
                encoder=encoder,
                plan=plan,
                ledger=ledger,
                checkpoints=Path(scratch) / "checkpoints",
                now=statistics_time(config, split, population),
                on_round=lambda *_: None,
            )
    scorer = EncoderScorer(
        encoder=encoder,
        weights=result.weights,
        table=result.statistics.fill(population.table),
        prior=result.statistics.current,
        model=config.model,
    )
    return Candidate("federated-no-dp", "ceiling", False, scorer, "same settings")


def _central(
    config: RunConfig,
    population: Population,
    trainer: Trainer,
    encoder: Encoder,
    split: Split,
) -> Candidate:
    """The ceiling: of as many epochs as help, the one that is best on validation."""

    def epochs(of: Population, now: int) -> Iterator[tuple[int, EncoderScorer]]:
        """Steps so far, and the model after each epoch."""
        known = exact_statistics(of, config.statistics, now=now)
        table = known.fill(of.table)
        trained = train_centrally(
            known.begin(dict(encoder.named_parameters()), table),
            of.histories,
            keys=of.keys,
            table=table,
            prior=known.long_run,
            model=config.model,
            training=config.training,
            trainer=trainer,
            seed=config.seed or 0,
        )
        for steps, weights in islice(trained, _MOST_EPOCHS):
            yield steps, EncoderScorer(encoder, weights, table, known.current, config.model)

    now = statistics_time(config, split, population)
    if not split.refitted:
        best_epoch, best = _best_epoch(epochs(population, now), config, split)
        return Candidate("central", "ceiling", False, best, f"epoch {best_epoch}")
    # What is tested is trained as long as was best without the validation part.
    before = replace(population, histories=split.choosing.take(population.users))
    earlier = now if split.validation_time is None else min(now, split.validation_time)
    best_epoch, _ = _best_epoch(epochs(before, earlier), config, split)
    _, again = next(islice(epochs(population, now), best_epoch - 1, None))
    return Candidate("central", "ceiling", False, again, f"epoch {best_epoch}")


def _best_epoch(
    epochs: Iterator[tuple[int, EncoderScorer]], config: RunConfig, split: Split
) -> tuple[int, EncoderScorer]:
    """Number, from 1, and model of the epoch that is best on validation; the last one without targets."""
    best: EncoderScorer | None = None
    best_epoch, best_quality = 0, -1.0
    for epoch, (steps, scorer) in enumerate(epochs, 1):
        quality = mean_ndcg(scorer, split.validation, k=config.evaluation.k)
        # Ids take some hundred steps before they tell anything.
        enough = steps >= _STEPS_OF_IDS if config.model.item_ids else epoch >= _EPOCHS
        if quality is None:  # nothing to stop by
            best, best_epoch = scorer, epoch
            if enough:
                break
        elif quality > best_quality:
            best, best_epoch, best_quality = scorer, epoch, quality
        elif enough and epoch - best_epoch >= _PATIENCE:
            break
    assert best is not None, "there is a first epoch"
    return best_epoch, best


def _settings(model: Scorer) -> str:
    scale = getattr(model, "scale", None)
    return f"half-life {scale.half_life:g} {scale.clock}" if scale is not None else ""
