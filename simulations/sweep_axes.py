"""The axes of a sweep, as the command line has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..common.errors import ConfigError

SWEEP = "sweep.toml"
"""What only the folder of a sweep holds: its axes."""

AXES = {"epsilon": "1,2,4,8,inf", "users": "0.25,0.5,1"}
"""Axis → an example of its values."""


def parse_axes(options: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Axis → values, ascending, of options such as ``epsilon=1,2,inf``.

    Raises:
        ConfigError: an axis is unknown or comes twice, or a value is missing, out of range or comes twice.
    """
    axes: dict[str, tuple[float, ...]] = {}
    for option in options:
        axis, _, values = option.partition("=")
        if axis not in AXES:
            known = " or ".join(f"{name}={example}" for name, example in AXES.items())
            raise ConfigError(f"--sweep {option}: no axis '{axis}'; use {known}")
        if axis in axes:
            raise ConfigError(f"--sweep {axis} is given twice: put all its values into one list")
        found = sorted(_value(axis, text.strip(), option) for text in values.split(","))
        if len({f"{value:.12g}" for value in found}) < len(found):
            raise ConfigError(f"--sweep {option}: a value comes twice; more runs of each: --seeds")
        axes[axis] = tuple(found)
    return axes


def _value(axis: str, text: str, option: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    most = math.inf if axis == "epsilon" else 1.0
    if not 0 < value <= most:  # NaN is neither
        allowed = "above 0, or inf" if axis == "epsilon" else "above 0 and up to 1, shares of all"
        raise ConfigError(
            f"--sweep {option}: {axis} must be numbers {allowed}, got '{text}'; write "
            f"{axis}={AXES[axis]}"
        )
    return value
