"""What a sweep will run, and a folder that remembers it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.config import RunConfig
from fedprofile.common.errors import ConfigError, RunFolderError
from fedprofile.simulations.sweep_plan import SweepFolder, SweepPlan


def config(**sections):
    return RunConfig.model_validate(sections)


def test_every_combination_once_before_any_a_second_time():
    base = config(seed=7, training={"rounds": 3})
    plan = SweepPlan.of(base, {"epsilon": (1.0, math.inf), "users": (0.5, 1.0)}, 2)
    runs = plan.runs(base)
    assert [run.name for run in runs] == [
        "epsilon-1-users-0.5-seed-7",
        "epsilon-1-seed-7",
        "epsilon-inf-users-0.5-seed-7",
        "epsilon-inf-seed-7",
        "epsilon-1-users-0.5-seed-8",
        "epsilon-1-seed-8",
        "epsilon-inf-users-0.5-seed-8",
        "epsilon-inf-seed-8",
    ]
    first, last = runs[0].config, runs[-1].config
    assert (first.seed, first.privacy.epsilon, first.data.user_share) == (7, 1.0, 0.5)
    assert (last.seed, last.privacy.enabled, last.data.user_share) == (8, False, 1.0)
    assert not any(run.config.evaluation.baselines for run in runs)
    assert all(run.config.training.rounds == 3 for run in runs)


def test_without_a_seed_the_noise_of_every_run_is_secret():
    runs = SweepPlan.of(config(), {"epsilon": (2.0,)}, None).runs(config())
    assert [run.name for run in runs] == [f"epsilon-2-run-{number}" for number in (1, 2, 3)]
    assert {run.config.seed for run in runs} == {None}


def test_an_axis_that_is_not_swept_has_the_configured_value():
    base = config(privacy={"epsilon": 3.0}, data={"user_share": 0.5})
    plan = SweepPlan.of(base, {}, 1)
    assert (plan.epsilons, plan.shares) == ((3.0,), (0.5,))
    assert plan.runs(base)[0].name == "epsilon-3-users-0.5-run-1"
    assert SweepPlan.of(config(privacy={"enabled": False}), {}, 1).epsilons == (math.inf,)


def test_a_run_costs_what_the_axis_says_whatever_the_configuration():
    base = config(privacy={"enabled": False, "epsilon": 3.0})
    private, open_ = SweepPlan.of(base, {"epsilon": (1.0, math.inf)}, 1).runs(base)
    assert (private.config.privacy.enabled, private.config.privacy.epsilon) == (True, 1.0)
    assert not open_.config.privacy.enabled


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5),
    st.lists(st.floats(1e-6, 1), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_names_differ_where_runs_do(epsilons, shares, seeds):
    plan = SweepPlan(
        tuple({f"{e:.12g}": e for e in epsilons}.values()),
        tuple({f"{s:.12g}": s for s in shares}.values()),
        seeds,
    )
    runs = plan.runs(config())
    assert len({run.name for run in runs}) == len(runs)
    assert all("/" not in run.name and run.name.isascii() for run in runs)


def test_at_least_one_run():
    with pytest.raises(ConfigError, match="--seeds must be 1 or more"):
        SweepPlan.of(config(), {}, 0)


def test_a_value_that_makes_no_sense_with_the_rest_names_the_run():
    base = config(privacy={"split": {"popularity": 0.0}, "local": {"enabled": True}})
    with pytest.raises(ConfigError, match=r"epsilon-inf-run-1: privacy: privacy\.local hides"):
        SweepPlan.of(base, {"epsilon": (1.0, math.inf)}, 1).runs(base)


@pytest.fixture
def folder(tmp_path):
    made = SweepFolder(tmp_path / "sweep")
    made.create(config(seed=3), SweepPlan((0.1, 2.0, math.inf), (0.25, 1.0), 2))
    return made


def test_a_folder_remembers_its_plan(folder):
    same, plan = SweepFolder.reopen(folder.path, config(seed=3), {}, None)
    assert (same, plan) == (folder, SweepPlan((0.1, 2.0, math.inf), (0.25, 1.0), 2))
    axes = {"epsilon": (0.1, 2.0, math.inf), "users": (0.25, 1.0)}
    assert SweepFolder.reopen(folder.path, config(seed=3), axes, 2)[1] == plan


@pytest.mark.parametrize(
    ("axes", "seeds", "words"),
    [
        ({"epsilon": (2.0, math.inf)}, None, r"epsilon was 0\.1,2,inf"),
        ({"users": (1.0,)}, None, r"users was 0\.25,1"),
        ({}, 3, "seeds was 2"),
    ],
)
def test_another_sweep_is_refused(folder, axes, seeds, words):
    with pytest.raises(RunFolderError, match=words):
        SweepFolder.reopen(folder.path, config(seed=3), axes, seeds)


def test_another_configuration_is_refused(folder):
    with pytest.raises(RunFolderError, match=r"\(seed differ\)"):
        SweepFolder.reopen(folder.path, config(seed=4), {}, None)


@pytest.mark.parametrize(
    "text", ["", "epsilon = 3", "seeds = 1\nepsilon = ['x']\nusers = [1]", "= =", "\udcff"]
)
def test_a_plan_that_is_none_is_refused(folder, text):
    folder.plan.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunFolderError, match=r"sweep\.toml: not the plan of a sweep"):
        SweepFolder.reopen(folder.path, config(seed=3), {}, None)


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"no sweep to resume here \(sweep\.toml is missing\)"):
        SweepFolder.reopen(tmp_path, config(), {}, None)
