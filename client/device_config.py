"""``device.toml``: what a device's owner decides, validated."""

from __future__ import annotations

import re
from pathlib import Path

import tomli_w
from pydantic import Field, field_validator

from ..common.sections import Section, read_toml, validated


class StoreConfig(Section):
    """Where the key of the encrypted store is, and how long events are kept."""

    key_file: str = Field(
        "store.key", description="file with the key, mode 0600; relative to the device's folder"
    )
    keyring: str | None = Field(
        None,
        min_length=1,
        description="entry of the OS keyring that holds the key instead (fedprofile[keyring])",
    )
    retention_days: int | None = Field(
        None, ge=1, description="events older than this are erased; unset: kept"
    )
    retention_events: int | None = Field(
        None, ge=1, description="beyond so many the oldest are erased; unset: kept"
    )


class EventsConfig(Section):
    """What a recorded event means."""

    weights: dict[str, float] = Field(
        default_factory=dict,
        description="event type → weight, 1 where absent; one of ≤ 0 is kept and not learned from",
    )
    session_gap_minutes: float = Field(
        30.0, gt=0, description="a longer pause starts a new session where none is given"
    )

    @field_validator("weights")
    @classmethod
    def _names(cls, weights: dict[str, float]) -> dict[str, float]:
        return {event_name(name): weight for name, weight in weights.items()}


class ApiConfig(Section):
    """The local service."""

    socket: str = Field(
        "run/api.sock",
        description="Unix socket, in a folder of mode 0700; relative to the device's folder",
    )


class PolicyConfig(Section):
    """When this device takes part in a round; checked before every fit, after consent and pause."""

    power: bool = Field(True, description="only on mains power")
    idle: bool = Field(True, description="only while the system is idle")
    unmetered: bool = Field(True, description="only on a network that isn't metered")
    minimum_battery: float = Field(
        0.3, ge=0, le=1, description="share of the battery's charge, where there is one"
    )
    rounds_per_day: int = Field(24, ge=0, description="rounds of training a day at most")
    niceness: int = Field(
        10, ge=0, le=19, description="how far training gives way to everything else"
    )
    minimum_noise_multiplier: float = Field(
        0.5, ge=0, description="refuse rounds with less noise than this"
    )
    maximum_clip_norm: float = Field(
        1.0, gt=0, description="refuse rounds with a larger bound on the update than this"
    )
    lifetime_epsilon: float = Field(
        8.0, gt=0, description="refuse rounds once the device's own ledger would exceed this"
    )
    lifetime_delta: float = Field(1e-6, gt=0, lt=1, description="δ of that budget")


class DeviceConfig(Section):
    """Everything that the owner of a device decides."""

    name: str = Field(min_length=1, max_length=64, description="of the device, for its owner")
    store: StoreConfig = StoreConfig()
    events: EventsConfig = EventsConfig()
    api: ApiConfig = ApiConfig()
    policy: PolicyConfig = PolicyConfig()

    def to_toml(self) -> str:
        """The complete configuration as TOML; unset values are left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def load_device_config(path: Path) -> DeviceConfig:
    """Read ``device.toml``.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value is out of range.
    """
    return validated(
        DeviceConfig, read_toml(path), where=f"{path}: ", documented="docs/device-configuration.md"
    )


def event_name(text: str) -> str:
    """``Add to-Cart`` and ``add_to_cart`` are one event type."""
    return re.sub(r"[ -]", "_", text.strip().lower())
