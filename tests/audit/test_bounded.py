"""Sums that a ledger may ask for and nobody can do: they end, and the audit says so."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from fedprofile.audit import bounded
from fedprofile.audit.bounded import Bounded, epsilon_within
from fedprofile.audit.compose import compose
from fedprofile.audit.forecast import forecast
from fedprofile.audit.ledgers import Evidence
from fedprofile.audit.spending import group_releases, spent_along
from fedprofile.audit.verify import verify
from fedprofile.common.errors import BadEntry, ConfigError, LedgerError
from fedprofile.common.ledger_entries import read_chain


def answered(what):
    if what == "sleep":
        time.sleep(60)
    if what == "die":
        os._exit(9)
    if what == "overflow":
        return 1e300**2
    if what == "refuse":
        raise ConfigError("no")
    if what == "bad entry":
        raise BadEntry(Path("ledger.jsonl"), 3, "isn't signed")
    return os.getpid()


def test_what_takes_too_long_or_dies_takes_no_later_answer_along(monkeypatch):
    monkeypatch.setattr(bounded, "PATIENCE", 1.0)
    with Bounded(answered) as ask:
        first = ask("a")
        assert first == ask("b") != os.getpid()
        for what, why in (("overflow", "beyond"), ("sleep", "too long"), ("die", "too long")):
            with pytest.raises(LedgerError, match=why):
                ask(what)
        with pytest.raises(ConfigError, match=r"^no$"):
            ask("refuse")
        with pytest.raises(LedgerError, match=r"line 3: isn't signed"):
            ask("bad entry")
        second = ask("c")
        assert second != first
        os.kill(second, signal.SIGKILL)  # while nobody asks
        ask._worker[0].join()
        with pytest.raises(LedgerError, match="too long"):
            ask("d")
        assert ask("e") != second


def busy(seconds):
    while True:
        pass


def test_a_worker_whose_audit_was_killed_ends_when_its_time_is_up(monkeypatch):
    monkeypatch.setattr(bounded, "PATIENCE", 0.5)
    ask = Bounded(busy)
    monkeypatch.setattr(ask, "_end", lambda: None)  # as where it dies before it can
    with pytest.raises(LedgerError, match="too long"):
        ask(9)
    process, _ = ask._worker
    process.join(30)
    assert process.exitcode == -signal.SIGXCPU


def endless(forge, size):
    """So many releases of so little that adding them up takes hours."""
    rare = forge.mechanism(
        sampling_probability=1e-9, noise_multiplier=10.0, population_size=size
    ).describe()
    counted = {"mechanism": rare, "count": 2**53 - 1}
    return [{"ledger": "1" * 64, "head": "2" * 64, "releases": [counted]}]


@pytest.mark.usefixtures("quick_accountants")
def test_a_ledger_that_asks_for_hours_ends_in_a_finding_or_an_error(monkeypatch, forge, tmp_path):
    monkeypatch.setattr(bounded, "PATIENCE", 1.0)
    path = forge.honest(rounds=2, earlier=endless(forge, 1_000)).write(tmp_path / "ledger.jsonl")
    chain = read_chain(path)
    with pytest.raises(LedgerError, match="too long"):
        forecast(chain, ledger=path)
    with pytest.raises(LedgerError, match="too long"):
        compose([path])
    device = forge.events(steps=0, earlier=endless(forge, 20)).write(tmp_path / "d.jsonl")
    found = verify(Evidence(path, None, None), device_ledgers=[device])
    assert "its ε is unknown" in found.findings[-1].what
    assert spent_along(chain, group_releases(chain), found.cost) == {}


def test_more_than_a_thousand_is_not_worked_out(forge, tmp_path):
    writer = forge.Writer().open(target_epsilon=None)
    writer.reserve(forge.mechanism(sampling_probability=1.0, noise_multiplier=5.0))
    path = writer.write(tmp_path / "ledger.jsonl")
    found = forecast(read_chain(path), ledger=path, rounds=[100_000]).to_dict()
    assert found["after"] == [{"rounds": 100_000, "epsilon": None}]
    forge.honest(rounds=2, delta=1e-300).write(path)
    for told in (forecast(read_chain(path), ledger=path), compose([path])):
        json.dumps(told.to_dict(), allow_nan=False)
    open_noise = forge.mechanism(noise_multiplier=0.0).event()
    figure = epsilon_within({open_noise: 1}, delta=1e-5, adjacency="add-or-remove-one")
    assert figure == float("inf")
