"""Native training against devices one at a time in double precision, and against the batch."""

import copy
import math
import os
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedprofile.client.batches import Cohort
from fedprofile.client.examples import Examples
from fedprofile.client.local_training import LocalTraining, Trainer, draw_negatives
from fedprofile.client.native_step import NativeRound
from fedprofile.client.stacked import linear_weights
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import EncoderInputs, build_encoder
from fedprofile.common.errors import ConfigError

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler"
)

N_ITEMS = 60
PRIOR = np.random.default_rng(1).normal(size=N_ITEMS).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of an encoder and its training; ``events``, ``queries`` and ``targets`` of each device."""

    width: int = 8
    layers: int = 1
    heads: int = 1
    dimension: int = 10
    blocks: int = 1
    scales: int = 1
    types: int = 1
    negatives: int = 20
    steps: int = 1
    events: tuple[int, ...] = (1, 9, 60, 2, 17, 33, 5)
    queries: tuple[int, ...] = (1, 5, 60, 0, 1, 20, 8)
    targets: tuple[int, ...] = (1, 5, 75, 0, 9, 20, 16)

    @property
    def training(self):
        return LocalTraining(
            steps=self.steps,
            learning_rate=0.1,
            negatives=self.negatives,
            clip_norm=math.inf,
            seed=5,
        )


SIZES = {
    "smallest": Sizes(),
    "odd widths": Sizes(width=24, heads=2, dimension=37, blocks=2, scales=3, types=3, steps=3),
    "three layers": Sizes(width=40, layers=3, heads=4, dimension=50, blocks=3, scales=2, steps=3),
    "full tiles": Sizes(width=64, layers=2, heads=2, dimension=128, scales=4, negatives=128),
    "one negative": Sizes(width=12, heads=4, dimension=3, blocks=3, types=2, negatives=1, steps=2),
}


def encoder_of(sizes):
    bounds = np.linspace(0, sizes.dimension, sizes.blocks + 1).astype(int).tolist()
    encoder = build_encoder(
        ModelConfig(
            encoder="transformer",
            width=sizes.width,
            layers=sizes.layers,
            heads=sizes.heads,
            half_lives_days=tuple(float(s + 1) for s in range(sizes.scales)),
            half_lives_events=(),
        ),
        blocks={str(b): (bounds[b], bounds[b + 1]) for b in range(sizes.blocks)},
        n_items=N_ITEMS,
        n_types=sizes.types,
        seed=2,
    )
    # As after some rounds: nothing is zero any more.
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in encoder.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return encoder


def weights_of(encoder):
    return {name: p.detach().numpy().copy() for name, p in encoder.named_parameters()}


def offsets_of(counts):
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def examples_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    events, queries, targets = (sum(c) for c in (sizes.events, sizes.queries, sizes.targets))
    vectors = rng.normal(size=(N_ITEMS, sizes.dimension)).astype(np.float32)
    asked = [rng.integers(0, n, m) for n, m in zip(sizes.queries, sizes.targets, strict=True)]
    known_at = [rng.integers(0, n + 1, m) for n, m in zip(sizes.events, sizes.queries, strict=True)]
    sums = 3 * rng.normal(size=(queries, sizes.scales, sizes.dimension))
    sums[rng.random((queries, sizes.scales)) < 0.1] = 0.0  # nothing known of this scale
    return Examples(
        window_offsets=offsets_of(sizes.events),
        window_items=rng.integers(0, N_ITEMS, events).astype(np.int32),
        window_gaps=rng.exponential(size=events).astype(np.float32),
        window_types=rng.integers(0, sizes.types, events).astype(np.int16),
        window_weights=np.ones(events, dtype=np.float32),
        query_offsets=offsets_of(sizes.queries),
        query_positions=np.concatenate(known_at).astype(np.int64),
        query_sums=sums.astype(np.float32),
        target_offsets=offsets_of(sizes.targets),
        target_queries=np.concatenate(asked).astype(np.int64),
        target_items=rng.integers(0, N_ITEMS, targets).astype(np.int32),
        known=sparse.csr_matrix(rng.random((len(sizes.events), N_ITEMS)) < 0.3),
        vectors=vectors,
    )


def alone(encoder, examples, device, training):
    """Update of one device: float64, by autograd and SGD, the loss written out."""
    model = copy.deepcopy(encoder).double()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=training.learning_rate)
    w = slice(*examples.window_offsets[device : device + 2])
    q = slice(*examples.query_offsets[device : device + 2])
    t = slice(*examples.target_offsets[device : device + 2])
    vectors, priors = torch.from_numpy(examples.vectors).double(), torch.from_numpy(PRIOR).double()
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
    queries = torch.from_numpy(examples.target_queries[t])
    targets = torch.from_numpy(examples.target_items[t]).long()
    history = set(examples.known[device].indices.tolist())
    drawn = draw_negatives(
        n_items=N_ITEMS, steps=training.steps, count=training.negatives, seed=training.seed
    )
    for negatives in drawn.tolist() if len(targets) else []:
        kept = [item for item in negatives if item not in history]
        optimizer.zero_grad()
        scores = model(inputs) @ vectors.T + priors
        others = torch.logsumexp(scores[:, kept], dim=1) + math.log(N_ITEMS / training.negatives)
        both = torch.stack([scores[queries, targets], others[queries]])
        (torch.logsumexp(both, dim=0) - both[0]).mean().backward()
        optimizer.step()
    update = [b - p.detach() for b, p in zip(before, model.parameters(), strict=True)]
    return np.concatenate([u.flatten().numpy() for u in update])


def native_round(encoder, examples, training):
    transposed = linear_weights(encoder)
    weights = {
        name: p.detach().T.contiguous() if name in transposed else p.detach().clone()
        for name, p in encoder.named_parameters()
    }
    drawn = draw_negatives(
        n_items=N_ITEMS, steps=training.steps, count=training.negatives, seed=training.seed
    )
    cohort = Cohort(examples, torch.from_numpy(PRIOR), drawn)
    return NativeRound(encoder, weights, cohort, learning_rate=training.learning_rate)


def native_updates(encoder, examples, training):
    """Device → its update."""
    transposed = linear_weights(encoder)
    devices = np.flatnonzero(np.diff(examples.target_offsets))
    found = native_round(encoder, examples, training).updates(devices)
    return {
        device: np.concatenate(
            [
                (u[row].T if name in transposed else u[row]).flatten().numpy()
                for name, u in found.items()
            ]
        )
        for row, device in enumerate(devices)
    }


def clipped_sum(encoder, examples, training, **how):
    trainer = Trainer(encoder, **how)
    update = trainer.clipped_sum(weights_of(encoder), examples, PRIOR, training)
    return np.concatenate([a.astype(np.float64).ravel() for a in update.arrays.values()])


def assert_close(got, expected):
    """To 1e-5 of the norm of the expected update."""
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_device_learns_what_it_learns_alone(sizes):
    encoder, examples = encoder_of(sizes), examples_of(sizes)
    updates = native_updates(encoder, examples, sizes.training)
    assert len(updates) == 6
    for device, update in updates.items():
        assert_close(update, alone(encoder, examples, device, sizes.training))


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_the_clipped_sum_is_that_of_the_batch(sizes):
    encoder, examples = encoder_of(sizes), examples_of(sizes)
    norms = [np.linalg.norm(u) for u in native_updates(encoder, examples, sizes.training).values()]
    training = replace(sizes.training, clip_norm=float(np.median(norms)))
    expected = clipped_sum(encoder, examples, training)
    assert_close(clipped_sum(encoder, examples, training, compiled=True), expected)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_size_will_do(data):
    def number(most, least=1):
        return data.draw(st.integers(least, most))

    heads, dimension = number(3), number(35)
    devices = [(number(40), number(20), number(30)) for _ in range(2)]
    events, queries, targets = zip(*devices, strict=True)
    sizes = Sizes(
        width=4 * heads * number(5),
        layers=number(2),
        heads=heads,
        dimension=dimension,
        blocks=number(min(3, dimension)),
        scales=number(3),
        types=number(3),
        negatives=number(40),
        steps=number(2),
        events=events,
        queries=queries,
        targets=targets,
    )
    encoder, examples = encoder_of(sizes), examples_of(sizes, seed=number(1000))
    for device, update in native_updates(encoder, examples, sizes.training).items():
        expected = alone(encoder, examples, device, sizes.training)
        np.testing.assert_allclose(update, expected, atol=3e-5 * max(np.abs(expected).max(), 1e-2))


def test_where_something_is_left_out_the_batch_trains():
    sizes = SIZES["odd widths"]
    encoder, examples = encoder_of(sizes), examples_of(sizes)
    training = replace(sizes.training, dropout=0.3)
    expected = clipped_sum(encoder, examples, training)
    np.testing.assert_array_equal(clipped_sum(encoder, examples, training, compiled=True), expected)
    whole = clipped_sum(encoder, examples, sizes.training, compiled=True)
    assert np.linalg.norm(whole - expected) > 0.01 * np.linalg.norm(whole)


def test_local_weights_are_those_of_the_batch():
    sizes = SIZES["odd widths"]
    encoder, examples = encoder_of(sizes), examples_of(sizes)

    def trained(**how):
        local = Trainer(encoder, **how).local_weights
        return list(local(weights_of(encoder), examples, PRIOR, sizes.training))

    for native, batch in zip(trained(compiled=True), trained(), strict=True):
        np.testing.assert_array_equal(native[0], batch[0])
        for name, own in batch[1].items():
            torch.testing.assert_close(native[1][name], own, atol=1e-5, rtol=1e-5)


def test_a_device_that_knows_all_negatives_learns_nothing():
    sizes = Sizes(events=(9, 9), queries=(5, 5), targets=(5, 5), steps=2)
    encoder, examples = encoder_of(sizes), examples_of(sizes)
    known = np.ones((2, N_ITEMS), dtype=bool)
    known[1] = False
    examples = replace(examples, known=sparse.csr_matrix(known))
    updates = native_updates(encoder, examples, sizes.training)
    assert not updates[0].any()
    assert updates[1].any()


@pytest.mark.parametrize("strength", [np.nan, np.inf, 1e38])
def test_a_device_that_diverges_contributes_nothing(strength):
    sizes = SIZES["odd widths"]
    encoder, examples = encoder_of(sizes), examples_of(sizes)
    broken = 1
    queries = slice(*examples.query_offsets[broken : broken + 2])
    examples.query_sums[queries] = strength * np.sign(examples.query_sums[queries] + 0.5)
    updates = native_updates(encoder, examples, sizes.training)
    others = sum(u for device, u in updates.items() if device != broken)
    expected = others + (updates[broken] if np.isfinite(updates[broken]).all() else 0)
    assert np.isfinite(updates[broken]).all() == (strength == 1e38)
    assert_close(clipped_sum(encoder, examples, sizes.training, compiled=True), expected)


@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_training_that_explodes_contributes_nothing(rate):
    sizes = replace(SIZES["odd widths"], steps=3)
    encoder, examples = encoder_of(sizes), examples_of(sizes)
    training = replace(sizes.training, learning_rate=rate)
    for compiled in (False, True):
        assert not clipped_sum(encoder, examples, training, compiled=compiled).any()


def test_the_result_does_not_depend_on_threads_or_place():
    sizes = SIZES["odd widths"]
    many = replace(
        sizes, events=sizes.events * 25, queries=sizes.queries * 25, targets=sizes.targets * 25
    )
    encoder, examples = encoder_of(many), examples_of(many)
    once = clipped_sum(encoder, examples, many.training, compiled=True, threads=1)
    for threads in (1, 2, 4):
        again = clipped_sum(encoder, examples, many.training, compiled=True, threads=threads)
        np.testing.assert_array_equal(once, again)
    round_ = native_round(encoder, examples, many.training)
    together, alone_ = round_.updates(np.array([3, 9, 4])), round_.updates(np.array([4]))
    for name, update in alone_.items():
        assert torch.equal(together[name][2], update[0])


def test_weights_and_indices_that_do_not_fit_are_refused():
    sizes = Sizes()
    encoder, examples = encoder_of(sizes), examples_of(sizes)
    weights = weights_of(encoder)
    trainer = Trainer(encoder, compiled=True)
    for name, wrong in (("out.bias", weights["out.bias"][:-1]), ("more", np.zeros(3, np.float32))):
        with pytest.raises(RuntimeError, match=name):
            trainer.clipped_sum({**weights, name: wrong}, examples, PRIOR, sizes.training)
    for array in ("vectors", "query_sums"):
        narrow = replace(examples, **{array: getattr(examples, array)[..., :-1]})
        with pytest.raises(RuntimeError, match="dimensions"):
            trainer.clipped_sum(weights, narrow, PRIOR, sizes.training)
    for array in ("window_items", "window_types", "query_positions", "target_queries"):
        for wrong in (-1, 99):
            held = getattr(examples, array).copy()
            held[0] = wrong
            with pytest.raises(RuntimeError, match="out of range"):
                trainer.clipped_sum(
                    weights, replace(examples, **{array: held}), PRIOR, sizes.training
                )


def test_without_a_compiler_it_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler"):
        Trainer(encoder_of(Sizes()), compiled=True)
