"""What local training leaves out of the encoder's hidden layers.

Masks are drawn from the round's public seed, as the negatives are, and are the same for all devices: they
train one and the same sub-model in a step, as in federated dropout (Caldas et al. 2018, §3.2). So
sensitivity, clip and accounting are as without it, per user and per event: what is clipped is still a
function of public numbers and of one device's, or one example's, data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.encoder import Encoder

Masks = Sequence[Tensor | None]
"""Of each local step what :meth:`Encoder.forward` takes for masks."""


def draw_masks(encoder: Encoder, *, rows: int, steps: int, share: float, seed: int) -> Masks:
    """What each step multiplies the numbers of hidden layers by; None where ``share`` is 0.

    That is 0 with the chance ``share``, for each number by itself, and else 1 / (1 − share): what a layer
    holds is expected to be what it holds in the whole model, which is the one that ranks (Srivastava
    et al. 2014, §10).

    Args:
        encoder: what is trained.
        rows: R, most window events or queries of a device.
        steps: local steps.
        share: of the numbers that are left out, 0 ≤ share < 1.
        seed: the round's public seed.

    Returns:
        float32 [places, R, width] of each step.
    """
    if not share:
        return [None] * steps
    drawn = np.empty((steps, encoder.places, rows, encoder.norm.normalized_shape[0]))
    for place in np.ndindex(steps, encoder.places):
        # A stream of its own, drawn row by row: the longest window on a host moves no other number.
        stream = np.random.SeedSequence(seed, spawn_key=place)
        np.random.default_rng(stream).random(out=drawn[place])
    kept = (drawn >= share) / (1 - share)
    return list(torch.from_numpy(kept.astype(np.float32)))
