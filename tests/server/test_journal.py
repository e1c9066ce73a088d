"""What a server says of itself: a journal that survives rotation, metrics for this host alone."""

import json
import socket
import urllib.request

import pytest

from fedprofile.server.journal import JournalReader, keep_journal, note
from fedprofile.server.metrics import Metrics
from fedprofile.simulations.loopback import free_port


def scraped(port):
    """What Prometheus would read."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return answer.read().decode()


def test_notes_are_json_lines_in_any_script(tmp_path):
    path = tmp_path / "log.jsonl"
    keep_journal(path)
    note("started", pid=1)
    note("waiting", federation="店\n二", online=0)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["started", "waiting"]
    assert lines[1]["federation"] == "店\n二"
    assert lines[0]["time"].endswith("+00:00")


def test_a_reader_sees_what_is_new_and_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    early = JournalReader(path)
    assert early.news() == []
    keep_journal(path)
    note("a")
    late = JournalReader(path)
    note("b")
    with path.open("a") as file:
        file.write('{"event": "ha')
    assert [entry["event"] for entry in early.news()] == ["a", "b"]
    assert [entry["event"] for entry in late.news()] == ["b"]
    with path.open("a") as file:
        file.write('lf"}\n')
    assert [entry["event"] for entry in late.news()] == ["half"]
    path.rename(tmp_path / "log.1")
    assert late.news() == []
    note("after")
    assert [entry["event"] for entry in late.news()] == ["after"]


@pytest.fixture
def ledger(begin_ledger, mechanism, tmp_path):
    """Statistics and two rounds; a third is under way."""
    ledger = begin_ledger(tmp_path / "ledger.jsonl")
    one_shot = ledger.reserve(task="statistics/popularity", mechanism=mechanism)
    ledger.commit(one_shot, cohort_size=3, replies_counted=1, rejected={"declined-noise": 2})
    for number, rejected in ((1, {"stale": 1}), (2, {"stale": 1, "norm": 1})):
        release = ledger.reserve(task="training", mechanism=mechanism, round=number)
        counted = 3 - sum(rejected.values())
        ledger.commit(release, cohort_size=3, replies_counted=counted, rejected=rejected)
    ledger.reserve(task="training", mechanism=mechanism, round=3)
    yield ledger
    ledger.close()


LINES = (
    "fedprofile_round 2.0",
    "fedprofile_sampled_total 9.0",
    "fedprofile_counted_total 4.0",
    'fedprofile_rejected_total{reason="stale"} 2.0',
    'fedprofile_rejected_total{reason="norm"} 1.0',
    'fedprofile_rejected_total{reason="declined-noise"} 2.0',
)


def test_metrics_are_served_on_loopback(ledger):
    port = free_port()
    metrics = Metrics(port)
    metrics.online(4)
    metrics.took(2.5)
    for seen in range(len(ledger.entries) + 1):  # as the server follows: again and again
        metrics.follow(ledger.entries[:seen], epsilon=seen / 2)
    text = scraped(port)
    for line in (
        *LINES,
        "fedprofile_online 4.0",
        "fedprofile_epsilon 4.0",
        "fedprofile_round_seconds 2.5",
    ):
        assert line in text
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError, match=r"."):
            socket.create_connection((own, port), timeout=1)


def test_without_a_port_nothing_is_served(ledger):
    Metrics(0).follow(ledger.entries, epsilon=1.0)


def test_a_server_that_starts_again_goes_on_with_the_figures_of_its_ledger(ledger, mechanism):
    port = free_port()
    metrics = Metrics(port)
    metrics.follow(ledger.entries, epsilon=ledger.epsilon_spent())
    text = scraped(port)
    for line in (*LINES, f"fedprofile_epsilon {ledger.epsilon_spent()}"):
        assert line in text
    again = ledger.reserve(task="training", mechanism=mechanism, round=3)  # the first was lost
    ledger.commit(again, cohort_size=5, replies_counted=5, rejected={})
    metrics.follow(ledger.entries, epsilon=ledger.epsilon_spent())
    text = scraped(port)
    for line in (
        "fedprofile_round 3.0",
        f"fedprofile_epsilon {ledger.epsilon_spent()}",
        "fedprofile_sampled_total 14.0",
        "fedprofile_counted_total 9.0",
    ):
        assert line in text
