"""How fast devices train as one batch, against the ways others train them.

    python -m benchmarks.engine [--size default] [--compile] [--ray] [--json]

All engines do the same work in one run: frozen item vectors of 128 columns, 128 shared negatives, one
clip over the whole update. The reference encoder is a Transformer of width 64 with two blocks, reading
windows of 50 events and trained for three local SGD steps; the default one is that of the default
configuration. Engines take turns, and what counts is the median over the turns of their ratio within
a turn: other load on the machine slows them all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.resident import (
    Lengths,
    ResidentEngine,
    Size,
    Workload,
    build_workload,
)
from fedprofile.client.local_training import Trainer
from fedprofile.common.updates import ClippedUpdate

GEMM = "GEMM"
GEMM_FLOPS = 1e10
Seconds = dict[str, list[float]]
"""Engine → seconds of each turn."""


class Result(TypedDict):
    """One engine: medians over turns.

    Attributes:
        engine: its name.
        devices_per_second: trained.
        times_baseline: devices per second over those of the table's first engine.
        useful_of_gemm: useful FLOP/s over the rate of a large matrix product on as many threads.
    """

    engine: str
    devices_per_second: float
    times_baseline: float
    useful_of_gemm: float


class Table(TypedDict):
    """Results of engines that took turns on the same work."""

    work: str
    devices: int
    threads: int
    gemm_gflops: float
    results: list[Result]


_QUIET = {
    "FLWR_LOG_LEVEL": "ERROR",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray without clusters listens on loopback only.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def main() -> None:
    arguments = _parse()
    tables: list[Table] = []
    kinds: tuple[Lengths, ...] = ("equal", "mixed")
    for lengths in kinds:
        name = f"{arguments.size} encoder, {lengths} lengths"
        work = build_workload(arguments.size, lengths, arguments.devices)
        resident = ResidentEngine(work, 1).clipped_sum()
        for compiled in {False, arguments.compile}:
            _assert_same(_batched(work, 1, compiled=compiled)(), resident)
        for threads in sorted({1, arguments.threads}):
            seconds = _take_turns(work, threads, arguments.turns, arguments.compile)
            tables.append(_table(name, work, threads, seconds))
            if not arguments.json:
                _print(tables[-1])
        if arguments.ray:
            seconds = _against_ray(work, lengths, arguments)
            tables.append(_table(name, work, arguments.threads, seconds))
            if not arguments.json:
                _print(tables[-1])
    if arguments.json:
        print(json.dumps(tables))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description="Devices trained as one batch, a resident model, and Flower's Ray engine.",
    )
    sizes: tuple[Size, ...] = ("reference", "default")
    parser.add_argument("--size", choices=sizes, default="reference", help="of the encoder")
    parser.add_argument("--devices", type=int, default=256, help="devices a turn (256)")
    parser.add_argument("--turns", type=int, default=5, help="turns of each engine (5)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="beside one thread (all cores)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="also the native step of engine.compile"
    )
    parser.add_argument("--ray", action="store_true", help="also Flower's Ray engine")
    parser.add_argument(
        "--nodes", type=int, default=1_000, help="devices on Ray to sample from (1000)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list instead of tables")
    arguments = parser.parse_args()
    if not 0 < arguments.devices <= arguments.nodes:
        parser.error("--devices must be at least 1, and at most --nodes")
    return arguments


def _assert_same(ours: ClippedUpdate, theirs: list[NDArray[np.float32]]) -> None:
    """Engines that disagree on the result have no speed to compare."""
    mine = np.concatenate([array.ravel() for array in ours.arrays.values()])
    other = np.concatenate([array.ravel() for array in theirs])
    # Taken as a difference of weights, their update is the less exact one.
    if np.linalg.norm(mine - other) > 1e-3 * np.linalg.norm(other):
        raise SystemExit("the engines disagree on the update; their speed can't be compared")


def _batched(
    work: Workload, threads: int, *, compiled: bool = False
) -> Callable[[], ClippedUpdate]:
    trainer = Trainer(work.encoder, threads=threads, compiled=compiled)
    return lambda: trainer.clipped_sum(work.weights, work.examples, work.prior, work.training)


def _multiply() -> None:
    """``GEMM_FLOPS`` multiplications and additions, as fast as this machine does them."""
    matrix = torch.ones(1_000, 1_000)
    for _ in range(5):
        torch.mm(matrix, matrix)


def _take_turns(work: Workload, threads: int, turns: int, compiled: bool) -> Seconds:
    engines: dict[str, Callable[[], object]] = {
        "resident": ResidentEngine(work, threads).clipped_sum,
        "batch": _batched(work, threads),
    }
    if compiled:
        engines["native"] = _batched(work, threads, compiled=True)
    before = torch.get_num_threads()
    seconds: Seconds = {name: [] for name in (GEMM, *engines)}
    for turn in range(-1, turns):  # the first turn warms up and isn't counted
        for name in seconds:
            # A resident model has a thread of its own: it must not share its work out again.
            torch.set_num_threads(threads if name == GEMM else 1)
            taken = _timed(_multiply if name == GEMM else engines[name])
            if turn >= 0:
                seconds[name].append(taken)
    torch.set_num_threads(before)
    return seconds


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _against_ray(work: Workload, lengths: Lengths, arguments: argparse.Namespace) -> Seconds:
    """Rounds through Flower's Ray engine, one device a node, an actor a core; and the same here.

    Each round asks as many of the nodes as the workload has devices.
    """
    os.environ.update(_QUIET)
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    size, devices, threads = arguments.size, arguments.devices, arguments.threads
    ours = {"batch": _batched(work, threads)}
    if arguments.compile:
        ours["native"] = _batched(work, threads, compiled=True)
    seconds: Seconds = {name: [] for name in (GEMM, "Ray", *ours)}
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, _: Context) -> Message:
        # Imported where it runs, so that the actor keeps its model.
        from benchmarks.resident import train_node

        weights = message.content["weights"].to_torch_state_dict()
        device = message.content["task"]["device"]
        update = train_node(size, lengths, devices, device, weights)
        return Message(RecordDict({"update": ArrayRecord(update)}), reply_to=message)

    def ask(grid: Grid) -> list[NDArray[np.float32]]:
        weights = ArrayRecord({n: torch.from_numpy(w) for n, w in work.weights.items()})
        messages = [
            Message(
                RecordDict({"weights": weights, "task": ConfigRecord({"device": device})}),
                dst_node_id=node,
                message_type="train",
            )
            for device, node in enumerate(random.sample(list(grid.get_node_ids()), devices))
        ]
        replies = [r.content["update"].to_numpy_ndarrays() for r in grid.send_and_receive(messages)]
        return [np.sum(parts, axis=0) for parts in zip(*replies, strict=True)]

    @server.main()
    def serve(grid: Grid, _: Context) -> None:
        while len(list(grid.get_node_ids())) < arguments.nodes:
            time.sleep(0.1)
        _assert_same(ours["batch"](), ask(grid))
        torch.set_num_threads(threads)
        for _ in range(arguments.turns):
            seconds[GEMM].append(_timed(_multiply))
            seconds["Ray"].append(_timed(lambda: ask(grid)))
            for name, engine in ours.items():
                seconds[name].append(_timed(engine))

    run_simulation(
        server,
        client,
        num_supernodes=arguments.nodes,
        backend_config={
            "init_args": {"include_dashboard": False, "num_cpus": threads},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    return seconds


def _table(name: str, work: Workload, threads: int, seconds: Seconds) -> Table:
    gemm, *engines = seconds
    baseline = engines[0]
    results: list[Result] = []
    for engine in engines:
        turns = list(zip(seconds[engine], seconds[baseline], seconds[gemm], strict=True))
        peak = GEMM_FLOPS / work.useful_flops
        results.append(
            {
                "engine": engine,
                "devices_per_second": statistics.median(work.devices / own for own, _, _ in turns),
                "times_baseline": statistics.median(other / own for own, other, _ in turns),
                "useful_of_gemm": statistics.median(g / own / peak for own, _, g in turns),
            }
        )
    return {
        "work": name,
        "devices": work.devices,
        "threads": threads,
        "gemm_gflops": GEMM_FLOPS / statistics.median(seconds[gemm]) / 1e9,
        "results": results,
    }


def _print(table: Table) -> None:
    print(
        f"\n{table['work']}, {table['devices']} devices, {table['threads']} thread(s), "
        f"GEMM {table['gemm_gflops']:.0f} GFLOP/s"
    )
    print(f"{'engine':<18}{'devices/s':>12}{'ratio':>8}{'of GEMM':>10}")
    for row in table["results"]:
        print(
            f"{row['engine']:<18}{row['devices_per_second']:>12.0f}"
            f"{row['times_baseline']:>8.2f}{row['useful_of_gemm']:>10.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
