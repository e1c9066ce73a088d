import subprocess
import sys

import numpy as np
import pytest

from fedprofile.client import store as module
from fedprofile.client.store import Store, store_files, stores_aside
from fedprofile.common.errors import StoreDamaged, StoreError, StoreFull

KEY = bytes(range(32))
MARKER = "geheimnis-0815"
PAGE = 4096  # bytes


def insert(store, *names, size=1):
    with store.transaction():
        for name in names:
            store.execute(
                "INSERT INTO events (id, item, event, time, strength) VALUES (?, ?, '', 0, 1)",
                (name, name * size),
            )


def names(store):
    return [row[0] for row in store.query("SELECT id FROM events ORDER BY seq")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


def test_what_was_stored_is_there_when_it_is_opened_again(path):
    store = Store.open(path, KEY)
    insert(store, "a", "b")
    store.close()
    assert store_files(path) == [path]
    again = Store.open(path, KEY)
    assert names(again) == ["a", "b"]
    again.close()


def test_the_file_is_for_the_owner_alone_and_holds_no_clear_text(path, decrypted):
    store = Store.open(path, KEY)
    insert(store, MARKER)
    for file in store_files(path):
        assert file.stat().st_mode & 0o077 == 0
        assert MARKER.encode() not in file.read_bytes()
        assert b"SQLite" not in file.read_bytes()
    assert MARKER.encode() in decrypted(path, KEY)  # the reader of pages reads them
    store.close()
    assert MARKER.encode() in decrypted(path, KEY)


def test_commits_are_synced_before_they_are_acknowledged(path):
    store = Store.open(path, KEY)
    assert store.query("PRAGMA synchronous") == [(2,)]
    assert store.query("PRAGMA journal_mode") == [("wal",)]
    assert store.query("PRAGMA temp_store") == [(2,)]
    store.close()


def test_a_transaction_is_whole_or_nothing(path):
    store = Store.open(path, KEY)
    insert(store, "a")

    def half():
        with store.transaction():
            store.execute("DELETE FROM events")
            store.execute("DELETE FROM missing")

    with pytest.raises(StoreError, match="no such table"):
        half()
    assert names(store) == ["a"]
    store.close()


def test_changes_by_others_are_noticed(path):
    one, other = Store.open(path, KEY), Store.open(path, KEY)
    before = one.version()
    insert(one, "a")
    assert one.version() == before  # its own
    insert(other, "b")
    assert one.version() != before
    assert one.version() == one.version()
    one.close()
    other.close()


def test_a_store_in_use_is_an_error_that_says_so(path, monkeypatch):
    monkeypatch.setattr(module, "_SETUP", (*module._SETUP, "PRAGMA busy_timeout = 10"))
    one, other = Store.open(path, KEY), Store.open(path, KEY)
    with one.transaction():
        one.execute("DELETE FROM events")
        with pytest.raises(StoreError, match="another process holds the store"):
            insert(other, "a")
    insert(other, "a")
    one.close()
    other.close()


# --- erasing


def fill(path, count=300):
    store = Store.open(path, KEY)
    insert(store, *(f"{MARKER}-{number}" for number in range(count)), size=5)
    return store


def test_after_a_delete_alone_the_bytes_are_still_there(path, decrypted):
    """The control of the test below: what it looks for can be found."""
    store = fill(path)
    with store.transaction():
        store.execute("DELETE FROM events")
    assert MARKER.encode() in decrypted(path, KEY)
    store.close()


@pytest.mark.parametrize("kept", [0, 1, 150])
def test_scrubbed_bytes_are_gone_from_file_and_log(path, decrypted, kept):
    store = fill(path)
    insert(store, *(f"kept-{number}" for number in range(kept)))
    with store.transaction():
        store.execute("DELETE FROM events WHERE id LIKE ?", (f"{MARKER}%",))
    store.scrub()
    content = decrypted(path, KEY)
    assert MARKER.encode() not in content
    assert content.count(b"kept-") >= kept
    assert len(names(store)) == kept
    store.close()
    assert MARKER.encode() not in decrypted(path, KEY)


def test_a_reader_that_keeps_the_log_alive_is_told(path, decrypted, monkeypatch):
    monkeypatch.setattr(module, "_SETUP", (*module._SETUP, "PRAGMA busy_timeout = 10"))
    store = fill(path)
    reader = Store.open(path, KEY)
    reader.query("BEGIN")
    reader.query("SELECT count(*) FROM events")
    with store.transaction():
        store.execute("DELETE FROM events")
    with pytest.raises(StoreError, match="another process"):
        store.scrub()
    reader.close()
    store.scrub()
    assert MARKER.encode() not in decrypted(path, KEY)
    store.close()


# --- damage


def test_a_flipped_bit_anywhere_is_found_and_the_store_set_aside(path, tmp_path):
    fill(path).close()
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in [0, 5, 20, 100, len(whole) - 1, *rng.integers(0, len(whole), 60).tolist()]:
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises(StoreDamaged, match="set aside as"):
            Store.open(path, KEY)
        (aside,) = stores_aside(path)
        assert aside.read_bytes() == content  # not repaired, not written to
        assert not path.exists()
        aside.unlink()


def test_a_cut_file_is_found(path):
    fill(path).close()
    whole = path.read_bytes()
    for length in (0, 1, 100, PAGE, 3 * PAGE, len(whole) - PAGE, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreDamaged):
            Store.open(path, KEY)


def test_the_log_of_a_store_that_is_gone_does_not_get_into_the_next(killed):
    path = killed()
    path.unlink()
    store = Store.open(path, KEY)
    assert names(store) == []
    store.close()
    assert len(stores_aside(path)) == 2


def test_damage_while_it_is_open_is_found_when_it_is_read(path):
    store = fill(path, count=5_000)
    store.scrub()
    store.close()
    store = Store.open(path, KEY)
    content = bytearray(path.read_bytes())
    for at in range(PAGE, len(content), PAGE):
        content[at + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match="set aside"):
        store.query("SELECT sum(length(item)) FROM events")
    assert not path.exists()


WRITER = """
import os, signal, sys
from pathlib import Path
from fedprofile.client.store import Store

store = Store.open(Path(sys.argv[1]), bytes(range(32)))
for number in range(int(sys.argv[2])):
    if number == int(sys.argv[3]):
        store.query("PRAGMA wal_checkpoint(RESTART)")  # what comes goes to the log's beginning
    with store.transaction():
        store.execute(
            "INSERT INTO events (id, item, event, time, strength) VALUES (?, '', '', 0, 1)",
            (str(number),),
        )
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(tmp_path):
    """A store whose process was killed: its log holds 20 transactions, or those after a restart."""

    def make(*, restart=-1):
        path = tmp_path / "killed.db"
        Store.open(path, KEY).close()
        subprocess.run([sys.executable, "-c", WRITER, path, "20", str(restart)], check=False)
        return path

    return make


def test_a_log_is_recovered(killed):
    path = killed()
    assert path.with_name("killed.db-wal").stat().st_size > 20 * PAGE
    store = Store.open(path, KEY)
    assert len(names(store)) == 20
    store.close()
    assert not stores_aside(path)


def test_what_is_left_of_an_older_round_of_the_log_is_no_damage(killed):
    path = killed(restart=15)
    assert path.with_name("killed.db-wal").stat().st_size > 15 * PAGE
    store = Store.open(path, KEY)
    assert len(names(store)) == 20
    store.close()


def test_a_transaction_that_was_cut_off_is_no_damage(killed):
    path = killed()
    log = path.with_name("killed.db-wal")
    frame = PAGE + 24
    log.write_bytes(log.read_bytes()[: -frame // 2])
    store = Store.open(path, KEY)
    assert len(names(store)) == 19
    store.close()


def test_a_flipped_bit_in_the_log_is_told_and_the_rest_goes_on(killed):
    path = killed()
    log = path.with_name("killed.db-wal")
    whole, store_before = log.read_bytes(), path.read_bytes()
    rng = np.random.default_rng(1)
    frame = PAGE + 24
    last = len(whole) - frame  # salts of the last frame are told from an older round's by nothing
    for place in [3, 17, 25, 40, *rng.integers(32, last, 30).tolist()]:
        for old in stores_aside(path):
            old.unlink()
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(store_before)
        log.write_bytes(content)
        with pytest.raises(StoreDamaged, match=r"its log was damaged.*killed\.db-wal\.damaged-"):
            Store.open(path, KEY)
        (aside,) = stores_aside(path)
        assert aside.read_bytes() == content
        store = Store.open(path, KEY)
        found = names(store)
        assert found == [str(number) for number in range(len(found))]
        assert len(found) < 20
        store.close()


def begin_the_next_round(other):
    other.query("PRAGMA wal_checkpoint(RESTART)")
    insert(other, "later")


@pytest.mark.parametrize(
    ("moment", "meanwhile"),
    [
        (0, Store.close),  # the last one: SQLite deletes the log
        (0, Store.scrub),
        (0, begin_the_next_round),
        (1, lambda other: None),  # it is about to commit what the log holds already
        (1, Store.scrub),
        (1, begin_the_next_round),
    ],
)
def test_a_log_that_another_process_takes_away_is_no_damage(path, monkeypatch, meanwhile, moment):
    """Before it is recovered, or after that and before what was found is compared."""
    other = Store.open(path, KEY)
    for number in range(5):
        insert(other, str(number))
    ask, read, left = Store.query, module.read_log, [meanwhile]

    def read_before(log):
        found = read(log)
        if moment == 0 and left:
            left.pop()(other)
        return found

    def ask_before(store, statement, *parameters):
        found = ask(store, statement, *parameters)
        if moment == 1 and "NOOP" in statement and left:
            found = [(0, 0, 0)]  # as told while the other one commits, or begins a round
            left.pop()(other)
        return found

    monkeypatch.setattr(module, "read_log", read_before)
    monkeypatch.setattr(Store, "query", ask_before)
    store = Store.open(path, KEY)
    assert names(store)[:5] == list("01234")
    insert(store, "more")
    assert not stores_aside(path)
    store.close()
    other.close()


def test_another_key_sets_aside_and_can_be_undone(path):
    fill(path).close()
    with pytest.raises(StoreDamaged, match="or its key is another"):
        Store.open(path, bytes(32))
    (aside,) = stores_aside(path)
    aside.rename(path)
    store = Store.open(path, KEY)
    assert len(names(store)) == 300
    store.close()


# --- versions


def test_an_older_store_is_migrated(path, monkeypatch):
    store = Store.open(path, KEY)
    insert(store, "old")
    store.close()
    later = (
        "ALTER TABLE events ADD COLUMN place TEXT NOT NULL DEFAULT 'somewhere'",
        "CREATE INDEX events_by_place ON events (place)",
    )
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, later))
    store = Store.open(path, KEY)
    assert store.query("SELECT id, place FROM events") == [("old", "somewhere")]
    assert store.query("PRAGMA user_version") == [(len(module.MIGRATIONS),)]
    store.close()


def test_a_migration_that_fails_leaves_the_store_as_it_was(path, monkeypatch):
    store = Store.open(path, KEY)
    insert(store, "old")
    store.close()
    with monkeypatch.context() as patch:
        broken = ("ALTER TABLE events ADD COLUMN place TEXT", "ALTER TABLE nothing RENAME TO more")
        patch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, broken))
        with pytest.raises(StoreError, match="nothing"):
            Store.open(path, KEY)
    store = Store.open(path, KEY)
    assert names(store) == ["old"]
    assert "place" not in {row[1] for row in store.query("PRAGMA table_info(events)")}
    store.close()


def test_a_store_of_a_newer_program_is_left_alone(path):
    store = Store.open(path, KEY)
    insert(store, "new")
    store.query(f"PRAGMA user_version = {len(module.MIGRATIONS) + 1}")
    store.close()
    with pytest.raises(StoreError, match="written by a newer fedprofile"):
        Store.open(path, KEY)
    assert not stores_aside(path)


# --- full disk


def test_a_full_disk_is_an_error_that_says_so_and_what_was_stored_is_there(path):
    store = fill(path)
    (pages,) = store.query("PRAGMA page_count")[0]
    store.query(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StoreFull, match="disk is full"):
        insert(store, *(f"more-{number}" for number in range(500)), size=20)
    assert len(names(store)) == 300
    store.query("PRAGMA max_page_count = 1000000")
    insert(store, "more")
    store.close()


CHILD = """
import sys
from pathlib import Path
from fedprofile.client.store import Store
from fedprofile.common.errors import StoreFull

path = Path(sys.argv[1]) / "store.db"
store = Store.open(path, bytes(range(32)))
stored, full = 0, False
try:
    while True:
        with store.transaction():
            for number in range(50):
                store.execute(
                    "INSERT INTO events (id, item, event, time, strength) VALUES (?, ?, '', 0, 1)",
                    (f"{stored}-{number}", "x" * 200),
                )
        stored += 50
except StoreFull:
    full = True
assert full and stored > 0
assert store.query("SELECT count(*) FROM events") == [(stored,)]
store.close()
again = Store.open(path, bytes(range(32)))
assert again.query("SELECT count(*) FROM events") == [(stored,)]
print("read", stored)
"""


def test_a_disk_that_is_really_full(on_tiny_disk):
    assert on_tiny_disk(CHILD, size="1m").startswith("read")
