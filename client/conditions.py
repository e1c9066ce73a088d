"""What the system tells of power, use and network; what it doesn't tell holds nobody back."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SUPPLIES = Path("/sys/class/power_supply")
_IDLE_LOAD = 0.5  # of a core, on average over a minute, for each core there is


@dataclass(frozen=True)
class Conditions:
    """How the device is doing; None where the system doesn't tell.

    Attributes:
        on_power: whether a mains adapter is connected.
        battery: share of the charge that is left.
        idle: whether there is little to do.
        metered: whether every byte costs.
    """

    on_power: bool | None = None
    battery: float | None = None
    idle: bool | None = None
    metered: bool | None = None


def read_conditions(supplies: Path = _SUPPLIES) -> Conditions:
    """Conditions of this moment."""
    on_power, battery = _power(supplies)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return Conditions(
        on_power=on_power, battery=battery, idle=load < _IDLE_LOAD, metered=_metered()
    )


def _power(supplies: Path) -> tuple[bool | None, float | None]:
    mains, charges = [], []
    for supply in sorted(supplies.glob("*")):
        kind = _read(supply / "type")
        if kind in ("Mains", "USB", "Wireless"):
            mains.append(_read(supply / "online") == "1")
        elif kind == "Battery" and _read(supply / "scope") != "Device":  # not that of a mouse
            charge = _read(supply / "capacity")
            if charge.isdecimal():
                charges.append(int(charge) / 100)
    if not charges:
        return None, None  # without a battery it runs on mains, whatever adapters say
    return (any(mains) if mains else None), min(charges)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _metered() -> bool | None:
    """What NetworkManager says or guesses, where it is installed."""
    command = shutil.which("nmcli")
    if command is None:
        return None
    try:
        answer = subprocess.run(
            [command, "--terse", "--fields", "GENERAL.METERED", "device", "show"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env={**os.environ, "LC_ALL": "C"},  # it translates its answers
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = [line.partition(":")[2] for line in answer.splitlines()]
    if any(value.startswith("yes") for value in values):
        return True
    return False if any(value.startswith("no") for value in values) else None
