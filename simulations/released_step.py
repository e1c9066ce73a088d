"""What a round let out, read back from the checkpoints before and after it.

The server keeps the noisy mean of a round only inside the state of its optimizer; there it can be
recovered to float precision, and the weights can be checked against the step that it makes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..common.config import TrainingConfig
from ..server.checkpoint import Checkpoint

Floats = NDArray[np.float64]

_ADAM_SECOND, _ADAM_FLOOR = 0.99, 1e-8
"""β₂ and ε of the server's Adam (Reddi et al. 2021, algorithm 2; torch's default)."""
_ULPS, _SHARE = 4.0, 1e-3


def released_mean(
    before: Checkpoint, after: Checkpoint, training: TrainingConfig
) -> dict[str, Floats]:
    """Name → noisy mean update of the round between two checkpoints.

    Of FedAdam the first moment is m' = β₁·m + (1 − β₁)·g (Kingma & Ba 2015, algorithm 1), of FedAvg
    with momentum b' = μ·b + g, without one w' = w − η·g; each is solved for g.
    """
    beta, rate = training.server_momentum, training.server_learning_rate
    mean = {}
    for name, weight in after.weights.items():
        if training.server_optimizer == "fedadam":
            old, new = _moment(before, name, "exp_avg"), _moment(after, name, "exp_avg")
            mean[name] = (new - beta * old) / (1 - beta)
        elif beta:
            old = _moment(before, name, "momentum_buffer")
            mean[name] = _moment(after, name, "momentum_buffer") - beta * old
        else:
            mean[name] = (before.weights[name].double() - weight.double()).numpy() / rate
    return mean


def missteps(
    before: Checkpoint, after: Checkpoint, mean: dict[str, Floats], training: TrainingConfig
) -> int:
    """Weights that did not move as the server's optimizer moves them along ``mean``."""
    beta, rate = training.server_momentum, training.server_learning_rate
    wrong = 0
    for name, gradient in mean.items():
        old, new = (c.weights[name].double().numpy() for c in (before, after))
        if training.server_optimizer == "fedadam":
            first = beta * _moment(before, name, "exp_avg") + (1 - beta) * gradient
            second = _ADAM_SECOND * _moment(before, name, "exp_avg_sq")
            second = second + (1 - _ADAM_SECOND) * np.square(gradient)
            first, second = (
                first / (1 - beta**after.round),
                second / (1 - _ADAM_SECOND**after.round),
            )
            step = rate * first / (np.sqrt(second) + _ADAM_FLOOR)
        else:
            step = rate * (beta * _moment(before, name, "momentum_buffer") + gradient)
        rounding = np.spacing(np.maximum(np.abs(old), np.abs(new)).astype(np.float32))
        wrong += int((np.abs(old - step - new) > _ULPS * rounding + _SHARE * np.abs(step)).sum())
    return wrong


def _moment(checkpoint: Checkpoint, name: str, key: str) -> Floats:
    """A moment of the optimizer, zero before the first step."""
    moment = checkpoint.moments.get(f"{name}/{key}")
    if moment is None:
        return np.zeros(checkpoint.weights[name].shape)
    values: Floats = moment.double().numpy()
    return values
