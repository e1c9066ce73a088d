"""Each test of a mechanism: right figures, the declared rate of false alarms, and faults it must see."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, kstest, pearsonr

from fedprofile.audit.statistics import (
    Measurement,
    all_pairs,
    binomial_spread,
    cohort_overlap,
    noise_mean,
    noise_shape,
    noise_size,
    sampling_rate,
    worst_correlation,
    worst_lag,
    worst_layer,
)
from fedprofile.common.randomness import NoiseSource

RATE = 5e-4
OFTEN = 0.05  # so often that a few hundred repetitions tell a wrong rate
REPEATS = 400


def noise_of(seed, shape, stddev=1.0):
    return NoiseSource.seeded(seed=seed, label="test").normal(shape, stddev=stddev)


def cohorts_of(seed, *, rounds, size, q):
    source = NoiseSource.seeded(seed=seed, label="test")
    return [source.poisson_sample(population_size=size, probability=q) for _ in range(rounds)]


def sizes_of(cohorts):
    return np.array([len(cohort) for cohort in cohorts])


def counts_of(cohorts, size):
    return np.bincount(np.concatenate(cohorts), minlength=size)


def vectors(rounds):
    return {str(number): noise for number, noise in enumerate(rounds)}


def layers(noise):
    return {"small": noise[:, :3], "middle": noise[:, 3:20], "large": noise[:, 20:]}


# --- a measurement -------------------------------------------------------------------------------


@given(st.floats(allow_nan=True), st.floats(-5, 5), st.floats(0, 5))
def test_a_figure_holds_inside_its_interval_only(measured, low, width):
    found = Measurement(measured=measured, low=low, high=low + width)
    inside = not math.isnan(measured) and low <= measured <= low + width
    assert found.holds is inside


# --- false alarms --------------------------------------------------------------------------------

ON_NOISE = {
    "size": lambda x: noise_size(x, stddev=1.0, false_alarm_rate=OFTEN),
    "mean": lambda x: noise_mean(x, stddev=1.0, false_alarm_rate=OFTEN),
    "shape": lambda x: noise_shape(x, stddev=1.0, false_alarm_rate=OFTEN),
    "layers": lambda x: worst_layer(layers(x), stddev=1.0, false_alarm_rate=OFTEN)[1],
    "rounds": lambda x: worst_correlation(all_pairs(vectors(x)), false_alarm_rate=OFTEN)[1],
    "pairs of layers": lambda x: worst_correlation(all_pairs(layers(x)), false_alarm_rate=OFTEN)[1],
    "lags": lambda x: worst_lag(x, false_alarm_rate=OFTEN)[1],
}


@pytest.mark.parametrize("name", ON_NOISE)
def test_faultless_noise_fails_as_often_as_declared(name):
    alarms = sum(not ON_NOISE[name](noise_of(seed, (6, 300))).holds for seed in range(REPEATS))
    # Bonferroni over correlated tests may fail more rarely than it says, never more often.
    alternative = "two-sided" if name in ("size", "mean", "shape") else "greater"
    assert binomtest(alarms, REPEATS, OFTEN, alternative).pvalue > 1e-4
    assert alarms > 0


@pytest.mark.parametrize(("size", "q"), [(400, 0.1), (400, 0.5), (4_000, 0.005)], ids=str)
def test_faultless_sampling_fails_as_often_as_declared(size, q):
    rounds, repeats, alarms = 12, 150, np.zeros(4)
    for seed in range(repeats):
        cohorts = cohorts_of(seed, rounds=rounds, size=size, q=q)
        settings = {"probability": q, "false_alarm_rate": OFTEN}
        found = (
            sampling_rate(sizes_of(cohorts), population_size=size, **settings),
            binomial_spread(sizes_of(cohorts), trials=size, **settings),
            binomial_spread(counts_of(cohorts, size), trials=rounds, **settings),
            cohort_overlap(cohorts, population_size=size, false_alarm_rate=OFTEN),
        )
        alarms += [not measurement.holds for measurement in found]
    # Whole numbers can't be cut at any rate: their intervals fail more rarely than declared.
    for count in alarms:
        assert binomtest(int(count), repeats, OFTEN, "greater").pvalue > 1e-4


# --- figures against independent implementations -----------------------------------------------------


def test_figures_are_those_of_other_implementations():
    noise = noise_of(1, (4, 500), stddev=3.0)
    settings = {"stddev": 3.0, "false_alarm_rate": RATE}
    around_zero = np.sqrt(np.mean(noise**2))
    assert noise_size(noise, **settings).measured == pytest.approx(around_zero / 3)
    assert noise_mean(noise, **settings).measured == pytest.approx(
        noise.mean() / 3 * np.sqrt(noise.size)
    )
    found = kstest(noise.reshape(-1), "norm", args=(0, 3))
    shape = noise_shape(noise, **settings)
    assert shape.measured == pytest.approx(found.statistic * np.sqrt(noise.size))
    assert kstest_bound(noise.size) == pytest.approx(shape.high, rel=1e-6)


def kstest_bound(n):
    """Where scipy's own test of exactly that distance would have p = RATE (Stephens' large-n series)."""
    low, high = 0.5, 4.0
    for _ in range(60):
        middle = (low + high) / 2
        # A sample whose greatest distance to the uniform distribution is middle/√n.
        sample = np.clip((np.arange(n) + 1) / n - middle / np.sqrt(n), 0, 1)
        p = kstest(sample, "uniform", alternative="two-sided", method="exact").pvalue
        low, high = (middle, high) if p > RATE else (low, middle)
    return middle


def test_correlations_are_pearson_s_without_centring():
    a, b = noise_of(1, (2, 1_000))
    a, b = (np.concatenate([x, -x]) for x in (a, b))  # mean exactly 0
    name, found = worst_correlation({"pair": (a, b)}, false_alarm_rate=RATE)
    assert name == "pair"
    assert found.measured == pytest.approx(abs(pearsonr(a, b).statistic) * np.sqrt(2_000))
    one = a.reshape(1, -1)
    lag, repeated = worst_lag(one, false_alarm_rate=RATE)
    assert lag == 1_000  # the second half is the first one, negated
    direct = abs(a[:-lag] @ a[lag:]) / (np.mean(a**2) * np.sqrt(len(a) - lag))
    assert repeated.measured == pytest.approx(direct)
    assert not repeated.holds


def test_overlap_of_two_cohorts_has_the_hypergeometric_law():
    rng = np.random.default_rng(0)
    draws = [
        len(np.intersect1d(rng.choice(50, 20, replace=False), np.arange(15))) for _ in range(20_000)
    ]
    cohorts = [np.arange(15), np.arange(5, 25)]
    found = cohort_overlap(cohorts, population_size=50, false_alarm_rate=0.1)
    assert found.measured == pytest.approx(10 / 6)
    low, high = np.quantile(draws, [0.05, 0.95])
    assert (found.low * 6, found.high * 6) == pytest.approx((low, high))


# --- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.97, 1.03, 1.5])
def test_too_little_and_too_much_noise_are_seen(factor):
    noise = factor * noise_of(0, (10, 5_000))
    assert not noise_size(noise, stddev=1.0, false_alarm_rate=RATE).holds


def test_a_small_layer_without_noise_is_named():
    noise = noise_of(0, (10, 300))
    found = layers(noise)
    found["small"] = np.zeros_like(found["small"])
    name, size = worst_layer(found, stddev=1.0, false_alarm_rate=RATE)
    assert (name, size.measured, size.holds) == ("small", 0.0, False)
    assert noise_size(noise, stddev=1.0, false_alarm_rate=RATE).holds


def test_noise_of_another_shape_or_place_is_seen():
    uniform = (2 * np.random.default_rng(0).random((10, 1_000)) - 1) * np.sqrt(3)
    assert noise_size(uniform, stddev=1.0, false_alarm_rate=RATE).holds
    assert not noise_shape(uniform, stddev=1.0, false_alarm_rate=RATE).holds
    shifted = noise_of(0, (10, 1_000)) + 0.05
    assert not noise_mean(shifted, stddev=1.0, false_alarm_rate=RATE).holds


def test_the_same_noise_every_round_is_seen_at_the_root_of_its_length():
    noise = noise_of(0, (1, 20_000))
    found = worst_correlation(all_pairs({"1": noise, "2": noise}), false_alarm_rate=RATE)[1]
    assert found.measured == pytest.approx(141, abs=1)
    assert not found.holds


def test_layers_that_start_with_the_same_noise_are_seen():
    noise = noise_of(0, (10, 300))
    found = layers(noise)
    found["small"] = found["large"][:, :3]
    name, correlation = worst_correlation(all_pairs(found), false_alarm_rate=RATE)
    assert name == "small and large"
    assert not correlation.holds


def test_noise_that_repeats_within_a_round_is_seen():
    noise = np.tile(noise_of(0, (5, 64)), 4)
    lag, found = worst_lag(noise, false_alarm_rate=RATE)
    assert lag == 64
    assert not found.holds


def test_cohorts_of_fixed_size_and_favoured_devices_are_seen():
    rng = np.random.default_rng(0)
    fixed = [rng.choice(1_000, 100, replace=False) for _ in range(20)]
    settings = {"probability": 0.1, "false_alarm_rate": RATE}
    assert sampling_rate(sizes_of(fixed), population_size=1_000, **settings).holds
    assert not binomial_spread(sizes_of(fixed), trials=1_000, **settings).holds
    favoured = [np.flatnonzero(rng.random(1_000) < np.repeat([0.15, 0.05], 500)) for _ in fixed]
    assert sampling_rate(sizes_of(favoured), population_size=1_000, **settings).holds
    assert not binomial_spread(counts_of(favoured, 1_000), trials=20, **settings).holds
    more = cohorts_of(0, rounds=20, size=1_000, q=0.13)
    assert not sampling_rate(sizes_of(more), population_size=1_000, **settings).holds


def test_cohorts_that_follow_each_other_are_seen():
    cohort = cohorts_of(0, rounds=1, size=1_000, q=0.1)[0]
    other = np.setdiff1d(np.arange(1_000), cohort)[: len(cohort)]
    settings = {"population_size": 1_000, "false_alarm_rate": RATE}
    assert not cohort_overlap([cohort] * 10, **settings).holds
    assert not cohort_overlap([cohort, other] * 5, **settings).holds


# --- degenerate inputs -------------------------------------------------------------------------------


def test_nothing_measured_never_holds():
    nothing, settings = np.zeros(0), {"stddev": 1.0, "false_alarm_rate": RATE}
    for test in (noise_size, noise_mean, noise_shape):
        assert math.isnan(test(nothing, **settings).measured)
        assert not test(nothing, **settings).holds
    silent = np.zeros((2, 50))
    assert not worst_correlation({"pair": tuple(silent)}, false_alarm_rate=RATE)[1].holds
    assert not worst_lag(silent, false_alarm_rate=RATE)[1].holds
    broken = np.full((2, 50), np.nan)
    assert not noise_size(broken, **settings).holds
    assert not worst_correlation({"pair": tuple(broken)}, false_alarm_rate=RATE)[1].holds
    assert not worst_lag(broken, false_alarm_rate=RATE)[1].holds


def test_everyone_always_and_nobody_ever():
    everyone = [np.arange(50)] * 5
    settings = {"population_size": 50, "false_alarm_rate": RATE}
    rate = sampling_rate(sizes_of(everyone), probability=1.0, **settings)
    assert (rate.measured, rate.low, rate.high) == (1.0, 1.0, 1.0)
    assert cohort_overlap(everyone, **settings).holds
    nobody = [np.zeros(0, dtype=np.int64)] * 5
    assert cohort_overlap(nobody, **settings).holds
    assert not sampling_rate(sizes_of(nobody), probability=0.5, **settings).holds
