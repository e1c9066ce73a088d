"""Intervals cover what they claim to, and pairing narrows them."""

import numpy as np
import pytest

from fedprofile.simulations import bootstrap
from fedprofile.simulations.bootstrap import (
    bootstrap_interval,
    crossed_interval,
    paired_difference,
)
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


def crossed_variance(values):
    """Of the bootstrap mean, exactly, by second moments of multinomial weights (McCullagh 2000, §3)."""
    moments = [(np.eye(n) + 1 - 1 / n) / n**2 for n in values.shape]
    return float((values * (moments[0] @ values @ moments[1])).sum() - values.mean() ** 2)


def test_runs_and_users_are_resampled_independently():
    rng = np.random.default_rng(7)
    values = rng.normal(size=(12, 1)) + rng.normal(size=(1, 90)) + rng.normal(size=(12, 90))
    interval = crossed_interval(values, samples=6_000)
    assert interval.mean == values.mean()
    width = interval.high - interval.low
    assert width == pytest.approx(2 * 1.96 * np.sqrt(crossed_variance(values)), rel=0.06)
    users_alone = bootstrap_interval(values.mean(axis=0), samples=6_000)
    assert width > 1.5 * (users_alone.high - users_alone.low)


def test_covers_other_runs_and_other_users():
    rng = np.random.default_rng(8)
    inside = 0
    for seed in range(300):
        runs, users = rng.normal(size=(10, 1)), 3 * rng.normal(size=(1, 60))
        interval = crossed_interval(
            runs + users + rng.normal(size=(10, 60)), samples=200, level=0.8, seed=seed
        )
        inside += interval.low <= 0 <= interval.high
    assert 0.72 < inside / 300 < 0.88  # a false alarm in about 500


def test_many_users_are_resampled_in_parts(monkeypatch):
    values = np.random.default_rng(9).random((3, 40))
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 100)
    interval = crossed_interval(values, samples=999)
    assert interval.low < interval.mean < interval.high


@pytest.mark.parametrize(
    ("values", "samples", "expected"),
    [
        (np.zeros((2, 0)), 10, {"mean": None, "low": None, "high": None}),
        (np.zeros((1, 0)), 10, {"mean": None, "low": None, "high": None}),
        ([[0.5], [0.7]], 10, {"mean": 0.6, "low": None, "high": None}),
        ([[0.0, 1.0], [0.0, 1.0]], 0, {"mean": 0.5, "low": None, "high": None}),
        (np.full((3, 7), 0.1), 10, {"mean": 0.1, "low": 0.1, "high": 0.1}),
    ],
)
def test_what_runs_leave_unknown_is_none(values, samples, expected):
    found = crossed_interval(np.array(values, dtype=float), samples=samples).to_dict()
    assert found == pytest.approx(expected)


def test_one_run_is_an_interval_over_users():
    values = np.random.default_rng(3).random(30)
    assert crossed_interval(values[None], samples=50, seed=2) == bootstrap_interval(
        values, samples=50, seed=2
    )
