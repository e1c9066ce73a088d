"""Quality on Online Retail II beside the figures to reach: without privacy, and at ε = 2.

    python -m benchmarks.online_retail PATH [--epsilon 2] [--runs 1] [--json]

PATH is the folder with the two sheets of the UCI workbook. Cuts: 2011-07-01 (validation) and 2011-08-15
(test); the first invoice after the cut, new items, full ranking. Runs without a seed differ by cohorts,
initial weights and noise; the table gives each run and the mean.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from fedprofile.common.config import load_config
from fedprofile.simulations.simulate import SimulateOptions, simulate

_TARGETS = {"without privacy": 0.080, "ε = 2": 0.065}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # parallelism is over chunks of devices
    rows: dict[str, list[dict[str, Any]]] = {
        "without privacy": [],
        f"ε = {arguments.epsilon:g}": [],
    }
    for name, found in rows.items():
        for run in range(arguments.runs):
            found.append(
                measure(arguments.path, None if name[0] == "w" else arguments.epsilon, run == 0)
            )
    if arguments.json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for name, found in rows.items():
        mean = statistics.mean(run["ndcg"] for run in found)
        target = _TARGETS.get(name)
        verdict = (
            ""
            if target is None
            else f"target {target:.3f} {'reached' if mean >= target else 'MISSED'}"
        )
        runs = " ".join(f"{run['ndcg']:.4f}" for run in found)
        seconds = max(run["seconds"] for run in found)
        print(f"{name:16} NDCG@10 {mean:.4f} ({runs})  {verdict}  longest run {seconds:.0f} s")
        for label, value in found[0]["others"].items():
            print(f"{'':18}{label:40} {value:.4f}")


def measure(path: Path, epsilon: float | None, baselines: bool) -> dict[str, Any]:
    """One run; baselines once, for they don't change."""
    overrides = {
        "data": {"path": str(path)},
        "items": {"dimension": 256},
        "privacy": {"enabled": epsilon is not None, "epsilon": epsilon},
        "evaluation": {
            "validation_from": "2011-07-01",
            "test_from": "2011-08-15",
            "baselines": baselines,
        },
    }
    with tempfile.TemporaryDirectory() as scratch:
        config = load_config(None, overrides)
        metrics = simulate(config, SimulateOptions(out=Path(scratch) / "run"))
    ours, *others = metrics["models"]
    return {
        "ndcg": ours["test"]["new"]["ndcg_at_k"]["mean"],
        "epsilon": metrics["privacy"]["epsilon"],
        "seconds": metrics["run"]["seconds"],
        "others": {m["label"]: m["test"]["new"]["ndcg_at_k"]["mean"] for m in others},
    }


if __name__ == "__main__":
    main()
