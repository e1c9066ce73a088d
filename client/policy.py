"""What a device agrees to: checked before every fit, on the device, by its owner's settings."""

from __future__ import annotations

from ..common.errors import TaskRefused
from .conditions import Conditions
from .device_config import PolicyConfig


def check_conditions(policy: PolicyConfig, conditions: Conditions) -> None:
    """Refuse to work when the owner doesn't want it to.

    Raises:
        TaskRefused: reason ``power``, ``battery``, ``idle`` or ``metered``.
    """
    if policy.power and conditions.on_power is False:
        raise TaskRefused("power", "not on mains power")
    if conditions.battery is not None and conditions.battery < policy.minimum_battery:
        raise TaskRefused("battery", f"battery at {conditions.battery:.0%}")
    if policy.idle and conditions.idle is False:
        raise TaskRefused("idle", "the system is in use")
    if policy.unmetered and conditions.metered:
        raise TaskRefused("metered", "the network is metered")


def check_promise(policy: PolicyConfig, *, clip_norm: float, noise_multiplier: float) -> None:
    """Refuse a round that protects less than the owner wants, by what the server signed.

    Raises:
        TaskRefused: reason ``noise`` or ``clip``.
    """
    if noise_multiplier < policy.minimum_noise_multiplier:
        raise TaskRefused(
            "noise",
            f"noise multiplier {noise_multiplier:g}, at least "
            f"{policy.minimum_noise_multiplier:g} is wanted",
        )
    if clip_norm > policy.maximum_clip_norm:
        raise TaskRefused(
            "clip",
            f"clip norm {clip_norm:g}, at most {policy.maximum_clip_norm:g} is wanted",
        )
