"""Does a device lose or double what it acknowledged, if it is killed again and again?

    python -m benchmarks.device_kills [--cycles 100] [--seed 0] [--json]

Each cycle starts a process that records event after event and now and then erases the oldest, and kills
it (SIGKILL) after up to 0.3 s. Then the store is opened: every event that was acknowledged and not erased
must be there once, at most the one under way besides, and the profile must follow from the events.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.device import make_device
from fedprofile.client.device import Device
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.profile import build

START, N_ITEMS = 1_600_000_000, 500
_CHILD = """
import sys
from pathlib import Path
from fedprofile.client.answers import EraseProfileRequest
from fedprofile.client.device import Device
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.interactions import Interaction

device, number = Device(DeviceFolder.open(Path(sys.argv[1]))), int(sys.argv[2])
device.status()
print("ready", flush=True)
while True:
    device.record([Interaction(f"e{number}", str(number % 500), 1_600_000_000 + 60 * number, "view")])
    print("recorded", number, flush=True)
    if number % 25 == 24:
        device.erase(EraseProfileRequest(before=1_600_000_000 + 60 * (number - 60)))
        print("erased", max(0, number - 60), flush=True)
    number += 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    found = {"cycles": arguments.cycles, "acknowledged": 0, "lost": 0, "doubled": 0}
    found |= {"unerased": 0, "profiles_off": 0}
    with tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch:
        os.chdir(scratch)
        folder = make_device(Path("device"), N_ITEMS)
        next_number = first = 0
        for _ in range(arguments.cycles):
            recorded, erased = run_and_kill(folder, next_number, draw.uniform(0, 0.3))
            first = max([first, *erased])
            next_number = max([next_number, *(number + 1 for number in recorded)])
            found["acknowledged"] += len(recorded)
            stored, in_step = look(folder)
            found["profiles_off"] += not in_step
            found["doubled"] += len(stored) - len(set(stored))
            # What was under way may be done or not: one more recorded, or the next erasure.
            under_way = max(first, next_number - 61)
            expected = set(range(under_way, next_number))
            found["lost"] += len(expected - set(stored))
            found["unerased"] += sum(number < first for number in stored)
            next_number = max([next_number, *(number + 1 for number in stored)])
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:14} {value:8,}")


def run_and_kill(folder: DeviceFolder, number: int, after: float) -> tuple[list[int], list[int]]:
    """Numbers that were acknowledged, and those that all before were said to be erased."""
    command = [sys.executable, "-c", _CHILD, str(folder.path), str(number)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(after)
    child.kill()
    told_whole = child.stdout.read().rpartition("\n")[0]  # it may have died in the middle of a line
    lines = [line.split() for line in told_whole.splitlines()]
    child.wait()
    told = {
        kind: [int(line[1]) for line in lines if line[0] == kind] for kind in ("recorded", "erased")
    }
    return told["recorded"], told["erased"]


def look(folder: DeviceFolder) -> tuple[list[int], bool]:
    """Numbers of the stored events, and whether the profile follows from them."""
    with Device(folder) as device:
        history, bundle = device.history()
        expected = build(
            history,
            table=bundle.public,
            scales=bundle.config.scales,
            window_size=bundle.config.window,
            encode=bundle.encode,
        )
        vector = np.array(device.profile().vector)
        close = np.abs(vector - expected.vector).max() <= 1e-3 * np.abs(vector).max()
        return ((history.times - START) // 60).tolist(), bool(close)


if __name__ == "__main__":
    main()
