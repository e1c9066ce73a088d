import pytest

from fedprofile.client.device_config import PolicyConfig
from fedprofile.client.lifetime import LifetimeBudget, Terms, promised
from fedprofile.common.errors import BudgetError
from fedprofile.common.messages import Binding
from fedprofile.common.sections import validated
from fedprofile.common.server_config import FederationConfig, ServerConfig
from fedprofile.server.budget import plan_budget
from fedprofile.server.lifetimes import plan_federation, times_asked
from fedprofile.server.split import Sizes

SIZES = Sizes(n_items=1_500, scales=2, weights=24_000, cooccurrence=True)


def configured(population, rounds=150, epsilon=8.0, **sections):
    content = {
        "federation": {"population_size": population, **sections.pop("federation", {})},
        "training": {"rounds": rounds},
        "privacy": {"epsilon": epsilon, **sections.pop("privacy", {})},
        "statistics": {"as_of": "2026-01-01"},
    }
    return validated(ServerConfig, content, where="", documented="")


def planned(config, sizes=SIZES):
    return plan_federation(config, sizes=sizes, earlier={})


def unbounded(config, sizes=SIZES):
    return plan_budget(
        config.privacy,
        config.training,
        population_size=config.federation.population_size,
        sizes=sizes,
    )


def noises(plan):
    releases = (plan.popularity, plan.cooccurrence, plan.training)
    return [None if m is None else m.noise_multiplier for m in releases]


def test_what_the_server_takes_owners_to_allow_is_what_they_do():
    policy, federation = PolicyConfig(), FederationConfig()
    assert policy.lifetime_epsilon == federation.lifetime_epsilon
    assert policy.lifetime_delta == federation.lifetime_delta


@pytest.mark.parametrize(
    ("population", "rounds", "epsilon"),
    [(500, 150, 8.0), (2_000, 150, 8.0), (2_000, 100, 4.0), (5, 3, 8.0), (50_000, 150, 8.0)],
)
def test_a_device_by_default_answers_all_it_is_asked(tmp_path, population, rounds, epsilon):
    """Whatever the server plans by default, its releases pass the device's policy and its own ledger."""
    config = configured(population, rounds, epsilon)
    plan, policy = planned(config), PolicyConfig()
    asked = [("statistics/popularity", plan.popularity, 1)]
    if plan.cooccurrence is not None:
        asked.append(("statistics/cooccurrence", plan.cooccurrence, 1))
    times = times_asked(plan.training, rounds)
    assert times >= plan.training.sampling_probability * rounds
    asked.append(("training", plan.training, times))
    terms = Terms(
        population="shop",
        target_epsilon=policy.lifetime_epsilon,
        delta=policy.lifetime_delta,
        randomness="csprng",
        code_version="test",
        config_digest="",
    )
    release = 0
    with LifetimeBudget.open(tmp_path / "ledger.jsonl", terms=terms) as budget:
        for task, mechanism, count in asked:
            assert mechanism.noise_multiplier >= policy.minimum_noise_multiplier
            assert mechanism.clip_norm <= policy.maximum_clip_norm
            promise = promised(
                clip_norm=mechanism.clip_norm, noise_multiplier=mechanism.noise_multiplier
            )
            for _ in range(count):
                release += 1
                binding = Binding(
                    run="r", round=release, release=release, items="0" * 64, model="1" * 64
                )
                budget.charge(task=task, binding=binding, mechanism=promise)
        assert budget.epsilon_spent() <= policy.lifetime_epsilon
        # Not more noise than that takes.
        if noises(plan) != noises(unbounded(config)):
            assert budget.epsilon_spent() > 0.98 * policy.lifetime_epsilon


def test_without_that_limit_the_servers_budget_alone_decides():
    config = configured(500, federation={"lifetime_epsilon": 0})
    assert noises(planned(config)) == noises(unbounded(config))
    assert noises(planned(configured(500)))[2] > noises(unbounded(config))[2]


def test_a_limit_that_does_not_bind_changes_nothing():
    config = configured(500, 100, 4.0)
    assert noises(planned(config)) == noises(unbounded(config))


def test_noise_that_was_given_stays_and_statistics_make_room():
    config = configured(500, 3, privacy={"noise_multiplier": 4.0})
    found, alone = noises(planned(config)), noises(unbounded(config))
    assert found[2] == alone[2] == 4.0
    assert found[0] > alone[0]


def test_rounds_of_too_little_noise_are_refused_with_the_figure():
    config = configured(500, 3, privacy={"noise_multiplier": 1.5})
    with pytest.raises(BudgetError, match=r"asked in 6 rounds ε = .*lifetime_epsilon = 8") as error:
        planned(config)
    assert 8 < error.value.epsilon_reached < 20


def test_statistics_that_compare_nothing_any_more_are_left_out():
    config = configured(130, 0)
    assert unbounded(config).cooccurrence is not None
    assert planned(config).cooccurrence is None


def test_no_privacy_needs_no_limit():
    config = configured(500, privacy={"enabled": False})
    assert noises(planned(config)) == noises(unbounded(config)) == [0, 0, 0]


def test_a_federation_that_has_begun_goes_on_with_its_noise(begin_ledger, mechanism, tmp_path):
    """Whatever limit its configuration has by now: an older program knew of none."""
    ledger = begin_ledger(tmp_path / "ledger.jsonl")
    ledger.reserve(task="statistics/popularity", mechanism=mechanism)
    for sections in ({}, {"privacy": {"noise_multiplier": 1.6}}):
        config = configured(500, 20, **sections)
        ledger.reserve(task="training", mechanism=mechanism, round=1)
        made = ledger.entries
        plan = plan_federation(config, sizes=SIZES, earlier={}, made=made)
        assert plan.training == mechanism
    ledger.close()


def test_statistics_are_not_left_a_trifle():
    limit = planned(configured(500, 3, privacy={"noise_multiplier": 4.0}))
    assert limit.popularity.noise_multiplier < 4
    with pytest.raises(BudgetError, match="leaves next to nothing for statistics"):
        planned(configured(500, 3, privacy={"noise_multiplier": 1.61}))
