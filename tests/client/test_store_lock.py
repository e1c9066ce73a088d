"""Several processes at one store, and one of them puts another file in its place."""

import subprocess
import sys
import threading
import time

import pytest

from fedprofile.client import device as device_module
from fedprofile.client import store_lock as module
from fedprofile.client.answers import EraseProfileRequest
from fedprofile.client.device import Device
from fedprofile.client.interactions import Interaction
from fedprofile.client.store import Store, stores_aside
from fedprofile.client.store_lock import StoreLock
from fedprofile.common.errors import StoreDamaged, StoreError

KEY, PAGE = bytes(range(32)), 4096
NOW = 1_750_000_000
EVERYTHING = EraseProfileRequest(everything=True)


def damage(path):
    """Flip a byte of the second page, which a store that is open has in its cache."""
    with path.open("r+b") as file:
        file.seek(PAGE + 100)
        [byte] = file.read(1)
        file.seek(PAGE + 100)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def device(make_device):
    return make_device()


def event(name):
    return Interaction(name, "商品1", NOW)


def test_a_store_that_was_set_aside_takes_nothing_more(tmp_path):
    path = tmp_path / "store.db"
    held = Store.open(path, KEY)
    held.query("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path)
    with pytest.raises(StoreDamaged, match="set aside"):
        Store.open(path, KEY)
    assert held.replaced()
    aside = stores_aside(path)[0]
    before = aside.read_bytes()
    with pytest.raises(StoreError, match="put a new store in its place"), held.transaction():
        raise AssertionError("must not begin")
    fresh = Store.open(path, KEY)  # and closing the old one takes nothing of the new one along
    with fresh.transaction():
        fresh.execute("INSERT INTO declared VALUES ('language', 'de')")
    held.close()
    assert fresh.query("SELECT * FROM declared") == [("language", "de")]
    fresh.close()
    assert aside.read_bytes() == before


def test_the_second_to_find_the_damage_leaves_the_new_store_alone(tmp_path):
    path = tmp_path / "store.db"
    late = Store.open(path, KEY)
    late.query("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path)
    with pytest.raises(StoreDamaged):
        Store.open(path, KEY)
    Store.open(path, KEY).close()
    aside = stores_aside(path)
    with pytest.raises(StoreError, match="another process has seen to it"):
        raise late._set_aside("a page doesn't hold")
    assert stores_aside(path) == aside
    Store.open(path, KEY).close()


def test_a_device_goes_on_in_the_new_store_without_consent(device):
    device.record([event("before")])
    device.set_consent(True)
    device._store.query("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(device.folder.store)
    with Device(device.folder) as other, pytest.raises(StoreDamaged):
        other.status()  # as the process does that trains
    assert not device.status().consent
    assert device.record([event("after")]).recorded == 1
    with Device(device.folder) as other:
        status = other.status()
    assert status.events == 1
    assert status.set_aside


def test_who_starts_anew_takes_the_store_from_all_others(device):
    device.record([event("before")])
    device.set_consent(True)
    with Device(device.folder) as other:
        assert other.erase(EVERYTHING).erased == 1
    assert device.record([event("after")]).recorded == 1
    status = device.status()
    assert (status.events, status.consent) == (1, False)
    device.close()
    with Device(device.folder) as other:  # under the new key
        assert other.status().events == 1
        assert not other.status().set_aside


def test_nobody_replaces_a_store_while_another_commits(device, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", dict.fromkeys(module._PATIENCE, 0.2))
    device.record([event("before")])
    with device._opened() as held, held.transaction():
        with Device(device.folder) as other, pytest.raises(StoreError, match="another process"):
            other.erase(EVERYTHING)
        held.execute("INSERT INTO declared VALUES ('language', 'de')")
    assert device.profile().declared == {"language": "de"}


_RECORD = """
import sys, time
from pathlib import Path
from fedprofile.client.device import Device
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.interactions import Interaction

folder = DeviceFolder.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
with Device(folder) as device:
    print(device.record([Interaction(sys.argv[2], "商品1", 1_700_000_000)]).recorded)
"""


def test_processes_that_make_a_store_at_once_make_one(device):
    device.close()
    for attempt in range(3):
        device.erase(EVERYTHING)
        device.close()
        device.folder.store.unlink()
        if attempt == 2:
            device.folder.store_key.unlink()
        recorders = [
            subprocess.Popen(
                [sys.executable, "-c", _RECORD, str(device.folder.path), f"n{number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(4)
        ]
        for recorder in recorders:
            assert recorder.stdout.readline() == "ready\n"
        for recorder in recorders:
            recorder.stdin.write("\n")
            recorder.stdin.flush()
        told = [recorder.communicate()[0].strip() for recorder in recorders]
        assert told == ["1"] * 4
        status = device.status()
        assert (status.events, status.set_aside) == (4, ())


def test_closing_waits_for_whoever_replaces_the_files(tmp_path):
    """SQLite deletes the log by its name, which may be another store's by then."""
    store, other = Store.open(tmp_path / "store.db", KEY), StoreLock(tmp_path)
    closed = threading.Event()

    def close():
        store.close()
        closed.set()

    thread = threading.Thread(target=close)
    with other.alone():
        thread.start()
        assert not closed.wait(0.1)
    assert closed.wait(5)
    thread.join()


def test_starting_anew_is_never_halfway(device, monkeypatch):
    device.record([event("before")])
    gone = device.folder.path / "store.db-wal"
    (device.folder.outbox / "made.reply").write_bytes(b"of events")
    listed = device_module.store_files
    # Another process closed the store since the files were listed.
    monkeypatch.setattr(device_module, "store_files", lambda path: [*listed(path), gone])
    assert device.erase(EVERYTHING).erased == 1
    key = device.folder.store_key.read_bytes()
    (device.folder.outbox / "made.reply").write_bytes(b"of events")

    def fails(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(device_module, "stores_aside", fails)
    with pytest.raises(PermissionError):
        device.erase(EVERYTHING)
    assert not device.folder.store_key.exists() or device.folder.store_key.read_bytes() != key
    assert not list(device.folder.outbox.glob("*.reply"))


def test_who_cannot_have_it_alone_still_shares_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", dict.fromkeys(module._PATIENCE, 0.05))
    first, second, third = (StoreLock(tmp_path) for _ in range(3))
    busy = pytest.raises(StoreError, match="another process holds")
    with first.shared():
        with second.shared(), pytest.raises(StoreError), first.alone():
            raise AssertionError("must not begin")
        with busy, third.alone():
            raise AssertionError("must not begin")


def test_shared_by_many_or_held_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", dict.fromkeys(module._PATIENCE, 0.05))
    first, second = StoreLock(tmp_path), StoreLock(tmp_path)
    busy = pytest.raises(StoreError, match="another process holds")
    with first.shared(), second.shared(), busy, second.alone():
        raise AssertionError("must not begin")
    with first.alone(), first.shared(), first.alone(), busy, second.shared():
        raise AssertionError("must not begin")
    with second.alone():
        pass
    with pytest.raises(StoreError, match="can't be opened"), StoreLock(tmp_path / "no").shared():
        raise AssertionError("must not begin")


def test_the_one_who_waits_gets_it(tmp_path):
    first, second = StoreLock(tmp_path), StoreLock(tmp_path)
    entered = threading.Event()

    def wait():
        with second.alone():
            entered.set()

    thread = threading.Thread(target=wait)
    with first.shared():
        thread.start()
        time.sleep(0.05)
        assert not entered.is_set()
    thread.join(5)
    assert entered.is_set()
