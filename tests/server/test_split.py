import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.server.split import Sizes, popularity_signal, statistics_share, training_signal

SIZES = Sizes(n_items=50, scales=3, weights=4_000)
signals = st.floats(1e-3, 1e3)


@given(signals, signals)
def test_no_other_share_keeps_more(popularity, training):
    shares = np.linspace(0.05, 0.45, 801)
    a, b = popularity**2 * shares, training**2 * (1 - shares)
    kept = a / (1 + a) + b / (1 + b)
    share = statistics_share(popularity, training)
    assert 0.05 <= share <= 0.45
    assert share == pytest.approx(shares[kept.argmax()], abs=6e-4) or np.interp(
        share, shares, kept
    ) == pytest.approx(kept.max(), rel=1e-6)


def test_what_drowns_gets_next_to_nothing():
    assert statistics_share(0.5, 0.05) == 0.45  # twice, and something is left for training
    assert statistics_share(0.05, 0.5) == 0.05
    # With little noise the weaker one is worth more.
    assert statistics_share(100.0, 50.0) == pytest.approx(1 / 3, abs=0.01)


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
