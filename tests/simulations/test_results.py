import json
from types import SimpleNamespace

import numpy as np
import pytest

from fedprofile.common import accounting
from fedprofile.common.config import RunConfig
from fedprofile.common.ledger import Ledger
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.signing import SigningKey
from fedprofile.common.successors import Successors
from fedprofile.simulations.results import run_metrics
from fedprofile.simulations.splits import make_split
from fedprofile.simulations.synthetic import synthesise

DELTA = 1e-3


@pytest.fixture(scope="module")
def log():
    return synthesise(30, 20, seed=0)


def mechanism(noise_multiplier, sampling_probability):
    return Mechanism(
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        population_size=30,
    )


ONE_PAIR = Successors.of(np.array([1]), np.array([2]), np.array([0.5]))


def metrics(log, tmp_path, *, rounds=3, noise=2.0, rejected=None, successors=None, whole=False):
    """Of a run with a release of popularity and ``rounds`` rounds, the last of them cut off."""
    config = RunConfig.model_validate(
        {"privacy": {"enabled": noise > 0}, "evaluation": {"split": "none"}}
    )
    ledger = Ledger.create(
        tmp_path / "ledger.jsonl",
        signing_key=SigningKey.generate(),
        population="夏",
        population_size=30,
        delta=DELTA,
        target_epsilon=None,
        randomness="csprng",
        code_version="0",
        config_digest=config.digest(),
    )
    with ledger:
        popularity = ledger.reserve(task="statistics/popularity", mechanism=mechanism(noise, 1.0))
        ledger.commit(popularity, cohort_size=30, replies_counted=30, rejected={})
        for number in range(1, rounds + 1):
            release = ledger.reserve(task="training", mechanism=mechanism(noise, 0.5), round=number)
            if number < rounds:
                ledger.commit(release, cohort_size=9, replies_counted=8, rejected=rejected or {})
        records = [
            {"round": number, "sampled": 9, "trained": 8, "update_norm": float("inf")}
            for number in range(rounds)
        ]
        return run_metrics(
            config,
            name="夏",
            seconds=1.25,
            log=log,
            split=make_split(log.histories, config.evaluation),
            table=SimpleNamespace(n_items=20, has_content=True, whole=whole),
            encoder=SimpleNamespace(parameters=list),
            result=SimpleNamespace(
                checkpoint=SimpleNamespace(round=rounds - 1, rounds=records),
                statistics=SimpleNamespace(successors=successors, beyond_content=0.625),
                stopped=None,
            ),
            validation={1: 0.5, 2: float("nan")},
            best_round=None,
            models=[],
            ledger=ledger,
        )


def test_how_much_co_occurrence_counts_is_told_where_it_was_released(log, tmp_path):
    (tmp_path / "without").mkdir()
    (tmp_path / "whole").mkdir()
    without = metrics(log, tmp_path / "without")["run"]
    assert (without["beyond_content"], without["whole_histories"]) == (None, False)
    released = metrics(log, tmp_path, successors=Successors.none())["run"]
    assert (released["beyond_content"], released["whole_histories"]) == (0.625, False)
    whole = metrics(log, tmp_path / "whole", successors=ONE_PAIR, whole=True)["run"]
    assert (whole["beyond_content"], whole["whole_histories"]) == (None, True)
    (tmp_path / "noise").mkdir()
    drowned = metrics(log, tmp_path / "noise", successors=Successors.none(), whole=True)["run"]
    assert drowned["whole_histories"] is False


def test_every_release_has_its_cost_and_the_last_is_the_exact_total(log, tmp_path):
    found = metrics(log, tmp_path, rounds=2, rejected={"norm": 1})
    spent = [release["epsilon_after"] for release in found["privacy"]["releases"]]
    events = [mechanism(2.0, 1.0).event(), *[mechanism(2.0, 0.5).event()] * 2]
    assert spent[-1] == found["privacy"]["epsilon"] == accounting.epsilon(events, delta=DELTA)
    for made, cost in enumerate(spent, start=1):
        exact = accounting.epsilon(events[:made], delta=DELTA)
        assert exact - 1e-9 <= cost <= exact + 2e-3
    assert found["privacy"]["epsilon_rdp"] > found["privacy"]["epsilon"]
    assert (
        found["privacy"]["time_read_off_data"] is True
    )  # split "none" has no date, nor has the config


def test_a_release_that_was_never_confirmed_is_charged_and_has_no_counts(log, tmp_path):
    *_, confirmed, last = metrics(log, tmp_path, rejected={"norm": 1})["privacy"]["releases"]
    assert (confirmed["cohort"], confirmed["replies"], confirmed["rejected"]) == (9, 8, {"norm": 1})
    assert (last["cohort"], last["replies"], last["rejected"]) == (None, None, {})
    assert last["epsilon_after"] > confirmed["epsilon_after"]


def test_the_curve_joins_rounds_with_cost_and_quality(log, tmp_path):
    found = metrics(log, tmp_path)
    first, second = found["curve"]
    assert (first["round"], second["round"]) == (1, 2)
    assert first["epsilon"] == found["privacy"]["releases"][1]["epsilon_after"]
    assert first["validation_ndcg"] == 0.5
    assert second["validation_ndcg"] is None
    assert first["update_norm"] is None  # JSON knows no infinity


def test_without_noise_nothing_is_claimed(log, tmp_path):
    found = metrics(log, tmp_path, noise=0.0)
    assert found["privacy"]["epsilon"] is None
    assert {release["epsilon_after"] for release in found["privacy"]["releases"]} == {None}
    assert found["privacy"]["epsilon_prv"] is None


def test_the_document_is_json_and_accounts_for_the_data(log, tmp_path):
    found = metrics(log, tmp_path)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    data = found["data"]
    assert data["quality"]["rows_read"] == data["quality"]["rows_kept"] == data["events"]
    assert (data["users"], data["train_users"], data["test_users"]) == (30, 30, 0)
    assert found["run"]["name"] == "夏"
