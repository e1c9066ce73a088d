"""Quality at several budgets beside the figures to reach: a sweep, with the plan of every run.

    python -m benchmarks.quality LOG --out DIR [--epsilon 1,2,4,8,inf] [--runs 5] [--json]

LOG is ``sequences`` (6,000 users, 3,000 items, nothing but ids and their order), or the folder with the
sheets of Online Retail II (cuts 2011-07-01 and 2011-08-15, trained on all that lies before the second).
Full ranking, the first session after the cut; intervals are over users and runs. DIR holds a folder
for each run, with its ledger and the plan it followed (``plan.json``), and the page of the sweep; started
again, the command goes on where it was. There are two sweeps, for settings follow docs/quality.md: the
shop's below ε = 4 is of statistics alone, and bare ids have statistics alone under privacy and vectors that
are trained without it.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from fedprofile.common.config import RunConfig, load_config
from fedprofile.common.files import write_atomically
from fedprofile.simulations.plan import plan
from fedprofile.simulations.run_folder import RunFolder
from fedprofile.simulations.sweep import sweep
from fedprofile.simulations.sweep_axes import parse_axes

_RETAIL = {
    "data": {"preset": "online-retail-ii"},
    "items": {"dimension": 256},
    # Settings were chosen on validation without it.
    "evaluation": {"validation_from": "2011-07-01", "test_from": "2011-08-15", "refit": True},
}
_SEQUENCES = {
    "data": {"path": "sequences", "synthetic_users": 6_000, "synthetic_items": 3_000},
    "statistics": {"cooccurrence": 256},
}
# As docs/quality.md has it.
_STATISTICS_ALONE = {"training": {"rounds": 0}}
_LEAST_FOR_ROUNDS = 4.0
"""ε from which rounds are worth their budget on the shop's log: chosen on its validation part."""
_TRAINED_IDS = {
    "model": {"item_ids": True, "item_id_dimension": 64, "width": 64, "window": 50},
    "training": {"rounds": 1_500, "cohort": 128, "server_learning_rate": 0.005},
}
_TITLES = {
    "statistics": "statistics alone; which budgets that is for was chosen on validation, which no ε covers",
    "rounds": "with rounds",
}
# ε → NDCG@10 on new items; of bare ids, as a multiple of popularity.
_NEW = {None: 0.120, 8.0: 0.112, 4.0: 0.109, 2.0: 0.106, 1.0: 0.102}
_ALL = 0.335
_TIMES_POPULARITY = {8.0: 2.0, 2.0: 1.7}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("log")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epsilon", default="1,2,4,8,inf")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object, by folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # parallelism is over chunks of devices
    axis = parse_axes([f"epsilon={arguments.epsilon}"])["epsilon"]
    documents = {
        out.name: sweep(config, {"epsilon": epsilons}, arguments.runs, out=out, resume=out.exists())
        for config, epsilons, out in _sweeps(arguments.log, axis, arguments.out)
    }
    for path in sorted(arguments.out.glob("**/config.toml")):
        config = load_config(path, {})
        text = json.dumps(plan(config, RunFolder(path.parent)), indent=2, ensure_ascii=False)
        write_atomically(path.parent / "plan.json", text.encode())
    if arguments.json:
        print(json.dumps(documents, ensure_ascii=False, allow_nan=False))
        return
    for name, document in documents.items():
        print(f"\n{_TITLES[name]}")
        models = {model["key"]: model for model in document["references"]}
        for point in sorted(document["points"], key=lambda p: p["epsilon"] or math.inf):
            _show(point, models, ids=arguments.log == "sequences")
        for model in models.values():
            print(f"{model['label']:40} {_cell(model['new'])}   all items {_cell(model['all'])}")


def _sweeps(
    log: str, epsilons: tuple[float, ...], out: Path
) -> list[tuple[RunConfig, tuple[float, ...], Path]]:
    """Configuration, budgets and folder of each sweep."""
    if log == "sequences":
        base, trained, least = _SEQUENCES, _TRAINED_IDS, math.inf
    else:
        base, trained = {**_RETAIL, "data": {**_RETAIL["data"], "path": log}}, {}
        least = _LEAST_FOR_ROUNDS
    sweeps = [
        (
            load_config(None, {**base, **_STATISTICS_ALONE}),
            tuple(epsilon for epsilon in epsilons if epsilon < least),
            out / "statistics",
        ),
        (
            load_config(None, {**base, **trained}),
            tuple(epsilon for epsilon in epsilons if epsilon >= least),
            out / "rounds",
        ),
    ]
    return [planned for planned in sweeps if planned[1]]


def _show(point: dict[str, Any], models: dict[str, Any], *, ids: bool) -> None:
    epsilon, found = point["epsilon"], point["new"]["ndcg_at_k"]["mean"]
    name = "without privacy" if epsilon is None else f"ε = {epsilon:g}"
    line = f"{name:16} NDCG@10 {_cell(point['new'])}   all items {_cell(point['all'])}"
    if not ids:
        every = point["all"]["ndcg_at_k"]["mean"]
        line += f"   {_verdict(found, _NEW.get(epsilon))}, all {_verdict(every, _ALL)}"
    elif epsilon is None:
        line += f"   {found / models['central']['new']['ndcg_at_k']['mean']:.3f} of central (.97)"
    else:
        times = found / models["popularity"]["new"]["ndcg_at_k"]["mean"]
        line += (
            f"   times popularity: {times:.2f}, {_verdict(times, _TIMES_POPULARITY.get(epsilon))}"
        )
    print(line)


def _cell(view: dict[str, Any]) -> str:
    value = view["ndcg_at_k"]
    return f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"


def _verdict(found: float, target: float | None) -> str:
    if target is None:
        return "no target"
    return f"target {target:g} {'reached' if found >= target else 'MISSED'}"


if __name__ == "__main__":
    main()
