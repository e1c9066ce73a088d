"""Charts of a run as inline SVG that takes its colours and fonts from the page.

Matplotlib draws in stand-in colours that are then exchanged for CSS variables, so that one drawing
serves light, dark and paper; text stays text, for whatever script the reader's fonts can show.
"""

from __future__ import annotations

import io
import re
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import accumulate, cycle
from typing import Any
from unicodedata import east_asian_width

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.stats import norm

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
# What the report's page sets on paper, for a drawing without a page.
_COLOURS = {
    "ink": "#000",
    "muted": "#444",
    "line": "#ccc",
    "ours": "#0b62c4",
    "baseline": "#777",
    "bad": "#b3261e",
}
_MARKERS = {"ours": ("o", OURS), "baseline": ("s", BASELINE), "ceiling": ("D", CEILING)}
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
    """One line of :func:`dot_plot`; the ends are None where no interval is known."""

    label: str
    kind: str
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare a curve with."""

    label: str
    kind: str
    value: float


def dot_plot(dots: Sequence[Dot], *, axis: str) -> str:
    """Means with intervals, one line each, in the order given from the top; at least one dot."""
    with _drawing(axis, height=0.95 + 0.36 * len(dots), left=0.47) as (figure, axes):
        for row, dot in enumerate(dots):
            marker, colour = _MARKERS[dot.kind]
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [row, row], color=colour, linewidth=2.5, alpha=0.55)
            axes.plot([dot.mean], [row], marker, color=colour, markersize=7)
        axes.set_yticks(range(len(dots)), [_shortened(dot.label, 33) for dot in dots])
        for label, dot in zip(axes.get_yticklabels(), dots, strict=True):
            label.set_color(OURS if dot.kind == "ours" else INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(dots) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        return _svg(figure, axis)


def training_curve(
    points: Sequence[tuple[int, float]], levels: Sequence[Level], *, axis: str
) -> str:
    """A metric over rounds, ``(round, value)``, beside models that it is compared with."""
    with _drawing(axis, height=3.5) as (figure, axes):
        axes.plot(*zip(*points, strict=True), color=OURS, label="this run", **_dots(len(points)))
        for level, dashes in zip(levels, cycle(("--", ":", "-.")), strict=False):
            axes.axhline(
                level.value,
                color=_MARKERS[level.kind][1],
                linestyle=dashes,
                linewidth=1.6,
                label=_shortened(level.label, 34),
            )
        _over_rounds(axes, axis)
        _legend(axes, columns=2)
        return _svg(figure, axis)


def budget_curve(points: Sequence[tuple[int, float]], *, target: float | None) -> str:
    """ε after each release against its round (0: before training), and the target."""
    axis = "ε so far, per user"
    with _drawing(axis, height=3.5) as (figure, axes):
        axes.plot(
            *zip(*points, strict=True), color=OURS, label="ε of all releases", **_dots(len(points))
        )
        if target is not None:
            axes.axhline(target, color=LIMIT, linestyle="--", linewidth=1.6, label="target")
        highest = max([target or 0.0, *(spent for _, spent in points)])
        axes.set_ylim(bottom=0, top=1.08 * highest or 1.0)
        _over_rounds(axes, axis)
        _legend(axes, columns=2)
        return _svg(figure, axis)


def cohort_bars(rounds: Sequence[int], parts: Mapping[str, Sequence[int]]) -> str:
    """Devices of each round, stacked by what became of them (name → one count a round).

    Rounds are consecutive, and at least one.
    """
    axis = "devices sampled"
    with _drawing(axis, height=3.5) as (figure, axes):
        edges = [*(number - 0.5 for number in rounds), rounds[-1] + 0.5]
        base = [0] * len(rounds)
        for (name, counts), colour in zip(parts.items(), cycle(SERIES), strict=False):
            top = [below + devices for below, devices in zip(base, counts, strict=True)]
            label = _shortened(name, 30)
            axes.stairs(top, edges, baseline=base, fill=True, color=colour, label=label)
            base = top
        axes.set_ylim(bottom=0)
        _over_rounds(axes, axis)
        _legend(axes, columns=3)
        return _svg(figure, axis)


def norm_curves(rounds: Sequence[int], curves: Mapping[str, Sequence[float]]) -> str:
    """Up to two L2 norms over rounds on a logarithmic scale; a norm of zero leaves a gap."""
    axis = "L2 norm"
    with _drawing(axis, height=3.5) as (figure, axes):
        for (name, norms), colour, dashes in zip(
            curves.items(), (OURS, LIMIT), ("-", "--"), strict=False
        ):
            shown = [norm or float("nan") for norm in norms]
            axes.plot(
                rounds, shown, color=colour, linestyle=dashes, label=name, **_dots(len(rounds))
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        _over_rounds(axes, axis)
        _legend(axes, columns=2)
        return _svg(figure, axis)


def cosine_histogram(
    *, present: Sequence[float], absent: Sequence[float], null_stddev: float
) -> str:
    """Cosines of canaries that took part and of those that didn't, beside what chance alone gives."""
    axis = "cosine of a canary with the sum of all releases"
    values = [*present, *absent]
    reach = max(4 * null_stddev, *map(abs, values))
    edges = np.linspace(min(-4 * null_stddev, *values), reach, 50)
    with _drawing(axis, height=3.5) as (figure, axes):
        for name, cosines, colour in (("out", absent, BASELINE), ("in", present, OURS)):
            axes.stairs(
                np.histogram(cosines, edges)[0],
                edges,
                fill=True,
                alpha=0.55,
                color=colour,
                label=name,
            )
        x = np.linspace(edges[0], edges[-1], 400)
        expected = len(absent) * (edges[1] - edges[0]) * norm.pdf(x, scale=null_stddev)
        axes.plot(x, expected, color=LIMIT, linestyle="--", linewidth=1.6, label="by chance")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(axis)
        axes.set_ylabel("canaries")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        _legend(axes, columns=3)
        return _svg(figure, axis)


def standalone(drawing: str) -> str:
    """A drawing as a file of its own, with the colours that a page would give it."""
    rules = "".join(f"--{name}:{colour};" for name, colour in _COLOURS.items())
    style = f"<style>svg{{{rules}font-family:sans-serif;background:#fff}}</style>"
    end = drawing.index(">") + 1
    return f"{drawing[:end]}{style}{drawing[end:]}"


@contextmanager
def _drawing(title: str, *, height: float, left: float = 0.13) -> Iterator[tuple[Figure, Axes]]:
    # The salt keeps the ids of markers and clip paths of one page's charts apart.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        # The page's fonts draw the text: what matplotlib's own one lacks doesn't matter.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.subplots()
        figure.subplots_adjust(left, 0.62 / height, 0.97, 1 - 0.12 / height)
        yield figure, axes


def _over_rounds(axes: Axes, axis: str) -> None:
    axes.set_xlabel("round")
    axes.set_ylabel(axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.margins(x=0.03)


def _legend(axes: Axes, *, columns: int) -> None:
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


def _dots(points: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4} if points <= 60 else {}


def _shortened(text: str, cells: int) -> str:
    """At most ``cells`` wide, where a CJK character takes two."""
    ends = list(accumulate(2 if east_asian_width(letter) in "WF" else 1 for letter in text))
    if not ends or ends[-1] <= cells:
        return text
    return text[: bisect_left(ends, cells)] + "…"


def _svg(figure: Figure, label: str) -> str:
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
