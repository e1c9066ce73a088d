"""What a server says of itself: a journal that survives rotation, metrics for this host alone."""

import json
import socket
import urllib.request

import pytest

from fedprofile.server.journal import JournalReader, keep_journal, note
from fedprofile.server.metrics import Metrics
from fedprofile.server.strategy import RoundRecord
from fedprofile.simulations.loopback import free_port


def scraped(port):
    """What Prometheus would read."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return answer.read().decode()


def record(number, **rejected):
    return RoundRecord(
        round=number,
        sampled=5,
        trained=5 - sum(rejected.values()),
        rejected=rejected,
        ignored={},
        update_norm=1.0,
        noise_norm=1.0,
        seconds=2.5,
    )


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


def test_metrics_are_served_on_loopback():
    port = free_port()
    metrics = Metrics(port)
    metrics.online(4)
    metrics.after(record(1, stale=2))
    metrics.spent(1.5)
    metrics.after(record(2, stale=1))
    text = scraped(port)
    for line in (
        "fedprofile_round 2.0",
        "fedprofile_online 4.0",
        "fedprofile_epsilon 1.5",
        "fedprofile_sampled_total 10.0",
        "fedprofile_counted_total 7.0",
        'fedprofile_rejected_total{reason="stale"} 3.0',
    ):
        assert line in text
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError, match=r"."):
            socket.create_connection((own, port), timeout=1)


def test_without_a_port_nothing_is_served():
    Metrics(0).after(record(1))


def test_a_server_that_starts_again_goes_on_with_the_figures_of_its_ledger(
    begin_ledger, mechanism, tmp_path
):
    ledger = begin_ledger(tmp_path / "ledger.jsonl")
    one_shot = ledger.reserve(task="statistics/popularity", mechanism=mechanism)
    ledger.commit(one_shot, cohort_size=3, replies_counted=3, rejected={})
    for number, rejected in ((1, {"stale": 1}), (2, {"stale": 1, "norm": 1})):
        release = ledger.reserve(task="training", mechanism=mechanism, round=number)
        counted = 3 - sum(rejected.values())
        ledger.commit(release, cohort_size=3, replies_counted=counted, rejected=rejected)
    ledger.reserve(task="training", mechanism=mechanism, round=3)  # and the server dies
    ledger.close()
    port = free_port()
    metrics = Metrics(port)
    metrics.resume(ledger.entries)
    metrics.spent(ledger.epsilon_spent())
    assert "fedprofile_round 2.0" in scraped(port)
    metrics.after(record(3))
    text = scraped(port)
    for line in (
        "fedprofile_round 3.0",
        f"fedprofile_epsilon {ledger.epsilon_spent()}",
        "fedprofile_sampled_total 11.0",
        "fedprofile_counted_total 8.0",
        'fedprofile_rejected_total{reason="stale"} 2.0',
        'fedprofile_rejected_total{reason="norm"} 1.0',
    ):
        assert line in text
