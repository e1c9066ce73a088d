"""Processes that are started again when they die, end with their parent, and never run twice."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest

from fedprofile.common.errors import ServerError
from fedprofile.server import supervisor
from fedprofile.server.supervisor import FINAL, TRY_AGAIN, supervise


class Child:
    """Stands in for a process: ends with the codes it is given, one a life; then it stays."""

    lives: ClassVar = {}

    def __init__(self, name, folder):
        self.name, self.failures, self.ended = name, 0, False
        self._codes = list(self.lives.get(name, ()))

    def tend(self):
        if not self._codes:
            return None
        code = self._codes.pop(0)
        if code is not None:
            self.failures += 1
        return code

    def end(self):
        self.ended = True

    def last_words(self):
        return "error: the disk is full"


@pytest.fixture
def lives(monkeypatch):
    """How the two processes end, life by life; None: it lives on for a while."""
    monkeypatch.setattr(supervisor, "_Process", Child)
    monkeypatch.setattr(supervisor, "_POLL", 0.001)
    monkeypatch.setattr(Child, "lives", {})
    return Child.lives


def test_a_finished_federation_ends_it_all(server, lives):
    lives["service"] = [None, -9, TRY_AGAIN, 0]
    lives["superlink"] = [None, -9, -9]
    supervise(server, threading.Event())
    events = [json.loads(line) for line in server.log.read_text().splitlines()]
    died = [(event["process"], event["code"]) for event in events if event["event"] == "died"]
    assert died == [("superlink", -9), ("service", -9), ("superlink", -9), ("service", TRY_AGAIN)]
    assert [events[0]["event"], events[-1]["event"]] == ["started", "ended"]


def test_trouble_that_does_not_pass_is_told(server, lives):
    lives["service"] = [2] * 9
    with pytest.raises(ServerError, match=r"service fails: the disk is full"):
        supervise(server, threading.Event())


def test_a_refusal_to_go_on_is_final(server, lives, capsys):
    """What it refuses would cost three releases with every start."""
    lives["service"] = [None, FINAL, 0]
    with pytest.raises(ServerError, match=r"^the disk is full$"):
        supervise(server, threading.Event())
    assert "started again" not in "".join(capsys.readouterr())


def test_kills_and_passing_trouble_are_borne_for_good(server, lives):
    lives["service"] = [-9] * 20 + [TRY_AGAIN] * 20 + [0]
    supervise(server, threading.Event())


def test_a_stop_ends_it(server, lives):
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    started = time.monotonic()
    supervise(server, stop)
    assert time.monotonic() - started < 30


def test_a_folder_has_one_server(server, lives):
    stop = threading.Event()
    thread = threading.Thread(target=supervise, args=(server, stop))
    thread.start()
    time.sleep(0.2)
    with pytest.raises(ServerError, match="runs here already"):
        supervise(server, threading.Event())
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_pauses_double_and_end_at_half_a_minute(server, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])

    class Dying:
        pid = 1

        def __init__(self, *arguments, **named):
            pass

        def poll(self):
            return -9

    monkeypatch.setattr(supervisor.subprocess, "Popen", Dying)
    process = supervisor._Process("service", server)
    starts = []
    while len(starts) < 8:
        running = process.pid
        code = process.tend()
        if running is None and process.pid is not None:
            starts.append(now[0])
        if code is None and process.pid is None:
            now[0] += 0.5
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_a_process_ends_with_the_one_that_started_it():
    child = (
        "from fedprofile.server.supervisor import follow_parent as f; import time; f(); "
        "print('follows', flush=True); time.sleep(60)"
    )
    parent = textwrap.dedent(
        f"""
        import subprocess, sys, time
        process = subprocess.Popen([sys.executable, "-c", {child!r}])
        print(process.pid, flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as started:
        orphan = int(started.stdout.readline())
        assert started.stdout.readline() == b"follows\n"
        started.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(orphan, 0)
        except ProcessLookupError:
            return
        with contextlib.suppress(OSError):
            if ") Z" in Path(f"/proc/{orphan}/stat").read_text():
                return  # ended; nobody has asked for its exit code
        time.sleep(0.1)
    raise AssertionError("it lives on")
