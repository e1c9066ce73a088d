"""What may stand after --sweep."""

import math

import pytest

from fedprofile.common.errors import ConfigError
from fedprofile.simulations.sweep_axes import parse_axes


def test_values_are_put_in_order_with_no_privacy_last():
    assert parse_axes(["epsilon=inf,8, 0.5,2", "users=1,0.25"]) == {
        "epsilon": (0.5, 2.0, 8.0, math.inf),
        "users": (0.25, 1.0),
    }
    assert parse_axes([]) == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["colour=1"], "no axis 'colour'"),
        (["1,2"], "no axis"),
        ([""], "no axis ''"),
        (["epsilon"], "got ''"),
        (["epsilon="], "got ''"),
        (["epsilon=1,,2"], "got ''"),
        (["epsilon=1=2"], "got '1=2'"),
        (["epsilon=0"], "above 0, or inf, got '0'"),
        (["epsilon=1,-2"], "got '-2'"),
        (["epsilon=-inf"], "got '-inf'"),
        (["epsilon=nan"], "got 'nan'"),
        (["epsilon=many"], "got 'many'"),
        (["epsilon=1,2,1.0"], "a value comes twice"),
        (["epsilon=1", "epsilon=2"], "given twice"),
        (["users=0"], "up to 1, shares of all, got '0'"),
        (["users=50"], "got '50'"),
        (["users=inf"], "got 'inf'"),
        (["users=0.5,0.50"], "a value comes twice"),
    ],
)
def test_what_is_no_axis_gets_one_line(options, words):
    with pytest.raises(ConfigError, match="--sweep") as refused:
        parse_axes(options)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
