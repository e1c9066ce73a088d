"""Baselines do what their papers say, from training events only."""

from dataclasses import fields, replace

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from fedprofile.common.decay import Scale
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable
from fedprofile.simulations import baselines
from fedprofile.simulations.baselines import (
    EASE,
    ContentCosine,
    ItemKNN,
    PersonalFrequency,
    Popularity,
    WeightedSum,
    tune,
    tuned_baselines,
)
from fedprofile.simulations.evaluation import evaluate
from fedprofile.simulations.splits import global_time_split

DAY = 86_400
N_ITEMS = 12


def log(*devices):
    """Histories from one list of (day, item) per device, in order; each day is a session."""
    events = [event for device in devices for event in device]
    days, items = (
        (np.array(c, np.int64) for c in zip(*events, strict=True))
        if events
        else (np.zeros((2, 0), np.int64))
    )
    return Histories(
        offsets=np.cumsum([0, *map(len, devices)]).astype(np.int64),
        items=items.astype(np.int32),
        times=days * DAY,
        sessions=days.astype(np.int32),
        weights=np.ones(len(items), np.float32),
        types=np.zeros(len(items), np.int16),
    )


@pytest.fixture
def table():
    vectors = np.random.default_rng(0).normal(size=(N_ITEMS, 4)).astype(np.float32)
    vectors[-1] = 0  # an item without content
    return ItemTable(vectors, tuple(map(str, range(N_ITEMS))), ((),) * N_ITEMS)


@pytest.fixture
def train():
    rng = np.random.default_rng(1)
    return log(*[sorted(rng.integers(0, (50, 11), (8, 2)).tolist()) for _ in range(40)])


def binary(train):
    matrix = np.zeros((train.n_devices, N_ITEMS))
    matrix[train.devices, train.items] = 1
    return matrix


def ask(scorer, *devices, day=100):
    return scorer.scores(log(*devices), np.full(len(devices), day * DAY, np.int64))


def test_popularity_counts_users_once(table):
    train = log([(1, 0), (2, 0), (3, 1)], [(3, 1)], [])
    assert Popularity.fit(train, table).counts[:3].tolist() == [1, 2, 0]
    decayed = Popularity.fit(train, table, half_life_days=1.0).counts
    assert decayed[:3].tolist() == [0.5, 2, 0]  # item 0: last taken a day before the end
    assert ask(Popularity.fit(train, table), [], [(1, 5)]).shape == (2, N_ITEMS)


def test_content_cosine(table):
    [scores] = ask(ContentCosine.fit(table), [(1, 3)])
    np.testing.assert_allclose(
        scores, cosine_similarity(table.vectors[[3]], table.vectors)[0], atol=1e-6
    )
    # After two days at a half-life of one, the older item weighs a quarter.
    [scores] = ask(ContentCosine.fit(table, Scale("days", 1.0)), [(1, 3), (3, 4)])
    unit = table.vectors / np.linalg.norm(table.vectors, axis=1, keepdims=True).clip(1e-9)
    expected = cosine_similarity([0.25 * unit[3] + unit[4]], table.vectors)[0]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_a_long_absence_ranks_like_a_short_one(table):
    events = [(1, 3), (3, 4)]
    for kind in (ContentCosine.fit(table), PersonalFrequency.fit(log(events), table)):
        model = replace(kind, scale=Scale("days", 1.0))
        np.testing.assert_array_equal(ask(model, events, day=4), ask(model, events, day=9_000))


def test_item_knn_against_cosine(train, table):
    cosine = cosine_similarity(binary(train).T)
    np.fill_diagonal(cosine, 0)
    everything = ItemKNN.fit(train, table, neighbours=50).similarity.toarray()
    np.testing.assert_allclose(everything, cosine, atol=1e-6)
    nearest = ItemKNN.fit(train, table, neighbours=3).similarity.toarray()
    for candidate in range(N_ITEMS):
        kept = np.sort(nearest[:, candidate])[-3:]
        np.testing.assert_allclose(kept, np.sort(cosine[:, candidate])[-3:], atol=1e-6)
        assert (nearest[:, candidate] > 0).sum() <= 3


def test_item_knn_blocks_change_nothing(train, table, monkeypatch):
    whole = ItemKNN.fit(train, table, neighbours=50).similarity.toarray()
    monkeypatch.setattr(baselines, "_ITEMS_AT_ONCE", 5)
    np.testing.assert_array_equal(
        whole, ItemKNN.fit(train, table, neighbours=50).similarity.toarray()
    )


def test_a_weighted_sum_is_the_mean_of_the_neighbours_kept(train, table):
    """Item by item as the paper has it; a neighbour that isn't held has the rating 0."""
    knn = ItemKNN.fit(train, table, neighbours=3, scale=Scale("days", 2.0))
    similarity = knn.similarity.toarray().astype(float)
    held = [[(1, 3), (3, 4), (3, 0)], [(1, 7)], []]
    ratings = [{3: 0.5, 4: 1.0, 0: 1.0}, {7: 1.0}, {}]
    found = ask(WeightedSum(knn), *held)
    for user, rating in enumerate(ratings):
        for candidate in range(N_ITEMS):
            near = [j for j in range(N_ITEMS) if similarity[j, candidate] > 0]
            total = sum(similarity[j, candidate] for j in near)
            likely = sum(similarity[j, candidate] * rating.get(j, 0.0) for j in near)
            expected = likely / total if near else 0.0
            assert found[user, candidate] == pytest.approx(expected, abs=1e-6)
    assert not similarity[:, -1].any()  # the last item was never taken: it has no neighbours
    assert (found[0] > 0).sum() > 3


def test_a_weighted_sum_ranks_an_item_with_one_neighbour_first(table):
    """Which is why it is no baseline: item 2 was taken once, with what everybody has."""
    train = log(*[[(1, 0), (1, 1), (1, 5)]] * 9, [(1, 0), (1, 2)])
    knn = ItemKNN.fit(train, table)
    [plain], [mean] = ask(knn, [(1, 0)]), ask(WeightedSum(knn), [(1, 0)])
    assert plain.argmax() == 1
    assert mean.argmax() == 2
    assert mean[2] == 1.0


def test_ease_is_a_ridge_regression_of_each_item_on_the_others(train, table):
    matrix = binary(train)
    weights = EASE.fit(train, table, ridge=2.0).weights
    for item in range(N_ITEMS):
        others = np.delete(np.arange(N_ITEMS), item)
        gram = matrix[:, others].T @ matrix[:, others] + 2.0 * np.eye(len(others))
        expected = np.linalg.solve(gram, matrix[:, others].T @ matrix[:, item])
        np.testing.assert_allclose(weights[others, item], expected, atol=1e-5)
        assert weights[item, item] == 0


def test_ease_scores_the_decayed_profile(train, table):
    model = EASE.fit(train, table, ridge=2.0, scale=Scale("days", 2.0))
    [scores] = ask(model, [(1, 3), (3, 4)])
    expected = 0.5 * model.weights[3] + model.weights[4]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_ease_forgets_old_training_events(table):
    old, new = [(0, 0), (0, 1)], [(100, 0), (100, 2)]
    weights = EASE.fit(log(old, new), table, ridge=1.0, half_life_days=10.0).weights
    assert weights[0, 2] > 10 * abs(weights[0, 1])
    lasting = EASE.fit(log(old, new), table, ridge=1.0).weights
    assert lasting[0, 2] == pytest.approx(lasting[0, 1])


def test_personal_frequency_puts_own_items_first(table):
    train = log([(1, 5)], [(1, 5)], [(1, 6)])
    [scores] = ask(PersonalFrequency.fit(train, table), [(1, 2), (2, 2), (3, 7)])
    assert np.argsort(-scores, kind="stable")[:4].tolist() == [2, 7, 5, 6]
    [scores] = ask(
        PersonalFrequency.fit(train, table, Scale("days", 1.0)), [(1, 2), (2, 2), (3, 7)]
    )
    assert np.argsort(-scores, kind="stable")[:4].tolist() == [7, 2, 5, 6]


def test_personal_frequency_counts_times_and_breaks_ties_by_popularity(table):
    train = log([(1, 5)], [(1, 5)], [(1, 6)])
    frequency = PersonalFrequency.fit(train, table)
    history = log([(1, 2), (2, 2), (3, 7), (4, 6), (5, 5)])
    bulk = replace(history, weights=np.array([1, 1, 99, 1, 1], np.float32))
    [scores] = frequency.scores(bulk, np.array([10 * DAY]))
    assert np.argsort(-scores, kind="stable")[:4].tolist() == [2, 5, 6, 7]


def test_tune_takes_the_best_on_validation(table):
    histories = log(*[[(1, i % 5), (1, 5), (11, 6)] for i in range(30)], *[[(1, 0)]] * 9)
    split = global_time_split(histories, 10 * DAY, 20 * DAY)
    useless = Popularity.fit(split.train, table)
    counts = np.zeros(N_ITEMS, np.float32)
    counts[6] = 1
    good = replace(useless, counts=counts)
    chosen = tune(iter([useless, good, good]), split.validation, k=1, mask_seen=True)
    assert chosen is good


def test_tune_chooses_for_the_view_it_is_told(table):
    split = global_time_split(log(*[[(1, 0), (11, 0), (11, 6)]] * 9), 10 * DAY, 20 * DAY)
    repeats, new = (
        Popularity(np.eye(N_ITEMS, dtype=np.float32)[items].sum(axis=0), None)
        for items in ([0, 0, 5], [6])
    )
    # Each finds one target of each user; only one of them is new.
    assert tune([repeats, new], split.validation, k=1, mask_seen=True) is new
    assert tune([repeats, new], split.validation, k=1, mask_seen=False) is repeats


def test_baselines_never_look_at_the_test(train, table):
    split = replace(global_time_split(train, 30 * DAY, 40 * DAY), test=None)
    models = tuned_baselines(split, table, k=5)
    assert set(models) == {
        "popularity",
        "recent-popularity",
        "content-cosine",
        "item-knn",
        "personal-frequency",
        "ease",
    }


def test_a_refit_keeps_the_settings_and_sees_the_validation_part(train, table):
    before = global_time_split(train, 30 * DAY, 40 * DAY)
    after = global_time_split(train, 30 * DAY, 40 * DAY, refit=True)
    chosen, refitted = (tuned_baselines(split, table, k=5) for split in (before, after))
    for name, model in refitted.items():
        settings = {f.name: getattr(model, f.name) for f in fields(model)}
        expected = chosen[name].refit(after.train, table)
        assert type(model) is type(chosen[name])
        for setting, value in settings.items():
            if isinstance(value, float | int | Scale | None):
                assert value == getattr(chosen[name], setting), (name, setting)
        history = log([(1, 3), (2, 5)])
        now = np.array([50 * DAY])
        scores = model.scores(history, now)
        np.testing.assert_array_equal(scores, expected.scores(history, now))
    newer = Popularity.fit(after.train, table).counts
    np.testing.assert_array_equal(refitted["popularity"].counts, newer)
    assert newer.sum() > chosen["popularity"].counts.sum()


def test_large_catalogues_go_without_ease(train, table, monkeypatch):
    monkeypatch.setattr(baselines, "MAXIMUM_EASE_ITEMS", N_ITEMS - 1)
    split = global_time_split(train, 30 * DAY, 40 * DAY)
    assert "ease" not in tuned_baselines(split, table, k=5)


@pytest.mark.parametrize("held", [[], [(1, 3)]])
def test_empty_training_or_history_gives_finite_scores(held, table):
    for train in (log([], []), log([(1, 0)])):
        for model in (
            Popularity.fit(train, table, 30.0),
            ContentCosine.fit(table, Scale("days", 3.0)),
            ItemKNN.fit(train, table),
            EASE.fit(train, table, half_life_days=3.0),
            PersonalFrequency.fit(train, table),
        ):
            scores = ask(model, held, [])
            assert scores.shape == (2, N_ITEMS)
            assert scores.dtype == np.float32
            assert np.isfinite(scores).all()


def test_co_occurrence_beats_popularity_where_tastes_differ(table):
    rng = np.random.default_rng(3)
    devices = []
    for user in range(200):
        taste = rng.permutation(np.arange(6) + 6 * (user % 2))
        devices.append([(d, i) for d, i in zip((1, 2, 3, 12, 22), taste, strict=False)])
    split = global_time_split(log(*devices), 10 * DAY, 20 * DAY)
    models = tuned_baselines(split, table, k=2, without=("content-cosine",))
    assert "content-cosine" not in models
    counts = models["popularity"].counts
    ndcg = {
        name: evaluate(model, split.test, table, counts, k=2, bootstrap_samples=0)
        .new_items.means["ndcg_at_k"]
        .mean
        for name, model in models.items()
    }
    assert ndcg["ease"] > 2 * ndcg["popularity"]
    assert ndcg["item-knn"] > 2 * ndcg["popularity"]
