"""What the audit catches, how often it is wrong about a run without a fault, and ε that others printed.

    python -m benchmarks.audit [--seeds 100] [--json]

Three tables. Published ε beside the program's own. Faults built into federations, ledgers and canaries,
each with the checks that noticed it. And false alarms of all checks that rest on chance, over as many
seeds, beside the rate that they declare. Exit code 1 where a fault went unnoticed or alarms are too many.
Some minutes; ``--seeds`` is what takes them.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.faulty_builds import PROBED, SMALL, chance_alarms, faultless, fired, scaled_noise
from benchmarks.published import PUBLISHED, by_moments
from benchmarks.verify import COHORT, USERS, poisson_sample, write_ledger
from fedprofile.audit.cohort_test import FALSE_ALARM as OF_COHORTS
from fedprofile.audit.cohort_test import check_cohorts
from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.verify import verify
from fedprofile.common.accounting import epsilon, epsilon_rdp
from fedprofile.common.config import RunConfig
from fedprofile.simulations.canaries import FALSE_ALARM_RATE as OF_CANARIES
from fedprofile.simulations.canaries import CanaryOptions, audit_canaries
from fedprofile.simulations.canary_hosts import CanaryHost
from fedprofile.simulations.chance_probes import FALSE_ALARM_RATE as OF_PROBES
from fedprofile.simulations.probe_runs import Probed

_ROUNDS = 400
_SURE = 1e-3
"""Chance that honest checks raise so many alarms that this benchmark fails."""
_CANARIES: dict[str, Any] = {
    "data": {"synthetic_users": 120, "synthetic_items": 40},
    "items": {"dimension": 16},
    "model": {"width": 32, "window": 8},
    "training": {"rounds": 4, "negatives": 8, "sampling_probability": 1.0},
    "privacy": {"noise_multiplier": 4.0, "epsilon": 4.0, "split": {"popularity": 0.0}},
}


@dataclass(frozen=True)
class Caught:
    """A fault and the checks that noticed it."""

    where: str
    fault: str
    by: tuple[str, ...]


@dataclass(frozen=True)
class Alarms:
    """Alarms without a fault: of a group of checks, over ``trials`` of one check in one run."""

    checks: str
    trials: int
    alarms: int
    declared: float

    @property
    def too_many(self) -> bool:
        return bool(self.alarms > binom.isf(_SURE, self.trials, self.declared))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=100, help="runs without a fault (100)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments = parser.parse_args()
    logging.getLogger("fedprofile").setLevel(logging.CRITICAL)  # devices refuse on purpose here
    result: dict[str, list[dict[str, Any]]] = {"published": [], "caught": [], "alarms": []}

    def tell(table: str, row: dict[str, Any], line: str) -> None:
        result[table].append(row)
        if not arguments.json:
            print(line, flush=True)

    for row in published():
        tell(
            "published",
            row,
            f"{row['source']:<36}σ = {row['noise_multiplier']:<5}T = {row['rounds']:<8,}printed "
            f"{row['printed']:<7g}recomputed {row['recomputed']:<7g}"
            f"RDP {row['rdp']:<7.3f}PLD {row['pld']:.3f}",
        )
    sound = True
    with tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch:
        folder = Path(scratch)
        probed = Probed.of(RunConfig.model_validate(SMALL))
        for find in (_by_probes(probed, folder), _by_verify(folder), _by_canaries(folder)):
            for caught in find:
                sound &= bool(caught.by)
                by = ", ".join(caught.by) or "NOTHING"
                tell("caught", asdict(caught), f"{caught.where:<10}{caught.fault:<42}{by}")
        for found in alarms(probed, folder, seeds=arguments.seeds):
            sound &= not found.too_many
            tell(
                "alarms",
                {**asdict(found), "too_many": found.too_many},
                f"{found.checks:<24}{found.alarms} alarms in {found.trials:,} trials, "
                f"declared {found.declared:.2%}{': TOO MANY' if found.too_many else ''}",
            )
    sound &= all(row["recomputed"] == row["printed"] for row in result["published"])
    if arguments.json:
        print(json.dumps({**result, "sound": sound}, ensure_ascii=False))
    raise SystemExit(0 if sound else 1)


def published() -> Iterator[dict[str, Any]]:
    """ε in print, as its source works it out, and by today's accountants."""
    for run in PUBLISHED:
        events = {run.mechanism.event(): run.rounds}
        moments = by_moments(events, delta=run.delta, orders=run.orders)
        yield {
            "source": run.source,
            "noise_multiplier": run.noise_multiplier,
            "rounds": run.rounds,
            "printed": run.epsilon,
            "recomputed": round(moments, run.digits),
            "rdp": epsilon_rdp(events, delta=run.delta),
            "pld": epsilon(events, delta=run.delta, coarse=True),
        }


def _by_probes(probed: Probed, folder: Path) -> Iterator[Caught]:
    seen = faultless(probed, folder / "faultless")
    for number, (name, fault) in enumerate(PROBED.items()):
        found = fired(probed, seen, fault, folder / f"fault-{number}")
        # All that must notice it, or it wasn't noticed as it should be.
        yield Caught("probes", name, tuple(sorted(found)) if fault.caught_by <= found else ())


def _by_verify(folder: Path) -> Iterator[Caught]:
    ledger, anchor = folder / "ledger.jsonl", folder / "anchor.json"

    def byte_changed(lines: list[bytes]) -> list[bytes]:
        middle = len(lines) // 2
        return [*lines[:middle], lines[middle].replace(b"0", b"1", 1), *lines[middle + 1 :]]

    tampered: dict[str, tuple[Callable[[np.random.Generator], int], Callable[..., list[bytes]]]] = {
        "one byte changed": (poisson_sample, byte_changed),
        "the tail cut off": (poisson_sample, lambda lines: lines[:-2]),
        "a release without an entry": (poisson_sample, lambda lines: [*lines[:5], *lines[7:]]),
        "fixed size declared as Poisson": (lambda _: COHORT, lambda lines: lines),
    }
    for fault, (sizes, change) in tampered.items():
        write_ledger(ledger, anchor, rounds=_ROUNDS, cohort_size=sizes)
        ledger.write_bytes(b"".join(change(ledger.read_bytes().splitlines(keepends=True))))
        found = verify(find_evidence(ledger, anchor=anchor)).findings
        yield Caught("verify", fault, tuple(f.check for f in found if f.outcome == "fails"))


def _by_canaries(folder: Path) -> Iterator[Caught]:
    train = CanaryHost.train

    def five_times(self: CanaryHost, task: Any) -> Any:
        update = train(self, task)
        for array in update.arrays.values():
            array *= 5
        return update

    for fault, count, inject in (
        ("noise × 0.1", 400, scaled_noise(0.1)),
        ("noise × 0.5", 1_000, scaled_noise(0.5)),
        ("canaries × 5", 400, lambda patch: patch.setattr(CanaryHost, "train", five_times)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            inject(patch)
            findings = _accused(folder / fault, seed=1, canaries=count)
        yield Caught("canaries", fault, tuple(_shortened(finding) for finding in findings))


def _shortened(finding: str) -> str:
    return finding.partition(" is ")[0] if finding.startswith("the estimate") else "p-value"


def _accused(folder: Path, *, seed: int, canaries: int) -> list[str]:
    config = RunConfig.model_validate({**_CANARIES, "seed": seed})
    found = audit_canaries(config, CanaryOptions(canaries=canaries, out=folder))
    findings: list[str] = found["verdict"]["findings"]
    return findings


def alarms(probed: Probed, folder: Path, *, seeds: int) -> Iterator[Alarms]:
    """Of each kind of check, over runs without a fault."""
    of_probes = chance_alarms(probed, folder / "chance", seeds=seeds)
    yield Alarms("probes", seeds * len(of_probes), sum(of_probes.values()), OF_PROBES)
    wrong = 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        test = check_cohorts(
            sizes=rng.binomial(USERS, COHORT / USERS, size=_ROUNDS).tolist(),
            probabilities=[COHORT / USERS] * _ROUNDS,
            population_size=USERS,
            seed=seed,
        )
        wrong += not test.passed
    yield Alarms("sampler of verify", seeds, wrong, OF_COHORTS)
    accused = sum(
        bool(_accused(folder / f"sound-{seed}", seed=seed, canaries=400)) for seed in range(seeds)
    )
    yield Alarms("canaries", seeds, accused, OF_CANARIES)


if __name__ == "__main__":
    main()
