import re
from xml.etree import ElementTree

import pytest

from fedprofile.simulations.charts import cohort_bars


@pytest.mark.parametrize(
    "drawing",
    [
        cohort_bars([3], {"trained": [0]}),
        cohort_bars(range(100), {"trained": [5] * 100, "no reply": range(100)}),
    ],
)
def test_drawings_are_whole_and_take_their_colours_from_the_page(drawing):
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert "var(--muted)" in drawing
    assert not re.search(r"#0[123]0[0-9]0[0-9]", drawing)
