"""What a server takes in memory while devices answer, and how fast it takes replies, over TLS.

    python -m benchmarks.replies [--devices 8 32] [--megabytes 8] [--json]

All devices of a population hold one update of that size and send it at once, from another process. The
server, with a SuperLink of its own, validates the updates and adds them up as they come. What counts is
how far the peak of its memory rises with the number of devices, and the rate at which updates are taken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import date
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from fedprofile.client.fleet import Fleet
from fedprofile.client.node_keys import public_pem
from fedprofile.common.config import StatisticsConfig, TrainingConfig
from fedprofile.common.messages import (
    Binding,
    CooccurrenceTask,
    cooccurrence_message,
    update_reply,
)
from fedprofile.common.server_config import FederationConfig, ServerConfig
from fedprofile.common.updates import ClippedUpdate
from fedprofile.server.enrolment import Enrolment
from fedprofile.server.folder import ServerFolder
from fedprofile.server.link import Link, ReplySize
from fedprofile.server.setup import create_server
from fedprofile.server.validation import add_up

_BINDING = Binding(run="replies", round=0, release=1, items="")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--json", action="store_true", help="one JSON object, by devices")
    arguments = parser.parse_args()
    numbers = int(arguments.megabytes * 1e6 / 4)
    # A process each, for a peak never falls.
    context = multiprocessing.get_context("spawn")
    found = {}
    for devices in arguments.devices:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found[devices] = pool.submit(_measure, devices, numbers).result()
    if arguments.json:
        print(json.dumps(found))
        return
    for devices, figures in found.items():
        print(f"\n{'devices':30}{devices:9,}")
        for name, value in figures.items():
            print(f"{name:30}{value:9.1f}")


def _measure(devices: int, numbers: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="fp-") as scratch, contextlib.ExitStack() as stack:
        folder = _made(Path(scratch) / "server", devices)
        link = stack.enter_context(_running(folder))
        enrolment = Enrolment(folder.devices, population_size=devices)
        keys = [ec.generate_private_key(ec.SECP384R1()) for _ in range(devices)]
        for number, key in enumerate(keys):
            enrolment.enrol(f"device {number}", public_pem(key), source="benchmark")
            link.register(public_pem(key).decode())
        grid = link.begin(stop=threading.Event(), largest=ReplySize.of([numbers]))
        stack.callback(grid.finish)
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(2)
        answering = context.Process(
            target=_answer,
            args=(
                folder.config.federation.port,
                folder.ca,
                [key.private_numbers().private_value for key in keys],
                numbers,
                ready,
            ),
        )
        answering.start()
        stack.callback(answering.join, 60)
        ready.wait(120)
        nodes = dict.fromkeys(grid.get_node_ids(), 1)
        messages = (
            cooccurrence_message(
                node,
                CooccurrenceTask(
                    binding=_BINDING,
                    devices=np.array([0]),
                    head=np.arange(2),
                    clip_norm=1.0,
                    noise_multiplier=1.0,
                ),
            )
            for node in nodes
        )
        before = _peak()
        started = time.perf_counter()
        tally = add_up(
            grid.send_and_receive(messages, timeout=600),
            asked=nodes,
            binding=_BINDING,
            shapes={"cooccurrence": (numbers,)},
            clip_norm=1.0,
        )
        seconds = time.perf_counter() - started
        assert tally.devices == devices, tally
        return {
            "updates_mb": devices * numbers * 4 / 1e6,
            "memory_beyond_start_mb": _peak() - before,
            "mb_per_second": devices * numbers * 4 / 1e6 / seconds,
        }


def _made(path: Path, devices: int) -> ServerFolder:
    config = ServerConfig(
        federation=FederationConfig(population_size=devices, port=_free_port()),
        statistics=StatisticsConfig(as_of=date(2026, 1, 1), cooccurrence=0),
        training=TrainingConfig(rounds=1, sampling_probability=1.0),
    )
    return create_server(path, config, items=None)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(folder: ServerFolder) -> Iterator[Link]:
    process = subprocess.Popen([sys.executable, "-m", "fedprofile.server.superlink", folder.path])
    try:
        with Link(folder.socket) as link:
            link.wait(60)
            time.sleep(2)  # its port for devices opens beside
            yield link
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answer(port: int, ca: Path, keys: list[int], numbers: int, ready: Barrier) -> None:
    """All devices, a thread each."""
    update = ClippedUpdate(
        {"cooccurrence": np.full(numbers, 0.5 / numbers**0.5, dtype=np.float32)},
        devices=1,
        clip_norm=1.0,
    )
    nodes = []
    for key in keys:
        nodes.append(
            Fleet(f"127.0.0.1:{port}", ca=ca, key=ec.derive_private_key(key, ec.SECP384R1()))
        )
        nodes[-1].activate()
    ready.wait(120)

    def take_part(node: Fleet) -> None:
        while (message := node.pull()) is None:
            time.sleep(0.2)
        node.push(update_reply(message, _BINDING, update))

    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(take_part, nodes))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
