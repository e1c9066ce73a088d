"""The same seed leads to the same weights, wherever the devices are hosted.

Weights agree to 1e-4 of the way they have come from their start: sums are taken in another order.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from flwr.server.superlink.fleet import vce
from safetensors.numpy import load_file

from fedprofile.common.errors import BudgetError, ConfigError
from fedprofile.simulations.ray_engine import run_on_ray

TOLERANCE = 1e-4


def flat(weights):
    return np.concatenate([np.asarray(weights[name]).ravel() for name in sorted(weights)])


def assert_same_weights(first, second, start):
    way = np.linalg.norm(flat(first) - flat(start))
    assert way > 0.01
    assert np.linalg.norm(flat(first) - flat(second)) <= TOLERANCE * way


@pytest.mark.parametrize(
    ("encoder", "privacy"), [("transformer", {}), ("gru", {"enabled": False}), ("mean", {})]
)
def test_many_devices_a_host_or_one(build_town, tmp_path, encoder, privacy):
    found = []
    for size in (1024, 13, 1):
        town = build_town(
            devices_per_host=size,
            model={"encoder": encoder, "width": 8, "heads": 2},
            training={"sampling_probability": 0.7},
            privacy=privacy,
        )
        (tmp_path / str(size)).mkdir()
        found.append(town.run(tmp_path / str(size)))
        assert [record.sampled for record, _ in town.rounds] == [
            record["sampled"] for record in found[0].checkpoint.rounds if record["round"]
        ]
        assert all(record.sampled == record.trained for record, _ in town.rounds)
    start = town.initial()
    for other in found[1:]:
        assert_same_weights(found[0].weights, other.weights, start)
        np.testing.assert_allclose(
            found[0].checkpoint.popularity, other.checkpoint.popularity, rtol=1e-5, atol=1e-6
        )


def test_another_seed_leads_elsewhere(build_town, tmp_path):
    weights = []
    for seed in (3, 4):
        (tmp_path / str(seed)).mkdir()
        weights.append(build_town(seed=seed).run(tmp_path / str(seed)).weights)
    assert np.linalg.norm(flat(weights[0]) - flat(weights[1])) > 0.01


# --- Ray -----------------------------------------------------------------------------------------

CONFIG = """
[data]
synthetic_users = 40
synthetic_items = 30
[items]
dimension = 8
[model]
width = 8
window = 8
item_ids = true
[training]
rounds = 2
negatives = 8
cohort = 30
[privacy]
noise_multiplier = 4.0
[evaluation]
baselines = false
bootstrap_samples = 10
[engine]
devices_per_host = 7
"""


class Watched:
    """A process of its own session; all its descendants carry a mark in their environment."""

    def __init__(self, arguments, folder):
        self.mark = f"FEDPROFILE_TEST={uuid.uuid4()}".encode()
        name, _, value = self.mark.decode().partition("=")
        self.process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**os.environ, name: value, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.listening = set()

    def alive(self):
        """Ids of the process and its descendants."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # gone, or not ours
        return found

    def look(self):
        """Note the addresses that the processes listen on now."""
        inodes = set()
        for pid in self.alive():
            try:
                links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
            except OSError:
                continue
            inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                local, state, inode = (line.split()[i] for i in (1, 3, 9))
                if state == "0A" and inode in inodes:
                    self.listening.add(local.partition(":")[0])

    def finish(self, timeout=240):
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "doesn't end by itself"
            self.look()
            time.sleep(0.5)
        out, err = self.process.communicate()
        return self.process.returncode, out, err

    def leave_nothing_behind(self):
        deadline = time.monotonic() + 60
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return not left


# Beside the interpreter that runs the tests, for its folder need not be on the path.
FEDPROFILE = str(Path(sys.executable).with_name("fedprofile"))
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.fixture
def watched(tmp_path):
    started = []

    def start(*arguments):
        started.append(Watched(arguments, tmp_path))
        return started[-1]

    yield start
    for each in started:
        for pid in each.alive():
            os.kill(pid, 9)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_ray_gives_the_same_weights_on_loopback_and_ends(fedprofile, watched, tmp_path):
    (tmp_path / "small.toml").write_text(CONFIG)
    command = ("simulate", "--config", "small.toml", "--seed", "1", "--json")
    ray = watched(FEDPROFILE, *command, "--engine", "ray", "--out", "ray")
    code, out, err = ray.finish()
    assert code == 0, err
    assert len(out.splitlines()) == 1
    found = json.loads(out)
    assert "DEBUG" not in err
    assert "Traceback" not in err
    assert ray.leave_nothing_behind()
    assert ray.listening
    assert ray.listening <= LOOPBACK

    local = fedprofile(*command, "--out", "local")
    assert local.code == 0
    assert json.loads(local.out.splitlines()[-1])["privacy"] == found["privacy"]
    weights = [load_file(tmp_path / run / "model.safetensors") for run in ("ray", "local")]
    zeros = {name: np.zeros_like(weight) for name, weight in weights[0].items()}
    assert_same_weights(*weights, zeros)


class Instead:
    """A federation in name only."""

    def __init__(self, run):
        self.run = run


@pytest.mark.parametrize(
    "error",
    [BudgetError("nothing left", epsilon_reached=2.0), ConfigError("no hosts"), ValueError("bug")],
    ids=lambda error: type(error).__name__,
)
def test_what_the_server_raises_under_ray_reaches_the_caller_as_itself(
    build_town, monkeypatch, error
):
    def refuse(grid):
        raise error

    monkeypatch.setattr(vce, "start_vce", lambda *, f_stop, **_: f_stop.wait(30))
    with pytest.raises(type(error)) as caught:
        run_on_ray(Instead(refuse), build_town().population, devices_per_host=20)
    assert caught.value is error


@pytest.mark.parametrize("how", ["Ctrl-C", "Ctrl-C at the start", "crash"])
def test_no_server_waits_for_an_engine_that_has_stopped(build_town, monkeypatch, how):
    """Flower's thread would otherwise keep the process for an hour."""
    crash = how == "crash"
    waiting = threading.Event()
    asking = []

    def ask(grid):
        asking.append(threading.current_thread())
        waiting.set()
        while True:
            grid.pull_messages([])
            time.sleep(0.05)

    def run_clients(*, f_stop, **_):
        assert waiting.wait(60)
        if crash:
            raise OSError("no memory")
        if how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        assert f_stop.wait(60)

    def submit_and_interrupt(pool, *args, **kwargs):
        submit(pool, *args, **kwargs)
        raise KeyboardInterrupt  # before anyone waits for what was submitted

    submit = ThreadPoolExecutor.submit
    if how == "Ctrl-C at the start":
        monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_and_interrupt)
    monkeypatch.setattr(vce, "start_vce", run_clients)
    # Where the tests run in the background of a shell, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(RuntimeError if crash else KeyboardInterrupt):
            run_on_ray(Instead(ask), build_town().population, devices_per_host=20)
    finally:
        signal.signal(signal.SIGINT, before)
    asking[0].join(timeout=60)
    assert not asking[0].is_alive()
