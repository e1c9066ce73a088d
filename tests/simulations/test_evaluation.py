"""One evaluation: both views from one pass, whatever the number of users."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedprofile.common.histories import Histories
from fedprofile.common.items import COOCCURRENCE_BLOCK, ID_BLOCK, ItemTable
from fedprofile.simulations import evaluation
from fedprofile.simulations.evaluation import evaluate
from fedprofile.simulations.metrics import rank_metrics
from fedprofile.simulations.splits import Targets, global_time_split

N_ITEMS = 30


class Fixed:
    """Scores from a table by a user's first item and the time asked."""

    def __init__(self):
        self.table = np.random.default_rng(0).random((N_ITEMS, N_ITEMS)).astype(np.float32)
        self.sizes = []

    def scores(self, history, now):
        self.sizes.append(history.n_devices)
        assert now.shape == (history.n_devices,)
        return self.table[history.items[history.offsets[:-1]]]


@pytest.fixture
def targets() -> Targets:
    rng = np.random.default_rng(1)
    lengths = np.full(50, 6)
    events = int(lengths.sum())
    histories = Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=rng.integers(0, N_ITEMS, events).astype(np.int32),
        times=np.tile(np.arange(6), 50).astype(np.int64),
        sessions=np.tile([0, 0, 1, 1, 2, 2], 50).astype(np.int32),
        weights=np.ones(events, np.float32),
        types=np.zeros(events, np.int16),
    )
    return global_time_split(histories, 2, 4).test


@pytest.fixture
def table() -> ItemTable:
    vectors = np.random.default_rng(2).normal(size=(N_ITEMS, 5)).astype(np.float32)
    return ItemTable(vectors, tuple(map(str, range(N_ITEMS))), ((),) * N_ITEMS)


POPULARITY = np.arange(N_ITEMS, dtype=np.float32)


def test_both_views_agree_with_the_metrics(targets, table):
    scorer = Fixed()
    found = evaluate(scorer, targets, table, POPULARITY, k=5, bootstrap_samples=100)
    scores = scorer.scores(targets.history, targets.now)
    for view, mask_seen in ((found.new_items, True), (found.all_items, False)):
        expected = rank_metrics(scores, targets, k=5, mask_seen=mask_seen)
        np.testing.assert_array_equal(view.ranks.users, expected.users)
        np.testing.assert_array_equal(view.ranks.ndcg, expected.ndcg)
        assert view.means["recall_at_k"].mean == expected.recall.mean()
        interval = view.means["ndcg_at_k"]
        assert interval.low < interval.mean < interval.high


def test_chunks_change_nothing(targets, table, monkeypatch):
    whole = evaluate(Fixed(), targets, table, POPULARITY, k=5, bootstrap_samples=50).to_dict()
    monkeypatch.setattr(evaluation, "CHUNK", 7)
    scorer = Fixed()
    parts = evaluate(scorer, targets, table, POPULARITY, k=5, bootstrap_samples=50).to_dict()
    assert scorer.sizes == [7] * 7 + [1]  # each user scored once for both views
    assert parts == whole


def test_diversity_needs_to_know_what_is_alike(targets, table):
    def diversity(table):
        view = evaluate(Fixed(), targets, table, POPULARITY, k=5, bootstrap_samples=0).new_items
        return view.to_dict()["diversity_at_k"]["mean"]

    bare = replace(table, blocks={ID_BLOCK: (0, 3), COOCCURRENCE_BLOCK: (3, 5)})
    assert diversity(bare) == diversity(table)  # what is taken together was released
    empty = bare.with_values(COOCCURRENCE_BLOCK, np.zeros((N_ITEMS, 2), np.float32))
    assert diversity(empty) is None
    assert diversity(replace(empty, blocks={"text": (0, 3), **empty.blocks})) is not None


def test_the_dictionary_is_json(targets, table):
    found = evaluate(Fixed(), targets, table, POPULARITY, k=5, bootstrap_samples=0).to_dict()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["k"] == 5
    assert set(again["new"]) == {
        "users",
        "hr_at_k",
        "recall_at_k",
        "ndcg_at_k",
        "mrr",
        "diversity_at_k",
        "novelty_at_k",
        "coverage_at_k",
    }
    assert again["all"]["ndcg_at_k"]["low"] is None


def test_nobody_to_ask(targets, table):
    nobody = targets.chunk(0, 0)
    found = evaluate(Fixed(), nobody, table, POPULARITY, k=5, bootstrap_samples=10).to_dict()
    assert found["new"]["users"] == 0
    assert found["new"]["ndcg_at_k"]["mean"] is None
    assert found["new"]["coverage_at_k"] == 0.0
