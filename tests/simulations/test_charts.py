import re
from xml.etree import ElementTree

import pytest

from fedprofile.simulations.charts import Level, Line, cohort_bars, interval_lines

CURVE = Line("ours", [(0.0, 0.1, 0.05, 0.15), (1.0, 0.2, None, None)], [(0.0, 0.11)])
OTHER = Line("$不^$", [(1.0, 0.3, 0.2, 0.4)], kind="baseline")
TICKS = [(0.0, "1"), (1.0, "∞")]


@pytest.mark.parametrize(
    "drawing",
    [
        cohort_bars([3], {"trained": [0]}),
        cohort_bars(range(100), {"trained": [5] * 100, "no reply": range(100)}),
        interval_lines([CURVE], axis="NDCG", below="ε", ticks=TICKS, apart=1.0),
        interval_lines([CURVE, OTHER] * 4, axis="NDCG", below="ε", ticks=TICKS),
        interval_lines(
            [Line("alone", [(3.0, 0.0, None, None)])],
            axis="NDCG",
            below="users",
            ticks=[(3.0, "8")],
            levels=[Level("popularity", "baseline", 0.1)],
        ),
    ],
)
def test_drawings_are_whole_and_take_their_colours_from_the_page(drawing):
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert "var(--muted)" in drawing
    assert not re.search(r"#0[123]0[0-9]0[0-9]", drawing)


def test_no_line_leads_to_a_place_that_is_apart():
    joined = interval_lines([CURVE], axis="NDCG", below="ε", ticks=TICKS)
    apart = interval_lines([CURVE], axis="NDCG", below="ε", ticks=TICKS, apart=1.0)
    segment = r'<path d="M [\d.]+ [\d.]+ \nL [\d.]+ [\d.]+ \n" clip-path[^>]*var\(--series-0\)'
    assert len(re.findall(segment, joined)) == 1 + len(re.findall(segment, apart))
