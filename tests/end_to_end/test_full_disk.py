"""A server with a disk of its own that fills up in the middle of a round, and has room again."""

import json

import pytest

pytestmark = pytest.mark.long

PROGRAM = """
import json, os, sys
from pathlib import Path
from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.verify import verify
from fedprofile.common.accounting import epsilon
from fedprofile.common.errors import ServerError
from fedprofile.common.ledger_entries import Commit, Reserve, events_of
from fedprofile.server.status import read_standing
from fedprofile.simulations.loopback import Loopback, entries_of, wait_for

disk, folder = Path(sys.argv[1]), Path(sys.argv[4])
(folder / "server").symlink_to(disk)
settings = {
    "federation": {"round_timeout_seconds": 10.0},
    "privacy": {"split": {"popularity": 0.0}},
    "training": {"rounds": 2},
}


def reserved(path):
    return [entry for entry in entries_of(path) if isinstance(entry, Reserve)]


def spent():
    entries = entries_of(ledger)
    return epsilon(events_of(entries), delta=entries[0].delta)


def fill():
    with (disk / "filling").open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError as error:
            return error.errno


with Loopback(folder, devices=1, settings=settings) as loopback:
    ledger, device = loopback.server.ledger, loopback.device(0)
    loopback.start_server()
    loopback.start_device(0)
    wait_for(lambda: reserved(ledger), timeout=120, what="round 1 reserved")
    filled = fill()
    before, kept = spent(), ledger.read_bytes()
    # The old state can be read.
    assert read_standing(loopback.server).epsilon == before
    try:
        loopback.wait_finished(150)
        told = "finished on a full disk"
    except ServerError as error:
        told = str(error)
    assert ledger.read_bytes().startswith(kept)
    lost = spent()
    # Nor does a server start on it, or charge anything.
    loopback.start_server()
    try:
        loopback.wait_finished(60)
        again = "finished on a full disk"
    except ServerError as error:
        again = str(error)
    assert spent() == lost >= before
    (disk / "filling").unlink()
    loopback.start_server()
    found = loopback.wait_finished(240)
answered = [entry.answers for entry in reserved(device.ledger)]
audit = verify(find_evidence(loopback.server.path))
print(json.dumps({
    "filled": filled,
    "told": told,
    "again": again,
    "standing": found,
    "spent": [before, lost, spent()],
    "releases": len(reserved(ledger)),
    "done": sum(isinstance(entry, Commit) for entry in entries_of(ledger)),
    "answered": answered,
    "known": [entry.sequence for entry in reserved(ledger)],
    "audit": [f.what for f in audit.findings if f.outcome == "fails"],
}))
"""


def test_full_disk(on_tiny_disk, tmp_path):
    (tmp_path / "at").mkdir()
    found = json.loads(
        on_tiny_disk(PROGRAM, tmp_path / "at", size="64m", timeout=600).splitlines()[-1]
    )
    assert found["filled"] == 28  # ENOSPC
    # It ended, and said why, in one line and without a trace of the program.
    for told in (found["told"], found["again"]):
        assert "server run ends with code 2" in told
        assert "make room" in told
        assert "Traceback" not in told
    # It went on where it stood: nothing is refunded, and the round that was lost cost one release.
    before, lost, after = found["spent"]
    assert before <= lost <= after == pytest.approx(found["standing"]["epsilon"])
    assert (found["standing"]["round"], found["standing"]["stopped"]) == (2, "completed")
    assert found["done"] == 2
    assert found["releases"] <= 3
    # The device was charged once for each release that it answered.
    assert len(found["answered"]) == len(set(found["answered"]))
    assert set(found["answered"]) <= set(found["known"])
    assert found["audit"] == []
