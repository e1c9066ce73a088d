"""A server whose disk fills up, at whatever write: it refuses with a word, and goes on once there is room.

Here writes fail one by one, in this process; an end-to-end test fills a real disk under real processes.
"""

import errno
import os
import shutil
import threading
from collections import namedtuple

import pytest

from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.verify import verify
from fedprofile.common import accounting, anchor, ledger
from fedprofile.common.errors import FedprofileError, LedgerError, ServerError, ServerFull
from fedprofile.common.ledger_entries import Reserve, Stop, events_of, read_chain
from fedprofile.server import checkpoint, releases, room, service, supervisor
from fedprofile.server.checkpoint import Checkpoint
from fedprofile.server.journal import JournalReader, keep_journal, note
from fedprofile.server.releases import Releases
from fedprofile.server.room import check_room, of_the_disk
from fedprofile.server.status import read_standing
from fedprofile.server.supervisor import CANT_WRITE, FINAL, supervise

Usage = namedtuple("Usage", "total used free")


class Disk:
    """Counts durable writes, and refuses all of them from a given one on until there is room."""

    def __init__(self, monkeypatch):
        self.writes, self.full_from = 0, None
        disk = self

        class Os:
            """The module, but for the writes of the ledger."""

            def __getattr__(self, name):
                return getattr(os, name)

            def write(self, descriptor, content):
                fits = len(content) // 2 if disk._refused() else len(content)
                return os.write(descriptor, content[:fits])

        monkeypatch.setattr(ledger, "os", Os())
        for module in (anchor, checkpoint, releases):
            self._patch(monkeypatch, module, module.write_atomically)

    def _patch(self, monkeypatch, module, real):
        def write(path, content, **named):
            if self._refused():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            real(path, content, **named)

        monkeypatch.setattr(module, "write_atomically", write)

    def _refused(self):
        self.writes += 1
        return self.full_from is not None and self.writes >= self.full_from


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def spent(server):
    entries = read_chain(server.ledger).entries
    return accounting.epsilon(events_of(entries), delta=entries[0].delta)


def lines(server):
    return server.ledger.read_bytes().splitlines(keepends=True) if server.ledger.exists() else []


def whole(server):
    """Whatever is taken for whole, is."""
    config = server.config.run()
    manifest = Releases(server, service.SigningKey.load(server.signing_key)).load()
    items = service.ItemTable.load(server.items).content_hash
    Checkpoint.latest(server.checkpoints, config_digest=config.digest(), items=items)
    assert manifest is None or manifest.model
    assert not list(server.path.rglob(".*.tmp"))


@pytest.fixture
def each_figure_once(monkeypatch):
    """The same releases cost the same in every run."""
    known, real = {}, accounting.epsilon

    def epsilon(events, **named):
        asked = (frozenset(events.items()), *sorted(named.items()))
        if asked not in known:
            known[asked] = real(events, **named)
        return known[asked]

    monkeypatch.setattr(accounting, "epsilon", epsilon)


@pytest.mark.parametrize(
    "first", [1, *(pytest.param(write, marks=pytest.mark.long) for write in (2, 3))]
)
@pytest.mark.usefixtures("inline_accountants", "each_figure_once")
def test_wherever_the_disk_fills_up_nothing_is_lost_and_the_federation_ends(
    made_server, serve, disk, tmp_path, first
):
    def fresh(number):
        path = tmp_path / f"{number}"
        shutil.copytree(made_server.path, path)
        return type(made_server).open(path)

    honest = fresh(0)
    serve(honest)
    writes = disk.writes
    assert writes > 20
    for number in range(first, writes + 1, 3):
        server = fresh(number)
        disk.writes, disk.full_from = 0, number
        with pytest.raises((FedprofileError, OSError)) as error:
            serve(server)
        # It is told as what it is, in one line, and not tried again.
        found = of_the_disk(error.value)
        assert found is not None, f"write {number}: {error.value!r}"
        assert "\n" not in str(found)
        whole(server)
        before = lines(server)
        charged = spent(server) if before and b"\n" in before[0] else 0.0
        disk.full_from = None
        serve(server)
        # What was written stands, line by line, but for one that was cut off.
        kept = [line for line in before if line.endswith(b"\n")]
        assert lines(server)[: len(kept)] == kept
        assert spent(server) >= charged
        chain = read_chain(server.ledger)
        assert isinstance(chain.entries[-1], Stop)
        # Full for good, the disk cost one release at most.
        made = sum(isinstance(entry, Reserve) for entry in chain.entries)
        assert made - sum(isinstance(e, Reserve) for e in read_chain(honest.ledger).entries) <= 1
        failed = [f for f in verify(find_evidence(server.path)).findings if f.outcome == "fails"]
        assert failed == [], f"write {number}"
        shutil.rmtree(server.path)


def free(monkeypatch, amount):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: Usage(10**12, 0, amount))


def test_on_a_full_disk_no_round_is_charged(server, serve, monkeypatch):
    free(monkeypatch, 10**6)
    with pytest.raises(ServerFull, match=r"1\.0 MB are free, and a round needs 1\d\.\d"):
        serve(server)
    assert not any(isinstance(e, Reserve) for e in read_chain(server.ledger).entries)
    assert read_standing(server).epsilon == 0.0
    monkeypatch.undo()


def test_room_is_for_models_of_any_size(server, monkeypatch):
    free(monkeypatch, 100 * 2**20)
    check_room(server)
    server.model.write_bytes(bytes(20 * 2**20))
    with pytest.raises(ServerFull):
        check_room(server)


def test_on_a_full_disk_nothing_is_started(server, monkeypatch):
    free(monkeypatch, 0)
    with pytest.raises(ServerFull, match="the disk is full"):
        supervise(server, threading.Event())
    assert not list(server.run.glob("*.log"))


class Child:
    """Stands in for a process that ends once, with a code."""

    code = 0

    def __init__(self, name, folder):
        self.name, self.failures = name, 0

    def tend(self):
        if self.name != "service" or self.failures:
            return None
        self.failures = 1
        return self.code

    def end(self):
        pass

    def last_words(self):
        return "error: a quota"


def test_a_disk_that_can_not_be_written_is_tried_once(server, monkeypatch):
    monkeypatch.setattr(supervisor, "_Process", Child)
    monkeypatch.setattr(supervisor, "_POLL", 0.001)
    monkeypatch.setattr(Child, "code", CANT_WRITE)
    with pytest.raises(ServerFull, match=r"^a quota$"):
        supervise(server, threading.Event())


@pytest.mark.parametrize("code", [1, 2, supervisor.TRY_AGAIN])
def test_whatever_ends_on_a_full_disk_ends_because_of_it(server, monkeypatch, code):
    monkeypatch.setattr(supervisor, "_Process", Child)
    monkeypatch.setattr(supervisor, "_POLL", 0.001)
    monkeypatch.setattr(Child, "code", code)
    begun = iter([10**12])
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: Usage(0, 0, next(begun, 0)))
    with pytest.raises(ServerFull, match="the disk is full"):
        supervise(server, threading.Event())


def test_an_error_is_the_disks_where_the_disk_made_it():
    def of(error, cause=None):
        error.__cause__ = cause
        return of_the_disk(error)

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
        cause = OSError(number, "no", "x")
        assert str(of_the_disk(cause)).startswith("x: no; make room")
        assert str(of(LedgerError("l: can't append"), cause)).startswith(
            "l: can't append; make room"
        )
    assert of(LedgerError("in use"), BlockingIOError(errno.EAGAIN, "busy")) is None
    assert of(ServerError("no server"), FileNotFoundError(errno.ENOENT, "none")) is None
    assert of_the_disk(ServerError("x")) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), CANT_WRITE),
        (ServerFull("x"), CANT_WRITE),
        (ServerError("x"), FINAL),
        (LedgerError("x"), FINAL),
        (OSError(errno.EPERM, "Operation not permitted", "x"), 1),
    ],
)
def test_how_a_process_ends_says_whether_to_try_again(error, code, capsys):
    with pytest.raises(SystemExit) as ended:
        service._fail(error)
    assert ended.value.code == code
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_a_journal_on_a_full_disk_breaks_nothing_that_writes_or_reads_it(tmp_path, capfd):
    path = tmp_path / "log.jsonl"
    reader = JournalReader(path)
    path.symlink_to("/dev/full")
    keep_journal(path)
    note("lost")
    path.unlink()
    path.write_bytes(b'{"event": "ha\n[1]\n{"event": "whole"}\n')
    assert [entry["event"] for entry in reader.news()] == ["whole"]
    keep_journal(tmp_path / "another.jsonl")
    assert capfd.readouterr().err == ""
