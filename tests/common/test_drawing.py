import math
import re
from xml.etree import ElementTree

import pytest

from fedprofile.common.drawing import Dot, budget_curve, dot_plot


@pytest.mark.parametrize(
    "drawing",
    [
        dot_plot([Dot("a$b$ <c> & 甲", "ours", 0.2, None, None)], axis="NDCG"),
        budget_curve([(0, 0.0)], target=None),
        budget_curve([(0, 0.1), (7, 0.3)], target=1.0, over="releases"),
        dot_plot([Dot("at least", "bound", 0.2, 0.2, math.inf)], axis="ε", limit=("declared", 4.0)),
        dot_plot([Dot("AUC", "ours", 0.5, 0.4, 0.6, 0.5)], axis="share", right=1.0),
        dot_plot([Dot("nothing", "ours", 0.0, 0.0, 0.0)], axis="ε"),
    ],
)
def test_drawings_are_whole_and_take_their_colours_from_the_page(drawing):
    root = ElementTree.fromstring(drawing)
    assert root.tag.endswith("svg")
    assert "var(--ink)" in drawing or "var(--muted)" in drawing
    assert not re.search(r"#0[123]0[0-9]0[0-9]", drawing)


def test_a_name_too_long_for_its_line_is_shortened_by_width():
    def drawn(name):
        drawing = dot_plot([Dot(name, "baseline", 0.2, 0.1, 0.3)], axis="NDCG")
        return next(t.text for t in ElementTree.fromstring(drawing).iter() if "…" in (t.text or ""))

    assert drawn("x" * 40) == "x" * 32 + "…"
    assert drawn("甲" * 40) == "甲" * 16 + "…"


@pytest.mark.parametrize(("high", "most"), [(1_000.0, 6.3), (math.inf, 2.1)])
def test_very_long_intervals_leave_room_for_the_marks(high, most):
    drawing = dot_plot([Dot("a", "ours", 1.0, 0.5, high)], axis="ε", limit=("declared", 2.0))
    texts = [element.text or "" for element in ElementTree.fromstring(drawing).iter()]
    ticks = [float(text) for text in texts if re.fullmatch(r"[\d.]+", text)]
    assert 1.0 <= max(ticks) <= most
