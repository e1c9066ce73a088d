"""A server and devices as processes on loopback, killed at the worst moments: what must hold, holds.

The short form: one kill of each kind in one federation. ``python -m benchmarks.faults`` is the long one.
"""

import pytest

from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.verify import verify
from fedprofile.common.accounting import epsilon
from fedprofile.common.ledger_entries import Commit, Reserve
from fedprofile.simulations.loopback import Loopback, entries_of, wait_for

pytestmark = pytest.mark.slow


def reserved(path):
    return [entry for entry in entries_of(path) if isinstance(entry, Reserve)]


def committed(path):
    return [entry for entry in entries_of(path) if isinstance(entry, Commit)]


def spent(path):
    entries = entries_of(path)
    events = [entry.mechanism.event() for entry in entries if isinstance(entry, Reserve)]
    return epsilon(events, delta=entries[0].delta)


@pytest.mark.usefixtures("inline_accountants")
def test_whatever_is_killed_the_federation_ends_and_each_release_is_paid_once(tmp_path):
    one_statistic = {"privacy": {"statistics_share": 0.0}, "training": {"rounds": 3}}
    with Loopback(tmp_path, devices=1, settings=one_statistic) as loopback:
        ledger, device = loopback.server.ledger, loopback.device(0)
        loopback.start_server()
        loopback.start_device(0)

        # Round 1: the training process dies after it has paid; the device says that it failed.
        wait_for(lambda: reserved(device.ledger), timeout=120, what="a charge on the device")
        assert loopback.kill_part("device-0", "client.fit")
        wait_for(lambda: committed(ledger), timeout=90, what="round 1")
        assert committed(ledger)[0].rejected == {"declined-failed": 1}

        # Round 2: the ServerApp dies with the round reserved; the round is repeated and paid again.
        wait_for(lambda: len(reserved(ledger)) == 2, timeout=60, what="round 2 reserved")
        before = spent(ledger)
        assert loopback.kill_part("server", "server.service")
        wait_for(lambda: len(reserved(ledger)) == 3, timeout=120, what="round 2 again")
        assert spent(ledger) > before
        assert [entry.round for entry in reserved(ledger)] == [1, 2, 2]

        # The device node dies while it trains: the answer is made, and sent when it is back.
        wait_for(
            lambda: any(
                entry.answers == reserved(ledger)[2].sequence for entry in reserved(device.ledger)
            ),
            timeout=120,
            what="the device has paid for the repeated round",
        )
        loopback.kill("device-0")
        loopback.start_device(0)
        wait_for(lambda: len(committed(ledger)) == 2, timeout=120, what="round 2 done")
        assert committed(ledger)[1].replies_counted == 1

        # Round 3: the SuperLink dies; both sides wait for it, and the round goes on.
        wait_for(lambda: len(reserved(ledger)) == 4, timeout=60, what="round 3 reserved")
        assert loopback.kill_part("server", "server.superlink")
        found = loopback.wait_finished(240)

    assert found["round"] == 3
    assert found["stopped"] == "completed"
    assert found["epsilon"] == pytest.approx(spent(ledger))
    # Each release that the device answered was charged once, and none that it didn't see.
    answered = [entry.answers for entry in reserved(device.ledger)]
    assert len(answered) == len(set(answered))
    assert set(answered) <= {entry.sequence for entry in reserved(ledger)}
    assert (device.models / "manifest.json").exists()
    assert loopback.journal()[-1]["event"] == "ended"
    # Whatever was killed, the folder tells what its ledger tells.
    findings = verify(find_evidence(loopback.server.path)).findings
    assert [finding for finding in findings if finding.outcome == "fails"] == []
