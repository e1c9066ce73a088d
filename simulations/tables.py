"""Cells of tables on a terminal."""

from __future__ import annotations

WIDE = 100
"""Columns of a terminal that has room for a second interval."""


def interval(value: dict[str, float | None]) -> str:
    """``0.0654 [0.0601, 0.0712]``, as far as it is known."""
    middle, low, high = value["mean"], value["low"], value["high"]
    if middle is None or low is None or high is None:
        return mean(value)
    return f"{middle:.4f} [{low:.4f}, {high:.4f}]"


def mean(value: dict[str, float | None]) -> str:
    """``0.0654``; a dash where it is unknown."""
    return "–" if value["mean"] is None else f"{value['mean']:.4f}"
