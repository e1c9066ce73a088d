"""``server.toml``: what the operator of a federation decides, validated."""

from __future__ import annotations

import re
from pathlib import Path

import tomli_w
from pydantic import Field, field_validator, model_validator

from .config import (
    ItemsConfig,
    LedgerConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    StatisticsConfig,
    TrainingConfig,
)
from .sections import Section, read_toml, validated
from .strength import Statement, weaknesses

_HOST = re.compile(r"[A-Za-z0-9_.:%-]+")


class FederationConfig(Section):
    """Who takes part, and where they meet."""

    name: str = Field(
        "federation", min_length=1, max_length=64, description="of the run and of its population"
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="name or address that devices connect to"
    )
    port: int = Field(9443, ge=1, le=65535, description="that devices connect to")
    listen: str | None = Field(
        None, min_length=1, description="address to listen on; unset: that of host"
    )
    population_size: int = Field(
        1_000, ge=1, description="N, devices that may be enrolled; public, decides q, δ and divisor"
    )
    earlier: tuple[str, ...] = Field(
        (),
        description="ledgers, or folders of servers or runs, of the same population, whose releases count "
        "too; relative to the server's folder, and read when the first release is paid for",
    )
    event_types: tuple[str, ...] = Field(
        ("view", "like", "cart", "purchase"), min_length=1, description="that devices record"
    )
    lifetime_epsilon: float = Field(
        8.0,
        ge=0,
        description="lifetime ε that all owners allow (policy.lifetime_epsilon of a device): releases get "
        "enough noise that a device can answer all that it may be asked; 0: not looked at",
    )
    lifetime_delta: float = Field(1e-6, gt=0, lt=1, description="δ of that")
    quorum: int = Field(1, ge=1, description="devices that must be online for a round to begin")
    round_timeout_seconds: float = Field(
        600.0, gt=0, description="a round waits no longer for replies; later ones are refused"
    )
    round_interval_seconds: float = Field(
        0.0, ge=0, description="from the start of a round to that of the next, at least"
    )
    release_every: int = Field(
        10, ge=0, description="rounds between models handed out; 0: only the last one"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Prometheus on 127.0.0.1; 0: no metrics"
    )

    @field_validator("host", "listen")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        if value is not None and not _HOST.fullmatch(value):
            raise ValueError(
                f"{value!r} is neither a name nor an address of a host; write it like "
                "federation.example.org, 192.0.2.7 or 2001:db8::7"
            )
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not value.strip() or not value.isprintable():
            raise ValueError("must be printable characters on one line")
        return value

    @model_validator(mode="after")
    def _check(self) -> FederationConfig:
        if self.quorum > self.population_size:
            raise ValueError("quorum can't be above population_size")
        if len(set(self.event_types)) < len(self.event_types):
            raise ValueError("event_types names one twice")
        if self.metrics_port == self.port:
            raise ValueError("metrics_port can't be port: the two are served apart")
        return self


class ServerConfig(Section):
    """Everything that defines a deployed federation."""

    federation: FederationConfig = FederationConfig()
    items: ItemsConfig = ItemsConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    privacy: PrivacyConfig = PrivacyConfig()

    @model_validator(mode="after")
    def _check(self) -> ServerConfig:
        if self.statistics.as_of is None:
            raise ValueError(
                "statistics.as_of must be set: devices don't share a clock to read it off"
            )
        if self.privacy.local.enabled:
            raise ValueError("privacy.local is for simulations: devices of a server don't offer it")
        if self.training.patience is not None:
            raise ValueError(
                "training.patience is for simulations: a server has no validation part to stop by; leave "
                "it unset"
            )
        return self

    @property
    def delta(self) -> float:
        """δ of the guarantee: as set, or N^-1.1."""
        from .accounting import default_delta  # loads what only accounting needs

        given = self.privacy.delta
        return default_delta(self.federation.population_size) if given is None else given

    def warnings(self) -> list[Statement]:
        """What makes the planned guarantee say little, to be said before anything is spent."""
        if not self.privacy.enabled:
            return []
        population = self.federation.population_size
        return list(weaknesses(self.privacy.epsilon, delta=self.delta, population_size=population))

    def run(self) -> RunConfig:
        """What a simulation calls its configuration; its digest names what decides the result."""
        return RunConfig(
            items=self.items,
            statistics=self.statistics,
            model=self.model,
            training=self.training,
            privacy=self.privacy,
            ledger=LedgerConfig(population=self.federation.name),
        )

    def to_toml(self) -> str:
        """The complete configuration as TOML; unset values are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def load_server_config(path: Path) -> ServerConfig:
    """Read ``server.toml``.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is out of range.
    """
    return validated(
        ServerConfig, read_toml(path), where=f"{path}: ", documented="docs/server-configuration.md"
    )
