"""Drawings as inline SVG that take their colours and fonts from the page.

Matplotlib draws in stand-in colours that are then exchanged for CSS variables, so that one drawing
serves light, dark and paper; text stays text, for whatever script the reader's fonts can show.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Any
from unicodedata import east_asian_width

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, GRID = "#010101", "#020202", "#030303"
OURS, BASELINE, CEILING, LIMIT = "#010102", "#010103", "#010104", "#010105"
SERIES = ("#010201", "#010202", "#010203", "#010204", "#010205", "#010206")

_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "line",
    OURS: "ours",
    BASELINE: "baseline",
    CEILING: "ceiling",
    LIMIT: "bad",
    **{colour: f"series-{number}" for number, colour in enumerate(SERIES)},
}
MARKERS = {
    "ours": ("o", OURS),
    "baseline": ("s", BASELINE),
    "ceiling": ("D", CEILING),
    "bound": (">", OURS),
}
"""Kind of what is drawn → shape and colour."""

_WIDTH = 6.4  # inches of 72 user units: narrow, so that letters stay legible on a phone
_STYLE: Any = {  # matplotlib types the keys as one literal each
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "lines.linewidth": 2,
}


@dataclass(frozen=True)
class Dot:
    """One line of :func:`dot_plot`.

    Attributes:
        label: beside it.
        kind: of :data:`MARKERS`.
        mean: where the mark is.
        low: of the interval; None where none is known.
        high: of the interval; infinite goes on to the edge.
        chance: where a line tells what chance alone gives; None for none.
    """

    label: str
    kind: str
    mean: float
    low: float | None
    high: float | None
    chance: float | None = None


def dot_plot(
    rows: Sequence[Dot],
    *,
    axis: str,
    limit: tuple[str, float] | None = None,
    right: float | None = None,
) -> str:
    """Means with intervals, one line each, in the order given from the top; at least one dot.

    Args:
        rows: the lines.
        axis: what is measured.
        limit: name and place of a line across all of them.
        right: where the axis ends; None: where everything but very long intervals is seen.
    """
    with drawing(axis, height=0.95 + 0.36 * len(rows), left=0.47) as (figure, axes):
        end = right if right is not None else _end(rows, limit)
        for place, dot in enumerate(rows):
            marker, colour = MARKERS[dot.kind]
            if dot.low is not None and dot.high is not None:
                reach = [dot.low, min(dot.high, end)]
                axes.plot(reach, [place, place], color=colour, linewidth=2.5, alpha=0.55)
            if dot.chance is not None:
                axes.plot([dot.chance], [place], "|", color=MUTED, markersize=13)
            axes.plot([dot.mean], [place], marker, color=colour, markersize=7, clip_on=False)
        if limit is not None:
            name, value = limit
            axes.axvline(value, color=LIMIT, linestyle="--", linewidth=1.6, label=name)
            legend(axes, columns=1)
        axes.set_yticks(range(len(rows)), [shortened(dot.label, 33) for dot in rows])
        for label, dot in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(OURS if dot.kind == "ours" else INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, end)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        return svg(figure, axis)


def _end(rows: Sequence[Dot], limit: tuple[str, float] | None) -> float:
    """Room for all marks, and for intervals up to three times as long."""
    marks = [dot.mean for dot in rows] + ([limit[1]] if limit else [])
    highest = max(marks)
    ends = [dot.high for dot in rows if dot.high is not None and dot.high < math.inf]
    return 1.05 * max([highest, *(min(end, 3 * highest) for end in ends)]) or 1.0


def budget_curve(
    points: Sequence[tuple[int, float]], *, target: float | None, over: str = "round"
) -> str:
    """ε so far against ``over``: rounds (0: before training), or what else is counted; and the target."""
    axis = "ε so far, per user"
    with drawing(axis, height=3.5) as (figure, axes):
        axes.plot(
            *zip(*points, strict=True),
            color=OURS,
            label="ε of all releases",
            **markers(len(points)),
        )
        if target is not None:
            axes.axhline(target, color=LIMIT, linestyle="--", linewidth=1.6, label="target")
        highest = max([target or 0.0, *(spent for _, spent in points)])
        axes.set_ylim(bottom=0, top=1.08 * highest or 1.0)
        over_rounds(axes, axis)
        axes.set_xlabel(over)
        legend(axes, columns=2)
        return svg(figure, axis)


@contextmanager
def drawing(title: str, *, height: float, left: float = 0.13) -> Iterator[tuple[Figure, Axes]]:
    """A figure ``height`` inches high with axes that start at the share ``left`` of its width."""
    # The salt keeps the ids of markers and clip paths of one page's charts apart.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        # The page's fonts draw the text: what matplotlib's own one lacks doesn't matter.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.subplots()
        figure.subplots_adjust(left, 0.62 / height, 0.97, 1 - 0.12 / height)
        yield figure, axes


def over_rounds(axes: Axes, axis: str) -> None:
    """Name the axes of a curve over rounds, whole numbers along the bottom."""
    axes.set_xlabel("round")
    axes.set_ylabel(axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.margins(x=0.03)


def legend(axes: Axes, *, columns: int) -> None:
    """Put the legend above the axes, and make room for it."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=1.8,
        columnspacing=1.4,
    )
    rows = -(-len(axes.get_legend_handles_labels()[1]) // columns)
    figure = axes.get_figure()
    if figure is not None:
        height = figure.get_figheight()  # type: ignore[union-attr]
        figure.subplots_adjust(top=1 - (0.08 + 0.25 * rows) / height)


def markers(points: int) -> dict[str, Any]:
    """How a line of so many points marks them: not at all where they would touch."""
    return {"marker": "o", "markersize": 4} if points <= 60 else {}


def shortened(text: str, cells: int) -> str:
    """At most ``cells`` wide, where a CJK character takes two."""
    ends = list(accumulate(2 if east_asian_width(letter) in "WF" else 1 for letter in text))
    if not ends or ends[-1] <= cells:
        return text
    return text[: bisect_left(ends, cells)] + "…"


def svg(figure: Figure, label: str) -> str:
    """The figure as an SVG element that says ``label`` to who can't see it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    # Matplotlib numbers its groups in every drawing alike; ids of one page must differ.
    drawing = re.sub(r'<g id="[^"]*"', "<g", buffer.getvalue())
    drawing = drawing[drawing.index("<svg") :].replace(
        "<svg", f'<svg role="img" aria-label="{escape(label)}"', 1
    )
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var(--{variable})")
    return drawing
