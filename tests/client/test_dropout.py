import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from fedprofile.client.dropout import draw_masks
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import build_encoder

WIDTH, LAYERS = 16, 2
ENCODERS = {"transformer": 2 + 2 * LAYERS, "gru": 2, "mean": 2, "dense": 1}
ALARM = 1e-6
"""Chance of a false alarm of each test below; seeds are fixed, so it was taken once."""


def encoder_of(kind):
    config = ModelConfig(encoder=kind, width=WIDTH, layers=LAYERS, heads=2)
    return build_encoder(config, blocks={"text": (0, 5)}, n_items=9, n_types=1, seed=0)


def masks_of(kind="transformer", **changes):
    values = {"rows": 50, "steps": 3, "share": 0.3, "seed": 7}
    return torch.stack(list(draw_masks(encoder_of(kind), **{**values, **changes})))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_share_is_left_out_and_the_rest_stands_for_it(kind, share):
    masks = masks_of(kind, share=share, rows=1_000)
    assert masks.shape == (3, ENCODERS[kind], 1_000, WIDTH)
    assert masks.dtype == torch.float32
    assert torch.unique(masks).tolist() == pytest.approx([0, 1 / (1 - share)])

    def within(gone, expected):
        low, high = binom.ppf([ALARM / 2, 1 - ALARM / 2], gone.numel(), expected)
        return low <= int(gone.sum()) <= high

    for place in masks.flatten(0, 1):
        gone = place == 0
        assert within(gone, share)
        assert not within(gone, 2 / 3 * share)
        assert not within(gone, share + (1 - share) / 5)
        # Its own mean, then: an average over many masks is what the whole model has.
        spread = math.sqrt(share / (1 - share) / place.numel())
        assert abs(float(place.double().mean()) - 1) < 5 * spread


def test_numbers_are_left_out_one_by_one():
    """No two places, steps, rows or columns leave out the same, or the opposite."""
    gone = masks_of(share=0.5, rows=64).numpy() == 0
    for axis in range(4):
        lines = np.moveaxis(gone, axis, 0).reshape(gone.shape[axis], -1)
        matrix = np.corrcoef(lines)[np.triu_indices(len(lines), 1)]
        assert np.abs(matrix).max() < 6 / math.sqrt(lines.shape[1])


def test_the_same_seed_leaves_out_the_same_and_another_does_not():
    masks = masks_of()
    assert torch.equal(masks, masks_of())
    for other in (8, 7 + 2**32, 2**62):
        # Independent: they agree by chance alone, on 0.3² + 0.7² of all numbers.
        agree = float((masks_of(seed=other) == masks).double().mean())
        assert abs(agree - 0.58) < 5 * math.sqrt(0.58 * 0.42 / masks.numel())


def test_longer_windows_and_more_steps_move_nothing():
    long = masks_of(rows=50, steps=4)
    assert torch.equal(masks_of(rows=9, steps=2), long[:2, :, :9])


def test_nothing_is_drawn_where_nothing_is_left_out():
    assert draw_masks(encoder_of("mean"), rows=9, steps=3, share=0.0, seed=1) == [None] * 3


def test_torch_randomness_is_left_alone():
    state = torch.random.get_rng_state()
    masks_of()
    assert torch.equal(torch.random.get_rng_state(), state)
