"""The last checkpoint that a run or a server kept, read without the code that wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ..common.errors import MALFORMED, DataError

COOCCURRENCE = "statistics/cooccurrence"
Weights = Mapping[str, NDArray[np.float32]]
# What a release led to; successors came later than vectors.
_STATISTICS = {
    "statistics/popularity": ("popularity",),
    COOCCURRENCE: ("vectors", "pairs", "chances"),
}


@dataclass(frozen=True)
class Checkpoint:
    """State after a round.

    Attributes:
        round: the last one that was made; 0: none.
        release: its number in the ledger; None where nothing was released.
        rounds: what was recorded of each release, with ``round`` and ``sampled``.
        weights: that it led to.
        averaged: number of rounds whose weights are averaged.
        average: that average; ``weights`` where ``averaged`` is 0.
        statistics: task → what its release led to, by its name.
    """

    round: int
    release: int | None
    rounds: tuple[Mapping[str, Any], ...]
    weights: Weights
    averaged: int
    average: Weights
    statistics: Mapping[str, Weights]

    @classmethod
    def last(cls, folder: Path) -> Checkpoint | None:
        """The newest in ``folder``; None where there is none.

        Raises:
            DataError: it isn't a checkpoint.
        """
        paths = sorted(folder.glob("round-*.safetensors"))
        if not paths:
            return None
        try:
            with safe_open(paths[-1], framework="np") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
            averaged = int(state["averaged"])
            weights = _group(tensors, "weights/")
            # As the server divides: float32 by float32.
            means = {n: t / np.float32(averaged) for n, t in _group(tensors, "average/").items()}
            return cls(
                round=int(state["round"]),
                release=None if state["release"] is None else int(state["release"]),
                rounds=tuple(
                    {"round": int(r["round"]), "sampled": int(r["sampled"])}
                    for r in state["rounds"]
                ),
                weights=weights,
                averaged=averaged,
                average=means if averaged else weights,
                statistics={
                    task: {name: tensors[name] for name in names if name in tensors}
                    for task, names in _STATISTICS.items()
                    if names[0] in tensors
                },
            )
        except (OSError, SafetensorError, *MALFORMED) as error:
            raise DataError(f"{paths[-1].name} isn't a checkpoint ({error})") from error


def _group(tensors: Weights, prefix: str) -> dict[str, NDArray[np.float32]]:
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
