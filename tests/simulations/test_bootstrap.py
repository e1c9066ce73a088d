"""Intervals cover what they claim to, and pairing narrows them."""

import numpy as np
import pytest

from fedprofile.simulations.bootstrap import bootstrap_interval, paired_difference
from fedprofile.simulations.metrics import RankMetrics


def ranks(ndcg, users=None):
    nothing = np.zeros(len(ndcg))
    return RankMetrics(
        users=np.arange(len(ndcg)) if users is None else users,
        hr=nothing,
        recall=nothing,
        ndcg=ndcg,
        mrr=nothing,
        lists=np.zeros((len(ndcg), 1), np.int32),
    )


def test_close_to_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2_000)
    interval = bootstrap_interval(values, samples=2_000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.mean == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=half / 5)
    assert interval.high == pytest.approx(values.mean() + half, abs=half / 5)


def test_covers_at_its_level():
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(300):
        draw = rng.exponential(1.0, 100)
        interval = bootstrap_interval(draw, samples=200, level=0.8, seed=seed)
        inside += interval.low <= 1.0 <= interval.high
    assert 0.7 < inside / 300 < 0.87


def test_repeatable_and_wider_at_a_higher_level():
    values = np.random.default_rng(2).random(50)
    first = bootstrap_interval(values, samples=500, seed=4)
    assert first == bootstrap_interval(values, samples=500, seed=4)
    wide = bootstrap_interval(values, samples=500, level=0.99, seed=4)
    assert wide.low < first.low < first.high < wide.high


@pytest.mark.parametrize(
    ("values", "samples", "expected"),
    [
        ([], 10, {"mean": None, "low": None, "high": None}),
        ([0.5], 10, {"mean": 0.5, "low": None, "high": None}),
        ([0.0, 1.0], 0, {"mean": 0.5, "low": None, "high": None}),
        ([0.25, 0.25], 10, {"mean": 0.25, "low": 0.25, "high": 0.25}),
    ],
)
def test_what_is_unknown_is_none(values, samples, expected):
    assert bootstrap_interval(np.array(values), samples=samples).to_dict() == expected


def test_pairs_stay_together():
    base = np.random.default_rng(5).random(400)
    interval = paired_difference(ranks(base + 0.01), ranks(base), samples=300)
    assert interval.low == pytest.approx(0.01)  # separate resampling would straddle zero
    assert interval.high == pytest.approx(0.01)


def test_different_users_are_refused():
    ours, theirs = ranks(np.ones(3)), ranks(np.ones(3), users=np.array([0, 1, 5]))
    with pytest.raises(ValueError, match="same users"):
        paired_difference(ours, theirs, samples=10)
