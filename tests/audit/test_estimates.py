"""ε between two normals against integration, and the estimate on mechanisms whose ε is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedprofile.audit.estimates import estimate_epsilon, normal_epsilon
from fedprofile.common.accounting import gaussian_mu
from fedprofile.common.errors import ConfigError


def delta_by_integration(epsilon, mean, stddev):
    """The larger of both hockey-stick divergences, as a sum over a fine grid."""
    z = np.linspace(-30, 30, 120_001)
    p, q = norm.pdf(z), norm.pdf(z, mean, stddev)
    step = z[1] - z[0]
    return step * max(
        np.maximum(q - math.exp(epsilon) * p, 0).sum(),
        np.maximum(p - math.exp(epsilon) * q, 0).sum(),
    )


@pytest.mark.parametrize("epsilon", [0.5, 1, 3, 8])
def test_equal_variances_are_gaussian_dp(epsilon):
    mu = gaussian_mu(epsilon=epsilon, delta=1e-5)
    for sign in (1, -1):
        found = normal_epsilon(
            null_mean=5, null_stddev=2, mean=5 + sign * 2 * mu, stddev=2, delta=1e-5
        )
        assert found == pytest.approx(epsilon, rel=1e-9)


@settings(max_examples=20)
@given(mean=st.floats(-3, 3), stddev=st.floats(0.7, 1.4))
def test_unequal_variances_agree_with_integration(mean, stddev):
    found = float(normal_epsilon(null_mean=0, null_stddev=1, mean=mean, stddev=stddev, delta=1e-4))
    at = delta_by_integration(found, mean, stddev)
    assert at <= 1e-4 * 1.001
    if found > 0:
        assert at == pytest.approx(1e-4, rel=1e-3)


def test_the_same_distribution_costs_nothing():
    assert normal_epsilon(null_mean=1, null_stddev=3, mean=1, stddev=3, delta=1e-6) == 0


def scores(rng, mu, k=500):
    return {"present": mu + rng.normal(size=k), "absent": rng.normal(size=k)}


@pytest.mark.parametrize("known", [1.0, None])
def test_the_estimate_comes_near_the_truth(known):
    truth = float(normal_epsilon(null_mean=0, null_stddev=1, mean=1, stddev=1, delta=1e-5))
    sample = scores(np.random.default_rng(0), 1.0, k=100_000)
    found = estimate_epsilon(**sample, delta=1e-5, null_stddev=known)
    assert found.epsilon == pytest.approx(truth, rel=0.03)


def test_an_interval_holds_the_truth():
    rng, mu, delta = np.random.default_rng(1), 1.0, 1e-5
    truth = float(normal_epsilon(null_mean=0, null_stddev=1, mean=mu, stddev=1, delta=delta))
    found = [
        estimate_epsilon(**scores(rng, mu), delta=delta, null_stddev=known)
        for known in (1.0, None)
        for _ in range(30)
    ]
    # 60 intervals of 99 %: five misses have a chance of 0.04 %.
    assert sum(not e.low <= truth <= e.high for e in found) <= 4
    assert all(e.low <= e.epsilon <= e.high for e in found)


def test_an_interval_narrows_with_more_canaries():
    rng = np.random.default_rng(2)
    few, many = (
        estimate_epsilon(**scores(rng, 1.0, k), delta=1e-5, null_stddev=1.0) for k in (100, 10_000)
    )
    assert many.high - many.low < (few.high - few.low) / 3


@pytest.mark.parametrize(
    ("present", "absent"),
    [
        (np.zeros(9), np.ones(50)),
        (np.full(50, np.nan), np.ones(50)),
        (np.ones(50), np.arange(50.0)),
        (np.arange(50.0), np.ones(50)),
    ],
)
def test_scores_that_tell_nothing_are_refused(present, absent):
    with pytest.raises(ConfigError, match="canaries"):
        estimate_epsilon(present=present, absent=absent, delta=1e-5)


def test_delta_is_checked():
    with pytest.raises(ConfigError, match="delta"):
        normal_epsilon(null_mean=0, null_stddev=1, mean=1, stddev=1, delta=0)
