"""Charts of a run: training, cohorts, norms, and what canaries show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from scipy.stats import norm

from ..common.drawing import (
    BASELINE,
    GRID,
    LIMIT,
    MARKERS,
    OURS,
    SERIES,
    drawing,
    legend,
    markers,
    over_rounds,
    shortened,
    svg,
)

# What the report's page sets on paper, for a drawing without a page.
_COLOURS = {
    "ink": "#000",
    "muted": "#444",
    "line": "#ccc",
    "ours": "#0b62c4",
    "baseline": "#777",
    "bad": "#b3261e",
}
_DASHES = ("--", ":", "-.")
_COLUMN = 24  # letters of a label beside which a second column has room
# Of the colours of a series, one is a pale fill and no line.
_LINES = tuple(colour for number, colour in enumerate(SERIES) if number != 1)


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare a curve with."""

    label: str
    kind: str
    value: float


@dataclass(frozen=True)
class Line:
    """One line of :func:`interval_lines`.

    Attributes:
        label: in the legend.
        points: place along the bottom, mean, and ends of the interval, None where unknown; ascending.
        singles: place and value of single runs, shown faintly.
        kind: ``ours``, of which each line has a colour of its own, or another of ``MARKERS``.
    """

    label: str
    points: Sequence[tuple[float, float, float | None, float | None]]
    singles: Sequence[tuple[float, float]] = ()
    kind: str = "ours"


def interval_lines(
    lines: Sequence[Line],
    *,
    axis: str,
    below: str,
    ticks: Sequence[tuple[float, str]],
    levels: Sequence[Level] = (),
    apart: float | None = None,
) -> str:
    """Means with intervals along an axis of few places, beside models that they are compared with.

    Args:
        lines: each of at least one point.
        axis: what is measured.
        below: what is along the bottom.
        ticks: places and their names.
        levels: horizontal lines.
        apart: a place that no line leads to, for it isn't on the scale of the others.
    """
    with drawing(axis, height=4.2) as (figure, axes):
        places = [place for place, _ in ticks]
        span = max(places) - min(places) or 1.0
        colours, dashes = cycle(_LINES), cycle(_DASHES)
        for number, line in enumerate(lines):
            marker, colour = MARKERS[line.kind]
            colour = next(colours) if line.kind == "ours" else colour
            style = "-" if line.kind == "ours" else next(dashes)
            aside = 0.018 * span * (number - (len(lines) - 1) / 2)
            for place, value in line.singles:
                beside = place + aside + 0.014 * span
                axes.plot([beside], [value], ".", color=colour, alpha=0.6, markersize=5)
            for place, _, low, high in line.points:
                if low is not None and high is not None:
                    reach = [place + aside] * 2
                    axes.plot(reach, [low, high], color=colour, linewidth=2.5, alpha=0.55)
            joined = [(p + aside, mean) for p, mean, _, _ in line.points if p != apart]
            alone = [(p + aside, mean) for p, mean, _, _ in line.points if p == apart]
            label = shortened(line.label, 30)
            for part in filter(None, (joined, alone)):
                axes.plot(
                    *zip(*part, strict=True),
                    color=colour,
                    linestyle=style,
                    marker=marker,
                    markersize=6,
                    label=label,
                )
                label = ""
        _draw(axes, levels)
        axes.set_ylim(bottom=0)
        axes.set_xlim(min(places) - 0.08 * span, max(places) + 0.08 * span)
        axes.set_xticks(places, [name for _, name in ticks])
        axes.minorticks_off()
        axes.set_xlabel(below)
        axes.set_ylabel(axis)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        labels = [line.label for line in lines] + [level.label for level in levels]
        legend(axes, columns=1 if max(map(len, labels)) > _COLUMN else 2)
        return svg(figure, axis)


def _draw(axes: Axes, levels: Sequence[Level]) -> None:
    for level, dashes in zip(levels, cycle(_DASHES), strict=False):
        axes.axhline(
            level.value,
            color=MARKERS[level.kind][1],
            linestyle=dashes,
            linewidth=1.6,
            label=shortened(level.label, 34),
        )


def training_curve(
    points: Sequence[tuple[int, float]], levels: Sequence[Level], *, axis: str
) -> str:
    """A metric over rounds, ``(round, value)``, beside models that it is compared with."""
    with drawing(axis, height=3.5) as (figure, axes):
        axes.plot(*zip(*points, strict=True), color=OURS, label="this run", **markers(len(points)))
        _draw(axes, levels)
        over_rounds(axes, axis)
        legend(axes, columns=2)
        return svg(figure, axis)


def cohort_bars(rounds: Sequence[int], parts: Mapping[str, Sequence[int]]) -> str:
    """Devices of each round, stacked by what became of them (name → one count a round).

    Rounds are consecutive, and at least one.
    """
    axis = "devices sampled"
    with drawing(axis, height=3.5) as (figure, axes):
        edges = [*(number - 0.5 for number in rounds), rounds[-1] + 0.5]
        base = [0] * len(rounds)
        for (name, counts), colour in zip(parts.items(), cycle(SERIES), strict=False):
            top = [below + devices for below, devices in zip(base, counts, strict=True)]
            label = shortened(name, 30)
            axes.stairs(top, edges, baseline=base, fill=True, color=colour, label=label)
            base = top
        axes.set_ylim(bottom=0)
        over_rounds(axes, axis)
        legend(axes, columns=3)
        return svg(figure, axis)


def norm_curves(rounds: Sequence[int], curves: Mapping[str, Sequence[float]]) -> str:
    """Up to two L2 norms over rounds on a logarithmic scale; a norm of zero leaves a gap."""
    axis = "L2 norm"
    with drawing(axis, height=3.5) as (figure, axes):
        for (name, norms), colour, dashes in zip(
            curves.items(), (OURS, LIMIT), ("-", "--"), strict=False
        ):
            shown = [norm or float("nan") for norm in norms]
            axes.plot(
                rounds, shown, color=colour, linestyle=dashes, label=name, **markers(len(rounds))
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        over_rounds(axes, axis)
        legend(axes, columns=2)
        return svg(figure, axis)


def cosine_histogram(
    *, present: Sequence[float], absent: Sequence[float], null_stddev: float
) -> str:
    """Cosines of canaries that took part and of those that didn't, beside what chance alone gives."""
    axis = "cosine of a canary with the sum of all releases"
    values = [*present, *absent]
    reach = max(4 * null_stddev, *map(abs, values))
    edges = np.linspace(min(-4 * null_stddev, *values), reach, 50)
    with drawing(axis, height=3.5) as (figure, axes):
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
        legend(axes, columns=3)
        return svg(figure, axis)


def standalone(drawing: str) -> str:
    """A drawing as a file of its own, with the colours that a page would give it."""
    rules = "".join(f"--{name}:{colour};" for name, colour in _COLOURS.items())
    style = f"<style>svg{{{rules}font-family:sans-serif;background:#fff}}</style>"
    end = drawing.index(">") + 1
    return f"{drawing[:end]}{style}{drawing[end:]}"
