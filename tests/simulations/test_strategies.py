"""Lists of a whole population, by strategy and re-ranked, are those that each device would make."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.numpy_encoder import NumpyEncoder
from fedprofile.client.profile import build
from fedprofile.client.reranking import Aims, distribution, divergence, pool_size, rerank
from fedprofile.client.scoring import Ranking, top_k
from fedprofile.client.serving import serving_table
from fedprofile.client.strategies import available, strategy_of
from fedprofile.common.config import ModelConfig
from fedprofile.common.decay import Scale
from fedprofile.common.encoder import build_encoder
from fedprofile.common.histories import Histories
from fedprofile.common.items import COOCCURRENCE_BLOCK, ID_BLOCK, ItemTable
from fedprofile.common.successors import Successors
from fedprofile.simulations import strategies
from fedprofile.simulations.baselines import ItemKNN
from fedprofile.simulations.models import EncoderScorer
from fedprofile.simulations.splits import Targets
from fedprofile.simulations.strategies import (
    ByContent,
    EncoderAlone,
    Following,
    Reranked,
    TagShares,
    _miscalibration,
)

DAY = 86_400


def town(seed, n_items=130, users=3):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, users)
    n_events = int(lengths.sum())
    histories = Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=rng.integers(0, n_items, n_events).astype(np.int32),
        times=np.concatenate([np.sort(rng.integers(DAY, 900 * DAY, n)) for n in lengths]).astype(
            np.int64
        ),
        sessions=np.zeros(n_events, dtype=np.int32),
        weights=rng.uniform(0.5, 3, n_events).astype(np.float32),
        types=np.zeros(n_events, dtype=np.int16),
    )
    kinds = ("茶", "mugs", "cake", "tins")
    tags = tuple(
        tuple(rng.choice(kinds, size=rng.integers(0, 3), replace=False)) for _ in range(n_items)
    )
    vectors = rng.standard_normal((n_items, 5)).astype(np.float32)
    table = ItemTable(vectors, tuple(f"i{n}" for n in range(n_items)), tags, {"text": (0, 5)})
    return histories, table, rng.standard_normal((users, n_items)).astype(np.float32)


class Fixed:
    def __init__(self, scores):
        self.held = scores

    def scores(self, history, now):
        return self.held


def profile_of(histories, user, table):
    return build(histories.device(user), table=table, scales=(Scale("days", 30.0),), window_size=5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_tags_are_those_of_the_profile(seed):
    histories, table, _ = town(seed)
    names = sorted({tag for tags in table.tags for tag in tags})
    found = TagShares.of(table).wanted(histories)
    for user in range(histories.n_devices):
        held = profile_of(histories, user, table).tags
        expected = distribution([held.get(name, 0.0) for name in names])
        assert found[user] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    aims=st.sampled_from([Aims(diversity=0.4), Aims(calibration=0.5), Aims(0.3, 0.3)]),
)
def test_a_population_gets_the_lists_its_devices_make(seed, aims):
    histories, table, scores = town(seed)
    found = Reranked(Fixed(scores), table, TagShares.of(table), 5, aims).scores(
        histories, np.zeros(histories.n_devices, np.int64)
    )
    for user in range(histories.n_devices):
        profile = profile_of(histories, user, table)
        rest = np.setdiff1d(np.arange(table.n_items, dtype=np.int32), profile.items)
        rest = rest[np.argsort(-scores[user, rest], kind="stable")]
        ranking = Ranking(rest, scores[user, rest], tuple(table.ids[i] for i in rest))
        device = rerank(ranking.first(pool_size(5)), table, 5, aims=aims, tags=profile.tags)
        new = found[user].copy()
        new[profile.items] = -np.inf
        assert np.argsort(-new, kind="stable")[:5].tolist() == device.items.tolist()
        others = np.setdiff1d(rest, device.items)
        assert (found[user, others] == scores[user, others]).all()


def test_miscalibration_is_told_of_those_whose_tags_are_known():
    tags = (("tea",), ("mugs",), ())
    table = ItemTable(np.eye(3, dtype=np.float32), ("a", "b", "c"), tags, {"text": (0, 3)})
    histories = Histories(
        offsets=np.array([0, 1, 2]),
        items=np.array([0, 2], np.int32),
        times=np.array([DAY, DAY]),
        sessions=np.zeros(2, np.int32),
        weights=np.ones(2, np.float32),
        types=np.zeros(2, np.int16),
    )
    targets = Targets(
        history=histories,
        users=np.array([4, 7]),
        offsets=np.array([0, 1, 2]),
        items=np.array([1, 1], np.int32),
        now=np.array([2 * DAY, 2 * DAY]),
        cold_users=0,
    )
    lists = np.array([[0, 1], [0, -1]], np.int32)
    off = _miscalibration(np.array([4, 7]), lists, targets, TagShares.of(table))
    assert off.tolist() == pytest.approx([divergence(np.array([0, 1.0]), np.array([0.5, 0.5]))])


def make_model(kind, trained, seed):
    """The population's scorer, and the device's encoder of the same weights."""
    rng = np.random.default_rng(seed)
    n_items, blocks = 40, {"text": (0, 4), "category": (4, 6), COOCCURRENCE_BLOCK: (6, 9)}
    told = Successors.of(
        rng.permutation(n_items), rng.permutation(n_items), rng.uniform(0.1, 0.6, n_items)
    )
    vectors = rng.standard_normal((n_items, 9)).astype(np.float32)
    names = tuple(f"商品{item}" for item in range(n_items))
    table = ItemTable(vectors, names, ((),) * n_items, blocks, told)
    config = ModelConfig(
        encoder=kind, width=8, heads=2, layers=1, window=3, item_ids=trained, item_id_dimension=3
    )
    encoder = build_encoder(config, blocks=blocks, n_items=n_items, n_types=1, seed=seed)
    weights = {
        name: torch.from_numpy(0.4 * rng.standard_normal(weight.shape)).float()
        for name, weight in encoder.named_parameters()
    }
    encode = NumpyEncoder(
        config,
        {name: weight.numpy() for name, weight in weights.items()},
        blocks=blocks,
        vectors=vectors,
        n_types=1,
    )
    prior = np.log(rng.dirichlet(np.ones(n_items))).astype(np.float32)
    return EncoderScorer(encoder, weights, table, prior, config), encode


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", ["transformer", "gru", "mean"])
@pytest.mark.parametrize("name", ["content", "sequential", "neural", "hybrid"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_row_has_the_lists_that_devices_make_by_that_strategy(name, kind, trained, seed):
    scorer, encode = make_model(kind, trained, seed)
    histories, _, _ = town(seed, n_items=40, users=6)
    rows = {"content": ByContent, "sequential": Following, "neural": EncoderAlone}
    row = rows[name](scorer) if name in rows else scorer
    found = row.scores(histories, np.full(6, 2_000 * DAY, np.int64)).copy()
    found[histories.devices, histories.items] = -np.inf
    model, public = scorer.model, scorer.table
    ids = scorer.weights["item_ids.weight"].numpy() if trained else None
    served = serving_table(public, prior=scorer.prior, ids=ids)
    for user in range(6):
        profile = build(
            histories.device(user),
            table=public,
            scales=model.scales,
            window_size=model.window,
            encode=encode,
        )
        scores = None
        if name != "hybrid":
            scores = strategy_of(name).scores(profile, public, served)
        device = top_k(profile, served, 10, scores=scores)
        assert np.argsort(-found[user], kind="stable")[:10].tolist() == device.items.tolist()
        if name != "hybrid":  # whose row is the mixture with repeats
            expected = found[user, device.items]
            np.testing.assert_allclose(device.scores, expected, rtol=1e-3, atol=1e-4)


def test_rows_by_strategies_of_the_device_are_where_it_has_them(monkeypatch):
    """And content is compared where something is known of the items but their ids."""
    histories, table, _ = town(1, n_items=12)
    knn = ItemKNN.fit(histories, table, neighbours=2)
    monkeypatch.setattr(strategies, "tuned_baselines", lambda *_, **__: {"item-knn": knn})
    scorer, _ = make_model("mean", False, 0)
    bare = replace(scorer.table, blocks={ID_BLOCK: (0, 6), COOCCURRENCE_BLOCK: (6, 9)})
    for table in (
        scorer.table,
        bare,
        replace(scorer.table, successors=None),
        replace(bare, successors=Successors.none()),
    ):
        told = replace(scorer, table=table)
        rows = [name for name, *_ in strategies._strategies(told, None, None, 5, ())]
        assert len(rows) == strategies.ways(table)
        served = serving_table(table, prior=scorer.prior, ids=None)
        names = ("content", "sequential", "neural", "hybrid")
        by_device = available(table, served)
        assert tuple(name for name in rows if name in names) == by_device


def test_both_ways_by_neighbours_have_the_same_settings_and_are_pooled(monkeypatch):
    histories, table, _ = town(1, n_items=12)
    knn = ItemKNN.fit(histories, table, neighbours=2, scale=Scale("events", 2.0))
    tuned = {"content-cosine": None, "item-knn": knn}
    monkeypatch.setattr(strategies, "tuned_baselines", lambda *_, **__: tuned)
    found = strategies._strategies(SimpleNamespace(table=table), None, None, 5, ())
    made = {name: (private, model) for name, private, model in found}
    assert made["collaborative"] == (False, knn)
    private, normalised = made["collaborative, normalised"]
    assert not private
    assert normalised.knn is knn
    assert len(made) == strategies.ways(table)


def test_each_way_has_its_own_part_alone():
    histories, table, _ = town(3, n_items=12, users=2)
    told = Successors.of(
        np.array([histories.items[-1]]),
        np.array([int(histories.items[-1] + 1) % 12]),
        np.array([0.6]),
    )
    encoder = build_encoder(
        ModelConfig(encoder="mean", width=4, window=4),
        blocks=table.blocks,
        n_items=12,
        n_types=1,
        seed=0,
    )
    prior = np.random.default_rng(1).normal(size=12).astype(np.float32)
    scorer = EncoderScorer(
        encoder=encoder,
        weights=dict(encoder.named_parameters()),
        table=replace(table, successors=told),
        prior=prior,
        model=ModelConfig(encoder="mean", width=4, window=4),
    )
    now = np.zeros(2, dtype=np.int64)
    alone = EncoderAlone(scorer).scores(histories, now)
    # Whatever popularity and successors are.
    bare = replace(scorer, table=table, prior=np.zeros(12, np.float32))
    np.testing.assert_array_equal(alone, EncoderAlone(bare).scores(histories, now))
    assert np.abs(alone - scorer.unmixed(histories)).max() > 0.1
    followed = Following(scorer).scores(histories, now)
    after = int(told.pairs[0, 1])
    risen = followed[1] - followed[0]
    assert risen.argmax() == after
    np.testing.assert_allclose(np.exp(followed).sum(axis=1), np.exp(prior).sum(), rtol=1e-5)
