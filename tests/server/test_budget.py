import math
from dataclasses import replace

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant

from fedprofile.common.accounting import fits, gaussian_mu
from fedprofile.common.config import PrivacyConfig, TrainingConfig
from fedprofile.common.errors import BudgetError, ConfigError
from fedprofile.server.budget import plan_budget
from fedprofile.server.split import (
    Sizes,
    Split,
    cooccurrence_signal,
    popularity_signal,
    split,
    training_signal,
)

N = 600
SIZES = Sizes(n_items=100, scales=3, weights=2_000)


def plan(*, rounds=20, cohort=60, population_size=N, earlier=None, sizes=SIZES, **privacy):
    return plan_budget(
        PrivacyConfig(**privacy),
        TrainingConfig(rounds=rounds, cohort=cohort),
        population_size=population_size,
        sizes=sizes,
        earlier=earlier,
    )


def independent_epsilon(planned, rounds, delta):
    """By dp_accounting alone, written from the definition of the releases."""
    accountant = PLDAccountant()
    if planned.popularity is not None:
        accountant.compose(GaussianDpEvent(planned.popularity.noise_multiplier))
    if planned.cooccurrence is not None:
        accountant.compose(GaussianDpEvent(planned.cooccurrence.noise_multiplier))
    q = planned.training.sampling_probability
    if rounds:
        event = GaussianDpEvent(planned.training.noise_multiplier)
        accountant.compose(event if q == 1 else PoissonSampledDpEvent(q, event), rounds)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(
    ("target", "rounds", "cohort", "share"),
    [
        (1.0, 20, 600, 0.3),
        (2.0, 4, 100, 0.8),
        (0.5, 4, 100, 0.0),
        (1.0, 20, 600, None),
        (8.0, 4, 100, None),
    ],
)
def test_all_releases_together_spend_the_target_and_no_more(target, rounds, cohort, share):
    planned = plan(epsilon=target, rounds=rounds, cohort=cohort, split={"popularity": share})
    reached = independent_epsilon(planned, rounds, planned.delta)
    assert reached <= target
    # Tight: what is left is less than a noise multiplier 0.1 % smaller would take.
    assert reached > target * (1 - 3e-3)
    assert planned.delta == pytest.approx(N**-1.1)
    assert planned.target_epsilon == target
    assert planned.training.sampling_probability == pytest.approx(cohort / N)
    assert planned.training.expected_cohort == pytest.approx(cohort)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_the_statistics_get_their_share_of_squared_mu(share):
    planned = plan(epsilon=3.0, split={"popularity": share}, noise_multiplier=1e3)
    mu = gaussian_mu(epsilon=3.0, delta=planned.delta)
    assert planned.popularity.noise_multiplier**-2 == pytest.approx(share * mu**2)
    assert planned.popularity.sampling_probability == 1


@pytest.mark.parametrize("target", [0.1, 2.0, 20.0])
def test_unset_the_share_follows_the_rule(target):
    planned = plan(epsilon=target, cohort=N)
    mu = gaussian_mu(epsilon=target, delta=planned.delta)
    popularity = popularity_signal(SIZES, noise_multiplier=1 / mu, population_size=N)
    learned = training_signal(
        SIZES, noise_multiplier=math.sqrt(20) / mu, expected_cohort=N, rounds=20
    )
    assert planned.split == split(popularity=popularity, training=learned)
    assert planned.popularity.noise_multiplier**-2 == pytest.approx(
        planned.split.popularity * mu**2
    )


@pytest.mark.parametrize("noise", [12.0, 20.0, 60.0])
def test_rounds_of_a_given_noise_fit_before_statistics_take_the_rest(noise):
    planned = plan(epsilon=2.0, cohort=N, noise_multiplier=noise)
    mu = gaussian_mu(epsilon=2.0, delta=planned.delta)
    assert 1 / planned.popularity.noise_multiplier**2 + 20 / noise**2 <= 1.01 * mu**2
    assert independent_epsilon(planned, 20, planned.delta) < 2.0 * (1 + 5e-3)


@pytest.mark.parametrize("rounds", [0, 4])
def test_what_is_taken_together_is_paid_from_the_share_of_the_statistics(rounds):
    both = replace(SIZES, cooccurrence=True)
    planned = plan(epsilon=4.0, rounds=rounds, cohort=N, sizes=both)
    mu = gaussian_mu(epsilon=4.0, delta=planned.delta)
    whole = replace(planned.cooccurrence, noise_multiplier=1 / mu)
    noise = math.sqrt(rounds) / mu
    expected = split(
        popularity=popularity_signal(SIZES, noise_multiplier=1 / mu, population_size=N),
        # Of 100 items as many as there is signal for.
        cooccurrence=cooccurrence_signal(int(0.1 * N * mu), whole),
        training=training_signal(SIZES, noise_multiplier=noise, expected_cohort=N, rounds=rounds)
        if rounds
        else None,
    )
    spent = [m.noise_multiplier**-2 for m in (planned.popularity, planned.cooccurrence)]
    assert spent[0] / sum(spent) == pytest.approx(expected.everything.popularity)
    assert 4.0 * (1 - 2e-3) < independent_epsilon(planned, rounds, planned.delta) <= 4.0
    if rounds:
        assert sum(spent) == pytest.approx(expected.statistics * mu**2)
        assert sum(spent) + spent[1] < mu**2  # if a crash takes its result along
    assert plan(sizes=both, enabled=False).cooccurrence.noise_multiplier == 0
    assert plan(noise_multiplier=50.0).cooccurrence is None


@pytest.mark.parametrize("target", [0.1, 0.15])
def test_two_statistics_cost_no_more_than_the_one_they_make_up(target):
    both = replace(SIZES, cooccurrence=True)
    planned = plan(epsilon=target, rounds=0, population_size=20_000, sizes=both)
    assert planned.cooccurrence is not None
    events = [planned.popularity.event(), planned.cooccurrence.event()]
    assert fits(events, delta=planned.delta, target_epsilon=target)


def test_a_release_of_next_to_no_items_is_not_made():
    both = replace(SIZES, cooccurrence=True)
    few, none = (plan(epsilon=0.2, rounds=0, sizes=sizes) for sizes in (both, SIZES))
    assert few == none


def test_without_the_larger_statistic_the_other_one_takes_no_more_than_alone():
    both = replace(SIZES, cooccurrence=True)
    few, none = (plan(epsilon=0.2, rounds=20, sizes=sizes) for sizes in (both, SIZES))
    assert few == none
    assert few.split.statistics <= 0.45
    given = {"popularity": 0.5, "cooccurrence": 0.1}
    kept = plan(epsilon=0.2, rounds=20, sizes=both, split=given)
    assert (kept.split, kept.cooccurrence) == (Split(0.5), None)


@pytest.mark.parametrize(("rounds", "parts"), [(4, (0.1, 0.6)), (0, (1 / 7, 6 / 7))])
def test_a_split_that_is_set_is_kept(rounds, parts):
    given = {"popularity": 0.1, "cooccurrence": 0.6}
    both = replace(SIZES, cooccurrence=True)
    planned = plan(epsilon=4.0, rounds=rounds, cohort=N, sizes=both, split=given)
    mu = gaussian_mu(epsilon=4.0, delta=planned.delta)
    for made, part in zip((planned.popularity, planned.cooccurrence), parts, strict=True):
        assert made.noise_multiplier**-2 == pytest.approx(part * mu**2, rel=2e-3)
    assert (planned.split.popularity, planned.split.cooccurrence) == pytest.approx(parts)
    assert 4.0 * (1 - 2e-3) < independent_epsilon(planned, rounds, planned.delta) <= 4.0
    # What isn't said to be for the other one isn't for it.
    first = plan(epsilon=4.0, rounds=4, cohort=N, sizes=both, split={"popularity": 0.1})
    assert first.split == Split(0.1)
    assert first.cooccurrence is None


def test_no_share_means_no_statistics():
    planned = plan(
        split={"popularity": 0.0}, noise_multiplier=50.0, sizes=replace(SIZES, cooccurrence=True)
    )
    assert planned.popularity is None
    assert planned.cooccurrence is None


@pytest.mark.parametrize(
    "privacy", [{}, {"noise_multiplier": 0.01}, {"split": {"popularity": 0.0}}]
)
def test_without_rounds_the_statistics_get_everything(privacy):
    planned = plan(rounds=0, epsilon=1.5, **privacy)
    assert 1.5 * (1 - 2e-3) < independent_epsilon(planned, 0, planned.delta) <= 1.5


def test_an_explicit_noise_multiplier_is_taken_as_it_is():
    planned = plan(noise_multiplier=7.5, clip_norm=0.25, delta=1e-6)
    assert planned.training.noise_multiplier == 7.5
    assert planned.training.clip_norm == 0.25
    assert planned.delta == 1e-6


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_noise_too_small_for_the_first_round_is_refused_before_anything(share):
    with pytest.raises(BudgetError, match=r"noise_multiplier = 0\.8 brings ε to") as caught:
        plan(noise_multiplier=0.8, epsilon=1.0, split={"popularity": share}, cohort=N)
    assert caught.value.epsilon_reached > 1
    assert caught.value.exit_code == 3


def test_more_rounds_than_any_noise_fits_are_refused():
    with pytest.raises(BudgetError, match="no noise fits 1000 rounds"):
        plan(epsilon=1e-9, delta=1e-12, rounds=1_000, cohort=N, split={"popularity": 0.0})


@pytest.mark.parametrize(("cohort", "rate"), [(60, 0.1), (600, 1.0), (10_000, 1.0)])
def test_the_rate_follows_from_the_cohort_unless_it_is_given(cohort, rate):
    assert plan(cohort=cohort, noise_multiplier=50.0).training.sampling_probability == rate
    given = plan_budget(
        PrivacyConfig(noise_multiplier=50.0),
        TrainingConfig(cohort=cohort, sampling_probability=0.25),
        population_size=N,
        sizes=SIZES,
    )
    assert given.training.sampling_probability == 0.25


def test_without_privacy_nothing_is_clipped_noised_or_enforced():
    planned = plan(enabled=False)
    assert planned.target_epsilon is None
    assert planned.training.clip_norm == math.inf
    assert not planned.training.private
    assert not planned.popularity.private


def test_a_population_of_one_has_no_default_delta():
    with pytest.raises(ConfigError, match=r"privacy\.delta"):
        plan(population_size=1)


def test_what_was_spent_before_leaves_less_for_popularity_and_rounds():
    before = {GaussianDpEvent(4.0): 2}
    planned = plan(epsilon=2.0, rounds=4, cohort=N, earlier=before)
    fresh = plan(epsilon=2.0, rounds=4, cohort=N)
    assert planned.training.noise_multiplier > fresh.training.noise_multiplier
    assert planned.popularity.noise_multiplier > fresh.popularity.noise_multiplier
    accountant = PLDAccountant().compose(GaussianDpEvent(4.0), 2)
    accountant.compose(planned.popularity.event())
    accountant.compose(planned.training.event(), 4)
    reached = accountant.get_epsilon(planned.delta)
    assert 2.0 * (1 - 3e-3) < reached <= 2.0


@pytest.mark.parametrize("settings", [{}, {"rounds": 0}, {"noise_multiplier": 9.0}])
def test_a_budget_that_earlier_runs_have_spent_is_refused_with_its_figure(settings):
    before = {GaussianDpEvent(1.0): 3}
    with pytest.raises(BudgetError, match="earlier releases on this population") as refused:
        plan(epsilon=2.0, earlier=before, **settings)
    reference = PLDAccountant().compose(GaussianDpEvent(1.0), 3).get_epsilon(N**-1.1)
    assert refused.value.epsilon_reached == pytest.approx(reference, abs=1e-9)
