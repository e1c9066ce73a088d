import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from fedprofile.common.mechanism import Mechanism
from fedprofile.server.cooccurrence import head_size, vectors_size
from fedprofile.server.split import (
    Sizes,
    Split,
    cooccurrence_signal,
    most_kept,
    popularity_signal,
    split,
    training_signal,
)

SIZES = Sizes(n_items=50, scales=3, weights=4_000)
signals = st.floats(1e-3, 1e3)


def kept(signals, shares):
    """Signal that is left behind an optimal filter, by definition."""
    strength = np.square(signals) * shares
    return float((strength / (1 + strength)).sum())


@given(st.lists(signals, min_size=1, max_size=4))
def test_no_other_shares_keep_more(signals):
    shares = np.array(most_kept(signals))
    assert shares.min() >= 0
    assert shares.sum() == pytest.approx(1)
    start = np.full(len(signals), 1 / len(signals))
    found = minimize(
        lambda w: -kept(signals, w),
        start,
        bounds=[(0, 1)] * len(signals),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )
    best = -found.fun if found.success else kept(signals, start)
    assert kept(signals, shares) >= best * (1 - 1e-6)


def test_what_drowns_gets_next_to_nothing():
    assert split(popularity=0.5, training=0.05) == Split(0.45)  # twice, with something left over
    assert split(popularity=0.05, training=0.5) == Split(0.05)
    assert most_kept([3.0, 1e-3, 2.0])[1] == 0
    # With little noise the weaker one is worth more.
    assert split(popularity=100.0, training=50.0).popularity == pytest.approx(1 / 3, abs=0.01)


@given(signals, signals, st.one_of(st.none(), signals))
def test_what_a_crash_takes_along_fits_twice(popularity, cooccurrence, training):
    found = split(popularity=popularity, cooccurrence=cooccurrence, training=training)
    assert 0.05 <= found.popularity <= 0.45
    assert found.cooccurrence > 0
    if training is None:
        assert found.statistics == pytest.approx(1)
    else:
        assert found.popularity + 2 * found.cooccurrence <= 0.95 + 1e-9
        assert 2 * found.popularity + found.cooccurrence <= 0.95 + 1e-9
    assert found.everything.statistics == pytest.approx(1)
    smaller = found.within(0.04)
    assert smaller.statistics == pytest.approx(0.04)
    assert smaller.everything.popularity == pytest.approx(found.everything.popularity)
    assert found.within(1.0) == found


def test_as_many_items_are_compared_as_there_is_signal_for():
    def compared(population, noise, n_items=3_000):
        mechanism = Mechanism(
            clip_norm=1.0,
            noise_multiplier=noise,
            sampling_probability=1.0,
            population_size=population,
        )
        head = vectors_size(head_size(n_items, mechanism), mechanism)
        return head, cooccurrence_signal(head, mechanism)

    heads, signals = zip(*(compared(n, 2.0) for n in (1_000, 5_000, 20_000, 200_000)), strict=True)
    assert heads == (50, 250, 1_000, 2_048)
    assert signals == pytest.approx((1, 1, 1, 0.1 * 200_000 / (2 * 2_048)))
    assert compared(5_000, 0.2)[1] == pytest.approx(0.1 * 5_000 / (0.2 * 2_048))
    assert compared(1_000, 0.0)[1] == math.inf


def test_a_release_alone_gets_everything():
    assert split(popularity=7.0) == Split(1.0)


def test_the_signal_of_popularity_is_that_of_a_drawn_population():
    # Independent: devices take one item each by Zipf's law, all on one scale.
    rng, n = np.random.default_rng(0), 40_000
    p = 1 / np.arange(1, 51)
    counts = np.bincount(rng.choice(50, size=n, p=p / p.sum()), minlength=50)
    noise = 7.0 * rng.normal(size=(200, 50))
    drawn = np.linalg.norm(counts) / np.linalg.norm(noise, axis=1).mean()
    one_scale = Sizes(n_items=50, scales=1, weights=1)
    expected = popularity_signal(one_scale, noise_multiplier=7.0, population_size=n)
    assert drawn == pytest.approx(expected, rel=0.02)


def test_signals_grow_as_they_should():
    def learned(noise=2.0, cohort=100.0, rounds=10):
        return training_signal(SIZES, noise_multiplier=noise, expected_cohort=cohort, rounds=rounds)

    assert learned(cohort=200.0) == pytest.approx(2 * learned())
    assert learned(noise=4.0) == pytest.approx(learned() / 2)
    assert learned(rounds=40) == pytest.approx(2 * learned())
    assert learned(noise=0.0) == math.inf
    assert popularity_signal(SIZES, noise_multiplier=0.0, population_size=9) == math.inf
    # By hand: a tenth of 100 devices in each of 10 rounds, against 2·√(10 · 4000).
    assert learned() == pytest.approx(0.1 * 100 * 10 / (2 * math.sqrt(40_000)))
