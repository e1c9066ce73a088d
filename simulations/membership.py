"""Membership inference against a trained model: can it be told who was trained on?

The attacker has a user's whole history and the released model, and guesses from the loss. Users differ in
how predictable they are, so a loss alone tells little; the untrained model's loss on the same user says
what to expect (Watson, Guo, Cormode & Sablayrolles, "On the importance of difficulty calibration in
membership inference attacks", ICLR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..audit.membership import measure_attack
from ..client.examples import build_examples
from ..client.local_training import LocalTraining, Trainer
from ..common.config import TrainingConfig
from ..common.histories import Histories
from ..server.statistics import ItemStatistics
from .canary_hosts import AuditedPopulation

_FEWEST = 2
_AT_ONCE = 1_000  # users; the decayed sums of all would fill the memory


def attack_membership(
    population: AuditedPopulation,
    *,
    trainer: Trainer,
    training: TrainingConfig,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    statistics: ItemStatistics,
    seed: int,
) -> dict[str, Any] | None:
    """Attacks by the loss and by how much training lowered it, as JSON values.

    Args:
        population: of its users as many are tried as there are outsiders, drawn at random.
        trainer: of the population's encoder.
        training: what devices did in a round.
        before: the untrained weights.
        after: the released weights.
        statistics: of the items, that training went by.
        seed: of the draw, and of random negatives, which are the same for everybody.

    Returns:
        None where there are too few users with something to learn on either side.
    """

    table = statistics.fill(population.table)

    task = LocalTraining(
        steps=1,
        learning_rate=training.local_learning_rate,
        negatives=training.negatives,
        clip_norm=np.inf,
        seed=seed,
    )

    def losses(histories: Histories, weights: Mapping[str, Tensor]) -> NDArray[np.float64]:
        arrays = {name: weight.detach().numpy() for name, weight in weights.items()}
        keys = np.arange(histories.n_devices, dtype=np.uint64)
        found = [np.zeros(0)]
        for part in np.array_split(keys, -(-len(keys) // _AT_ONCE)) if len(keys) else ():
            examples = build_examples(
                histories.take(part.astype(np.int64)),
                part,
                vectors=table.vectors,
                scales=population.model.scales,
                window=population.model.window,
                new_targets_only=training.targets == "new",
                seed=seed,
            )
            found.append(trainer.losses(arrays, examples, statistics.long_run, task))
        return np.concatenate(found)

    others = population.outsiders
    drawn = np.random.default_rng(seed).permutation(population.histories.n_devices)
    members = population.histories.take(drawn[: others.n_devices])
    found = {}
    for name, histories in (("members", members), ("others", others)):
        trained, untrained = losses(histories, after), losses(histories, before)
        learnt = np.isfinite(trained) & np.isfinite(untrained)
        found[name] = {"loss": -trained[learnt], "calibrated": (untrained - trained)[learnt]}
    if min(len(scores["loss"]) for scores in found.values()) < _FEWEST:
        return None
    return {
        attack: asdict(
            measure_attack(members=found["members"][attack], others=found["others"][attack])
        )
        for attack in ("loss", "calibrated")
    }
