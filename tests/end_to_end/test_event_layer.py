"""Runs whose devices hide single events: both figures told, apart; repeatable; resumed."""

import json

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from safetensors.numpy import load_file

from fedprofile.audit.device_checks import check_devices
from fedprofile.common.ledger_entries import Reserve, read_chain, read_ledger

CONFIG = """
seed = 7
[items]
dimension = 8
[model]
encoder = "mean"
width = 8
window = 8
[training]
rounds = {rounds}
local_steps = 2
negatives = 8
cohort = 20
[privacy]
noise_multiplier = 4.0
split.popularity = {share}
[privacy.local]
enabled = true
noise_multiplier = 3.0
epsilon = {epsilon}
max_examples = 6
batch_size = 3
period_days = 2
[evaluation]
bootstrap_samples = 20
baselines = false
[ledger]
devices = 2
"""


@pytest.fixture
def config(tmp_path):
    def write(*, rounds=2, epsilon=20.0, share=0, more=""):
        path = tmp_path / "events.toml"
        text = CONFIG.format(rounds=rounds, epsilon=epsilon, share=share)
        path.write_text(text + more, encoding="utf-8")
        return path

    return write


def run(fedprofile, *arguments):
    result = fedprofile("simulate", *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def event_ledgers(folder):
    return sorted((folder / "devices").glob("*.events.jsonl"))


def test_both_figures_are_told_apart(fedprofile, config, log, tmp_path):
    result = fedprofile("simulate", "--config", config(), "--data", log(), "--out", "run")
    assert result.code == 0, result.err
    told = " ".join(result.out.split())
    assert "Privacy: user-level (ε =" in told
    assert "event-level (ε ≤" in told
    assert "never add up" in told
    folder = tmp_path / "run"
    privacy = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["privacy"]
    local = privacy["local"]
    assert (privacy["unit"], local["unit"], local["adjacency"]) == ("user", "event", "replace-one")
    assert local["devices"] == len(event_ledgers(folder)) == 12
    assert local["most_steps"] == 4  # two rounds of two steps
    independent = PLDAccountant(NeighboringRelation.REPLACE_ONE).compose(
        PoissonSampledDpEvent(0.5, GaussianDpEvent(3.0)), 4
    )
    assert local["epsilon"] == pytest.approx(independent.get_epsilon(1e-5), rel=1e-6)
    assert "event-level" in (folder / "report.html").read_text(encoding="utf-8")
    users, events = check_devices(read_chain(folder / "ledger.jsonl"), folder / "devices")
    assert (users.outcome, events.outcome) == ("holds", "holds")
    assert "2 ledgers" in users.what
    assert "12 ledgers, 48 releases" in events.what
    assert f"event-level ε of a device at most {local['epsilon']:.3g}" in events.what
    # A device's ledger can be verified by itself, in its own unit.
    verified = fedprofile("audit", "verify", event_ledgers(folder)[0], "--json")
    assert verified.code == 0, verified.out
    cost = json.loads(verified.out.splitlines()[-1])["cost"]
    assert cost["epsilon"] == pytest.approx(local["epsilon"], rel=1e-6)
    assert cost["epsilon_prv"] is cost["epsilon_rdp"] is None


def test_a_run_that_is_cut_off_ends_the_same_and_is_charged_for_what_it_repeats(
    fedprofile, config, log, tmp_path, monkeypatch
):
    data, settings = log(), config()
    whole = run(fedprofile, "--config", settings, "--data", data, "--out", "whole")
    from fedprofile.server import strategy

    add_up, calls = strategy.add_up, []

    def cut_off(*arguments, **named):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add_up(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(strategy, "add_up", cut_off)
        result = fedprofile("simulate", "--config", settings, "--data", data, "--out", "cut")
        assert result.code == 130, result.err
    resumed = run(fedprofile, "--resume", "--out", "cut")
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert models[0].keys() == models[1].keys()
    for name, weight in models[0].items():
        np.testing.assert_array_equal(models[1][name], weight)
    for path in event_ledgers(tmp_path / "cut"):
        rounds = [entry.round for entry in read_ledger(path) if isinstance(entry, Reserve)]
        assert rounds == [1, 1, 2, 2, 2, 2]
    assert resumed["privacy"]["local"]["epsilon"] > whole["privacy"]["local"]["epsilon"]


def test_devices_that_have_spent_their_events_decline(fedprofile, config, log, tmp_path):
    settings = config(rounds=4, epsilon=2.5)
    run(fedprofile, "--config", settings, "--data", log(), "--out", "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["privacy"]["local"]["epsilon"] <= 2.5
    declined = [
        release["rejected"].get("declined", 0) for release in metrics["privacy"]["releases"]
    ]
    assert declined[0] == 0
    assert declined[-1] == 12


def test_what_can_not_be_hidden_is_refused(fedprofile, config, log):
    for changes, advice in (
        ({"share": 0.3}, "set privacy.split.popularity = 0"),
        ({"rounds": 0}, "training.rounds of 1 or more"),
        ({"epsilon": -1.0}, "privacy.local.epsilon"),
    ):
        result = fedprofile("simulate", "--config", config(**changes), "--data", log())
        assert result.code == 2
        assert advice in " ".join(result.err.split())
