import math

import pytest

from fedprofile.common.strength import strength, weaknesses


@pytest.mark.parametrize(
    ("epsilon", "delta", "level"),
    [
        (0.5, 1e-6, "good"),
        (1.0, 1e-6, "good"),
        (1.001, 1e-6, "note"),
        (10.0, 1e-6, "note"),
        (10.001, 1e-6, "warn"),
        (0.5, 1e-3, "warn"),
        (None, 1e-6, "bad"),
        (math.inf, 1e-6, "bad"),
        (math.nan, 1e-6, "bad"),
    ],
)
def test_only_a_small_epsilon_at_a_small_delta_is_good(epsilon, delta, level):
    assert strength(epsilon, delta=delta, population_size=1_000) == level


def test_a_large_delta_is_told_once():
    titles = [s.title for s in weaknesses(0.5, delta=0.01, population_size=10)]
    assert titles == ["δ is too large"]
    assert "below 1/N" in next(weaknesses(0.5, delta=0.2, population_size=10)).text
