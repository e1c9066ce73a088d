"""What befalls a device while it takes part, with real processes: damage, an old model, a full disk."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

from fedprofile.client.connect import connect
from fedprofile.client.device import Device
from fedprofile.client.interactions import Interaction
from fedprofile.client.model_bundle import current_name
from fedprofile.client.model_delivery import keep_release
from fedprofile.common.ledger_entries import Commit, Reserve
from fedprofile.common.messages import Release
from fedprofile.common.releases import Manifest
from fedprofile.common.server_bundle import ServerBundle
from fedprofile.common.signing import SigningKey
from fedprofile.common.weights import hash_of_weights
from fedprofile.simulations.loopback import Loopback, entries_of, wait_for

pytestmark = pytest.mark.slow
PATIENCE = 240
DAMAGED, AHEAD = 0, 1  # numbers of the devices
SETTINGS = {
    "federation": {"round_timeout_seconds": PATIENCE, "release_every": 0},
    "privacy": {"split": {"popularity": 0.0}},
    "training": {"rounds": 3},
}


def reserved(path):
    return [entry for entry in entries_of(path) if isinstance(entry, Reserve)]


def committed(path):
    return [entry for entry in entries_of(path) if isinstance(entry, Commit)]


def wait(happens, what):
    wait_for(happens, timeout=PATIENCE, what=what)


def install_a_later_model(loopback, number):
    """As the same server would have signed it, had it been further once and put back since."""
    folder = loopback.device(number)
    bundle = ServerBundle.load(folder.server)
    weights = {name: weight + np.float32(0.25) for name, weight in load_file(bundle.model).items()}
    with safe_open(bundle.model, framework="np") as file:
        metadata = {**file.metadata(), "hash": hash_of_weights(weights)}
        model = save(weights, metadata)
    popularity = np.full(bundle.items.n_items, -1.0, dtype="<f4").tobytes()
    manifest = Manifest(
        federation=bundle.facts.federation,
        round=99,
        release=999,
        model=hashlib.sha256(model).hexdigest(),
        statistics=hashlib.sha256(popularity).hexdigest(),
        weights=hash_of_weights(weights),
        parent=None,
        items=bundle.facts.items,
        epsilon=1.0,
        delta=1e-3,
        time="2026-05-01T00:00:00+00:00",
    ).signed(SigningKey.load(loopback.server.signing_key))
    return keep_release(folder, bundle, Release(manifest.to_json(), model, popularity))


def damage(store):
    """Flip one byte of a page of the store."""
    with store.open("r+b") as file:
        file.seek(4096 + 100)
        [byte] = file.read(1)
        file.seek(4096 + 100)
        file.write(bytes([byte ^ 1]))


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("faults"), devices=2, settings=SETTINGS) as loopback:
        later = install_a_later_model(loopback, AHEAD)
        with Device(loopback.device(AHEAD)) as device:
            profile = asdict(device.profile())
        loopback.start_server()
        for number in (DAMAGED, AHEAD):
            loopback.start_device(number)
        ledger, folder = loopback.server.ledger, loopback.device(DAMAGED)
        wait(lambda: committed(ledger), "round 1")
        damage(folder.store)
        wait(lambda: len(committed(ledger)) == 2, "round 2, in which the store is found damaged")
        charges = len(reserved(folder.ledger))
        with connect(folder.path) as client:  # the process that had it open all the time
            told = client.record([Interaction("after", "after", 1_750_000_000)]), client.status()
        standing = loopback.wait_finished(PATIENCE)
        yield loopback, later, profile, charges, told, standing


def test_the_federation_goes_on_and_refunds_nothing(story):
    loopback, *_, standing = story
    assert (standing["round"], standing["stopped"]) == (3, "completed")
    assert standing["epsilon"] > 0
    assert len(reserved(loopback.server.ledger)) == 3


def test_a_store_that_is_damaged_while_it_is_open_is_set_aside_for_all_processes(story):
    loopback, _, _, charges, (recorded, status), standing = story
    folder = loopback.device(DAMAGED)
    assert recorded.recorded == 1
    assert (status.events, status.consent) == (1, False)
    assert any(name.startswith("store.db.damaged-") for name in status.set_aside)
    with Device(folder) as device:  # what was acknowledged is there
        assert device.status().events == 1
        assert not device.status().consent
    # Nothing more was trained or paid for than before the owner lost their consent.
    assert len(reserved(folder.ledger)) == charges <= 2
    assert standing["rejected"].get("declined-consent", 0) >= 1


def test_a_model_older_than_the_one_in_use_is_refused(story):
    loopback, later, profile, *_ = story
    folder = loopback.device(AHEAD)
    assert current_name(folder) == later
    [delivered] = [entry for entry in loopback.journal() if entry["event"] == "delivered"]
    assert (delivered["devices"], delivered["enrolled"]) == (1, 2)
    assert "not a newer one" in loopback.output(f"device-{AHEAD}").read_text(encoding="utf-8")
    with Device(folder) as device:
        assert asdict(device.profile()) == profile
    answered = [entry.answers for entry in reserved(folder.ledger)]
    assert answered == [entry.sequence for entry in reserved(loopback.server.ledger)]


FULL = """
import json, sys
from pathlib import Path
from fedprofile.client.device import Device
from fedprofile.client.interactions import Interaction
from fedprofile.common.accounting import epsilon
from fedprofile.common.errors import StoreFull
from fedprofile.common.ledger_entries import Commit, Reserve, events_of
from fedprofile.simulations.loopback import Loopback, entries_of, wait_for

disk, folder = Path(sys.argv[1]), Path(sys.argv[4])
(folder / "0").symlink_to(disk)
settings = {
    "federation": {"round_timeout_seconds": 20.0, "release_every": 0},
    "privacy": {"split": {"popularity": 0.0}},
    "training": {"rounds": 3, "local_steps": 150},
}


def numbered(path, kind):
    return [entry for entry in entries_of(path) if isinstance(entry, kind)]


def known():
    with Device(device) as opened:
        found = opened.profile()
    return [found.events, sorted(found.frequencies)]


with Loopback(folder, devices=1, settings=settings) as loopback:
    ledger, device = loopback.server.ledger, loopback.device(0)
    before = known()
    loopback.start_server()
    loopback.start_device(0)
    wait_for(lambda: numbered(ledger, Commit), timeout=240, what="round 1")
    filling = (disk / "filling").open("ab", buffering=0)
    try:
        while True:
            filling.write(bytes(65536))
    except OSError as error:
        filled = error.errno
    try:
        while True:
            filling.write(b"0")
    except OSError:
        pass
    with Device(device) as opened:
        try:
            opened.record([Interaction(f"n{k}", "x" * 250, 1_750_000_000) for k in range(9000)])
            told = "recorded on a full disk"
        except StoreFull as error:
            told = str(error)
    readable = known()
    wait_for(lambda: len(numbered(ledger, Commit)) == 2, timeout=240, what="round 2 on a full disk")
    (disk / "filling").unlink()
    filling.close()
    standing = loopback.wait_finished(240)
answered = [entry.answers for entry in numbered(device.ledger, Reserve)]
print(json.dumps({
    "filled": filled,
    "told": told,
    "profiles": [before, readable, known()],
    "standing": standing,
    "answered": answered,
    "released": [entry.sequence for entry in numbered(ledger, Reserve)],
    "counted": [entry.replies_counted for entry in numbered(ledger, Commit)],
    "output": loopback.output("device-0").read_text(encoding="utf-8"),
}))
"""


def test_a_device_whose_disk_is_full_says_so_and_takes_part_again_with_room(on_tiny_disk, tmp_path):
    (tmp_path / "at").mkdir()
    found = json.loads(
        on_tiny_disk(FULL, tmp_path / "at", size="16m", timeout=600).splitlines()[-1]
    )
    assert found["filled"] == 28  # ENOSPC
    assert "the disk is full; nothing was changed" in found["told"]
    before, readable, after = found["profiles"]
    assert before == readable == after
    standing = found["standing"]
    assert (standing["round"], standing["stopped"]) == (3, "completed")
    assert found["counted"][0] == found["counted"][-1] == 1
    # Charged once for each release that it answered, and for none that it didn't see.
    assert len(found["answered"]) == len(set(found["answered"]))
    assert set(found["answered"]) <= set(found["released"])
    assert "Traceback" not in found["output"]
