"""Attack figures against definitions counted out by hand and published intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.audit.membership import clopper_pearson, measure_attack
from fedprofile.common.errors import ConfigError

some = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


@given(members=some, others=some)
def test_the_area_is_the_share_of_pairs_in_the_right_order(members, others):
    found = measure_attack(members=np.array(members, float), others=np.array(others, float))
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert found.auc.value == pytest.approx(np.mean(pairs))
    assert 0 <= found.auc.low <= found.auc.value <= found.auc.high <= 1


def test_the_interval_of_the_area_holds_the_truth():
    rng, truth = np.random.default_rng(0), 0.7602  # Φ(1/√2) of normals one apart
    found = [
        measure_attack(members=rng.normal(1, 1, 80), others=rng.normal(0, 1, 60)).auc
        for _ in range(400)
    ]
    covered = sum(rate.low <= truth <= rate.high for rate in found)
    assert 0.90 <= covered / 400 <= 0.98
    assert np.mean([rate.value for rate in found]) == pytest.approx(truth, abs=0.01)


def test_true_positives_are_counted_above_the_others_threshold():
    others = np.arange(2_000.0)
    found = measure_attack(members=np.array([1998.5, 1997.5, 1996.5, 0.0]), others=others)
    assert found.false_positives == 2
    assert found.true_positive_rate.value == 0.5  # above 1997: two of four
    few = measure_attack(members=np.array([1998.5, 3000.0]), others=others[:999])
    assert few.false_positives == 0
    assert few.true_positive_rate.value == 1.0


def test_clopper_pearson_is_exact():
    # Zero of n: 1 − (α/2)^(1/n). Ten of a hundred: tables of the binomial.
    assert clopper_pearson(0, 50, level=0.95).high == pytest.approx(1 - 0.025 ** (1 / 50))
    ten = clopper_pearson(10, 100, level=0.95)
    assert (ten.value, ten.low, ten.high) == pytest.approx((0.1, 0.0490, 0.1762), abs=1e-4)
    assert clopper_pearson(50, 50, level=0.95).high == 1


@pytest.mark.parametrize("members", [[], [1.0], [1.0, float("nan")]])
def test_too_few_or_broken_scores_are_refused(members):
    with pytest.raises(ConfigError, match="members"):
        measure_attack(members=np.array(members), others=np.arange(3.0))
