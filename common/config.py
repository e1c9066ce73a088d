"""The configuration of a run: TOML in, one validated object out, unknown keys refused."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, field_validator, model_validator

from .decay import Scale
from .errors import ConfigError
from .sections import Section, read_toml, validated


class ColumnMapping(Section):
    """Which column of the files holds what; names a preset leaves open."""

    user: str | None = Field(None, description="id of the user; unset: the preset's name")
    item: str | None = Field(None, description="id of the item")
    time: str | None = Field(None, description="when")
    event: str | None = Field(
        None, description="type of the event; '' where the preset's column is not to be used"
    )
    value: str | None = Field(None, description="quantity, rating or duration")
    session: str | None = Field(None, description="basket or visit")
    text: str | None = Field(None, description="what the item is called")
    category: str | None = Field(None, description="kind of the item")
    price: str | None = Field(None, description="price of the item")


class DataConfig(Section):
    """Where interactions come from and how they are cleaned."""

    path: str = Field(
        "synthetic",
        description="'synthetic' or 'sequences' (built in), a file, or a folder of files",
    )
    preset: str = Field("auto", description="layout or domain; 'auto' tells the layout by columns")
    items: str | None = Field(None, description="item table file: item_id,text,category,price,…")
    columns: ColumnMapping = ColumnMapping()
    event_weights: dict[str, float] = Field(
        default_factory=dict, description="event type → weight; ≤ 0 drops the event"
    )
    minimum_user_events: int = Field(2, ge=1, description="users with fewer are removed")
    minimum_item_events: int = Field(1, ge=1, description="items with fewer are removed")
    session_gap_minutes: float = Field(
        30.0, gt=0, description="a longer pause starts a new session where none is given"
    )
    group_column: str | None = Field(
        None,
        min_length=1,
        description="what users are grouped by where fairness is shown: an attribute that the preset "
        "knows, such as country, or another column; unset: by activity alone",
    )
    user_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the users who take part, by a hash of their ids; the catalogue, the cuts "
        "and the cleaning stay those of all",
    )
    synthetic_users: int = Field(4_000, ge=1, description="users of the built-in population")
    synthetic_items: int = Field(1_500, ge=2, description="items of the built-in population")
    synthetic_seed: int = Field(0, description="another one, another population of the same kind")


class StatisticsConfig(Section):
    """One-shot statistics that devices release before training: popularity, and what goes together."""

    half_lives_days: tuple[float, ...] = Field(
        (14.0,),
        description="time scales of recent popularity, which ranks; without any, all time does",
    )
    as_of: dt.date | None = Field(
        None,
        description="day from whose start ages count back; unset: the day from which nothing is trained "
        "on (evaluation.validation_from, or test_from with evaluation.refit), or "
        "where that is unset a moment read off the data, which then counts as public",
    )

    cooccurrence: int | None = Field(
        None,
        ge=0,
        description="length of the vectors that items get from what is taken close together; 0: none; "
        "unset: 64, or none for goods with texts (presets online-retail-ii and shop)",
    )

    whole_histories: bool | None = Field(
        None,
        description="release which items are held together in whole histories, and not what is taken close "
        "together; unset: so for goods, under privacy only for those without texts",
    )

    @model_validator(mode="after")
    def _check(self) -> StatisticsConfig:
        if self.whole_histories and self.cooccurrence is not None:
            raise ValueError(
                "cooccurrence is of what is taken close together, and whole_histories in place of it: "
                "leave one of them unset"
            )
        if any(days <= 0 for days in self.half_lives_days):
            raise ValueError("half_lives_days must be positive")
        return self


class ItemsConfig(Section):
    """How public item vectors are made from catalogue content."""

    text_encoder: Literal["tfidf", "hashed", "sentence"] = Field(
        "tfidf", description="'sentence' is pretrained and needs fedprofile[text]"
    )
    dimension: int = Field(128, ge=4, description="columns of the text block")
    sentence_model: str = Field(
        "all-MiniLM-L6-v2", description="name or folder, for text_encoder = 'sentence'"
    )


class ModelConfig(Section):
    """The shared encoder."""

    encoder: Literal["transformer", "gru", "mean", "dense"] = Field(
        "dense",
        description="what reads the recent window; 'dense' reads none of it, and learns from decayed "
        "interests alone. Unset, with item_ids: 'transformer'",
    )
    width: int = Field(32, ge=4, description="of the hidden layers; a multiple of heads")
    layers: int = Field(1, ge=1, description="of the Transformer")
    heads: int = Field(2, ge=1, description="of the Transformer's attention")
    window: int = Field(32, ge=2, description="recent events the encoder reads")
    half_lives_days: tuple[float, ...] = Field(
        (7.0, 60.0, 365.0), description="time scales of the decayed interest sums, by the clock"
    )
    half_lives_events: tuple[float, ...] = Field(
        (2.0,),
        description="time scales counted in distinct event times (in a shop's log, visits): what "
        "somebody came for lately, however long ago that was",
    )
    item_ids: bool = Field(False, description="add a trainable vector per item")
    item_id_dimension: int = Field(32, ge=1, description="length of that vector")

    @model_validator(mode="before")
    @classmethod
    def _read_items_one_by_one(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("item_ids") and "encoder" not in values:
            return {**values, "encoder": "transformer"}
        return values

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.item_ids and self.encoder == "dense":
            raise ValueError(
                "encoder = 'dense' reads no item by itself, and item_ids would go unread; set "
                "item_ids = false, or another encoder"
            )
        if not self.half_lives or min(self.half_lives) <= 0:
            raise ValueError(
                "half_lives_days and half_lives_events need at least one number, all positive"
            )
        return self

    @property
    def half_lives(self) -> tuple[float, ...]:
        """All half-lives: those by the clock, then those counted in events."""
        return self.half_lives_days + self.half_lives_events

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Time scales of the decayed interest sums, in the order of :attr:`half_lives`."""
        return tuple(Scale("days", h) for h in self.half_lives_days) + tuple(
            Scale("events", h) for h in self.half_lives_events
        )


class TrainingConfig(Section):
    """Rounds, what a device does in one, and the server's step."""

    rounds: int = Field(150, ge=0, description="0: statistics alone are released")
    local_steps: int = Field(1, ge=1, description="of SGD, on a device in a round")
    local_learning_rate: float = Field(0.1, gt=0, description="of those steps")
    negatives: int = Field(128, ge=1, description="random items shared by the cohort, per step")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each hidden layer's numbers that is left out while training",
    )
    targets: Literal["new", "all"] = Field(
        "new", description="learn to predict first encounters only, or every event"
    )
    server_optimizer: Literal["fedadam", "fedavg"] = Field(
        "fedadam", description="what steps along the noisy mean update"
    )
    server_learning_rate: float = Field(0.01, gt=0, description="of that step")
    server_momentum: float = Field(0.9, ge=0, lt=1, description="β₁ of FedAdam, momentum of FedAvg")
    sampling_probability: float | None = Field(
        None, gt=0, le=1, description="Poisson rate q; unset: min(1, cohort / population)"
    )
    cohort: int = Field(400, ge=1, description="expected devices a round, where q is unset")
    averaging: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the last rounds whose models are averaged; with patience none are",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="in simulations without privacy: measurements on the validation part, ten a run at "
        "most, without a better NDCG@k after which training stops; the best model that was measured is "
        "kept. Unset: all rounds",
    )

    def rate(self, population_size: int) -> float:
        """Poisson rate q over so many devices."""
        return self.sampling_probability or min(1.0, self.cohort / population_size)


class LocalPrivacyConfig(Section):
    """Event-level DP-SGD on each device, against the server itself; counted apart, never added."""

    enabled: bool = Field(
        False, description="needs split.popularity = 0: statistics have no event-level noise"
    )
    epsilon: float = Field(
        8.0,
        gt=0,
        description="event-level budget of a device over its lifetime; spent, it declines",
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="δ of the event-level guarantee")
    noise_multiplier: float | None = Field(
        None, gt=0, description="unset: calibrated so that all planned visits fit into epsilon"
    )
    visits: int | None = Field(
        None,
        ge=1,
        description="rounds that a device is planned to answer; unset: two standard deviations above "
        "the expected number",
    )
    clip_norm: float = Field(1.0, gt=0, description="bound on the norm of one example's gradient")
    max_examples: int = Field(
        16, ge=1, description="n, public: slots that a device learns from, one period of time each"
    )
    period_days: float = Field(
        28.0, gt=0, description="length of a period: all events in it are one example"
    )
    batch_size: float = Field(
        8.0, gt=0, description="expected slots in a step, each drawn at the rate batch_size / n"
    )

    @model_validator(mode="after")
    def _check(self) -> LocalPrivacyConfig:
        if self.batch_size > self.max_examples:
            raise ValueError(f"batch_size must be at most max_examples ({self.max_examples})")
        return self


class SplitConfig(Section):
    """How the budget is spread over releases, as shares of μ² (Gaussian DP); rounds have what is left."""

    popularity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share for popularity; unset: by population, items, weights and epsilon, as --plan "
        "shows",
    )
    cooccurrence: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share for what is taken together; unset: as before, or 0 where popularity's is set. "
        "Where rounds = 0 both have everything, in these proportions",
    )

    @model_validator(mode="after")
    def _check(self) -> SplitConfig:
        first, second = self.popularity, self.cooccurrence
        if second is not None and first is None:
            raise ValueError("set privacy.split.popularity, too: one share alone tells no split")
        if second and not first:
            raise ValueError(
                "popularity says which items are compared: give it a share, or none to cooccurrence"
            )
        if (first or 0) + (second or 0) >= 1:
            raise ValueError("popularity and cooccurrence together must be below 1")
        return self


class PrivacyConfig(Section):
    """User-level central DP."""

    enabled: bool = Field(True, description="false: no clip, no noise, ε is infinite")
    epsilon: float = Field(8.0, gt=0, description="budget of the whole run")
    delta: float | None = Field(None, gt=0, lt=1, description="unset: population^-1.1")
    clip_norm: float = Field(0.04, gt=0, description="bound on the norm of a device's update")
    noise_multiplier: float | None = Field(
        None, gt=0, description="unset: calibrated so that all rounds fit into epsilon"
    )
    split: SplitConfig = SplitConfig()
    local: LocalPrivacyConfig = LocalPrivacyConfig()

    @field_validator("epsilon", mode="before")
    @classmethod
    def _epsilon(cls, value: Any) -> Any:
        if value == math.inf:
            raise ValueError(
                "must be a finite number; no privacy at all, for research only, is simulate --no-privacy, "
                "or enabled = false in [privacy]"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> PrivacyConfig:
        if self.local.enabled and (self.split.popularity != 0 or not self.enabled):
            raise ValueError(
                "privacy.local hides events in updates, and popularity would leave devices beside them "
                "in clear; set privacy.split.popularity = 0 and keep privacy.enabled = true"
            )
        return self


class EvaluationConfig(Section):
    """Split and metrics."""

    split: Literal["global-time", "leave-one-out", "none"] = Field(
        "global-time", description="what is held out"
    )
    validation_from: dt.date | None = Field(
        None, description="first day held out for validation; with test_from, or neither"
    )
    test_from: dt.date | None = Field(None, description="first day held out for the test")
    validation_quantile: float = Field(
        0.8, gt=0, lt=1, description="share of events before the cut, where no date is set"
    )
    test_quantile: float = Field(0.9, gt=0, lt=1, description="the same for the test")
    refit: bool = Field(
        False,
        description="train on the validation part, too: for last figures, with settings that were chosen "
        "without it. Baselines are chosen on validation and fitted anew",
    )
    k: int = Field(10, ge=1, description="length of the lists that are measured")
    bootstrap_samples: int = Field(1_000, ge=0, description="resamples of users; 0: no intervals")
    baselines: bool = Field(True, description="measure other models beside the run's own")

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        if (self.validation_from is None) != (self.test_from is None):
            raise ValueError("validation_from and test_from go together: give both or none")
        if (
            self.validation_from is not None
            and self.test_from is not None
            and self.validation_from >= self.test_from
        ):
            raise ValueError("validation_from must be before test_from")
        if self.validation_quantile >= self.test_quantile:
            raise ValueError("validation_quantile must be below test_quantile")
        return self


class EngineConfig(Section):
    """How devices are simulated; changes speed, never results."""

    kind: Literal["local", "ray"] = Field(
        "local", description="this process, or Flower's Ray engine (fedprofile[ray])"
    )
    devices_per_host: int = Field(
        4_096, ge=1, description="devices that one Flower node speaks for"
    )
    threads: int = Field(0, ge=0, description="0: as many as cores")
    compile: bool = Field(
        False,
        description="a native training step for the Transformer; needs a C++ compiler; "
        "other encoders, and any with training.dropout, train as without it",
    )


class LedgerConfig(Section):
    """Whose budget is charged, and where ledgers, key and anchor are kept."""

    population: str | None = Field(
        None, min_length=1, description="name of the users in all their ledgers; unset: the data's"
    )
    earlier: tuple[str, ...] = Field(
        (), description="ledgers or run folders of the same population whose releases count too"
    )
    signing_key: str | None = Field(
        None, description="PEM file, made where missing; unset: in the run folder"
    )
    anchor: str | None = Field(
        None, description="file that the head is published in; unset: in the run folder"
    )
    devices: int = Field(
        0, ge=0, description="devices, drawn at random, that keep ledgers of their own"
    )
    device_epsilon: float | None = Field(
        None,
        gt=0,
        description="user-level ε that each of them allows over its lifetime, without amplification; "
        "unset: recorded and not enforced",
    )
    device_folder: str | None = Field(
        None,
        description="folder of their ledgers, which runs may share; unset: devices in the run folder",
    )


_PLACES = ("signing_key", "anchor", "device_folder")
"""Of a run's ledgers: where files are decides nothing."""


class RunConfig(Section):
    """Everything that defines a run."""

    seed: int | None = Field(
        None, ge=0, description="makes the run repeatable; noise is then not secret"
    )
    data: DataConfig = DataConfig()
    items: ItemsConfig = ItemsConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ledger: LedgerConfig = LedgerConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.privacy.local.enabled and not self.training.rounds:
            raise ValueError("privacy.local needs training.rounds of 1 or more: it hides updates")
        if self.privacy.local.enabled and self.model.item_ids:
            raise ValueError(
                "privacy.local can't train model.item_ids: the ID table also scores items (tied "
                "weights), which gradients of single examples miss; set model.item_ids = false"
            )
        if self.training.patience is not None:
            self._check_patience()
        return self

    def _check_patience(self) -> None:
        if self.privacy.enabled:
            raise ValueError(
                "training.patience chooses a model by what users of the validation part did, which no ε "
                "covers; leave it unset, or train without privacy (simulate --no-privacy, or enabled = "
                "false in [privacy])"
            )
        if not self.training.rounds:
            raise ValueError("training.patience needs training.rounds of 1 or more: it ends them")
        if self.evaluation.split == "none":
            raise ValueError(
                "training.patience needs a validation part, and evaluation.split = 'none' holds nothing "
                "out; choose another split, or leave patience unset"
            )
        if self.evaluation.refit:
            raise ValueError(
                "training.patience can't go with evaluation.refit, which trains on the validation part; "
                "find the best round without refit first, then set training.rounds to it and "
                "training.averaging to 0, leave patience unset, and set refit = true"
            )

    def deciding(self) -> dict[str, Any]:
        """What decides the result: all but ``engine`` and where files of the ledgers are."""
        return self.model_dump(mode="json", exclude={"engine": True, "ledger": set(_PLACES)})

    def digest(self) -> str:
        """SHA-256 of :meth:`deciding`."""
        content = self.deciding()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def placed(self) -> RunConfig:
        """With absolute paths to what its ledgers need, for whoever reads it in another folder."""
        named = {key: getattr(self.ledger, key) for key in _PLACES}
        absolute = {k: str(Path(v).absolute()) for k, v in named.items() if v is not None}
        return self.model_copy(update={"ledger": self.ledger.model_copy(update=absolute)})

    def to_toml(self) -> str:
        """The complete configuration as TOML; unset values are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def load_config(path: Path | None, overrides: dict[str, dict[str, Any]] | None = None) -> RunConfig:
    """Read ``path`` (defaults where None) and lay command-line ``overrides`` over it.

    Args:
        path: a TOML file with the sections of :class:`RunConfig`.
        overrides: section → key → value; the section ``""`` is the top level; None values are unset.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is out of range.
    """
    content = {} if path is None else read_toml(path)
    for section, values in (overrides or {}).items():
        target = content if section == "" else content.setdefault(section, {})
        if isinstance(target, dict):
            target.update({key: value for key, value in values.items() if value is not None})
    where = f"{path}: " if path is not None else ""
    documented = "docs/configuration.md"
    try:
        config = validated(RunConfig, content, where=where, documented=documented)
    except ConfigError as found:
        try:
            alone = {} if path is None else read_toml(path)
            validated(RunConfig, alone, where="", documented=documented)
        except ConfigError as own:  # perhaps of what an option has put right
            if str(own) in str(found):
                raise ConfigError(f"{where}{own}") from own
        # The file isn't at fault, so it isn't named.
        config = validated(RunConfig, content, where="", documented=documented)
    try:
        config.to_toml().encode()
    except UnicodeEncodeError as error:
        line = error.object[: error.end].rpartition("\n")[2]
        raise ConfigError(f"{line!r}…: not UTF-8 text; rename the file") from error
    return config
