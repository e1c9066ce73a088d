"""The test of cohort sizes: as many false alarms as declared, no more and no less, and real power."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, kstest

from fedprofile.audit.cohort_test import FALSE_ALARM, check_cohorts


def p_values(draw, *, population_size, q, rounds, sets, seed=0):
    rng = np.random.default_rng(seed)
    return np.array(
        [
            (found.rate, found.spread)
            for number in range(sets)
            for found in [
                check_cohorts(
                    draw(rng, rounds),
                    population_size=population_size,
                    probabilities=np.full(rounds, q),
                    seed=number,
                )
            ]
        ]
    )


@pytest.mark.parametrize(
    ("population_size", "q", "rounds"),
    [
        (6_000, 100 / 6_000, 100),
        (1_000_000, 0.005, 20),
        (50, 0.02, 30),
        (20, 0.9, 3),
        (300, 0.5, 1),
    ],
)
def test_p_values_of_honest_sizes_are_uniform(population_size, q, rounds):
    found = p_values(
        lambda rng, n: rng.binomial(population_size, q, n),
        population_size=population_size,
        q=q,
        rounds=rounds,
        sets=2_000,
    )
    for column in found.T:  # ten tests at 1e-4: a false alarm of the suite in a thousand
        assert kstest(column, "uniform").pvalue > 1e-4
    alarms = int((found.min(axis=1) < FALSE_ALARM / 2).sum())
    assert binomtest(alarms, 2_000, FALSE_ALARM, alternative="greater").pvalue > 1e-4


def test_rounds_of_different_rates_share_a_test():
    rng = np.random.default_rng(0)
    rates = np.tile([0.01, 0.2, 0.5], 20)
    sizes = rng.binomial(500, rates)
    assert check_cohorts(sizes, population_size=500, probabilities=rates, seed=1).passed
    wrong = check_cohorts(sizes, population_size=500, probabilities=rates[::-1].copy(), seed=1)
    assert not wrong.passed


@pytest.mark.parametrize(
    ("name", "draw", "least"),
    [
        ("fixed size", lambda rng, n: np.full(n, 100), 1.0),
        ("nearly fixed", lambda rng, n: rng.integers(97, 104, n), 1.0),
        ("rate 5 % higher", lambda rng, n: rng.binomial(6_000, 105 / 6_000, n), 0.9),
        ("rate 5 % lower", lambda rng, n: rng.binomial(6_000, 95 / 6_000, n), 0.9),
        ("in waves", lambda rng, n: rng.binomial(6_000, rng.choice([80, 120], n) / 6_000), 1.0),
        ("always all", lambda rng, n: np.full(n, 6_000), 1.0),
        ("nobody", lambda rng, n: np.zeros(n, dtype=np.int64), 1.0),
    ],
)
def test_other_samplers_are_found_out(name, draw, least):
    found = p_values(draw, population_size=6_000, q=100 / 6_000, rounds=100, sets=50)
    assert (found.min(axis=1) < FALSE_ALARM / 2).mean() >= least, name


def test_a_sampler_cut_at_a_cap_no_honest_cohort_reaches_is_honest():
    # Truncated Poisson with cap m + 4√m: its law is the Binomial's to 1e-4, and so are its sizes.
    cap = 140
    found = p_values(
        lambda rng, n: np.minimum(rng.binomial(6_000, 100 / 6_000, n), cap),
        population_size=6_000,
        q=100 / 6_000,
        rounds=100,
        sets=100,
    )
    assert binom.sf(cap, 6_000, 100 / 6_000) < 1e-4
    assert (found.min(axis=1) < FALSE_ALARM / 2).sum() <= 2
