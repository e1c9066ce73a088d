"""Killed at any point, a run goes on: nothing is refunded, nothing is charged that was not tried.

Every command runs in a process of its own, forked from one that has the imports behind it, and is
killed by SIGKILL before or after the n-th call of a function.
"""

import json
import multiprocessing
import runpy
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedprofile.common.accounting import epsilon
from fedprofile.common.ledger_entries import Commit, Reserve, Stop, read_ledger

pytestmark = pytest.mark.xdist_group("crash")  # the imports are made once

CONFIG = """
seed = 1
[data]
synthetic_users = 30
synthetic_items = 20
[items]
dimension = 8
[model]
encoder = "mean"
width = 8
window = 8
[training]
rounds = {rounds}
negatives = 8
cohort = 100
[privacy]
{privacy}
[evaluation]
split = "none"
baselines = false
bootstrap_samples = 10
"""

DRIVER = """
import functools, importlib, os, signal, sys

os.chdir(folder)
output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(output, 1)
os.dup2(output, 2)


def die():
    os.kill(os.getpid(), sent)


if kill is not None:
    place, moment, count = kill
    module, _, path = place.partition(":")
    owner, name = path.split(".")
    owner = getattr(importlib.import_module(module), owner)
    called = getattr(owner, name)
    calls = 0

    @functools.wraps(called)
    def deadly(*arguments, **named):
        global calls
        calls += 1
        if calls == count and moment == "before":
            die()
        result = called(*arguments, **named)
        if calls == count:
            die()
        return result

    bound = isinstance(vars(owner)[name], classmethod)
    setattr(owner, name, staticmethod(deadly) if bound else deadly)

sys.argv = ["fedprofile", *arguments]
from fedprofile.common.cli import main

main()
"""

CREATE = "fedprofile.common.ledger:Ledger.create"
RESERVE = "fedprofile.common.ledger:Ledger.reserve"
COMMIT = "fedprofile.common.ledger:Ledger.commit"
STOP = "fedprofile.common.ledger:Ledger.stop"
ANCHOR = "fedprofile.common.anchor:Anchor.publish"
SEND = "fedprofile.simulations.grid:InProcessGrid.send_and_receive"
SAVE = "fedprofile.server.checkpoint:Checkpoint.save"
RENAME = "pathlib:Path.replace"
METRICS = "fedprofile.simulations.run_folder:RunFolder.write_metrics"
MODEL = "fedprofile.simulations.run_folder:RunFolder.write_model"


class Runs:
    """Commands over one configuration, in one folder."""

    def __init__(self, context, folder, *, rounds=4, privacy="noise_multiplier = 6.0"):
        self.context = context
        self.folder = folder
        (folder / "driver.py").write_text(DRIVER)
        text = CONFIG.format(rounds=rounds, privacy=privacy)
        (folder / "small.toml").write_text(text)

    def __call__(self, *arguments, kill=None, sent=signal.SIGKILL):
        named = {"folder": str(self.folder), "arguments": arguments, "kill": kill, "sent": sent}
        process = self.context.Process(
            target=runpy.run_path,
            args=(str(self.folder / "driver.py"),),
            kwargs={"init_globals": named},
        )
        process.start()
        process.join(120)
        return process.exitcode

    def simulate(self, out="run", **killed):
        """Start, or go on where there is something to go on with."""
        if (self.folder / out / "config.toml").exists():
            return self("simulate", "--resume", "--out", out, "--json", **killed)
        return self("simulate", "--config", "small.toml", "--out", out, "--json", **killed)

    @property
    def output(self):
        return (self.folder / "output.txt").read_text()

    def metrics(self, out="run"):
        return json.loads((self.folder / out / "metrics.json").read_text())

    def weights(self, out="run"):
        return load_file(self.folder / out / "model.safetensors")

    def entries(self, kind, out="run"):
        ledger = read_ledger(self.folder / out / "ledger.jsonl")
        return [entry for entry in ledger if isinstance(entry, kind)]

    def spent(self, out="run"):
        ledger = read_ledger(self.folder / out / "ledger.jsonl")
        events = [entry.mechanism.event() for entry in ledger if isinstance(entry, Reserve)]
        return epsilon(events, delta=ledger[0].delta)


@pytest.fixture(scope="module")
def context():
    made = multiprocessing.get_context("forkserver")
    # And torch._dynamo, which torch would load in each of them with its first optimizer.
    made.set_forkserver_preload(
        ["fedprofile.simulations.cli", "fedprofile.simulations.simulate", "torch._dynamo"]
    )
    return made


@pytest.fixture
def runs(context, tmp_path):
    return lambda **settings: Runs(context, tmp_path, **settings)


# Where each run dies, and what it has reserved until then: None is the release of popularity.
DEATHS = [
    ((CREATE, "after", 1), []),
    ((RESERVE, "before", 1), []),
    ((ANCHOR, "before", 1), [None]),  # the line is on disk, its anchor is one behind
    ((RESERVE, "after", 1), [None]),
    ((SEND, "after", 2), [None]),  # the first asks for hosts
    ((SAVE, "before", 1), [None]),
    ((RENAME, "before", 2), [None]),  # all is written, but under a temporary name; first the anchor
    ((SAVE, "after", 1), [None]),
    ((COMMIT, "before", 1), []),  # popularity is kept, its commit is late
    ((COMMIT, "after", 1), []),
    ((RESERVE, "after", 1), [1]),
    ((SEND, "after", 2), [1]),
    ((ANCHOR, "before", 1), [1]),
    ((ANCHOR, "after", 1), []),  # it is brought up to date
    ((RENAME, "before", 1), [1]),
    ((RENAME, "before", 3), [1]),  # the anchor again, that of the reservation, the checkpoint
    ((SAVE, "after", 1), [1]),
    ((COMMIT, "before", 2), [2]),  # the first is the late one of round 1
    ((COMMIT, "after", 2), [3]),  # between rounds
    ((STOP, "before", 1), [4]),
    ((STOP, "after", 1), []),
    ((MODEL, "before", 1), []),
    ((METRICS, "before", 1), []),
]


@pytest.mark.slow
def test_a_run_that_dies_everywhere_ends_like_one_that_never_did(runs):
    run = runs(privacy="noise_multiplier = 6.0\nsplit.popularity = 0.02")
    assert run.simulate("through") == 0, run.output
    reserved, spent = [], 0.0
    for kill, tried in DEATHS:
        assert run.simulate(kill=kill) == -signal.SIGKILL, (kill, run.output)
        reserved += tried
        assert [entry.round for entry in run.entries(Reserve)] == reserved, kill
        assert run.spent() >= spent
        spent = run.spent()
    assert run.simulate() == 0, run.output
    assert [entry.round for entry in run.entries(Reserve)] == reserved

    # Every round led somewhere once; what was tried before it stays charged.
    names = {entry.sequence: entry.round for entry in run.entries(Reserve)}
    assert [names[entry.release] for entry in run.entries(Commit)] == [None, 1, 2, 3, 4]
    assert len(run.entries(Stop)) == 1
    metrics = run.metrics()
    assert metrics["privacy"]["epsilon"] == run.spent() > run.spent("through")
    assert metrics["run"]["rounds_done"] == 4
    assert metrics["run"]["stopped"] is None
    # A seed draws the same cohort and noise again, so the path there doesn't show in the weights.
    expected, weights = run.weights("through"), run.weights()
    assert all(np.array_equal(expected[name], weights[name]) for name in expected)


@pytest.mark.slow
def test_a_round_paid_twice_is_missing_at_the_end(runs):
    """With noise that fits three rounds and no fourth, the run stops early, says so, and keeps all."""
    run = runs(rounds=3, privacy="epsilon = 1.0\nnoise_multiplier = 3.5")
    assert run.simulate(kill=(RESERVE, "after", 3)) == -signal.SIGKILL  # round 2
    assert run.simulate() == 0, run.output
    metrics = run.metrics()
    assert metrics["run"]["rounds_done"] == 2
    assert "round 3, would bring ε to" in metrics["run"]["stopped"]
    assert metrics["privacy"]["epsilon"] == run.spent() <= 1.0
    assert [entry.round for entry in run.entries(Reserve)] == [None, 1, 2, 2]
    [stop] = run.entries(Stop)
    assert "would bring ε to" in stop.reason
    assert (run.folder / "run" / "model.safetensors").exists()

    # Going on with it changes nothing and asks for nothing.
    ledger = (run.folder / "run" / "ledger.jsonl").read_bytes()
    for name in ("report.html", "metrics.json", "model.safetensors"):
        (run.folder / "run" / name).unlink()
    assert run.simulate() == 0, run.output
    assert (run.folder / "run" / "ledger.jsonl").read_bytes() == ledger
    assert run.metrics()["run"]["stopped"] == metrics["run"]["stopped"]
    assert (run.folder / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_budget_that_a_crash_has_eaten_is_refused_in_one_line(runs):
    run = runs(rounds=0, privacy="epsilon = 1.0")
    assert run.simulate(kill=(RESERVE, "after", 1)) == -signal.SIGKILL
    spent = run.spent()
    assert run.simulate() == 3
    error = run.output.splitlines()[-1]
    assert error.startswith("error: statistics/popularity would bring ε to")
    assert "Traceback" not in run.output
    assert run.spent() == spent <= 1.0


@pytest.mark.slow
def test_a_finished_run_writes_its_report_again_and_releases_nothing(runs):
    run = runs(rounds=1)
    assert run.simulate() == 0, run.output
    ledger = (run.folder / "run" / "ledger.jsonl").read_bytes()
    first, weights = run.metrics(), run.weights()
    (run.folder / "run" / "report.html").unlink()
    (run.folder / "run" / "metrics.json").unlink()
    assert run.simulate() == 0, run.output
    assert (run.folder / "run" / "ledger.jsonl").read_bytes() == ledger
    assert (run.folder / "run" / "report.html").exists()
    assert run.metrics()["privacy"] == first["privacy"]
    assert all(np.array_equal(weights[name], again) for name, again in run.weights().items())

    # Another configuration is refused by its keys, and nothing is touched.
    assert run("simulate", "--resume", "--out", "run", "--rounds", "9", "--epsilon", "3") == 2
    assert "training.rounds" in run.output
    assert "privacy.epsilon" in run.output
    assert "Traceback" not in run.output
    assert (run.folder / "run" / "ledger.jsonl").read_bytes() == ledger


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_run_that_is_asked_to_stop_says_how_to_go_on(runs, sent):
    run = runs(rounds=2)
    assert run.simulate(kill=(COMMIT, "after", 1), sent=sent) == 130
    assert "Traceback" not in run.output
    assert "Go on with: fedprofile simulate --resume --out run" in run.output
    assert run.simulate() == 0, run.output
    assert [entry.round for entry in run.entries(Reserve)] == [None, 1, 2]
