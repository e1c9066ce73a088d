"""The batch against devices one at a time, in double precision, by module, autograd and SGD."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client import local_training
from fedprofile.client.dropout import draw_masks
from fedprofile.client.examples import build_examples
from fedprofile.client.local_training import LocalTraining, Trainer, draw_negatives
from fedprofile.client.stacked import linear_weights
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import EncoderInputs, build_encoder
from fedprofile.common.errors import ConfigError
from fedprofile.common.histories import Histories

N_ITEMS, K, N_TYPES, WINDOW = 60, 10, 3, 12
ENCODERS = ["transformer", "gru", "mean", "dense"]
# What reads no window has no use for vectors that are trained for each item.
MODELS = [(kind, ids) for kind in ENCODERS for ids in (False, True) if kind != "dense" or not ids]
VECTORS = np.random.default_rng(0).normal(size=(N_ITEMS, K)).astype(np.float32)
PRIOR = np.random.default_rng(1).normal(size=N_ITEMS).astype(np.float32)
MIXED = (2, 30, 9, 0, 1, 17, 5, 12, 3)
TRAINING = LocalTraining(steps=3, learning_rate=0.3, negatives=20, clip_norm=math.inf, seed=5)
DROPPING = replace(TRAINING, dropout=0.4)


def config_of(kind, item_ids):
    return ModelConfig(
        encoder=kind,
        width=8,
        layers=2,
        heads=2,
        window=WINDOW,
        half_lives_days=(3.0, 30.0),
        half_lives_events=(),
        item_ids=item_ids,
        item_id_dimension=6,
    )


def encoder_of(kind, item_ids=False):
    encoder = build_encoder(
        config_of(kind, item_ids),
        blocks={"text": (0, 7), "price": (7, 10)},
        n_items=N_ITEMS,
        n_types=N_TYPES,
        seed=2,
    )
    # As after some rounds: nothing is zero any more.
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in encoder.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator)
    return encoder


def weights_of(encoder):
    return {name: p.detach().numpy().copy() for name, p in encoder.named_parameters()}


def examples_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    events = sum(lengths)
    opens = [np.r_[0, rng.random(max(0, n - 1)) < 0.6][:n].cumsum() for n in lengths]
    sessions = np.concatenate([*opens, []]).astype(np.int32)
    device = np.repeat(np.arange(len(lengths)), lengths)
    histories = Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=rng.integers(0, N_ITEMS, size=events).astype(np.int32),
        times=(10**9 + 3 * 86_400 * sessions.astype(np.int64) + device),
        sessions=sessions,
        weights=rng.uniform(0.5, 2, size=events).astype(np.float32),
        types=rng.integers(0, N_TYPES, size=events).astype(np.int16),
    )
    return build(histories, np.arange(len(lengths), dtype=np.uint64)), histories


def build(histories, keys):
    return build_examples(
        histories,
        keys,
        vectors=VECTORS,
        scales=config_of("mean", False).scales,
        window=WINDOW,
        new_targets_only=False,
        seed=4,
    )


def alone(encoder, examples, device, training=TRAINING):
    """Clipped update of one device: float64, no padding, no mask, the loss written out."""
    model = copy.deepcopy(encoder).double()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=training.learning_rate)
    w = slice(*examples.window_offsets[device : device + 2])
    q = slice(*examples.query_offsets[device : device + 2])
    t = slice(*examples.target_offsets[device : device + 2])
    vectors = torch.from_numpy(VECTORS).double()
    items = torch.from_numpy(examples.window_items[w]).long()
    inputs = EncoderInputs(
        vectors=vectors[items],
        rows=items,
        gaps=torch.from_numpy(examples.window_gaps[w]).double(),
        types=torch.from_numpy(examples.window_types[w]).long(),
        weights=torch.from_numpy(examples.window_weights[w]).double(),
        positions=torch.from_numpy(examples.query_positions[q]),
        sums=torch.from_numpy(examples.query_sums[q]).double(),
    )
    targets = list(zip(examples.target_queries[t], examples.target_items[t], strict=True))
    history = set(examples.known[device].indices.tolist())
    drawn = draw_negatives(
        n_items=N_ITEMS, steps=training.steps, count=training.negatives, seed=training.seed
    )
    # More rows than anybody has: which of them a batch draws must not matter.
    masks = draw_masks(
        encoder, rows=90, steps=len(drawn), share=training.dropout, seed=training.seed
    )
    for negatives, left in zip(drawn.tolist(), masks, strict=True) if targets else []:
        kept = [item for item in negatives if item not in history]
        optimizer.zero_grad()
        profiles = model(inputs, left)
        table = vectors
        if model.item_ids is not None:
            table = torch.cat([vectors, model.item_ids.weight], dim=1)
        losses = []
        for query, target in targets:
            scores = table @ profiles[query] + torch.from_numpy(PRIOR).double()
            stand_for = torch.exp(scores[kept]).sum() * N_ITEMS / training.negatives
            weight = torch.exp(scores[target])
            losses.append(-torch.log(weight / (weight + stand_for)))
        torch.stack(losses).mean().backward()
        optimizer.step()
    update = [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]
    norm = math.sqrt(sum(float(u.square().sum()) for u in update))
    scale = min(1.0, training.clip_norm / (norm + 1e-6))
    return np.concatenate([(scale * u).flatten().numpy() for u in update])


def flat(update):
    return np.concatenate([a.astype(np.float64).ravel() for a in update.arrays.values()])


def assert_close(got, expected, scale=None):
    """To 1e-5 of the norm of the expected update."""
    scale = np.linalg.norm(expected) if scale is None else scale
    assert np.linalg.norm(got - expected) <= 1e-5 * scale


@pytest.mark.parametrize("training", [TRAINING, DROPPING], ids=["whole", "dropout"])
@pytest.mark.parametrize(("kind", "item_ids"), MODELS)
def test_the_batch_equals_each_device_alone(kind, item_ids, training):
    encoder = encoder_of(kind, item_ids)
    trainer, weights = Trainer(encoder, threads=1), weights_of(encoder)
    examples, histories = examples_of(MIXED)
    together = flat(trainer.clipped_sum(weights, examples, PRIOR, training))
    updates = []
    for device in range(len(MIXED)):
        others = np.delete(np.arange(len(MIXED)), device)
        rest = build(histories.take(others), others.astype(np.uint64))
        missing = flat(trainer.clipped_sum(weights, rest, PRIOR, training))
        updates.append(alone(encoder, examples, device, training))
        # A device's part of the batch is what is missing where it is missing; by itself, too.
        assert_close(together - missing, updates[-1], max(np.linalg.norm(updates[-1]), 1e-3))
        single = build(histories.take(np.array([device])), np.array([device], dtype=np.uint64))
        assert_close(flat(trainer.clipped_sum(weights, single, PRIOR, training)), updates[-1])
    assert sum(np.linalg.norm(update) > 0 for update in updates) >= 6
    assert_close(together, sum(updates))


@pytest.mark.parametrize("item_ids", [False, True])
def test_each_device_is_clipped_over_its_whole_update(item_ids):
    encoder = encoder_of("transformer", item_ids)
    examples, _ = examples_of(MIXED)
    norms = [np.linalg.norm(alone(encoder, examples, d)) for d in range(len(MIXED))]
    clip = float(np.median([n for n in norms if n > 0]))
    training = LocalTraining(**{**vars(TRAINING), "clip_norm": clip})
    got = Trainer(encoder).clipped_sum(weights_of(encoder), examples, PRIOR, training)
    assert_close(flat(got), sum(alone(encoder, examples, d, training) for d in range(len(MIXED))))
    assert got.devices == len(MIXED)
    assert got.norm <= len(MIXED) * clip


def test_a_device_that_knows_all_negatives_learns_nothing():
    histories = Histories(
        offsets=np.array([0, N_ITEMS], dtype=np.int64),
        items=np.arange(N_ITEMS, dtype=np.int32),
        times=np.arange(N_ITEMS, dtype=np.int64) * 86_400,
        sessions=np.arange(N_ITEMS, dtype=np.int32),
        weights=np.ones(N_ITEMS, dtype=np.float32),
        types=np.zeros(N_ITEMS, dtype=np.int16),
    )
    encoder = encoder_of("transformer", True)
    examples = build(histories, np.zeros(1, dtype=np.uint64))
    got = Trainer(encoder).clipped_sum(weights_of(encoder), examples, PRIOR, TRAINING)
    assert not flat(got).any()


def test_untouched_rows_of_the_id_table_stay():
    encoder = encoder_of("mean", True)
    examples, histories = examples_of((6, 9))
    training = LocalTraining(**{**vars(TRAINING), "negatives": 4})
    got = Trainer(encoder).clipped_sum(weights_of(encoder), examples, PRIOR, training)
    drawn = draw_negatives(n_items=N_ITEMS, steps=3, count=4, seed=5)
    touched = set(drawn.ravel().tolist()) | set(histories.items.tolist())
    moved = set(np.flatnonzero(np.abs(got.arrays["item_ids.weight"]).max(axis=1)).tolist())
    assert moved
    assert moved <= touched < set(range(N_ITEMS))


@pytest.mark.parametrize("training", [TRAINING, DROPPING], ids=["whole", "dropout"])
@pytest.mark.parametrize("item_ids", [False, True])
def test_the_result_does_not_depend_on_threads(item_ids, training):
    encoder = encoder_of("transformer", item_ids)
    examples, _ = examples_of(MIXED * 12)
    weights = weights_of(encoder)
    sums = [
        Trainer(encoder, threads=threads).clipped_sum(weights, examples, PRIOR, training)
        for threads in (1, 2, 4)
    ]
    for other in sums[1:]:
        for name, value in sums[0].arrays.items():
            np.testing.assert_array_equal(other.arrays[name], value)


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_left_out_does_not_depend_on_chunks(kind, monkeypatch):
    encoder = encoder_of(kind)
    trainer, weights = Trainer(encoder), weights_of(encoder)
    examples, _ = examples_of(MIXED)
    expected = flat(trainer.clipped_sum(weights, examples, PRIOR, DROPPING))
    for size in (1, 2, 5):
        monkeypatch.setattr(local_training, "_CHUNK", size)
        assert_close(flat(trainer.clipped_sum(weights, examples, PRIOR, DROPPING)), expected)


@pytest.mark.parametrize("kind", ENCODERS)
def test_without_dropout_the_encoder_is_asked_as_on_a_device(kind, monkeypatch):
    encoder = encoder_of(kind)
    examples, _ = examples_of(MIXED)
    given, forward = [], type(encoder).forward

    def watched(self, inputs, masks=None):
        given.append(masks)
        return forward(self, inputs, masks)

    monkeypatch.setattr(type(encoder), "forward", watched)
    for training, whole in ((TRAINING, True), (DROPPING, False)):
        given.clear()
        Trainer(encoder).clipped_sum(weights_of(encoder), examples, PRIOR, training)
        assert [masks is None for masks in given] == [whole] * len(given)
        assert len(given) >= TRAINING.steps


def test_dropout_changes_what_is_learned_and_its_seed_does():
    encoder = encoder_of("mean")
    examples, _ = examples_of(MIXED)
    trainer, weights = Trainer(encoder), weights_of(encoder)

    def update(masks_of=None):
        with pytest.MonkeyPatch.context() as patch:
            if masks_of is not None:  # the negatives stay those of the round
                patch.setattr(
                    local_training,
                    "draw_masks",
                    lambda encoder, **named: draw_masks(encoder, **{**named, "seed": masks_of}),
                )
            return flat(trainer.clipped_sum(weights, examples, PRIOR, DROPPING))

    whole = flat(trainer.clipped_sum(weights, examples, PRIOR, TRAINING))
    np.testing.assert_array_equal(update(), update(TRAINING.seed))
    for one, other in ((update(), whole), (update(), update(6)), (update(6), update(7))):
        assert np.linalg.norm(one - other) > 0.01 * np.linalg.norm(whole)


@pytest.mark.parametrize("kind", ENCODERS)
def test_losses_are_those_of_the_whole_model(kind):
    encoder = encoder_of(kind)
    trainer, weights = Trainer(encoder), weights_of(encoder)
    examples, _ = examples_of(MIXED)
    whole, dropping = (
        trainer.losses(weights, examples, PRIOR, training) for training in (TRAINING, DROPPING)
    )
    assert np.isfinite(whole).sum() >= 6
    np.testing.assert_array_equal(dropping, whole)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(6)), st.sampled_from(ENCODERS))
def test_the_order_of_devices_does_not_matter(order, kind):
    encoder = encoder_of(kind)
    examples, histories = examples_of((4, 11, 2, 25, 7, 7))
    order = np.array(order)
    shuffled = build(histories.take(order), order.astype(np.uint64))
    trainer, weights = Trainer(encoder), weights_of(encoder)
    expected = flat(trainer.clipped_sum(weights, examples, PRIOR, TRAINING))
    assert_close(flat(trainer.clipped_sum(weights, shuffled, PRIOR, TRAINING)), expected)


@pytest.mark.parametrize("training", [TRAINING, DROPPING], ids=["whole", "dropout"])
def test_training_leaves_everything_else_as_it_was(training):
    encoder = encoder_of("transformer", True)
    weights = weights_of(encoder)
    kept = {name: value.copy() for name, value in weights.items()}
    examples, _ = examples_of(MIXED)
    threads, random = torch.get_num_threads(), torch.random.get_rng_state()
    Trainer(encoder, threads=2).clipped_sum(weights, examples, PRIOR, training)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, p in encoder.named_parameters():
        np.testing.assert_array_equal(p.detach().numpy(), kept[name])
        np.testing.assert_array_equal(weights[name], kept[name])
        assert p.grad is None


def test_threads_are_given_back_when_training_fails():
    encoder = encoder_of("mean")
    examples, _ = examples_of(MIXED)
    weights = weights_of(encoder)
    weights["out.bias"] = weights["out.bias"][:-1]
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        Trainer(encoder).clipped_sum(weights, examples, PRIOR, TRAINING)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("strength", [np.nan, 1e38])
def test_a_device_that_diverges_contributes_nothing(strength):
    encoder = encoder_of("mean", True)
    trainer, weights = Trainer(encoder), weights_of(encoder)
    _, histories = examples_of(MIXED)
    broken, others = 5, np.delete(np.arange(len(MIXED)), 5)
    histories.weights[histories.offsets[broken] : histories.offsets[broken + 1]] = strength
    with np.errstate(all="ignore"):
        examples = build(histories, np.arange(len(MIXED), dtype=np.uint64))
    got = trainer.clipped_sum(weights, examples, PRIOR, TRAINING)
    rest = build(histories.take(others), others.astype(np.uint64))
    assert_close(flat(got), flat(trainer.clipped_sum(weights, rest, PRIOR, TRAINING)))
    assert got.devices == len(MIXED)


@pytest.mark.parametrize("training", [TRAINING, DROPPING], ids=["whole", "dropout"])
def test_local_weights_are_those_of_each_device_alone(training):
    encoder = encoder_of("transformer")
    weights = weights_of(encoder)
    examples, _ = examples_of(MIXED)
    trained = set()
    for devices, own in Trainer(encoder).local_weights(weights, examples, PRIOR, training):
        for row, device in enumerate(devices):
            expected, start = alone(encoder, examples, device, training), 0
            for name, before in weights.items():
                after = own[name][row].numpy()
                after = after.T if name in linear_weights(encoder) else after
                update = expected[start : start + before.size].reshape(before.shape)
                start += before.size
                close = 1e-5 * max(1.0, np.linalg.norm(expected))
                np.testing.assert_allclose(after, before - update, atol=close)
        trained |= set(devices.tolist())
    assert trained == set(np.flatnonzero(np.diff(examples.target_offsets)).tolist())


def test_nobody_with_anything_to_learn():
    encoder = encoder_of("mean")
    for lengths in ((), (0, 1)):
        got = Trainer(encoder).clipped_sum(
            weights_of(encoder), examples_of(lengths)[0], PRIOR, TRAINING
        )
        assert got.devices == len(lengths)
        assert not flat(got).any()


def test_an_encoder_that_cannot_be_stacked_is_refused():
    encoder = encoder_of("mean")
    encoder.slope = torch.nn.PReLU()
    with pytest.raises(ConfigError, match="'slope' \\(PReLU\\)"):
        Trainer(encoder)


def test_an_encoder_without_native_code_trains_as_a_batch(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")  # for it is needed by none
    examples, _ = examples_of(MIXED)
    for kind, item_ids in (("mean", False), ("gru", False), ("transformer", True)):
        encoder = encoder_of(kind, item_ids)
        batch, native = (
            flat(
                Trainer(encoder, compiled=how).clipped_sum(
                    weights_of(encoder), examples, PRIOR, TRAINING
                )
            )
            for how in (False, True)
        )
        np.testing.assert_array_equal(native, batch)
