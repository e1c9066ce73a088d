"""The audit on real federations, whole and broken."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from click.testing import CliRunner
from scipy.stats import binom

from fedprofile.common.config import RunConfig
from fedprofile.common.errors import ConfigError, RunFolderError
from fedprofile.common.ledger import Ledger
from fedprofile.common.ledger_entries import read_ledger
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.randomness import NoiseSource
from fedprofile.common.signing import SigningKey
from fedprofile.simulations import canaries, canaries_cli
from fedprofile.simulations.canaries import (
    CanaryOptions,
    audit_canaries,
    released_means,
    score,
)
from fedprofile.simulations.canary_hosts import Canaries, CanaryHost

SMALL = {
    "seed": 1,
    "data": {"synthetic_users": 120, "synthetic_items": 40},
    "items": {"dimension": 16},
    "model": {"width": 32, "window": 8},
    "training": {"rounds": 4, "negatives": 8, "sampling_probability": 1.0},
    # Fixed noise, for calibration takes seconds.
    "privacy": {"noise_multiplier": 4.0, "epsilon": 4.0, "split": {"popularity": 0.0}},
}


def config_of(**sections):
    merged = {name: {**SMALL.get(name, {}), **values} for name, values in sections.items()}
    return RunConfig.model_validate({**SMALL, **merged})


def audit(folder, *, canaries=400, **sections):
    return audit_canaries(config_of(**sections), CanaryOptions(canaries=canaries, out=folder))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    # The population's name is of the ledger that canaries leave alone.
    return audit(tmp_path_factory.mktemp("sound") / "audit", ledger={"population": "shop"})


def test_results_say_what_they_are_of(sound):
    asked = config_of(ledger={"population": "shop"})
    assert sound["run"]["config_digest"] == asked.digest() != config_of().digest()
    assert {"created", "version", "command"} <= sound["run"].keys()


def test_a_sound_run_holds(sound):
    assert sound["verdict"] == {"holds": True, "findings": [], "false_alarm_rate": 0.01}
    declared = sound["declared"]["epsilon"]
    assert sound["bounds"]["steinke"] < declared
    assert sound["bounds"]["declared_p_value"] > 0.05
    estimate = sound["estimates"]["sum_of_releases"]
    assert estimate["low"] < declared
    # Canaries are seen at all: an audit that sees nothing always holds.
    assert estimate["epsilon"] > 0.2 * declared


def test_the_folder_explains_the_audit(sound):
    paths = sound["paths"]
    written = json.loads(Path(paths["results"]).read_text(encoding="utf-8"))
    assert written == {key: value for key, value in sound.items() if key != "paths"}
    assert written["canaries"]["count"] == 400
    assert len(written["canaries"]["cosines_in"]) == written["canaries"]["included"]
    drawing = Path(paths["chart"]).read_text(encoding="utf-8")
    assert drawing.startswith("<svg")
    assert "var(--ours)" in drawing
    assert "--ours:#" in drawing


def test_the_ledger_is_that_of_a_real_run_with_canaries_in_the_population(sound):
    entries = read_ledger(Path(sound["paths"]["run"]) / "ledger.jsonl")
    users = sound["run"]["users"]
    assert entries[0].population_size == users + 400
    assert [e.kind for e in entries].count("commit") == 4
    assert sound["declared"]["mechanism"]["population_size"] == users + 400
    assert entries[-1].reason == "completed"


def test_coins_leave_the_run_as_it_is_but_for_the_canaries(tmp_path, monkeypatch, sound):
    def nobody(cls, count, *, randomness):
        return cls(np.zeros(count, dtype=bool), 3)

    # All out: the estimate is refused, so look at the ledger of what ran.
    monkeypatch.setattr(Canaries, "draw", classmethod(nobody))
    with pytest.raises(ConfigError, match="canaries took part"):
        audit(tmp_path / "a")
    runs = [Path(sound["paths"]["run"]), tmp_path / "a" / "run"]
    first, second = (
        [
            (e.kind, getattr(e, "cohort_size", None), getattr(e, "mechanism", None))
            for e in read_ledger(run / "ledger.jsonl")
        ]
        for run in runs
    )
    assert first == second


def test_membership_is_measured_on_users_who_were_left_out(sound):
    attacks = sound["membership"]
    assert set(attacks) == {"loss", "calibrated"}
    for attack in attacks.values():
        assert 10 < attack["others"] <= 40
        assert 10 < attack["members"] <= 40
        assert attack["auc"]["low"] <= attack["auc"]["value"] <= attack["auc"]["high"]


# --- Faults. What canaries can catch, and what they can't: see docs/audit.md. ---


@pytest.fixture
def less_noise(monkeypatch):
    def apply(factor):
        normal = NoiseSource.normal
        monkeypatch.setattr(
            NoiseSource,
            "normal",
            lambda self, shape, *, stddev: normal(self, shape, stddev=factor * stddev),
        )

    return apply


def test_a_tenth_of_the_noise_is_caught_by_estimate_and_bounds(tmp_path, less_noise):
    less_noise(0.1)
    found = audit(tmp_path / "a")
    declared = found["declared"]["epsilon"]
    assert not found["verdict"]["holds"]
    assert found["estimates"]["sum_of_releases"]["low"] > declared
    assert found["bounds"]["steinke"] > declared
    assert found["bounds"]["declared_p_value"] < 0.001


def test_half_of_the_noise_is_caught_by_the_estimate(tmp_path, less_noise):
    less_noise(0.5)
    found = audit(tmp_path / "a", canaries=1_000)
    assert not found["verdict"]["holds"]
    assert found["estimates"]["sum_of_releases"]["low"] > found["declared"]["epsilon"]


def test_canaries_that_count_five_times_are_caught(tmp_path, monkeypatch):
    train = CanaryHost.train

    def five_times(self, task):
        update = train(self, task)
        for array in update.arrays.values():
            array *= 5
        return update

    monkeypatch.setattr(CanaryHost, "train", five_times)
    # A reply within the bound for its number of devices is accepted: orthogonal canaries leave room.
    found = audit(tmp_path / "a")
    assert not found["verdict"]["holds"]
    assert found["estimates"]["sum_of_releases"]["low"] > found["declared"]["epsilon"]


# --- Parts. ---


def test_what_is_watched_is_what_the_server_steps_along(build_town, tmp_path):
    town = build_town(
        training={"server_optimizer": "fedavg", "server_learning_rate": 0.5, "server_momentum": 0.0}
    )
    with released_means() as means:
        town.run(tmp_path)
    weights = [town.initial(), *({n: w.numpy() for n, w in w.items()} for _, w in town.rounds)]
    assert len(means) == len(town.rounds) == 2
    for mean, before, after in zip(means, weights[:-1], weights[1:], strict=True):
        step = np.concatenate([(before[n] - after[n]).ravel() for n in sorted(before)])
        np.testing.assert_allclose(0.5 * mean, step, atol=1e-6)
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.ones(1)
    torch.optim.SGD([p], lr=1.0).step()
    assert len(means) == 2  # nothing is watched afterwards


def test_scores_follow_from_the_mechanism():
    """Releases made here: in-canaries point along what they were part of, the others by chance."""
    rng, d, k, q, sigma = np.random.default_rng(0), 4_000, 300, 0.3, 0.5
    mechanism = Mechanism(
        clip_norm=2.0, noise_multiplier=sigma, sampling_probability=q, population_size=1_000
    )
    who = Canaries(rng.random(k) < 0.5, 9)
    directions = who.directions(np.arange(k), d)
    means = []
    for _ in range(20):
        asked = who.included & (rng.random(k) < q)
        total = 2.0 * directions[asked].sum(axis=0) + rng.normal(size=d) * 2.0 * sigma
        means.append((total / mechanism.expected_cohort).astype(np.float32))
    before = {"w": torch.zeros(d)}
    after = {"w": torch.from_numpy(-np.sum(means, axis=0))}
    found = score(who, before, after, means, mechanism)
    np.testing.assert_allclose(found.final, found.total, atol=1e-6)
    assert found.total[~who.included].std() * np.sqrt(d) == pytest.approx(1, abs=0.2)
    for view in (found.total, found.largest, found.likelihood):
        right = view[who.included][:, None] > view[~who.included]
        assert right.mean() > 0.8
    assert found.dimension == d


@pytest.mark.slow
def test_a_run_that_keeps_what_it_declares_is_accused_no_more_often_than_declared(tmp_path):
    """Canaries alone, everybody in every round, a step along the sum: nothing gives away more.

    Half of the noise is found out in the same games.
    """
    d, k, rounds, seeds = 2_000, 400, 4, 100
    mechanism = Mechanism(
        clip_norm=1.0, noise_multiplier=4.0, sampling_probability=1.0, population_size=k
    )
    with Ledger.create(
        tmp_path / "ledger.jsonl",
        signing_key=SigningKey.generate(),
        population="canaries",
        population_size=k,
        delta=1e-5,
        target_epsilon=8.0,
        randomness="csprng",
        code_version="1",
        config_digest="",
    ) as ledger:
        for number in range(1, rounds + 1):
            ledger.reserve(task="training", mechanism=mechanism, run="r", round=number)
        epsilon = ledger.epsilon_spent()

        def accused(seed, share):
            rng = np.random.default_rng(seed)
            who = Canaries(rng.random(k) < 0.5, seed)
            sums = who.directions(np.flatnonzero(who.included), d).sum(axis=0)
            noise = rng.normal(size=(rounds, d)) * share * mechanism.noise_multiplier
            means = list(((sums + noise) / k).astype(np.float32))
            weights = {"w": torch.from_numpy(-np.sum(means, axis=0))}
            result = SimpleNamespace(weights=weights)
            observed = canaries._Observed({"w": torch.zeros(d)}, result, means)
            found = canaries._measure(who, observed, mechanism, ledger)
            return bool(canaries._findings(found, epsilon, 1e-5))

        alarms = sum(accused(seed, 1.0) for seed in range(seeds))
        assert alarms <= binom.isf(1e-3, seeds, canaries.FALSE_ALARM_RATE)
        assert sum(accused(seed, 0.5) for seed in range(10)) >= 8


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"privacy": {"enabled": False}}, "privacy.enabled"),
        ({"training": {"rounds": 0}}, "training.rounds"),
        ({"canaries": 99}, "--canaries must be 100 or more"),
    ],
)
def test_audits_that_could_tell_nothing_are_refused(tmp_path, sections, message):
    with pytest.raises(ConfigError, match=message):
        audit(tmp_path / "a", **sections)
    assert not (tmp_path / "a").exists()


def test_a_folder_in_the_way_is_kept(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="exists already"):
        audit(tmp_path / "a")


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RunConfig.model_validate(SMALL).to_toml())

    def run(*arguments):
        return CliRunner().invoke(
            typer.main.get_command(canaries_cli.app), ["--config", "small.toml", *arguments]
        )

    return run


def test_the_command_exits_with_0_where_the_epsilon_holds(command):
    found = command("--canaries", "300", "--json")
    assert found.exit_code == 0, found.output
    summary = json.loads(found.stdout.splitlines()[-1])
    assert summary["verdict"]["holds"]
    assert "cosines_in" not in summary["canaries"]
    results = Path(summary["paths"]["results"])
    assert results.parts[0] == "runs"
    assert results.parts[2:] == ("canaries", "canaries.json")


def test_more_canaries_than_could_be_kept_are_refused(command):
    found = command("--canaries", "10000000000", "--out", "audit")
    assert found.exit_code == 2
    assert "100000" in found.output
    assert not Path("audit").exists()


def test_the_command_exits_with_1_where_it_does_not(command, less_noise):
    less_noise(0.1)
    found = command("--canaries", "300", "--out", "审计")
    assert found.exit_code == 1
    assert "Does not hold" in found.output
    assert (Path("审计") / "canaries.svg").is_file()
