"""``make demo-edge``: a server and five devices over TLS on loopback, a kill and a recovery on the way."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..client.answers import RecommendRequest
from ..client.device import Device
from ..client.device_config import PolicyConfig
from ..common import accounting
from ..common.console import remark
from ..common.ledger_entries import Commit, Reserve, events_of
from ..common.server_config import FederationConfig
from .loopback import Loopback, entries_of, resident_mb, wait_for

_DEVICES, _ROUNDS, _TOP = 5, 3, 3
# Budgets as they are where nobody sets any: noise that follows from them, and what owners allow.
_SETTINGS: dict[str, dict[str, Any]] = {
    "training": {"rounds": _ROUNDS},
    "privacy": {"noise_multiplier": None},
    "federation": {"lifetime_epsilon": FederationConfig().lifetime_epsilon},
}
_POLICY = PolicyConfig(power=False, idle=False, niceness=0)
_PATIENCE = 300.0
_TARGET = 6.0  # seconds of a round beyond training, on a machine that is there for it


def demonstrate(folder: Path) -> None:
    """Run the demonstration in ``folder``, and print what came of it.

    Raises:
        FedprofileError: it fails.
    """
    remark(f"{_DEVICES} devices and a server in {folder}")
    with Loopback(folder, _DEVICES, _SETTINGS, _POLICY) as loopback:
        ledger = loopback.server.ledger
        loopback.start_server()
        for number in range(_DEVICES):
            loopback.start_device(number)

        def rounds() -> int:
            entries = entries_of(ledger)
            training = {e.sequence for e in entries if isinstance(e, Reserve) and e.round}
            return sum(isinstance(e, Commit) and e.release in training for e in entries)

        wait_for(lambda: rounds() >= 1, timeout=_PATIENCE, what="the first round is done")
        remark("Round 1 is done. Killing the ServerApp in the middle of round 2 ...")
        wait_for(
            lambda: isinstance(entries_of(ledger)[-1], Reserve),
            timeout=_PATIENCE,
            what="round 2 has begun",
        )
        loopback.kill_part("server", "server.service")
        remark("... and device 0, which comes back at once.")
        loopback.kill("device-0")
        loopback.start_device(0)
        standing = loopback.wait_finished(_PATIENCE)
        memory = [round(resident_mb(pid)) for pid in loopback.pids("device")]
        _tell(loopback, standing, memory)


def _tell(loopback: Loopback, standing: dict[str, object], memory: list[int]) -> None:
    remark(
        f"Recovered: round {standing['round']} of {standing['rounds']}, ε {standing['epsilon']:.3f} of "
        f"{standing['target']:g}; {standing['lost']} release lost to the kill, and charged"
    )
    noted = [entry for entry in loopback.journal() if entry["event"] == "round"]
    for entry in noted:
        fits = loopback.fit_seconds(entry["round"])
        # A round that waited for somebody in vain took what its timeout is.
        whole = fits and entry["trained"] == entry["sampled"]
        beyond = f", {entry['seconds'] - max(fits):.1f} s beyond training" if whole else ""
        if whole and entry["seconds"] - max(fits) > _TARGET:
            beyond += f" (more than {_TARGET:g}: is the machine busy?)"
        remark(
            f"  round {entry['round']}: {entry['trained']} devices, {entry['seconds']:.1f} s{beyond}"
        )
    remark(f"  resident devices: {', '.join(f'{mb} MB' for mb in memory)}")
    for number in range(_DEVICES):
        folder = loopback.device(number)
        entries = entries_of(folder.ledger)
        spent = accounting.epsilon(events_of(entries), delta=folder.config.policy.lifetime_delta)
        with Device(folder) as device:
            found = device.recommend(RecommendRequest(top_k=_TOP))
        items = ", ".join(item.item for item in found.items)
        paid = sum(isinstance(entry, Reserve) for entry in entries)
        print(
            f"device {number}: {items}; paid for {paid} releases, ε {spent:.2f} of its own budget"
        )
    print(json.dumps(standing, ensure_ascii=False))


def main() -> None:
    """Run in the folder on the command line, or in one that is removed afterwards."""
    started = time.monotonic()
    if len(sys.argv) > 1:
        demonstrate(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch:
            demonstrate(Path(scratch))
    remark(f"All in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
