"""Calibrated noise: enough for the target, and not a thousandth more."""

import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

from fedprofile.common import accounting
from fedprofile.common.accounting import epsilon, fits, gaussian_mu
from fedprofile.common.calibration import calibrate_noise_multiplier
from fedprofile.common.errors import BudgetError, ConfigError


def sampled(sigma, q):
    return PoissonSampledDpEvent(q, GaussianDpEvent(sigma))


@pytest.mark.parametrize(
    ("population", "cohort", "rounds", "target", "published"),
    [
        (6_000, 100, 100, 1, 0.98),
        (6_000, 5_000, 100, 1, 27),
    ],
)
def test_calibration_meets_the_target_tightly(population, cohort, rounds, target, published):
    q, delta = cohort / population, population**-1.1
    sigma = calibrate_noise_multiplier(
        target_epsilon=target, delta=delta, sampling_probability=q, rounds=rounds
    )
    assert sigma == pytest.approx(published, rel=0.02)
    assert epsilon([sampled(sigma, q)] * rounds, delta=delta) <= target
    assert epsilon([sampled(sigma * 0.999, q)] * rounds, delta=delta) > target


def test_calibration_is_tight_for_a_tiny_epsilon():
    q, delta = 0.001, 1_000_000**-1.1
    sigma = calibrate_noise_multiplier(
        target_epsilon=0.01, delta=delta, sampling_probability=q, rounds=10
    )
    assert epsilon([sampled(sigma, q)] * 10, delta=delta) <= 0.01
    assert epsilon([sampled(sigma * 0.999, q)] * 10, delta=delta) > 0.01


def test_calibration_leaves_room_for_what_was_released_before():
    prior = [GaussianDpEvent(2.0)]
    sigma = calibrate_noise_multiplier(
        target_epsilon=3.0, delta=1e-5, sampling_probability=1.0, rounds=10, prior_events=prior
    )
    # All are Gaussian: μ² adds up (Dong, Roth & Su 2022, corollary 2).
    mu = gaussian_mu(epsilon=3.0, delta=1e-5)
    assert sigma == pytest.approx(math.sqrt(10 / (mu**2 - 1 / 2.0**2)), rel=1e-3)
    assert fits([*prior, *[GaussianDpEvent(sigma)] * 10], delta=1e-5, target_epsilon=3.0)


def test_calibration_stays_tight_where_the_coarse_grid_errs():
    prior, delta = [sampled(10.0, 0.02)] * 20_000, 1e-4
    target = epsilon(prior, delta=delta) + 0.03  # the coarse grid is 0.020 too high
    sigma = calibrate_noise_multiplier(
        target_epsilon=target, delta=delta, sampling_probability=1.0, rounds=1, prior_events=prior
    )
    assert fits([*prior, GaussianDpEvent(sigma)], delta=delta, target_epsilon=target)
    assert not fits([*prior, GaussianDpEvent(sigma * 0.999)], delta=delta, target_epsilon=target)


def test_calibration_refuses_what_no_noise_can_meet():
    prior = [GaussianDpEvent(4.0)]
    spent = epsilon(prior, delta=1e-5)
    rest = {"delta": 1e-5, "sampling_probability": 1.0, "rounds": 1}
    with pytest.raises(BudgetError, match=r"cost ε = 0\.9") as refused:
        calibrate_noise_multiplier(target_epsilon=0.5, prior_events=prior, **rest)
    assert refused.value.epsilon_reached == spent
    with pytest.raises(BudgetError, match="no noise"):
        calibrate_noise_multiplier(target_epsilon=spent * (1 + 1e-12), prior_events=prior, **rest)
    with pytest.raises(ConfigError, match="next to no noise"):
        calibrate_noise_multiplier(target_epsilon=250.0, **rest)
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="epsilon"):
            calibrate_noise_multiplier(target_epsilon=target, **rest)
    with pytest.raises(ConfigError, match="rounds"):
        calibrate_noise_multiplier(target_epsilon=1.0, **{**rest, "rounds": 0})


def test_hundreds_of_thousands_of_rounds_are_calibrated_without_listing_them():
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=0.5, delta=1e-5, sampling_probability=1.0, rounds=10**9
    )
    # Without sampling rounds are one Gaussian release of σ/√rounds.
    alone = epsilon([GaussianDpEvent(noise_multiplier / math.sqrt(10**9))], delta=1e-5)
    assert alone == pytest.approx(0.5, rel=5e-3)


def test_what_cannot_be_computed_is_refused_in_words():
    with pytest.raises(ConfigError, match="next to no noise"):
        epsilon([GaussianDpEvent(1e-4)], delta=1e-5)
    with pytest.raises(ConfigError, match=r"raise privacy\.delta"):
        calibrate_noise_multiplier(
            target_epsilon=8.0,
            delta=1e-300,
            sampling_probability=1.0,
            rounds=1,
            prior_events=[GaussianDpEvent(1.0)],
        )


def test_with_a_tiny_delta_calibration_is_checked_on_the_fine_grid():
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=1.0, delta=1e-14, sampling_probability=0.5, rounds=20
    )
    events = {PoissonSampledDpEvent(0.5, GaussianDpEvent(noise_multiplier)): 20}
    assert epsilon(events, delta=1e-14) <= 1.0
    assert fits(events, delta=1e-14, target_epsilon=1.0)


def test_calibration_never_answers_with_what_the_fine_grid_denies(monkeypatch):
    """As where, with a tiny δ, the coarse grid finds less than the fine one does."""
    pld = accounting._epsilon_pld

    def optimistic(counted, delta, grid, adjacency):
        return pld(counted, delta, grid, adjacency) * (1 + share if grid == accounting._GRID else 1)

    monkeypatch.setattr(accounting, "_epsilon_pld", optimistic)
    asked = {"target_epsilon": 1.0, "delta": 1e-5, "sampling_probability": 1.0, "rounds": 1}
    share = 1e-3
    noise_multiplier = calibrate_noise_multiplier(**asked)
    assert epsilon([GaussianDpEvent(noise_multiplier)], delta=1e-5) <= 1.0
    share = 0.5
    with pytest.raises(ConfigError, match=r"raise privacy\.delta"):
        calibrate_noise_multiplier(**asked)


def test_calibration_for_a_replaced_one_is_tight():
    rest = {"delta": 1e-5, "adjacency": "replace-one"}
    sigma = calibrate_noise_multiplier(
        target_epsilon=4.0, sampling_probability=0.25, rounds=10, **rest
    )
    for factor, within in ((1.0, True), (0.999, False)):
        event = PoissonSampledDpEvent(0.25, GaussianDpEvent(sigma * factor))
        assert (epsilon({event: 10}, **rest) <= 4.0) is within
