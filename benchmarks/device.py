"""How fast a device records and ranks, and how much memory it takes.

    python -m benchmarks.device [--items 3700 100000] [--json]

Every size gets a device of its own with random weights and vectors (a 2-layer Transformer of width 64,
64 columns) and 500 events. Medians over 300 calls: ranking the top 50 of all items, with the nearest of
the items held kept as a device keeps it; the same as a call of the device and over its Unix socket; and
recording one event, durable and with the profile up to date. `anew` is right after an event: all items are
scored again and held against the new one, and their table has left the processor's cache; other calls find
the scores of the same profile kept. `fsync` is what the disk takes to make one
written page durable, which no recording can go below, and `grpc_floor` what an answer as long takes a bare
gRPC server in Python, which no call can go below.
Memory is resident: of a process that has ranked once, and of the idle `fedprofile device run`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from fedprofile.client.answers import RecommendRequest
from fedprofile.client.connect import connect
from fedprofile.client.device import Device
from fedprofile.client.device_config import DeviceConfig
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.interactions import Interaction
from fedprofile.client.model_bundle import install_bundle
from fedprofile.client.nearest import NearestHeld
from fedprofile.client.numpy_encoder import encoder_shapes
from fedprofile.client.scoring import score, top_k
from fedprofile.common.config import ModelConfig
from fedprofile.common.items import ItemTable
from fedprofile.common.successors import Successors

COLUMNS, EVENTS, TOP, CALLS = 64, 500, 50, 300
MODEL = ModelConfig(width=64, layers=2, heads=2, window=50)
TOP_ITEMS = RecommendRequest(top_k=TOP)
START = 1_700_000_000
_RANK_ONCE = """
import sys
from pathlib import Path
from fedprofile.client.answers import RecommendRequest
from fedprofile.client.connect import connect

with connect(Path(sys.argv[1])) as device:
    device.recommend(RecommendRequest(top_k=50))
    print(Path("/proc/self/status").read_text())
"""
_ECHO = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc

answer = bytes(900)  # as long as fifty items
echo = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("e", {"Echo": echo}),))
server.add_insecure_port(f"unix:{sys.argv[1]}")
server.start()
print(flush=True)
sys.stdin.read()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[3_700, 100_000])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch,
        threadpool_limits(1, "blas"),  # as `fedprofile device run` has it
    ):
        os.chdir(scratch)  # names of sockets must be short
        found = {
            "fsync_ms": fsync(Path(scratch)),
            "devices": [measure(Path(f"items-{n}"), n) for n in arguments.items],
        }
    if arguments.json:
        print(json.dumps(found))
        return
    print(f"fsync of a page: {found['fsync_ms']:.2f} ms")
    for device in found["devices"]:
        print()
        for name, value in device.items():
            print(
                f"{name:28} {value:10,.2f}"
                if isinstance(value, float)
                else f"{name:28} {value:10,}"
            )


def measure(path: Path, n_items: int) -> dict[str, Any]:
    folder = make_device(path, n_items)
    with Device(folder) as device:
        device.record([event(number, n_items) for number in range(EVENTS)])
        _, bundle = device.history()
        keeper = device._need_model()
        nearest = NearestHeld(bundle.served)
        nearest.to(keeper.profile().items)

        def rank() -> None:
            profile = keeper.profile()
            scores = score(profile, bundle.served, nearest=nearest)
            top_k(profile, bundle.served, TOP, scores=scores)

        result: dict[str, Any] = {
            "items": n_items,
            "score_ms": median(lambda _: rank()),
            "recommend_ms": median(lambda _: device.recommend(TOP_ITEMS)),
            "record_ms": median(lambda i: device.record([event(EVENTS + i, n_items)])),
            "score_anew_ms": median(
                lambda _: rank(),
                before=lambda i: device.record([event(EVENTS + CALLS + i, n_items)]),
            ),
            "encode_ms": median(lambda _: bundle.encode(keeper.profile())),
        }
    ranked = subprocess.run(
        [sys.executable, "-c", _RANK_ONCE, path], capture_output=True, text=True, check=True
    )
    result["scoring_process_mb"] = resident(ranked.stdout)
    result |= served(folder, n_items)
    for kind in ("", "_anew"):
        above = result[f"recommend_socket{kind}_ms"] - result[f"score{kind}_ms"]
        result[f"socket_over_score{kind}_ms"] = above
    return result


def make_device(path: Path, n_items: int) -> DeviceFolder:
    rng = np.random.default_rng(0)
    run = path.with_name(f"{path.name}-run")
    run.mkdir()
    blocks = {"text": (0, COLUMNS)}
    vectors = rng.standard_normal((n_items, COLUMNS)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = ItemTable(vectors, tuple(map(str, range(n_items))), ((),) * n_items, blocks)
    prior = rng.standard_normal((n_items, 1)).astype(np.float32)
    # What follows what: as many pairs as 6,000 users tell of at ε = 8.
    heads, thens = rng.integers(2_000, size=10_000), rng.integers(n_items, size=10_000)
    first, then = np.divmod(np.unique(heads * n_items + thens), n_items)
    apart = first != then
    chances = np.full(apart.sum(), 0.005)
    successors = Successors.of(first[apart], then[apart], chances)
    served = replace(table.with_block("popularity", prior), successors=successors)
    served.save(run / "items.safetensors")
    weights = {
        name: (0.1 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in encoder_shapes(MODEL, len(blocks), vectors.shape, 1).items()
    }
    metadata = {
        "model": MODEL.model_dump_json(),
        "blocks": json.dumps(blocks),
        "event_types": json.dumps(["view"]),
    }
    save_file(weights, run / "model.safetensors", metadata)
    folder = DeviceFolder.create(path, DeviceConfig(name=path.name))
    install_bundle(folder, run)
    return folder


def event(number: int, n_items: int) -> Interaction:
    return Interaction(f"event-{number}", str(number * 7 % n_items), START + 60 * number, "view")


def median(call: Callable[[int], Any], *, before: Callable[[int], Any] | None = None) -> float:
    """Milliseconds, the median of CALLS calls, after ten to warm up; what goes before each isn't timed."""
    times = []
    for number in range(CALLS):
        if before is not None:
            before(number)
        started = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times[10:])


def fsync(folder: Path) -> float:
    with (folder / "page").open("wb", buffering=0) as file:

        def write(_: int) -> None:
            file.write(bytes(4096))
            os.fsync(file.fileno())

        return median(write)


def served(folder: DeviceFolder, n_items: int) -> dict[str, float]:
    """Calls of ``fedprofile device run``, and its memory after the first answer."""
    program = "from fedprofile.common.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "device", "run", str(folder.path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    start = EVENTS + 2 * CALLS
    try:
        assert process.stderr is not None
        process.stderr.readline()
        with connect(folder.path) as client, bare_grpc() as echo:
            client.recommend(TOP_ITEMS)
            megabytes = resident(Path(f"/proc/{process.pid}/status").read_text())
            return {
                "grpc_floor_ms": median(lambda _: echo(b"")),
                "recommend_socket_ms": median(lambda _: client.recommend(TOP_ITEMS)),
                "record_socket_ms": median(lambda i: client.record([event(start + i, n_items)])),
                "recommend_socket_anew_ms": median(
                    lambda _: client.recommend(TOP_ITEMS),
                    before=lambda i: client.record([event(start + CALLS + i, n_items)]),
                ),
                "resident_process_mb": megabytes,
            }
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def bare_grpc() -> Iterator[Callable[[bytes], bytes]]:
    """A call over a Unix socket that does nothing, of a server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ECHO, "echo.sock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, grpc.insecure_channel("unix:echo.sock") as channel:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield channel.unary_unary("/e/Echo")
        process.stdin.close()


def resident(status: str) -> float:
    """Megabytes, of what Linux tells of a process."""
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
