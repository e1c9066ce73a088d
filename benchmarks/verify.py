"""How long the audit of a long run takes, and how much memory.

    python -m benchmarks.verify [--rounds 10000] [--json]

Makes a ledger of that many committed rounds (50,000 users, 500 expected a round), and runs
``fedprofile audit verify`` on it as an officer would. Peak memory is told of each process, the audit's own
and the one in which the accountants calculate, and of both at the same time, where what they share counts
once (the kernel's proportional set size, in a run of its own because looking costs time; Linux only).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
from pathlib import Path
from fedprofile.common import cli

def spent(who):
    used = resource.getrusage(who)
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return {"mb": peak, "cpu_seconds": used.ru_utime + used.ru_stime}

sys.argv = ["fedprofile", "audit", "verify", sys.argv[1], "--anchor", sys.argv[2], "--json"]
try:
    cli.main()
except SystemExit:
    audit, status = spent(resource.RUSAGE_SELF), Path("/proc/self/status")
    if status.exists():  # getrusage counts what the starting process held, too
        [peak] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        audit["mb"] = int(peak.split()[1]) * 1024 / 1e6
    print(json.dumps({"audit": audit, "accountants": spent(resource.RUSAGE_CHILDREN)}))
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
        together = peak_of_all(ledger, anchor)
    processes = ("audit", "accountants")
    result = {
        "rounds": arguments.rounds,
        "seconds": statistics.median(run["seconds"] for run in found),
        "cpu_seconds": {
            who: statistics.median(run[who]["cpu_seconds"] for run in found) for who in processes
        },
        "peak_mb": {who: max(run[who]["mb"] for run in found) for who in processes},
        "peak_mb_together": together,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{arguments.rounds:,} rounds, median of {_REPEATS}: {result['seconds']:.2f} s")
    for who in processes:
        print(
            f"  {who:12} {result['cpu_seconds'][who]:6.2f} s of processor time, "
            f"{result['peak_mb'][who]:6.1f} MB at most"
        )
    if together is not None:
        print(f"  together     {together:38.1f} MB at most")


def poisson_sample(rng: np.random.Generator) -> int:
    """How many of the users a round samples."""
    return int(rng.binomial(USERS, COHORT / USERS))


def write_ledger(
    path: Path,
    anchor: Path,
    *,
    rounds: int,
    cohort_size: Callable[[np.random.Generator], int] = poisson_sample,
) -> None:
    """A ledger as an honest server writes it, without the waits for the disk; of such cohorts."""
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
            size = cohort_size(rng)
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


def measure(ledger: Path, anchor: Path) -> dict[str, Any]:
    """Seconds, and what each process took, of one audit."""
    began = time.perf_counter()
    done = subprocess.run(_command(ledger, anchor), capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    verdict, figures = (json.loads(line) for line in done.stdout.splitlines())
    not_run = [f["check"] for f in verdict["findings"] if f["outcome"] == "not run"]
    if not verdict["holds"] or not_run != ["public key"]:
        raise SystemExit(f"the audit of an honest ledger came out otherwise: {verdict['findings']}")
    return {**figures, "seconds": seconds}


def peak_of_all(ledger: Path, anchor: Path) -> float | None:
    """MB that an audit and its children hold at the same time, looked at every 10 ms."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    peak, audit = 0.0, subprocess.Popen(_command(ledger, anchor), stdout=subprocess.DEVNULL)
    while audit.poll() is None:
        with contextlib.suppress(OSError, ValueError):  # it ended while being looked at
            children = Path(f"/proc/{audit.pid}/task/{audit.pid}/children").read_text().split()
            peak = max(peak, sum(_proportional(pid) for pid in (audit.pid, *map(int, children))))
        time.sleep(0.01)
    return peak


def _proportional(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _command(ledger: Path, anchor: Path) -> list[str]:
    return [sys.executable, "-c", _REPORT, str(ledger), str(anchor)]


if __name__ == "__main__":
    main()
