"""A deployment on this machine: a server and devices as processes that may be killed, over TLS on loopback.

What runs here is what runs on separate machines; the demonstration, the fault tests and their benchmark
differ from a deployment only in that everybody shares a disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..client.device import Device
from ..client.device_config import DeviceConfig, PolicyConfig
from ..client.device_folder import DeviceFolder
from ..client.interactions import Interaction
from ..client.model_delivery import join_server
from ..client.node_keys import ensure_node_key
from ..common.errors import ServerError
from ..common.ledger_entries import Entry, read_ledger
from ..common.sections import validated
from ..common.server_config import ServerConfig
from ..server.enrolment import Enrolment
from ..server.setup import create_server

_COMMAND = "from fedprofile.common.cli import main; main()"
_POLL = 0.005
_SETTINGS: dict[str, dict[str, Any]] = {
    "federation": {"round_timeout_seconds": 60.0, "release_every": 0, "lifetime_epsilon": 30.0},
    "items": {"dimension": 16},
    "model": {"encoder": "mean", "width": 8, "window": 8},
    "training": {"rounds": 3, "negatives": 16, "sampling_probability": 1.0},
    # A given noise: its calibration takes seconds.
    "privacy": {"epsilon": 8.0, "delta": 1e-3, "noise_multiplier": 4.0},
}
_POLICY = PolicyConfig(
    idle=False, power=False, niceness=0, rounds_per_day=1000, lifetime_epsilon=30.0
)


@dataclass
class Loopback:
    """A server in ``folder/server`` and devices in ``folder/0`` …; a context manager that ends them.

    Attributes:
        folder: an empty or missing one.
        devices: how many are made and enrolled.
        settings: sections of ``server.toml`` that differ from a small, quick federation.
        policy: of every device.
    """

    folder: Path
    devices: int
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    policy: PolicyConfig = _POLICY

    def __post_init__(self) -> None:
        content: dict[str, dict[str, Any]] = {
            name: {**_SETTINGS.get(name, {}), **self.settings.get(name, {})}
            for name in {*_SETTINGS, *self.settings}
        }
        federation = {"port": free_port(), "population_size": self.devices, "quorum": self.devices}
        content["federation"] = {**federation, **content["federation"]}
        content["statistics"] = {"as_of": datetime.now(UTC).date(), **content.get("statistics", {})}
        config = validated(ServerConfig, content, where="", documented="docs/deploy.md")
        self.server = create_server(self.folder / "server", config, items=None)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._enrolment = Enrolment(
            self.server.devices, population_size=config.federation.population_size
        )
        for number in range(self.devices):
            self.make_device(number)

    def make_device(self, number: int, *, enrol: bool = True) -> DeviceFolder:
        """A device with a history of its own and its owner's consent."""
        config = DeviceConfig(name=f"device {number}", policy=self.policy)
        folder = DeviceFolder.create(self.folder / str(number), config)
        bundle = join_server(folder, self.server.bundle)
        ensure_node_key(folder)
        rng = np.random.default_rng(number)
        now = int(time.time())
        with Device(folder) as device:
            device.set_consent(True)
            device.record(
                [
                    Interaction(
                        id=secrets.token_hex(8),
                        item=str(rng.choice(bundle.items.ids)),
                        time=now - 86_400 * day,
                        event=bundle.facts.event_types[0],
                    )
                    for day in range(12, 0, -1)
                ]
            )
        if enrol:
            key = folder.node_public_key.read_bytes()
            self._enrolment.enrol(f"device {number}", key, source=str(folder.node_public_key))
        return folder

    def device(self, number: int) -> DeviceFolder:
        """The folder of a device."""
        return DeviceFolder.open(self.folder / str(number))

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in sorted(self._running, reverse=True):  # the server last
            self.stop(name)

    def start_server(self) -> None:
        """Start ``fedprofile server run``."""
        self._start("server", "server", "run", str(self.server.path), "--json")

    def start_device(self, number: int) -> None:
        """Start ``fedprofile device run``."""
        self._start(f"device-{number}", "device", "run", str(self.folder / str(number)))

    def _start(self, name: str, *arguments: str) -> None:
        with self.output(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def output(self, name: str) -> Path:
        """What a process printed, over all its lives."""
        return self.folder / f"{name}.log"

    def stop(self, name: str, *, timeout: float = 60.0) -> int:
        """Ask a process to end; its exit code."""
        process = self._running.pop(name)
        process.terminate()
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def kill(self, name: str) -> None:
        """Kill a process that was started here, without a last word."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def has_part(self, name: str, module: str) -> bool:
        """Whether ``name`` runs ``module`` in a process just now."""
        return self._part(name, module) is not None

    def kill_part(self, name: str, module: str) -> bool:
        """Kill the process that ``name`` runs ``module`` in; whether there was one."""
        part = self._part(name, module)
        if part is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(part, signal.SIGKILL)
        return True

    def _part(self, name: str, module: str) -> int | None:
        for child in children(self._running[name].pid):
            if module in command_line(child):
                return child
        return None

    def pids(self, prefix: str) -> list[int]:
        """Of the processes that were started here and whose names begin so."""
        return [p.pid for name, p in sorted(self._running.items()) if name.startswith(prefix)]

    def fit_seconds(self, number: int) -> list[float]:
        """How long devices trained in a round, loading torch included."""
        found = []
        for log in self.folder.glob("device-*.log"):
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
                _, told, seconds = line.partition(f"round {number}: trained for ")
                if told:
                    found.append(float(seconds.removesuffix(" s")))
        return found

    def wait_finished(self, timeout: float) -> dict[str, Any]:
        """What ``server run`` tells when its federation is finished.

        Raises:
            ServerError: it ends otherwise, or not in time.
        """
        process = self._running["server"]
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"the federation isn't finished after {timeout:g} s") from error
        del self._running["server"]
        text = self.output("server").read_text(encoding="utf-8")
        if code != 0:
            raise ServerError(f"server run ends with code {code}: {text[-500:]}")
        standing: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
        return standing

    def journal(self) -> list[dict[str, Any]]:
        """What the server noted."""
        if not self.server.log.exists():
            return []
        lines = self.server.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]


def wait_for(happens: Callable[[], bool], *, timeout: float, what: str) -> None:
    """Until ``happens``, looked at every few milliseconds.

    Raises:
        ServerError: it doesn't within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not happens():
        if time.monotonic() > deadline:
            raise ServerError(f"after {timeout:g} s still not: {what}")
        time.sleep(_POLL)


def entries_of(ledger: Path) -> tuple[Entry, ...]:
    """What a ledger holds, also one that is just being begun."""
    try:
        begun = b"\n" in ledger.read_bytes()
    except FileNotFoundError:
        return ()
    return tuple(read_ledger(ledger)) if begun else ()


def free_port() -> int:
    """A port of loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(process: int) -> list[int]:
    """Processes that ``process`` started (Linux)."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            found += [int(number) for number in task.read_text().split()]
    return found


def command_line(process: int) -> str:
    """How ``process`` was started; empty where it is gone."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def resident_mb(process: int) -> float:
    """Memory of ``process`` in MB (10⁶ bytes)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
