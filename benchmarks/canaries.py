"""What a canary audit adds to the time of a run.

    python -m benchmarks.canaries [--users 6000] [--canaries 1000] [--rounds 150] [--turns 3] [--json]

The same users take part in both runs, with the same probability in each round. The audited one has canaries
besides: it draws directions for those that are sampled, watches every release, scores all canaries at the
end, computes estimates, bounds and the declared loss distribution, and attacks membership. Both read the
data and end with ε of their ledger; the noise is given. Times are of the processor, all threads together,
for a clock shows other load too. Runs take turns, and what counts is the median over the turns of their
ratio within a turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedprofile.common.config import RunConfig
from fedprofile.simulations.canaries import OUTSIDE, CanaryOptions, audit_canaries
from fedprofile.simulations.canary_hosts import AuditedPopulation, Canaries
from fedprofile.simulations.federate import run_federation, statistics_time
from fedprofile.simulations.run_folder import RunFolder
from fedprofile.simulations.run_ledger import open_ledger
from fedprofile.simulations.simulate import prepare, read

NOISE_MULTIPLIER = 1.0  # given, for calibration would take its time in one turn and not in the next


def main() -> None:
    arguments = _parse()
    torch.set_num_threads(1)
    config = RunConfig.model_validate(
        {
            "seed": 1,
            # A share of them stays outside of an audited run.
            "data": {"synthetic_users": round(arguments.users / (1 - OUTSIDE))},
            "training": {
                "rounds": arguments.rounds,
                "sampling_probability": arguments.cohort / arguments.users,
            },
            "privacy": {"noise_multiplier": NOISE_MULTIPLIER, "epsilon": 8.0},
        }
    )
    plain, audited = [], []

    users = 0

    def audit(folder: Path) -> None:
        nonlocal users
        found = audit_canaries(config, CanaryOptions(canaries=arguments.canaries, out=folder))
        users = found["run"]["users"]

    def run(folder: Path) -> None:
        _run(config, users, folder)

    for _ in range(arguments.turns):
        audited.append(_seconds(audit))
        plain.append(_seconds(run))
    table = {
        "users": users,
        "canaries": arguments.canaries,
        "rounds": arguments.rounds,
        "plain_seconds": statistics.median(plain),
        "audited_seconds": statistics.median(audited),
        "ratio": statistics.median(a / p for a, p in zip(audited, plain, strict=True)),
        "turns": arguments.turns,
    }
    if arguments.json:
        print(json.dumps(table))
        return
    print(f"{'users':>8} {'canaries':>9} {'rounds':>7} {'plain':>9} {'audited':>9} {'ratio':>6}")
    print(
        f"{table['users']:>8,} {table['canaries']:>9,} {table['rounds']:>7,} "
        f"{table['plain_seconds']:>7.1f} s {table['audited_seconds']:>7.1f} s {table['ratio']:>6.2f}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.canaries",
        description="Processor time of a run with and without canaries.",
    )
    parser.add_argument("--users", type=int, default=6_000, help="of the synthetic data (6000)")
    parser.add_argument("--canaries", type=int, default=1_000, help="made-up users (1000)")
    parser.add_argument("--rounds", type=int, default=150, help="of training (150)")
    parser.add_argument("--cohort", type=int, default=400, help="expected users a round (400)")
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind (3)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser.parse_args()


def _seconds(run: Callable[[Path], Any]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        run(Path(folder) / "run")
        return time.process_time() - started


def _run(config: RunConfig, users: int, path: Path) -> None:
    """A run of as many users as an audited one has, without canaries."""
    log, split, everyone = read(config)
    nobody = Canaries(np.zeros(0, dtype=np.bool_), 0)
    outside = np.arange(everyone.size) >= users
    members = AuditedPopulation.of_users(everyone, nobody, outside=outside).members
    prepared = prepare(config, log, split, members)
    folder = RunFolder.new(path)
    folder.create(config)
    ledger = open_ledger(
        folder,
        config,
        plan=prepared.plan,
        population_size=prepared.population.size,
        earlier=(),
    )
    with ledger:
        run_federation(
            config,
            name="plain",
            population=members,
            trainer=prepared.trainer,
            encoder=prepared.encoder,
            plan=prepared.plan,
            ledger=ledger,
            checkpoints=folder.checkpoints,
            now=statistics_time(config, split, members),
            on_round=_nothing,
        )
        ledger.epsilon_spent()


def _nothing(*_: object) -> None:
    """Takes no time."""


if __name__ == "__main__":
    main()
