import logging
import shutil
import threading

import pytest

from fedprofile.client import node as node_module
from fedprofile.client import participation
from fedprofile.client.answers import RecommendRequest
from fedprofile.client.device import Device
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.participation import taking_part
from fedprofile.simulations.loopback import Loopback


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Loopback(tmp_path_factory.mktemp("made"), devices=1)


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made.folder / "0", tmp_path / "0")
    return DeviceFolder.open(tmp_path / "0")


@pytest.fixture
def began(monkeypatch):
    """Set once the node takes part; nobody is called."""
    event = threading.Event()

    def run(node, stop):
        event.set()
        stop.wait(10)

    monkeypatch.setattr(node_module.Node, "run", run)
    for name in ("_LOOK", "_MENDED"):
        monkeypatch.setattr(participation, name, 0.02)
    return event


def test_a_device_that_is_enrolled_takes_part(folder, began):
    with Device(folder) as device, taking_part(folder, device):
        assert began.wait(10)


def test_one_that_is_enrolled_while_it_runs_does_so_then(folder, began, caplog):
    caplog.set_level(logging.INFO, "fedprofile")
    key = folder.node_key.rename(folder.path / "elsewhere")
    with Device(folder) as device, taking_part(folder, device):
        assert not began.wait(0.2)
        key.rename(folder.node_key)
        assert began.wait(10)
    told = [record.message for record in caplog.records if "until" in record.message]
    assert told == [f"takes part in no training until fedprofile device enroll {folder.path}"]


def test_what_is_wrong_with_training_keeps_nobody_from_ranking(folder, began, caplog):
    folder.node_key.chmod(0o644)
    with Device(folder) as device, taking_part(folder, device):
        assert not began.wait(0.3)
        assert len(device.recommend(RecommendRequest(top_k=3)).items) == 3
        assert "takes part in no training" in caplog.text
        assert "node.key" in caplog.text
        folder.node_key.chmod(0o600)
        assert began.wait(10)


def test_a_bundle_that_cannot_even_be_read_is_told_too(folder, began, caplog):
    kept = folder.server_facts.read_bytes()
    folder.server_facts.write_text("[" * 100_000)
    with Device(folder) as device, taking_part(folder, device):
        assert not began.wait(0.3)
        assert "takes part in no training" in caplog.text
        folder.server_facts.write_bytes(kept)
        assert began.wait(10)
