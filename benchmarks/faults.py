"""Faults of a deployment, with real processes on loopback: ``python -m benchmarks.faults [--cycles N]``.

Each cycle kills one process by SIGKILL at one moment of a round, and the federation goes on. A table tells
for each kind of kill how often it was done and what of this failed:

    goes on     the round that was hit is done or repeated, within two minutes
    ε           the server's ε is not lower than before the kill
    once        no release is charged twice in the device's ledger
    profile     the device has all of its acknowledged events
    chain       both ledgers verify, entry by entry

The moments are what can be seen from outside: a line in a ledger, a file in the outbox, or a while later.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedprofile.client.device import Device
from fedprofile.common import accounting
from fedprofile.common.errors import ServerError
from fedprofile.common.ledger_entries import Commit, Entry, Reserve, events_of
from fedprofile.simulations.loopback import Loopback, entries_of, wait_for

_PATIENCE = 120.0


@dataclass(frozen=True)
class Kill:
    """What dies, and when.

    Attributes:
        part: ``server``, ``superlink``, ``service``, ``node`` or ``fit``.
        moment: name of the moment.
        delay: seconds after it.
    """

    part: str
    moment: str
    delay: float


MOMENTS = {
    "server": ("reserved", "replied", "committed"),  # both and what watches them
    "service": ("reserved", "replied", "committed"),
    "superlink": ("reserved", "training", "replied", "committed"),
    "node": ("reserved", "training", "charged", "replied"),
    "fit": ("training", "charged"),
}
DELAYS = (0.0, 0.05, 0.2, 0.5, 1.0)


def plan(cycles: int, seed: int) -> list[Kill]:
    """Kills of all kinds, in random order, each kind equally often."""
    every = [
        Kill(part, moment, delay)
        for part, moments in MOMENTS.items()
        for moment in moments
        for delay in DELAYS
    ]
    random.Random(seed).shuffle(every)
    return [every[number % len(every)] for number in range(cycles)]


class Faults:
    """A federation of one server and ``devices`` devices that is killed again and again."""

    def __init__(self, loopback: Loopback) -> None:
        self._loopback = loopback
        self._ledger = loopback.server.ledger
        self._device = loopback.device(0)
        self._profile = self._known()

    def entries(self) -> list[Entry]:
        """Of the server's ledger."""
        return list(entries_of(self._ledger))

    def spent(self) -> float:
        """ε of the server's ledger."""
        entries = self.entries()
        return accounting.epsilon(events_of(entries), delta=entries[0].delta)  # type: ignore[union-attr]

    def commits(self) -> int:
        """Rounds that are done."""
        return sum(isinstance(entry, Commit) for entry in self.entries())

    def reserves(self) -> int:
        """Releases that were begun."""
        return sum(isinstance(entry, Reserve) for entry in self.entries())

    def charges(self) -> list[int | None]:
        """Releases of the server that device 0 was charged for."""
        found = entries_of(self._device.ledger)
        return [entry.answers for entry in found if isinstance(entry, Reserve)]

    def cycle(self, kill: Kill) -> dict[str, bool]:
        """One kill, and what held after it."""
        begun, done, before = self.reserves(), self.commits(), self.spent()
        charged = len(self.charges())
        sent = {path.name for path in self._device.outbox.iterdir()}
        wait_for(lambda: self.reserves() > begun, timeout=_PATIENCE, what="a round has begun")
        happens: dict[str, Callable[[], bool]] = {
            "reserved": lambda: True,
            "training": self._fit_runs,
            "charged": lambda: len(self.charges()) > charged,
            "replied": lambda: bool({p.name for p in self._device.outbox.glob("*.[rs]e*")} - sent),
            "committed": lambda: self.commits() > done,
        }
        wait_for(happens[kill.moment], timeout=_PATIENCE, what=kill.moment)
        time.sleep(kill.delay)
        hit = self._do(kill.part)
        done = self.commits()
        goes_on = self._holds(lambda: self.commits() > done)
        charges = self.charges()
        return {
            "hit": hit,
            "goes on": goes_on,
            "ε": self.spent() >= before,
            "once": len(charges) == len(set(charges)),
            "profile": self._known() == self._profile,
            "chain": self._whole(),
        }

    def _fit_runs(self) -> bool:
        return self._loopback.has_part("device-0", "client.fit")

    def _do(self, part: str) -> bool:
        if part == "node":
            self._loopback.kill("device-0")
            self._loopback.start_device(0)
            return True
        if part == "server":
            self._loopback.kill("server")
            self._loopback.start_server()
            return True
        owner = "device-0" if part == "fit" else "server"
        return self._loopback.kill_part(owner, f"{'client' if part == 'fit' else 'server'}.{part}")

    def _holds(self, happens: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if happens():
                return True
            time.sleep(0.1)
        return False

    def _known(self) -> dict[str, Any]:
        """What the device knows of its owner, but for what follows from the model of the day."""
        with Device(self._device) as device:
            known, status = asdict(device.profile()), device.status()
        del known["vector"], known["model"]
        return {**known, "consent": status.consent, "set aside": status.set_aside}

    def _whole(self) -> bool:
        return bool(entries_of(self._ledger) and entries_of(self._device.ledger))


def main() -> None:
    """Run, print the table and one JSON object; exit code 1 where something didn't hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    kills = plan(options.cycles, options.seed)
    settings = {
        "federation": {"lifetime_epsilon": 0.0},
        "privacy": {"epsilon": 1e6, "noise_multiplier": 8.0, "split": {"popularity": 0.0}},
        "training": {"rounds": 10 * options.cycles + 10},
    }
    tally: Counter[tuple[str, str]] = Counter()
    failed: Counter[tuple[str, str, str]] = Counter()
    with (
        tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch,
        Loopback(Path(scratch), options.devices, settings) as loopback,
    ):
        loopback.start_server()
        for number in range(options.devices):
            loopback.start_device(number)
        faults = Faults(loopback)
        wait_for(lambda: faults.commits() > 0, timeout=_PATIENCE, what="the first round")
        for number, kill in enumerate(kills, start=1):
            try:
                found = faults.cycle(kill)
            except ServerError as error:  # what comes can't be tried any more; what was is told
                failed[kill.part, kill.moment, str(error)] += 1
                tally[kill.part, kill.moment] += 1
                break
            tally[kill.part, kill.moment] += found.pop("hit")
            bad = [name for name, ok in found.items() if not ok]
            failed.update((kill.part, kill.moment, name) for name in bad)
            print(f"{number}/{len(kills)} {kill} {bad or 'holds'}", file=sys.stderr, flush=True)
    print(f"{'killed':10} {'when':10} {'times':>5}  what failed")
    for (part, moment), times in sorted(tally.items()):
        broken = {name: n for (p, m, name), n in failed.items() if (p, m) == (part, moment)}
        print(f"{part:10} {moment:10} {times:5}  {broken or 'nothing'}")
    missed = sorted({(kill.part, kill.moment) for kill in kills} - set(+tally))
    for part, moment in missed:
        print(f"{part:10} {moment:10} found nobody at its moment: run it again")
    print(json.dumps({"kills": sum(tally.values()), "failures": sum(failed.values())}))
    sys.exit(1 if failed or missed else 0)


if __name__ == "__main__":
    main()
