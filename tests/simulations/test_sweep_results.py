"""What a whole sweep costs is what an audit of its ledgers says."""

import math
from dataclasses import replace

import pytest

from fedprofile.audit.compose import compose
from fedprofile.common import accounting
from fedprofile.common.earlier import find_earlier
from fedprofile.common.ledger import Ledger
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.signing import SigningKey
from fedprofile.simulations.sweep_results import joint_cost

KEY = SigningKey.generate()
ROUND = Mechanism(
    clip_norm=1.0, noise_multiplier=6.0, sampling_probability=0.5, population_size=100
)
EXACT = replace(ROUND, clip_norm=math.inf, noise_multiplier=0.0)


@pytest.fixture
def ledger(tmp_path):
    def make(name, mechanism, *, rounds=3, delta=1e-3, size=100, earlier=(), randomness="csprng"):
        path = tmp_path / name / "ledger.jsonl"
        path.parent.mkdir()
        made = Ledger.create(
            path,
            signing_key=KEY,
            population="people",
            population_size=size,
            delta=delta,
            target_epsilon=None,
            randomness=randomness,
            code_version="",
            config_digest="",
            earlier=find_earlier(earlier, population="people", population_size=size),
        )
        with made:
            for number in range(1, rounds + 1):
                made.reserve(
                    task="training",
                    mechanism=replace(mechanism, population_size=size),
                    run=name,
                    round=number,
                )
        return path

    return make


def test_all_private_runs_compose_as_an_audit_would(ledger):
    paths = [ledger("a", ROUND), ledger("b", replace(ROUND, noise_multiplier=3.0), delta=1e-4)]
    found = joint_cost(dict.fromkeys(paths, True))
    audited = compose(paths)
    assert found["delta"] == audited.delta == 1e-4
    assert audited.joint <= found["epsilon"] < audited.joint + 2e-3
    assert found["epsilon"] == found["epsilon_of_private_runs"]
    assert (found["private_runs"], found["other_runs"]) == (2, 0)
    assert not found["repeatable"]


def test_a_run_without_privacy_makes_the_whole_infinite(ledger):
    private = ledger("a", ROUND, randomness="seeded")
    found = joint_cost({private: True, ledger("b", EXACT): False})
    assert found["epsilon"] is None
    assert found["epsilon_of_private_runs"] == pytest.approx(
        accounting.epsilon({ROUND.event(): 3}, delta=1e-3), abs=2e-3
    )
    assert found["repeatable"]


def test_no_private_run_has_no_figure(ledger):
    found = joint_cost({ledger("b", EXACT): False})
    assert found["epsilon"] is found["epsilon_of_private_runs"] is None


def test_what_came_before_counts_once(ledger):
    before = ledger("before", ROUND, rounds=2)
    runs = [ledger(name, ROUND, rounds=1, earlier=[before]) for name in "ab"]
    found = joint_cost(dict.fromkeys(runs, True))
    assert found["epsilon"] == accounting.epsilon({ROUND.event(): 4}, delta=1e-3, coarse=True)


def test_runs_of_fewer_users_count_at_the_smallest_delta(ledger):
    few = ledger("few", ROUND, size=50, delta=1e-2)
    found = joint_cost({few: True, ledger("all", ROUND): True})
    assert found["delta"] == 1e-3
    assert found["epsilon"] == accounting.epsilon({ROUND.event(): 6}, delta=1e-3, coarse=True)
