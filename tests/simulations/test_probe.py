"""Faulty builds, and the probes that catch them; and no alarm without a fault."""

import datetime as dt
import json
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import typer
from click.testing import CliRunner
from scipy.stats import binom

from benchmarks.faulty_builds import (
    PROBED,
    ROUNDS,
    SMALL,
    STATISTICS,
    chance_alarms,
    faultless,
    fired,
    scaled_noise,
)
from fedprofile.common import randomness
from fedprofile.common.accounting import gaussian_mu
from fedprofile.common.config import RunConfig
from fedprofile.common.errors import ConfigError, RunFolderError
from fedprofile.common.ledger import Ledger
from fedprofile.common.server_config import ServerConfig
from fedprofile.common.signing import SigningKey
from fedprofile.server.budget import plan_budget
from fedprofile.server.split import Sizes
from fedprofile.simulations import probe, probe_cli
from fedprofile.simulations.chance_probes import (
    FALSE_ALARM_RATE,
)
from fedprofile.simulations.probe import run_probes
from fedprofile.simulations.probe_runs import Probed


def config_of(**sections):
    merged = {
        section: {**SMALL.get(section, {}), **values} if isinstance(values, dict) else values
        for section, values in sections.items()
    }
    return RunConfig.model_validate({**SMALL, **merged})


@pytest.fixture(autouse=True)
def _quiet():
    """Devices refuse on purpose here."""
    logging.getLogger("fedprofile").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("fedprofile").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def probed():
    return Probed.of(config_of())


@pytest.fixture
def once(probed, monkeypatch):
    """Populations, plan and encoder made once for all."""
    monkeypatch.setattr(Probed, "of", lambda config: replace(probed, config=config))


# --- faults: each changes the code that a simulation runs -----------------------------------------


@pytest.fixture(scope="module")
def seen(probed, tmp_path_factory):
    return faultless(probed, tmp_path_factory.mktemp("faultless"))


@pytest.mark.parametrize("name", PROBED)
def test_a_faulty_build_is_caught(name, probed, seen, tmp_path):
    assert PROBED[name].caught_by <= fired(probed, seen, PROBED[name], tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same of whole histories, and what is seen of them without a fault."""
    probed = Probed.of(config_of(statistics={"whole_histories": True}))
    return probed, faultless(probed, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", [n for n in PROBED if "occurrence" in n or "pair" in n])
def test_a_faulty_build_is_caught_over_whole_histories(name, whole, tmp_path):
    assert PROBED[name].caught_by <= fired(*whole, PROBED[name], tmp_path)


# --- no fault --------------------------------------------------------------------------------------


@pytest.fixture
def _repeatable(monkeypatch):
    """What the operating system draws, the same every time."""
    monkeypatch.setattr(randomness.os, "urandom", np.random.default_rng(0).bytes)


# Settings that don't touch each other share a run; as it is, the command's test runs it.
VARIANTS = {
    "recurrent, several steps, without a seed": {
        "seed": None,
        "model": {"encoder": "gru"},
        "training": {"local_steps": 3, "targets": "all"},
        "statistics": {"cooccurrence": 5},
    },
    "attention, trainable items, momentum": {
        "model": {"encoder": "transformer", "item_ids": True},
        "training": {"server_optimizer": "fedavg", "server_learning_rate": 1.0},
    },
    "plain averaging, no popularity": {
        "training": {"server_optimizer": "fedavg", "server_momentum": 0.0},
        "privacy": {"split": {"popularity": 0.0}},
    },
    "everyone, always, whole histories": {
        "training": {"sampling_probability": 1.0},
        "statistics": {"whole_histories": True},
    },
    "few, no co-occurrence": {
        "training": {"sampling_probability": 0.005},
        "statistics": {"cooccurrence": 0},
    },
}


@pytest.mark.usefixtures("_repeatable")
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_fault_every_probe_holds(variant):
    config = config_of(**VARIANTS[variant])
    notes = []
    report = run_probes(config, rounds=ROUNDS, advance=notes.append)
    assert [found.name for found in report.probes if not found.holds] == []
    assert report.holds
    assert len(notes) == probe.STEPS
    assert report.false_alarm_rate <= 0.01
    assert report.randomness == ("csprng" if config.seed is None else "seeded")
    areas = {found.name.partition("/")[0] for found in report.probes}
    expected = {"noise", "correlation", "clip", "weights", "divisor", "sampler", "ledger"}
    if config.privacy.split.popularity != 0:
        expected |= {"popularity"} if config.statistics.cooccurrence == 0 else set(STATISTICS)
    assert areas == expected


@pytest.mark.parametrize(
    ("preset", "statistics", "whole"),
    [
        ("shop", {}, True),
        ("shop", {"whole_histories": False}, False),
        ("shop", {"cooccurrence": 5}, False),
        ("video", {}, False),
        ("auto", {"whole_histories": True}, True),
    ],
)
def test_pairs_are_probed_of_what_the_preset_releases(preset, statistics, whole):
    probed = Probed.of(config_of(data={"preset": preset}, statistics=statistics))
    assert probed.busy.table.whole == probed.idle.table.whole == whole
    assert probed.plan.cooccurrence is not None


@pytest.mark.slow
def test_chance_raises_no_more_alarms_in_a_hundred_seeds_than_declared(probed, tmp_path):
    alarms = chance_alarms(probed, tmp_path, seeds=100)
    assert alarms.keys() == CHANCE
    assert sum(alarms.values()) <= binom.isf(1e-3, 100 * len(CHANCE), FALSE_ALARM_RATE)
    assert max(alarms.values()) <= binom.isf(1e-3 / len(CHANCE), 100, FALSE_ALARM_RATE)


CHANCE = {
    *(f"noise/{what}" for what in ("size", "layers", "mean", "shape", "beside-updates")),
    *(f"correlation/{what}" for what in ("rounds", "layers", "coordinates", "runs", "statistics")),
    *(f"sampler/{what}" for what in ("rate", "spread", "devices", "rounds")),
    *(f"{name}/{what}" for name in STATISTICS for what in ("noise", "beside-updates")),
}


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def call(tmp_path, monkeypatch):
    path = tmp_path / "研究.toml"

    # As the command does, in fewer rounds.
    monkeypatch.setattr(probe, "run_probes", partial(run_probes, rounds=ROUNDS))

    def call(*arguments, **sections):
        path.write_text(config_of(**sections).to_toml(), encoding="utf-8")
        command = typer.main.get_command(probe_cli.app)
        return CliRunner().invoke(command, ["--config", str(path), *arguments])

    return call


@pytest.fixture(scope="module")
def reported(probed):
    """What the probes say, for tests of what becomes of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probed, "of", lambda config: replace(probed, config=config))
        patch.setattr(randomness.os, "urandom", np.random.default_rng(0).bytes)
        return run_probes(config_of(), rounds=ROUNDS)


@pytest.mark.usefixtures("once", "_repeatable")
def test_the_command_prints_one_object(call):
    found = call("--json")
    assert found.exit_code == 0
    result = json.loads(found.stdout.splitlines()[-1])
    assert result["holds"] is True
    assert result["declared"]["noise_multiplier"] == 1.5
    names = [entry["name"] for entry in result["probes"]]
    assert set(names) >= CHANCE
    assert len(names) == len(set(names))
    for entry in result["probes"]:
        low, high = entry["expected"]
        assert low <= entry["measured"] <= high
        assert entry["sentence"].endswith(".")
    assert "Probing 5/5" in found.stderr


def test_results_are_kept_with_what_they_are_of_and_never_replaced(
    call, reported, tmp_path, monkeypatch
):
    monkeypatch.setattr(probe, "run_probes", lambda config, *, advance: reported)
    found = call("--out", str(tmp_path), "--json")
    kept = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert kept == json.loads(found.stdout.splitlines()[-1])
    assert kept["run"]["config_digest"] == config_of().digest()
    assert set(kept["run"]) == {"created", "version", "config_digest", "command"}
    for taken in (tmp_path, tmp_path / "probe.json"):
        again = call("--out", str(taken))
        assert isinstance(again.exception, RunFolderError)
        assert "exists already" in str(again.exception)


@pytest.mark.usefixtures("once")
def test_the_command_names_what_fails(call, monkeypatch):
    scaled_noise(0.5)(monkeypatch)
    found = call()
    assert found.exit_code == 1
    assert "FAILS" in found.stdout
    assert "noise/size: Not so: " in found.stdout
    assert "measured 0.5" in found.stdout
    assert "seeded run" in found.stderr


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"privacy": {"enabled": False, "noise_multiplier": None}}, "privacy.enabled = false"),
        ({"privacy": {"epsilon": 0.01, "noise_multiplier": 0.5}}, "above the target"),
    ],
)
def test_a_configuration_without_a_mechanism_is_refused(call, sections, complaint):
    found = call(**sections)
    assert isinstance(found.exception, ConfigError)
    assert complaint in str(found.exception)


def test_the_table_fits_eighty_columns_and_cuts_no_name(call, reported, monkeypatch):
    monkeypatch.setattr(probe, "run_probes", lambda config, *, advance: reported)
    monkeypatch.setenv("COLUMNS", "80")
    found = call()
    table = [line for line in found.stdout.splitlines() if " probes hold" not in line]
    assert max(map(len, table)) <= 80
    names = {
        entry["name"] for entry in json.loads(call("--json").stdout.splitlines()[-1])["probes"]
    }
    assert names <= {line.split()[0] for line in table if line.strip()}


# Noise is calibrated, and so shows whose rate and δ it is of.
SERVER = {
    "federation": {"population_size": 900},
    "items": {"dimension": 8},
    "statistics": {"as_of": dt.date(2026, 1, 1)},
    "model": SMALL["model"],
    "training": {"cohort": 90, "rounds": 3, "negatives": 5},
}


def test_a_server_is_probed_with_its_own_rate_and_noise(tmp_path, monkeypatch):
    deployed = ServerConfig.model_validate({**SERVER, "privacy": {"split": {"popularity": 0.3}}})
    (tmp_path / "server.toml").write_text(deployed.to_toml(), encoding="utf-8")
    seen = []

    def run(config, *, advance):
        seen.append(Probed.of(config).plan)
        raise ConfigError("enough seen")

    monkeypatch.setattr(probe, "run_probes", run)
    command = typer.main.get_command(probe_cli.app)
    for named in (tmp_path, tmp_path / "server.toml"):
        found = CliRunner().invoke(command, ["--config", str(named)])
        assert str(found.exception) == "enough seen"
    plan = plan_budget(
        deployed.privacy,
        deployed.training,
        population_size=900,
        sizes=Sizes(n_items=10, scales=3, weights=10),
    )
    for each in seen:
        assert each.training.sampling_probability == plan.training.sampling_probability == 0.1
        assert each.training.noise_multiplier == plan.training.noise_multiplier
        assert each.popularity.noise_multiplier == plan.popularity.noise_multiplier
        assert each.delta == plan.delta == deployed.delta


def test_a_run_is_probed_with_the_noise_its_ledger_tells(tmp_path):
    config = RunConfig.model_validate({**SMALL, "privacy": {}, "training": {"rounds": 3}})
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    sizes = Sizes(n_items=4_000, scales=3, weights=20_000, cooccurrence=True)
    plan = plan_budget(config.privacy, config.training, population_size=5_000, sizes=sizes)
    with Ledger.create(
        tmp_path / "ledger.jsonl",
        signing_key=SigningKey.generate(),
        target_epsilon=config.privacy.epsilon,
        randomness="csprng",
        code_version="1",
        config_digest=config.digest(),
        population="town",
        population_size=5_000,
        delta=plan.delta,
    ) as ledger:
        _, before = probe_cli._read(tmp_path)
        assert before.privacy.noise_multiplier is None
        ledger.reserve(task="statistics/popularity", mechanism=plan.popularity, run="r")
        ledger.reserve(task="statistics/cooccurrence", mechanism=plan.cooccurrence, run="r")
        ledger.reserve(task="training", mechanism=plan.training, run="r", round=1)
    settings, probed = probe_cli._read(tmp_path)
    assert settings == config
    mu = gaussian_mu(epsilon=config.privacy.epsilon, delta=plan.delta)
    told = probed.privacy.split.cooccurrence
    assert told == pytest.approx((plan.cooccurrence.noise_multiplier * mu) ** -2)
    found = Probed.of(probed).plan
    assert found.training.noise_multiplier == plan.training.noise_multiplier
    assert found.training.sampling_probability == plan.training.sampling_probability
    assert found.popularity.noise_multiplier == pytest.approx(plan.popularity.noise_multiplier)
    assert found.delta == plan.delta


@pytest.mark.usefixtures("once", "_repeatable")
def test_results_are_of_the_configuration_that_the_servers_ledger_names(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "run_probes", partial(run_probes, rounds=ROUNDS))
    sections = {**SERVER, "privacy": {"noise_multiplier": 1.5}}
    deployed = ServerConfig.model_validate(sections)
    (tmp_path / "server.toml").write_text(deployed.to_toml(), encoding="utf-8")
    command = typer.main.get_command(probe_cli.app)
    found = CliRunner().invoke(command, ["--config", str(tmp_path), "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    kept = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert kept["run"]["config_digest"] == deployed.run().digest()


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    command = typer.main.get_command(probe_cli.app)
    found = CliRunner().invoke(command, ["--config", str(tmp_path)])
    assert isinstance(found.exception, ConfigError)
    assert "config.toml: can't read" in str(found.exception)
