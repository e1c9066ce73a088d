"""What the service bounds before it asks devices for anything."""

import threading
from types import SimpleNamespace

import pytest

from fedprofile.common.errors import LedgerError
from fedprofile.common.messages import CooccurrenceTask
from fedprofile.server.service import Service
from fedprofile.server.spent_before import spent_before


@pytest.mark.parametrize(("devices", "most"), [(3, 2_048), (1_000, 866), (100_000, 87)])
def test_what_all_devices_send_of_one_statistic_is_taken_in_time(server, devices, most):
    config = server.config
    federation = config.federation.model_copy(update={"population_size": devices})
    service = Service(server, threading.Event())
    service._config = config.model_copy(update={"federation": federation})
    numbers = service._most_numbers
    assert CooccurrenceTask.largest_head(whole=False, numbers=numbers) == most
    assert devices * 4 * numbers <= 5e6 * federation.round_timeout_seconds


@pytest.mark.parametrize(("whole", "numbers"), [(False, 2_048 * 2_047), (True, 2_896 * 2_895 // 2)])
def test_the_largest_reply_has_the_pairs_of_the_kind_that_is_asked_for(server, whole, numbers):
    service = Service(server, threading.Event())
    table = SimpleNamespace(n_items=3_000, whole=whole)
    found = service._largest_reply(SimpleNamespace(cooccurrence=object()), table)
    without = service._largest_reply(SimpleNamespace(cooccurrence=None), table)
    assert found.bytes - without.bytes == 8 * numbers


@pytest.fixture
def spent(begin_ledger, mechanism, tmp_path):
    """Makes the ledger of an earlier federation of three users, with two releases in it."""

    def make(population="federation"):
        folder = tmp_path / population
        folder.mkdir()
        with begin_ledger(folder / "ledger.jsonl", population=population) as ledger:
            for number in (1, 2):
                ledger.reserve(task="training", mechanism=mechanism, round=number)
            return folder, ledger.epsilon_spent()

    return make


def test_what_an_earlier_server_spent_of_the_same_users_counts(server, spent, monkeypatch):
    folder, epsilon = spent()
    seen = []
    monkeypatch.setattr(
        Service,
        "_serve",
        lambda self, plan, table, encoder, ledger: seen.append((plan, ledger.epsilon_spent())),
    )

    def started(earlier):
        named = server.config.federation.model_copy(update={"earlier": earlier})
        service = Service(server, threading.Event())
        service._config = server.config.model_copy(update={"federation": named})
        service.run()

    started(())
    server.ledger.unlink()
    server.anchor.unlink()
    started(("../federation",))
    # The ledger has it from now on, whatever becomes of the other.
    (folder / "ledger.jsonl").unlink()
    started(("../federation",))
    (alone, nothing), (plan, spent_by_then), again = seen
    assert nothing == 0
    assert spent_by_then == pytest.approx(epsilon)
    assert plan.popularity.noise_multiplier > alone.popularity.noise_multiplier
    assert again == (plan, spent_by_then)


def test_a_ledger_of_other_users_is_no_earlier_one(server, spent):
    spent("others")
    named = server.config.federation.model_copy(update={"earlier": ("../others",)})
    with pytest.raises(LedgerError, match="is of population 'others'"):
        spent_before(server.path, server.ledger, named)
