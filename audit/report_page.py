"""The page of an audit: the document of :mod:`~.report` laid out by ``report.html.j2``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ..common.pages import render_page

_ROWS = 200
"""Of releases on the page; the document has all."""


def render(document: Mapping[str, Any]) -> str:
    """The page as text."""
    from .charts import ATTACKS, BOUNDS, VIEWS, canaries_chart, membership_chart, spent_chart

    canaries, releases = document["canaries"], document["releases"]
    cut = len(releases) - _ROWS
    layers = [
        (layer, list(found)) for layer, found in groupby(document["hazards"], lambda h: h["layer"])
    ]
    return render_page(
        Path(__file__).with_name("report.html.j2"),
        version=document["report"]["version"],
        **document,
        shown=releases if cut <= 0 else [*releases[: _ROWS // 2], *releases[-_ROWS // 2 :]],
        cut=max(0, cut),
        layers=layers,
        answers=Counter(hazard["answer"] for hazard in document["hazards"]),
        outcomes=Counter(check["outcome"] for check in document["checks"]),
        views=VIEWS,
        bounds=BOUNDS,
        attacks=ATTACKS,
        charts={
            "spent": spent_chart(document),
            "canaries": None if canaries is None else canaries_chart(canaries),
            "membership": None if canaries is None else membership_chart(canaries),
        },
    )
