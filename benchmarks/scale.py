"""What a round costs as the population grows, and what a million devices take in memory.

    python -m benchmarks.scale [--devices N] [--rounds R] [--json]

The built-in population is synthesised at full size (a million devices have 27 million events); the
small population is its first devices, so that both have histories of the same kind. Each gets a
federation of its own, with the default encoder, user-level DP and an expected cohort of the same size,
through the in-process grid: reserve, draw, messages out, local training, messages back, validation,
noise, step, checkpoint, commit. The two take turns round by round, and what counts is the median: other
load on the machine slows both.

What a round costs beyond its devices is a message for each host that has one of them, so hosts are
large here; what one host takes in memory, while all its devices contribute to popularity, is why they
are not larger.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedprofile.client.local_training import Trainer
from fedprofile.common.config import RunConfig
from fedprofile.common.encoder import build_encoder
from fedprofile.common.items import ItemTable
from fedprofile.common.ledger import Ledger
from fedprofile.common.signing import SigningKey
from fedprofile.server.budget import plan_budget
from fedprofile.server.item_vectors import build_item_table
from fedprofile.server.split import Sizes
from fedprofile.simulations.federate import run_federation
from fedprofile.simulations.population import Population
from fedprofile.simulations.synthetic import synthesise

ITEMS = 1_500


class Turns:
    """Lets one of several threads work at a time, and hands over where a thread says so."""

    def __init__(self, players: int) -> None:
        self._may = [threading.Semaphore(0) for _ in range(players)]
        self._left = set(range(players))

    @contextmanager
    def playing(self, player: int) -> Iterator[None]:
        self._may[player].acquire()
        try:
            yield
        finally:
            self._left.discard(player)
            self._wake(player)

    def start(self) -> None:
        self._may[0].release()

    def hand_over(self, player: int) -> None:
        self._wake(player)
        self._may[player].acquire()

    def _wake(self, player: int) -> None:
        following = sorted(self._left, key=lambda other: (other <= player, other))
        if following:
            self._may[following[0]].release()


def main() -> None:
    arguments = _parse()
    started = time.monotonic()
    population = _build(arguments.devices)
    built = {"seconds": time.monotonic() - started, "peak_rss_gb": _peak_gb()}
    _say(
        f"{population.size:,} devices, {population.histories.n_events:,} events, built in "
        f"{built['seconds']:.0f} s; peak {built['peak_rss_gb']:.2f} GB"
    )
    small = _first(population, arguments.small)
    config = RunConfig.model_validate(
        {
            "training": {"rounds": arguments.rounds + 1, "cohort": arguments.cohort},
            "privacy": {"noise_multiplier": 1.0},
            "engine": {"devices_per_host": arguments.devices_per_host},
        }
    )
    setup, rounds = _federate(config, (small, population))
    cost = [statistics.median(seconds) for seconds in rounds]
    result = {
        "built": built,
        "devices_per_host": arguments.devices_per_host,
        "expected_cohort": arguments.cohort,
        "populations": [
            {
                "devices": of.size,
                "setup_seconds": before,
                "round_seconds": cost_of,
                "rounds": seconds,
            }
            for of, before, cost_of, seconds in zip(
                (small, population), setup, cost, rounds, strict=True
            )
        ],
        "growth": cost[1] / cost[0] - 1,
        "peak_rss_gb": _peak_gb(),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{'devices':>12}{'first release, s':>18}{'round, s':>10}")
    for row in result["populations"]:
        print(f"{row['devices']:>12,}{row['setup_seconds']:>18.1f}{row['round_seconds']:>10.2f}")
    print(f"a round with {arguments.cohort:,} devices grows by {result['growth']:+.1%}")
    print(f"peak memory {result['peak_rss_gb']:.2f} GB")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--devices", type=int, default=1_000_000, help="the large population")
    parser.add_argument("--small", type=int, default=10_000, help="the small one")
    parser.add_argument("--cohort", type=int, default=1_000, help="expected devices a round")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each that count")
    parser.add_argument("--devices-per-host", type=int, default=262_144, help="of one batch")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser.parse_args()


def _build(devices: int) -> Population:
    config = RunConfig()
    log = synthesise(devices, ITEMS, seed=0)
    return Population.of(
        log.histories,
        user_ids=log.user_ids,
        table=build_item_table(log.catalogue, config.items),
        model=config.model,
        n_types=len(log.event_types),
    )


def _first(population: Population, devices: int) -> Population:
    return replace(
        population,
        histories=population.histories.take(np.arange(devices)),
        users=population.users[:devices],
        keys=population.keys[:devices],
    )


def _federate(
    config: RunConfig, populations: tuple[Population, ...]
) -> tuple[list[float], list[list[float]]]:
    """Seconds up to the first round, and of each round but the first, by population."""
    turns = Turns(len(populations))
    seconds: list[list[float]] = [[] for _ in populations]
    trainer = populations[0].trainer(threads=config.engine.threads, compiled=False)
    threads = [
        threading.Thread(target=_run, args=(config, population, trainer, turns, player, seconds))
        for player, population in enumerate(populations)
    ]
    for thread in threads:
        thread.start()
    turns.start()
    for thread in threads:
        thread.join()
    # The first turn is all that comes before training, and the first round, which warms up.
    return [taken[0] for taken in seconds], [taken[1:] for taken in seconds]


def _run(
    config: RunConfig,
    population: Population,
    trainer: Trainer,
    turns: Turns,
    player: int,
    seconds: list[list[float]],
) -> None:
    sizes = Sizes.of(population.untrained_encoder(), config.statistics, population.table)
    plan = plan_budget(
        config.privacy, config.training, population_size=population.size, sizes=sizes
    )
    table: ItemTable = population.table
    with turns.playing(player), tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch:
        began = time.perf_counter()

        def on_round(*_: object) -> None:
            nonlocal began
            seconds[player].append(time.perf_counter() - began)
            turns.hand_over(player)
            began = time.perf_counter()

        with Ledger.create(
            Path(scratch) / "ledger.jsonl",
            signing_key=SigningKey.generate(),
            population="benchmark",
            population_size=population.size,
            delta=plan.delta,
            target_epsilon=plan.target_epsilon,
            randomness="csprng",
            code_version="benchmark",
            config_digest=config.digest(),
        ) as ledger:
            result = run_federation(
                config,
                name=f"scale-{population.size}",
                population=population,
                trainer=trainer,
                encoder=build_encoder(
                    config.model,
                    blocks=table.blocks,
                    n_items=table.n_items,
                    n_types=population.n_types,
                    seed=0,
                ),
                plan=plan,
                ledger=ledger,
                checkpoints=Path(scratch) / "checkpoints",
                now=int(population.histories.times.max()) + 1,
                on_round=on_round,
            )
        if result.stopped:
            raise SystemExit(f"the budget ended the run early: {result.stopped}")


def _peak_gb() -> float:
    """Peak resident memory of this process so far, in units of 10⁹ bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
