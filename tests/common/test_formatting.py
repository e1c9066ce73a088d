import math

import pytest

from fedprofile.common import formatting


@pytest.mark.parametrize(
    ("show", "value", "shown"),
    [
        (formatting.number, 0.06542, "0.0654"),
        (formatting.number, -1234.5, "−1,234.5000"),
        (formatting.number, None, "–"),
        (formatting.number, math.nan, "–"),
        (formatting.number, math.inf, "∞"),
        (formatting.signed, 0.0123, "+0.0123"),
        (formatting.signed, -0.0123, "−0.0123"),
        (formatting.signed, 0.0, "0.0000"),
        (formatting.count, 896392, "896,392"),
        (formatting.scientific, 7.1e-5, "7.10 × 10⁻⁵"),
        (formatting.scientific, 9.996e-12, "1.00 × 10⁻¹¹"),
        (formatting.scientific, 0.25, "0.250"),
        (formatting.scientific, 2.2e5, "2.20 × 10⁵"),
        (formatting.scientific, None, "–"),
        (formatting.epsilon, 1.9984, "1.999"),
        (formatting.epsilon, 2.0, "2.000"),
        (formatting.epsilon, 1e-4, "1.0 × 10⁻⁴"),
        (formatting.epsilon, 1.01e-4, "1.1 × 10⁻⁴"),
        (formatting.epsilon, None, "∞"),
        (formatting.epsilon, math.nan, "–"),
        (formatting.factor, 2.0, "7.39"),
        (formatting.factor, 10.0, "22,026"),
        (formatting.factor, 20.0, "4.85 × 10⁸"),
        (formatting.day, 1259653500, "2009-12-01"),
        (formatting.day, -1, "1969-12-31"),
        (formatting.duration, 4.21, "4.2 s"),
        (formatting.duration, 102.4, "1 min 42 s"),
        (formatting.duration, 7260, "2 h 1 min"),
        (formatting.duration, None, "–"),
    ],
)
def test_figures_are_shown_as_readers_want_them(show, value, shown):
    assert show(value) == shown


def test_shares_are_never_rounded_away():
    assert formatting.share(53, 896392) == "< 0.1 %"
    assert formatting.share(0, 896392) == "0.0 %"
    assert formatting.share(1, 8) == "12.5 %"
    assert formatting.share(1, 0) == "–"
    assert formatting.share(None, 8) == "–"


def test_text_of_strangers_neither_hides_nor_turns_what_follows():
    assert formatting.printable("甲乙 – ελληνικά 🜁") == "甲乙 – ελληνικά 🜁"
    assert formatting.printable("a\u202eb\u2066c\x00d\x1b[2Je\nf") == "a�b�c�d�[2Je�f"
    assert formatting.printable("x" * 120) == "x" * 120
    assert formatting.printable("x" * 10_000) == "x" * 120 + "…"
    assert formatting.printable("abc", 2) == "ab…"
