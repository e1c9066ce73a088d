"""A process that dies in every round stops before it has spent the budget."""

import threading

import pytest

from fedprofile.common.errors import ServerError
from fedprofile.common.ledger import Ledger
from fedprofile.common.ledger_entries import Reserve
from fedprofile.server.budget import plan_budget
from fedprofile.server.crashes import accept_crashes, check_crashes, lost_in_a_row
from fedprofile.server.service import Service
from fedprofile.server.split import Sizes


@pytest.fixture
def plan(server):
    config = server.config
    sizes = Sizes(n_items=20, scales=3, weights=500)
    return plan_budget(config.privacy, config.training, population_size=3, sizes=sizes)


@pytest.fixture
def ledger(server, plan):
    with Service(server, threading.Event())._open_ledger(plan) as found:
        yield found


def reserve(ledger: Ledger, plan, times=1):
    return [
        ledger.reserve(task="training", mechanism=plan.popularity, round=n + 1)
        for n in range(times)
    ]


def commit(ledger: Ledger, release):
    ledger.commit(release, cohort_size=0, replies_counted=0, rejected={}, model_after=None)


def test_three_in_a_row_are_too_many(server, ledger, plan, monkeypatch):
    monkeypatch.setattr("fedprofile.common.accounting.fits", lambda *_, **__: True)
    commit(ledger, reserve(ledger, plan, 2)[1])
    reserve(ledger, plan, 2)
    check_crashes(server, ledger.entries)  # the first was lost before one was finished
    (third,) = reserve(ledger, plan)
    with pytest.raises(ServerError, match="last 3 releases were paid for and none was finished"):
        check_crashes(server, ledger.entries)
    commit(ledger, third)
    check_crashes(server, ledger.entries)


def test_who_has_seen_them_may_go_on_as_long_again(server, ledger, plan, monkeypatch):
    monkeypatch.setattr("fedprofile.common.accounting.fits", lambda *_, **__: True)
    reserve(ledger, plan, 3)
    accept_crashes(server)
    check_crashes(server, ledger.entries)
    reserve(ledger, plan, 2)
    check_crashes(server, ledger.entries)
    reserve(ledger, plan)
    with pytest.raises(ServerError, match="after-crashes"):
        check_crashes(server, ledger.entries)
    assert lost_in_a_row(ledger.entries) == 6


def test_the_service_stops_before_it_pays_again(server, ledger, plan, monkeypatch):
    monkeypatch.setattr("fedprofile.common.accounting.fits", lambda *_, **__: True)
    reserve(ledger, plan, 3)
    ledger.close()
    asked = []
    monkeypatch.setattr("fedprofile.server.service.Link", lambda *_: asked.append("link"))
    with pytest.raises(ServerError, match="none was finished"):
        Service(server, threading.Event()).run()
    assert not asked
    with Service(server, threading.Event())._open_ledger(plan) as found:
        assert sum(isinstance(entry, Reserve) for entry in found.entries) == 3
