"""Bounds from the one-run game: against published figures, brute force, and simulated mechanisms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import norm

from fedprofile.audit.estimates import normal_epsilon
from fedprofile.audit.one_run import (
    Guesses,
    best_bound,
    best_of,
    gaussian_bound,
    gaussian_curve,
    guess,
    profile_curve,
    refuted,
    steinke_bound,
    steinke_p_value,
    trade_off_p_value,
)
from fedprofile.common.errors import ConfigError

games = st.integers(1, 60).flatmap(
    lambda m: st.integers(1, m).flatmap(
        lambda r: st.integers(0, r).map(lambda c: Guesses(canaries=m, made=r, correct=c))
    )
)


@pytest.mark.parametrize(
    ("canaries", "made", "correct", "delta", "published"),
    [  # Steinke et al. 2023, appendix D, and §7, figure 11 (which cuts the last digit off)
        (100, 100, 75, 0.0, 0.702),
        (100, 100, 75, 1e-4, 0.699),
        (1_000, 100, 75, 1e-4, 0.673),
        (100_000, 1_510, 1_439, 1e-5, 2.675),
    ],
)
def test_published_bounds_of_steinke_et_al(canaries, made, correct, delta, published):
    game = Guesses(canaries=canaries, made=made, correct=correct)
    assert steinke_bound(game, delta=delta, confidence=0.95) == pytest.approx(published, abs=1e-3)


def test_published_p_value_of_steinke_et_al():
    game = Guesses(canaries=100, made=100, correct=75)
    assert steinke_p_value(game, epsilon=math.log(3), delta=0) == pytest.approx(0.553, abs=1e-3)


@given(game=games, epsilon=st.floats(0, 5), delta=st.floats(0, 0.01))
def test_steinke_agrees_with_sums_over_the_binomial(game, epsilon, delta):
    rate = math.exp(epsilon) / (1 + math.exp(epsilon))

    def tail(v):
        return sum(
            math.comb(game.made, i) * rate**i * (1 - rate) ** (game.made - i)
            for i in range(max(v, 0), game.made + 1)
        )

    v = game.correct
    slack = max((tail(v - i) - tail(v)) / i for i in range(1, game.canaries + 1))
    expected = min(1.0, tail(v) + 2 * game.canaries * delta * max(slack, 0))
    assert steinke_p_value(game, epsilon=epsilon, delta=delta) == pytest.approx(expected, abs=1e-9)


def test_randomised_response_is_as_bad_as_steinke_says():
    # With ε-DP randomised response of each coin the right guesses are binomial: the bound is exact.
    game = Guesses(canaries=200, made=200, correct=140)
    epsilon = steinke_bound(game, delta=0, confidence=0.95)
    rng = np.random.default_rng(0)
    right = rng.binomial(200, 1 / (1 + math.exp(-epsilon)), size=200_000)
    assert np.mean(right >= 140) == pytest.approx(0.05, abs=0.002)


def most_likely_tail(m, correct, least):
    """Largest P[≥ correct right of m] over all laws of the number of right guesses that f-DP allows.

    By linear programming on the constraints r_i ≤ f̄(h_{i−1}): an independent way to the recursion. The
    curve is (ε, 0)-DP's inner line least(y) = e^{−ε}·y, so constraints are linear.
    """
    rows, bounds = [], []
    for i in range(1, m + 1):
        row = np.zeros(m + 1)
        row[i:] += least * np.arange(i, m + 1) / m
        row[i - 1 :] -= (m - np.arange(i - 1, m + 1)) / m
        rows.append(row)
        bounds.append(0.0)
    goal = -(np.arange(m + 1) >= correct).astype(float)
    found = linprog(
        goal, A_ub=np.array(rows), b_ub=bounds, A_eq=np.ones((1, m + 1)), b_eq=[1.0], bounds=(0, 1)
    )
    return -found.fun


@pytest.mark.parametrize(("m", "correct", "epsilon"), [(5, 5, 1.0), (12, 10, 0.5), (30, 25, 1.0)])
def test_the_recursion_finds_the_worst_law_of_right_guesses(m, correct, epsilon):
    shrink = math.exp(-epsilon)
    game = Guesses(canaries=m, made=m, correct=correct)
    found = trade_off_p_value(game, lambda y: shrink * y)
    assert found == pytest.approx(most_likely_tail(m, correct, shrink), rel=1e-4)


def test_gaussian_dp_of_one_canary_is_the_trade_off_itself():
    # One canary, one guess: the chance to be right is at most Φ(μ/2).
    game = Guesses(canaries=1, made=1, correct=1)
    for mu in (0.0, 0.5, 2.0):
        assert trade_off_p_value(game, gaussian_curve(mu)) == pytest.approx(norm.cdf(mu / 2))


@given(game=games, mu=st.floats(0.01, 3))
def test_a_p_value_is_where_refutation_turns(game, mu):
    p = trade_off_p_value(game, gaussian_curve(mu))
    assert 0 < p <= 1
    if p < 1:
        assert refuted(game, gaussian_curve(mu), significance=min(1.0, p * 1.001))
        assert not refuted(game, gaussian_curve(mu), significance=p * 0.999)


@given(game=games)
def test_more_right_guesses_refute_more(game):
    if game.correct == game.made:
        return
    better = Guesses(canaries=game.canaries, made=game.made, correct=game.correct + 1)
    for bound in (steinke_bound, gaussian_bound):
        before, after = (bound(g, delta=1e-3, confidence=0.95) for g in (game, better))
        assert after >= before - 1e-9


def test_a_profile_of_a_gaussian_is_its_curve():
    epsilons = np.linspace(0, 12, 4_000)
    mu = 1.3
    deltas = norm.cdf(mu / 2 - epsilons / mu) - np.exp(epsilons) * norm.cdf(-mu / 2 - epsilons / mu)
    profile, exact = profile_curve(epsilons, deltas), gaussian_curve(mu)
    for y in (0.0, 1e-4, 0.02, 0.3, 0.7, 0.98, 1.0):
        assert profile(y) == pytest.approx(exact(y), abs=1e-5)
        assert profile(y) <= exact(y) + 1e-12  # fewer pairs claim less, so refute less


def play(rng, mu, k=1_000, sizes=(500, 125)):
    included = rng.random(k) < 0.5
    scores = rng.normal(size=k) + mu * included
    return [guess(scores, included, guesses=size) for size in sizes]


def best_declared(games, mu):
    return best_of(lambda game: trade_off_p_value(game, gaussian_curve(mu)), games)


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_bounds_hold_for_a_mechanism_of_known_epsilon(mu):
    """Above the truth in at most 5 % of runs; of 30, six or more would have a chance of 0.3 %."""
    rng, delta = np.random.default_rng(3), 1e-5
    truth = float(normal_epsilon(null_mean=0, null_stddev=1, mean=mu, stddev=1, delta=delta))
    runs = [play(rng, mu) for _ in range(30)]
    for bound in (steinke_bound, gaussian_bound):
        found = [best_bound(bound, games, delta=delta, confidence=0.95) for games in runs]
        assert sum(epsilon > truth for epsilon in found) <= 5
        assert np.median(found) > 0.15 * truth  # a bound of nothing would be valid, too
    wrong = [best_declared(games, mu) < 0.05 for games in runs]
    assert sum(wrong) <= 5


def test_bounds_notice_a_mechanism_that_is_much_worse():
    rng, declared = np.random.default_rng(4), 0.5
    for games in (play(rng, 3.0) for _ in range(5)):
        truth = float(
            normal_epsilon(null_mean=0, null_stddev=1, mean=declared, stddev=1, delta=1e-5)
        )
        assert best_bound(steinke_bound, games, delta=1e-5, confidence=0.95) > truth
        assert best_bound(gaussian_bound, games, delta=1e-5, confidence=0.95) > truth
        assert best_declared(games, declared) < 1e-3


def test_guesses_are_the_ends_of_the_order():
    included = np.array([True, False, True, False, True])
    scores = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    counts = {n: guess(scores, included, guesses=n) for n in (2, 3, 4, 5)}
    assert {n: g.correct for n, g in counts.items()} == {2: 2, 3: 3, 4: 4, 5: 5}
    assert guess(-scores, included, guesses=5).correct == 1


@pytest.mark.parametrize(("m", "made", "correct"), [(3, 4, 1), (3, 2, 3), (3, 0, 0), (3, 2, -1)])
def test_impossible_games_are_refused(m, made, correct):
    with pytest.raises(ConfigError, match="guesses"):
        Guesses(canaries=m, made=made, correct=correct)


def test_scores_must_be_numbers():
    for scores in (np.array([1.0, np.nan]), np.array([1.0])):
        with pytest.raises(ConfigError, match="finite score"):
            guess(scores, np.array([True, False]), guesses=1)


def test_choosing_the_best_of_several_sizes_is_paid_for():
    rng = np.random.default_rng(5)
    games = play(rng, 1.0)
    single = max(steinke_bound(g, delta=1e-5, confidence=0.95) for g in games)
    assert best_bound(steinke_bound, games, delta=1e-5, confidence=0.95) < single
    p = [trade_off_p_value(g, gaussian_curve(0.2)) for g in games]
    assert best_declared(games, 0.2) == min(1.0, 2 * min(p))
