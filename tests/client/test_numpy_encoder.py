import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.inference import profile_vectors
from fedprofile.client.numpy_encoder import NumpyEncoder, gelu
from fedprofile.client.profile import build
from fedprofile.client.scoring import top_k
from fedprofile.client.serving import serving_table
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import build_encoder
from fedprofile.common.errors import DataError
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable

N_ITEMS, K, N_TYPES = 30, 7, 3
BLOCKS = {"text": (0, 4), "category": (4, 7)}
KINDS = ["transformer", "gru", "mean", "dense"]
# What reads no window has no use for vectors that are trained for each item.
MODELS = [(kind, ids) for kind in KINDS for ids in (False, True) if kind != "dense" or not ids]


def make_table():
    rng = np.random.default_rng(0)
    return ItemTable(
        rng.standard_normal((N_ITEMS, K)).astype(np.float32),
        tuple(f"item {i}" for i in range(N_ITEMS)),
        ((),) * N_ITEMS,
        BLOCKS,
    )


TABLE = make_table()


def make_history(n_events, seed):
    rng = np.random.default_rng(seed)
    return Histories(
        offsets=np.array([0, n_events], dtype=np.int64),
        items=rng.integers(0, N_ITEMS, n_events).astype(np.int32),
        times=np.sort(rng.integers(0, 10**7, n_events)).astype(np.int64),
        sessions=np.arange(n_events, dtype=np.int32),
        weights=rng.uniform(0.2, 3, n_events).astype(np.float32),
        types=rng.integers(0, N_TYPES, n_events).astype(np.int16),
    )


def make_model(kind, *, seed=0, item_ids=False, scale=0.4):
    config = ModelConfig(
        encoder=kind,
        width=8,
        heads=2,
        layers=2,
        window=6,
        half_lives_days=(3.0, 40.0),
        half_lives_events=(2.0,),
        item_ids=item_ids,
        item_id_dimension=5,
    )
    encoder = build_encoder(config, blocks=BLOCKS, n_items=N_ITEMS, n_types=N_TYPES, seed=1)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: scale * torch.randn(p.shape, generator=generator)
        for name, p in encoder.named_parameters()
    }
    return config, encoder, weights


def light(config, weights):
    return NumpyEncoder(
        config,
        {name: weight.numpy() for name, weight in weights.items()},
        blocks=BLOCKS,
        vectors=TABLE.vectors,
        n_types=N_TYPES,
    )


def profile_of(history, config, encode):
    return build(
        history, table=TABLE, scales=config.scales, window_size=config.window, encode=encode
    )


def expected(history, config, encoder, weights):
    return profile_vectors(
        encoder,
        weights,
        history,
        table=TABLE,
        scales=config.scales,
        window=config.window,
    )[0]


@pytest.mark.parametrize(("kind", "item_ids"), MODELS)
@settings(max_examples=25, deadline=None)
@given(n_events=st.integers(0, 15), seed=st.integers(0, 10**6))
def test_the_profile_vector_is_torchs(kind, item_ids, n_events, seed):
    config, encoder, weights = make_model(kind, seed=seed, item_ids=item_ids)
    history = make_history(n_events, seed)
    found = profile_of(history, config, light(config, weights)).vector
    assert found.dtype == np.float32
    theirs = expected(history, config, encoder, weights)
    assert np.abs(found - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", [kind for kind, ids in MODELS if ids])
def test_the_ranking_is_torchs(kind):
    # With vectors that are trained for each item the inner product is all of the score.
    config, encoder, weights = make_model(kind, item_ids=True)
    prior = np.random.default_rng(3).standard_normal(N_ITEMS).astype(np.float32)
    served = serving_table(TABLE, prior=prior, ids=weights["item_ids.weight"].numpy())
    for seed in range(20):
        history = make_history(seed, seed)
        profile = profile_of(history, config, light(config, weights))
        scores = served.vectors @ expected(history, config, encoder, weights)
        fresh = np.setdiff1d(np.arange(N_ITEMS), history.items)
        by_torch = fresh[np.argsort(-scores[fresh], kind="stable")]
        assert top_k(profile, served, N_ITEMS).items.tolist() == by_torch.tolist()


def test_large_weights_stay_finite():
    for kind in KINDS:
        config, _, weights = make_model(kind, scale=40.0)
        vector = profile_of(make_history(12, 1), config, light(config, weights)).vector
        assert np.isfinite(vector).all()


def test_gelu_is_x_times_the_normal_distribution_function():
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30]]).astype(np.float32)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)]
    np.testing.assert_allclose(gelu(x), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_must_be_there_and_fit(kind):
    config, _, weights = make_model(kind)
    arrays = {name: weight.numpy() for name, weight in weights.items()}
    for name in arrays:
        for wrong in (
            {n: w for n, w in arrays.items() if n != name},
            {**arrays, name: arrays[name][..., :-1]},
            {**arrays, name: arrays[name].astype(np.float64)},
            {**arrays, name: np.full_like(arrays[name], np.nan)},
        ):
            with pytest.raises(DataError, match=rf"weight '{name}'"):
                NumpyEncoder(config, wrong, blocks=BLOCKS, vectors=TABLE.vectors, n_types=N_TYPES)
    with pytest.raises(DataError, match="'more' belongs to no part"):
        light(config, {**weights, "more": torch.zeros(1)})
