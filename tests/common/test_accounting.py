"""What releases cost, against other accountants, closed forms and values measured before."""

import math
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, LaplaceDpEvent, NonPrivateDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedprofile.common import accounting
from fedprofile.common.accounting import (
    default_delta,
    epsilon,
    epsilon_after_each,
    epsilon_along,
    epsilon_prv,
    epsilon_rdp,
    fits,
    gaussian_mu,
)
from fedprofile.common.errors import ConfigError

DELTA_6K = 6_000**-1.1


def sampled(noise_multiplier, sampling_probability):
    return PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(noise_multiplier))


def gaussian_delta(epsilon, sigma):
    """Balle & Wang 2018, theorem 8, at sensitivity 1."""
    first = norm.cdf(0.5 / sigma - epsilon * sigma)
    return first - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)


def test_three_accountants_give_their_published_values():
    events = [sampled(1.0, 100 / 6_000)] * 100
    assert epsilon(events, delta=DELTA_6K) == pytest.approx(0.949, abs=5e-4)
    assert epsilon_prv(events, delta=DELTA_6K) == pytest.approx(0.959, abs=5e-4)
    assert epsilon_rdp(events, delta=DELTA_6K) == pytest.approx(1.326, abs=5e-4)


@pytest.mark.parametrize(
    ("population", "cohort", "rounds", "published"),
    [(6_000, 100, 2_000, 4.02), (1_000_000, 5_000, 100, 0.60)],
)
def test_epsilon_of_published_runs(population, cohort, rounds, published):
    events = [sampled(1.0, cohort / population)] * rounds
    assert epsilon(events, delta=population**-1.1) == pytest.approx(published, rel=6e-3)


def test_figure_is_that_of_dp_accounting_where_a_coarse_grid_errs():
    event, delta = sampled(1.0, 0.005), 1_000_000**-1.1
    reference = PLDAccountant().compose(event, 2_000).get_epsilon(delta)
    assert epsilon([event] * 2_000, delta=delta) == pytest.approx(reference, abs=1e-9)
    coarse = PLDAccountant(value_discretization_interval=1e-3).compose(event, 2_000)
    assert coarse.get_epsilon(delta) > reference + 1e-3


@settings(max_examples=10, deadline=None)
@given(sigma=st.floats(1, 50), delta=st.sampled_from([1e-3, 1e-5, 1e-8]))
def test_gaussian_matches_its_closed_form(sigma, delta):
    figure = epsilon([GaussianDpEvent(sigma)], delta=delta)
    # The figure is an upper bound, and tight to the grid.
    assert gaussian_delta(figure, sigma) <= delta * (1 + 1e-6)
    assert figure < 2e-4 or gaussian_delta(figure - 2e-4, sigma) > delta


def test_many_gaussians_are_one():
    many = epsilon([GaussianDpEvent(10.0)] * 25, delta=1e-5)
    assert many == pytest.approx(epsilon([GaussianDpEvent(2.0)], delta=1e-5), abs=1e-6)


def test_rdp_matches_mironov():
    # Mironov 2017: order α costs α/2σ² (corollary 3), converted by proposition 3 at the best α;
    # the conversion in use today is somewhat tighter.
    sigma, delta = 2.0, 1e-5
    converted = 1 / (2 * sigma**2) + math.sqrt(2 * math.log(1 / delta)) / sigma
    figure = epsilon_rdp([GaussianDpEvent(sigma)], delta=delta)
    assert epsilon([GaussianDpEvent(sigma)], delta=delta) < figure < converted
    assert figure > 0.85 * converted


def test_cross_checks_bracket_a_mixed_composition():
    events = [GaussianDpEvent(8.0)] + [sampled(2.0, 0.05)] * 40 + [sampled(3.0, 0.1)] * 10
    figure = epsilon(events, delta=1e-5)
    assert figure <= epsilon_prv(events, delta=1e-5) <= figure + 0.011
    assert figure < epsilon_rdp(events, delta=1e-5) < 2 * figure


def test_two_tasks_compose_jointly_below_their_sum():
    task, delta = [sampled(1.0, 0.01)] * 2_000, 50_000**-1.1  # 2.65 alone, published
    assert epsilon(task, delta=delta) == pytest.approx(2.65, abs=5e-3)
    assert epsilon(task * 2, delta=delta) == pytest.approx(3.81, abs=5e-3)


def test_order_of_events_changes_no_digit():
    a, b = sampled(4.0, 0.05), GaussianDpEvent(5.0)
    assert epsilon([a, b, a], delta=1e-5) == epsilon([a, a, b], delta=1e-5)


def test_nothing_costs_nothing_and_an_open_release_everything():
    assert epsilon([], delta=1e-5) == 0
    assert epsilon([sampled(1.0, 0.1), NonPrivateDpEvent()], delta=1e-5) == math.inf
    assert not fits([NonPrivateDpEvent()], delta=1e-5, target_epsilon=1e9)


@pytest.mark.parametrize("rounds", [99, 100, 101])
def test_fits_agrees_with_epsilon_close_to_the_target(rounds):
    event = sampled(1.0, 100 / 6_000)
    target = epsilon([event] * 100, delta=DELTA_6K)
    assert fits([event] * rounds, delta=DELTA_6K, target_epsilon=target) == (rounds <= 100)


@pytest.mark.parametrize(
    ("sigma", "q", "rounds", "delta"),
    [(1.2, 0.01, 10_000, 6.8e-6), (0.95, 0.1, 150, 1e-4), (5.0, 0.3, 7, 1e-5)],
)
def test_a_quick_grid_read_in_pieces_changes_nothing(sigma, q, rounds, delta):
    from opacus.accountants import PRVAccountant

    plain = PRVAccountant()
    plain.history.append((sigma, q, rounds))
    events = {PoissonSampledDpEvent(q, GaussianDpEvent(sigma)): rounds}
    assert epsilon_prv(Counter(events), delta=delta) == pytest.approx(
        plain.get_epsilon(delta), abs=1e-6
    )


def test_prv_refuses_what_it_cannot_express():
    for events in ([], [LaplaceDpEvent(1.0)], [NonPrivateDpEvent()]):
        with pytest.raises(ConfigError, match="PRV"):
            epsilon_prv(events, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_out_of_range_is_refused(delta):
    for figure in (epsilon, epsilon_rdp, epsilon_prv):
        with pytest.raises(ConfigError, match="delta"):
            figure([GaussianDpEvent(1.0)], delta=delta)
    with pytest.raises(ConfigError, match="delta"):
        gaussian_mu(epsilon=1.0, delta=delta)


def test_default_delta_is_below_one_in_the_population():
    assert default_delta(6_000) == pytest.approx(6.98e-5, rel=1e-2)
    assert all(default_delta(n) < 1 / n for n in (2, 100, 10**9))
    with pytest.raises(ConfigError, match="population_size 1"):
        default_delta(1)


@pytest.mark.parametrize(("sigma", "q", "rounds"), [(3.0, 0.01, 10), (5.0, 0.3, 1_000)])
def test_coarse_grid_is_never_below_the_fine_one(sigma, q, rounds):
    event = sampled(sigma, q)
    fine, coarse = (
        PLDAccountant(value_discretization_interval=grid).compose(event, rounds).get_epsilon(1e-5)
        for grid in (1e-4, 1e-3)
    )
    assert coarse >= fine * (1 - 1e-9)


@given(epsilon=st.floats(1e-3, 500), delta=st.floats(1e-12, 0.1))
def test_gaussian_mu_solves_its_equation(epsilon, delta):
    mu = gaussian_mu(epsilon=epsilon, delta=delta)
    first = norm.cdf(mu / 2 - epsilon / mu)
    solved = first - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
    assert solved == pytest.approx(delta, rel=1e-6, abs=1e-15)


def test_accounting_loads_no_torch():
    code = "import sys; import fedprofile.common.accounting; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_cost_after_each_release_bounds_the_exact_cost_and_ends_in_it():
    events = [GaussianDpEvent(6.0), *[sampled(2.0, 0.05)] * 20, GaussianDpEvent(8.0)]
    curve = epsilon_after_each(events, delta=1e-5)
    assert curve[-1] == epsilon(events, delta=1e-5)
    assert curve == sorted(curve)
    for made in (1, 12):
        exact = epsilon(events[:made], delta=1e-5)
        assert exact - 1e-6 <= curve[made - 1] <= exact + 1e-3


def test_cost_along_stretches_is_that_after_each_of_their_last():
    event, first = sampled(1.0, 0.05), GaussianDpEvent(6.0)
    each = epsilon_after_each([first, *[event] * 20], delta=1e-5)
    stretches = [{first: 1}, {event: 5}, {event: 15}]
    along = epsilon_along(stretches, delta=1e-5, total=each[-1])
    assert along == pytest.approx([each[0], each[5], each[20]], rel=1e-6)
    assert epsilon_along([{}, {event: 2}], delta=1e-5, total=1.0)[0] == 0.0


def test_cost_after_each_release_of_nothing_and_without_noise():
    assert epsilon_after_each([], delta=1e-5) == []
    open_release = [GaussianDpEvent(1.0), NonPrivateDpEvent(), GaussianDpEvent(1.0)]
    first, *rest = epsilon_after_each(open_release, delta=1e-5)
    assert first == pytest.approx(epsilon(open_release[:1], delta=1e-5), abs=1e-3)
    assert rest == [math.inf, math.inf]
    with pytest.raises(ConfigError, match="Gaussian"):
        epsilon_after_each([LaplaceDpEvent(1.0)], delta=1e-5)


@pytest.mark.parametrize("q", [1e-3, 0.07, 1.0])
@pytest.mark.parametrize("noise_multiplier", [0.4, 0.7, 2.0])
@pytest.mark.parametrize("target", [0.1, 1.0, 8.0])
def test_the_delta_of_one_release_is_that_of_its_loss_distribution(q, noise_multiplier, target):
    """Against dp_accounting's own distribution, which is never below and here hardly above."""
    event = GaussianDpEvent(noise_multiplier)
    pld = from_gaussian_mechanism(noise_multiplier, value_discretization_interval=1e-3)
    if q < 1:
        event = PoissonSampledDpEvent(q, event)
        pld = from_gaussian_mechanism(
            noise_multiplier, value_discretization_interval=1e-3, sampling_prob=q
        )
    exact = accounting._delta_alone(event, target)
    assert exact <= pld.get_delta_for_epsilon(target) + 1e-13
    assert exact == pytest.approx(pld.get_delta_for_epsilon(target), rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("noise_multiplier", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("q", [1e-4, 0.1, 1.0])
def test_far_too_little_noise_is_refused_at_once(monkeypatch, noise_multiplier, q):
    def never(*_):
        raise AssertionError("the fine grid takes minutes here")

    monkeypatch.setattr(accounting, "_epsilon_pld", never)
    event = GaussianDpEvent(noise_multiplier)
    if q < 1:
        event = PoissonSampledDpEvent(q, event)
    started = time.process_time()
    assert not fits({event: 5_000}, delta=1e-5, target_epsilon=4.0)
    assert time.process_time() - started < 30  # 3 s on an idle core


def test_where_opacus_has_no_answer_it_is_said_in_words():
    with pytest.raises(ConfigError, match="PRV"):
        epsilon_prv([GaussianDpEvent(1.0)], delta=0.999)


def test_prv_refuses_a_grid_that_would_fill_the_memory():
    many = {PoissonSampledDpEvent(0.5, GaussianDpEvent(1.0)): 200_000}
    started = time.process_time()
    with pytest.raises(ConfigError, match="PRV"):
        epsilon_prv(many, delta=1e-5)
    assert time.process_time() - started < 5  # at once: nothing of that size was made


# --- neighbours that differ in the content of one ------------------------------------------------


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_a_replaced_one_moves_a_gaussian_twice_as_far(sigma):
    replaced = epsilon([GaussianDpEvent(sigma)] * 3, delta=1e-5, adjacency="replace-one")
    assert replaced == pytest.approx(
        epsilon([GaussianDpEvent(sigma / 2)] * 3, delta=1e-5), rel=1e-4
    )


@pytest.mark.parametrize(
    ("q", "sigma", "target"), [(0.5, 1.0, 1.5), (0.1, 0.7, 1.0), (0.3, 3.0, 0.2)]
)
def test_a_replaced_one_in_a_poisson_sample_is_told_from_another_by_this_integral(q, sigma, target):
    """δ(ε) = ∫ max(0, p − e^ε·p′) of p = (1 − q)·N(0) + q·N(1) and p′ = (1 − q)·N(0) + q·N(−1)."""

    def density(x, mean):
        return (1 - q) * norm.pdf(x, 0, sigma) + q * norm.pdf(x, mean, sigma)

    x = np.linspace(-12 * sigma, 12 * sigma, 400_001)
    beyond = np.maximum(0, density(x, 1) - math.exp(target) * density(x, -1))
    delta = float(np.trapezoid(beyond, x))
    event = PoissonSampledDpEvent(q, GaussianDpEvent(sigma))
    assert epsilon([event], delta=delta, adjacency="replace-one") == pytest.approx(target, abs=2e-3)
    assert epsilon([event], delta=delta) < target


def test_what_fits_one_kind_of_neighbours_may_not_fit_the_other():
    events = {PoissonSampledDpEvent(0.25, GaussianDpEvent(1.0)): 20}
    assert fits(events, delta=1e-5, target_epsilon=9.0)
    assert not fits(events, delta=1e-5, target_epsilon=9.0, adjacency="replace-one")
    assert fits(events, delta=1e-5, target_epsilon=12.0, adjacency="replace-one")
