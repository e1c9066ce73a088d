"""How long the audit of a long run takes, and how much memory.

    python -m benchmarks.verify [--rounds 10000] [--json]

Makes a ledger of that many committed rounds (50,000 users, 500 expected a round), and runs
``fedprofile audit verify`` on it as an officer would. Peak memory is told for each process: the audit
itself, and its two workers, in which the accountants run side by side.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedprofile.common.anchor import Anchor
from fedprofile.common.ledger_entries import Chain, hash_of, seal
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.signing import SigningKey

USERS, COHORT = 50_000, 500
_REPEATS = 3
_REPORT = """
import json, resource, sys
from fedprofile.common import cli

def peak(who):
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6

sys.argv = ["fedprofile", "audit", "verify", sys.argv[1], "--anchor", sys.argv[2], "--json"]
try:
    cli.main()
except SystemExit as ended:
    print(json.dumps({"code": ended.code, "audit": peak(resource.RUSAGE_SELF),
                      "workers": peak(resource.RUSAGE_CHILDREN)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch:
        ledger, anchor = Path(scratch) / "ledger.jsonl", Path(scratch) / "anchor.json"
        write_ledger(ledger, anchor, rounds=arguments.rounds)
        found = [measure(ledger, anchor) for _ in range(_REPEATS)]
    result = {
        "rounds": arguments.rounds,
        "seconds": statistics.median(run["seconds"] for run in found),
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in found),
        "audit_mb": max(run["audit"] for run in found),
        "largest_worker_mb": max(run["workers"] for run in found),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['rounds']:,} rounds, median of {_REPEATS}")
    print(f"  wall clock        {result['seconds']:7.2f} s")
    print(f"  processor         {result['cpu_seconds']:7.2f} s, of all processes")
    print(f"  audit process     {result['audit_mb']:7.1f} MB at most")
    print(f"  largest worker    {result['largest_worker_mb']:7.1f} MB at most")


def write_ledger(path: Path, anchor: Path, *, rounds: int) -> None:
    """An honest ledger without the waits for the disk."""
    key, chain, rng = SigningKey.generate(), Chain(), np.random.default_rng(0)
    mechanism = Mechanism(
        clip_norm=0.04,
        noise_multiplier=1.2,
        sampling_probability=COHORT / USERS,
        population_size=USERS,
    )
    models = [hash_of(str(number).encode()) for number in range(rounds + 1)]
    with path.open("wb") as file:

        def append(**values: Any) -> int:
            number = len(chain.entries)
            linked = {"sequence": number, "previous": chain.head, "time": "2026-01-01T00:00:00"}
            entry, line = seal({**linked, **values}, key)
            chain.add(entry, line)
            file.write(line + b"\n")
            return number

        append(
            kind="open",
            version=2,
            unit="user",
            adjacency="add-or-remove-one",
            population="benchmark",
            population_size=USERS,
            delta=USERS**-1.1,
            target_epsilon=8.0,
            randomness="csprng",
            code_version="benchmark",
            config_digest="",
            public_key=key.public_key,
            nonce="0" * 32,
            earlier=[],
        )
        for number in range(1, rounds + 1):
            release = append(
                kind="reserve",
                run="benchmark",
                task="training",
                round=number,
                mechanism=mechanism.describe(),
                divisor=mechanism.expected_cohort,
                weighting="equal",
                model_before=models[number - 1],
                code_version="benchmark",
            )
            size = int(rng.binomial(USERS, COHORT / USERS))
            append(
                kind="commit",
                release=release,
                cohort_size=size,
                replies_counted=size,
                rejected={},
                model_after=models[number],
            )
    last = len(chain.entries) - 1
    Anchor.publish(anchor, ledger=chain.identity, sequence=last, head=chain.head, signing_key=key)


def measure(ledger: Path, anchor: Path) -> dict[str, float]:
    """Seconds and peak memory of one audit in a process of its own."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _REPORT, str(ledger), str(anchor)],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    verdict, figures = (json.loads(line) for line in done.stdout.splitlines())
    not_run = [f["check"] for f in verdict["findings"] if f["outcome"] == "not run"]
    if not verdict["holds"] or not_run != ["public key"]:
        raise SystemExit(f"the audit of an honest ledger came out otherwise: {verdict['findings']}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**figures, "seconds": seconds, "cpu_seconds": used}


if __name__ == "__main__":
    main()
