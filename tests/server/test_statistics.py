import numpy as np
import torch

from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import build_encoder, weigh_block
from fedprofile.common.items import COOCCURRENCE_BLOCK, ItemTable
from fedprofile.server.statistics import ItemStatistics

CONTENT = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
TABLE = ItemTable(CONTENT, tuple("abcdefg"), ((),) * 7, {"text": (0, 3), "price": (3, 5)})
FLAT = np.zeros(7, dtype=np.float32)
TOGETHER = np.ones((7, 2), dtype=np.float32)


def weights_of(table):
    config = ModelConfig(encoder="mean", width=4, heads=1)
    encoder = build_encoder(config, blocks=table.blocks, n_items=7, n_types=1, seed=0)
    return {name: p.detach().clone() for name, p in encoder.named_parameters()}


def test_without_a_release_training_begins_with_the_untrained_encoder():
    weights = weights_of(TABLE)
    begun = ItemStatistics(FLAT, FLAT, TOGETHER, beyond_content=0.5).begin(weights, TABLE)
    assert begun.keys() == weights.keys()
    assert all(torch.equal(begun[name], weights[name]) for name in weights)


def test_vectors_count_by_what_they_say_beyond_content():
    table = TABLE.with_block(COOCCURRENCE_BLOCK, TOGETHER)
    weights = weights_of(table)
    begun = ItemStatistics(FLAT, FLAT, TOGETHER, beyond_content=0.5).begin(weights, table)
    gains = weights["gains.weight"].clone()
    gains[3] *= 0.5
    assert torch.equal(begun.pop("gains.weight"), gains)
    assert all(torch.equal(begun[name], weights[name]) for name in begun)


def test_weighing_leaves_the_weights_it_was_given():
    weights = weights_of(TABLE)
    before = weights["gains.weight"].clone()
    assert not weigh_block(weights, TABLE.blocks, "text", 0.0)["gains.weight"][1].any()
    assert torch.equal(weights["gains.weight"], before)
