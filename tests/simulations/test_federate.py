import datetime as dt

import numpy as np
import pytest

from fedprofile.common.config import RunConfig
from fedprofile.common.ledger import Ledger
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.signing import SigningKey
from fedprofile.simulations.federate import run_name, statistics_time, time_is_read_off_data
from fedprofile.simulations.splits import make_split
from fedprofile.simulations.synthetic import synthesise

DATES = {"validation_from": "2023-06-01", "test_from": "2023-09-01"}


def at(*day):
    return int(dt.datetime(*day, tzinfo=dt.UTC).timestamp())


@pytest.mark.parametrize(
    ("statistics", "evaluation", "expected"),
    [
        ({"as_of": "2023-03-01"}, {}, at(2023, 3, 1)),
        ({"as_of": "2023-03-01"}, DATES, at(2023, 3, 1)),
        ({"as_of": "2023-03-01"}, {"split": "none"}, at(2023, 3, 1)),
        ({}, DATES, at(2023, 6, 1)),
        ({}, {"refit": True, **DATES}, at(2023, 9, 1)),  # up to where is trained
        ({}, {}, None),
        ({}, {"split": "none"}, None),
        # Cuts that this split doesn't use fix nothing.
        ({}, {"split": "leave-one-out", **DATES}, None),
    ],
)
def test_a_date_fixes_the_moment_of_the_statistics(logs, statistics, evaluation, expected):
    config = RunConfig.model_validate({"statistics": statistics, "evaluation": evaluation})
    assert time_is_read_off_data(config) == (expected is None)
    moments = [statistics_time(config, make_split(h, config.evaluation), p) for h, p in logs]
    if expected is None:
        assert moments[0] != moments[1]  # and that is why it is said
    else:
        assert moments == [expected, expected]


@pytest.fixture(scope="module")
def logs(build_town):
    """Two logs that differ in the last half of the users, as (histories, population)."""
    histories = synthesise(40, 30, seed=0).histories
    last = sorted(range(40), key=lambda user: histories.device(user).times.max())
    found = []
    for users in (range(40), sorted(last[:20])):
        chosen = histories.take(np.array(users))
        found.append((chosen, build_town(histories=chosen).population))
    return found


def begun(path):
    return Ledger.create(
        path,
        signing_key=SigningKey.generate(),
        population="people",
        population_size=100,
        delta=1e-3,
        target_epsilon=8.0,
        randomness="csprng",
        code_version="test",
        config_digest="",
    )


def test_a_run_keeps_its_name_wherever_its_folder_is_by_now(tmp_path):
    mechanism = Mechanism(
        clip_norm=1.0, noise_multiplier=4.0, sampling_probability=0.5, population_size=100
    )
    with begun(tmp_path / "a.jsonl") as one, begun(tmp_path / "b.jsonl") as other:
        assert run_name("shop", one).startswith("shop-")
        assert run_name("shop", one) != run_name("shop", other)
        one.reserve(task="training", mechanism=mechanism, run="as-it-began", round=1)
        assert run_name("moved", one) == "as-it-began"
