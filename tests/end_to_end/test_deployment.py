"""A server and devices as processes on loopback, killed at the worst moments: what must hold, holds.

The short form: one kill of each kind in one federation. ``python -m benchmarks.faults`` is the long one.
"""

from pathlib import Path

import pytest

from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.verify import verify
from fedprofile.client.device import Device
from fedprofile.common.accounting import epsilon
from fedprofile.common.flower_switches import SWITCHES
from fedprofile.common.items import ItemTable
from fedprofile.common.ledger_entries import Commit, Reserve
from fedprofile.simulations.loopback import Loopback, children, entries_of, wait_for

pytestmark = pytest.mark.slow


def reserved(path):
    return [entry for entry in entries_of(path) if isinstance(entry, Reserve)]


def committed(path):
    return [entry for entry in entries_of(path) if isinstance(entry, Commit)]


def spent(entries):
    events = [entry.mechanism.event() for entry in entries if isinstance(entry, Reserve)]
    return epsilon(events, delta=entries[0].delta)


# A machine may be busy: a kill must find what it is meant for, and nobody be given up for late.
PATIENCE = 240
SETTINGS = {
    "federation": {"round_timeout_seconds": PATIENCE, "release_every": 0},
    "privacy": {"split": {"popularity": 0.0}},
    "training": {"rounds": 4, "local_steps": 150},  # a second or so after the charge
}


def wait(happens, what):
    wait_for(happens, timeout=PATIENCE, what=what)


def telemetry_is_off(loopback):
    """As the processes of the server were started."""
    found = [
        dict(pair.split("=", 1) for pair in environment.split("\0") if "=" in pair)
        for part in children(*loopback.pids("server"))
        for environment in [Path(f"/proc/{part}/environ").read_text()]
    ]
    return len(found) == 2 and all(SWITCHES.items() <= one.items() for one in found)


def items_in_logs(loopback):
    """Items that the server's logs name."""
    server = loopback.server
    logs = [server.log, *server.run.glob("*.log"), loopback.output("server")]
    text = "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)
    return [item for item in ItemTable.load(server.items).ids if item in text]


class Watch:
    """What no kill may change: the owner's profile, ε that was spent, one charge for each release."""

    def __init__(self, loopback):
        self.ledger, self.folder = loopback.server.ledger, loopback.device(0)
        self.epsilon, self.profile = 0.0, self.known()
        assert self.profile["events"] > 0

    def known(self):
        with Device(self.folder) as device:
            found = device.profile()
            listed = [(e.time, e.item) for e in found.recent]
            return {
                "events": device.status().events,
                "consent": device.status().consent,
                "set aside": device.status().set_aside,
                # Built anew with each model, so that the last digit may differ.
                "frequencies": {item: round(n, 5) for item, n in found.frequencies.items()},
                "tags": {tag: round(weight, 5) for tag, weight in found.tags.items()},
                "recent": listed,
            }

    def holds(self):
        before, self.epsilon = self.epsilon, spent(entries_of(self.ledger))
        assert self.epsilon >= before
        assert self.known() == self.profile
        answered = [entry.answers for entry in reserved(self.folder.ledger)]
        assert len(answered) == len(set(answered))
        assert set(answered) <= {entry.sequence for entry in reserved(self.ledger)}


@pytest.mark.usefixtures("inline_accountants")
def test_whatever_is_killed_the_federation_ends_and_each_release_is_paid_once(tmp_path):
    with Loopback(tmp_path, devices=1, settings=SETTINGS) as loopback:
        ledger, device, watch = loopback.server.ledger, loopback.device(0), Watch(loopback)
        loopback.start_server()
        loopback.start_device(0)

        # Round 1: the training process dies after it has paid; the device says that it failed.
        wait(lambda: reserved(device.ledger), "a charge on the device")
        assert loopback.kill_part("device-0", "client.fit")
        wait(lambda: committed(ledger), "round 1")
        assert committed(ledger)[0].rejected == {"declined-failed": 1}
        watch.holds()

        # Round 2: the ServerApp dies with the round reserved; the round is repeated and paid again.
        wait(lambda: len(reserved(ledger)) == 2, "round 2 reserved")
        assert loopback.kill_part("server", "server.service")
        before = entries_of(ledger)
        wait(lambda: len(reserved(ledger)) == 3, "round 2 again")
        assert spent(entries_of(ledger)) > spent(before)
        assert [entry.round for entry in reserved(ledger)] == [1, 2, 2]
        watch.holds()

        # The device node dies while it trains: the answer is made, and sent when it is back.
        wait(
            lambda: any(
                entry.answers == reserved(ledger)[2].sequence for entry in reserved(device.ledger)
            ),
            "the device has paid for the repeated round",
        )
        loopback.kill("device-0")
        loopback.start_device(0)
        wait(lambda: len(committed(ledger)) == 2, "round 2 done")
        assert committed(ledger)[1].replies_counted == 1
        watch.holds()

        # Round 3: the SuperLink dies; both sides wait for it, and the round goes on.
        wait(lambda: len(reserved(ledger)) == 4, "round 3 reserved")
        assert loopback.kill_part("server", "server.superlink")
        wait(lambda: len(committed(ledger)) == 3, "round 3 done")
        watch.holds()

        # Round 4: all of the server dies at once; what it left running lets go of the ledger.
        wait(lambda: len(reserved(ledger)) == 5, "round 4 reserved")
        assert telemetry_is_off(loopback)
        loopback.kill("server")
        loopback.start_server()
        found = loopback.wait_finished(PATIENCE)

    watch.holds()
    assert found["round"] == 4
    assert [entry.round for entry in reserved(ledger)] == [1, 2, 2, 3, 4, 4]
    assert found["stopped"] == "completed"
    assert found["epsilon"] == pytest.approx(spent(entries_of(ledger)))
    assert (device.models / "manifest.json").exists()
    assert loopback.journal()[-1]["event"] == "ended"
    assert items_in_logs(loopback) == []
    # Whatever was killed, the folder tells what its ledger tells.
    findings = verify(find_evidence(loopback.server.path)).findings
    assert [finding for finding in findings if finding.outcome == "fails"] == []
