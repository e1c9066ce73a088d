"""Metrics agree with an established library, with a loop, and never flatter."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.histories import Histories
from fedprofile.simulations.metrics import coverage, diversity, novelty, rank_metrics
from fedprofile.simulations.splits import Targets


def targets(seen, wanted):
    """Targets from the seen items and the target items of each user."""
    length = sum(map(len, seen))
    history = Histories(
        offsets=np.cumsum([0, *map(len, seen)]).astype(np.int64),
        items=np.array([i for items in seen for i in items], np.int32),
        times=np.zeros(length, np.int64),
        sessions=np.zeros(length, np.int32),
        weights=np.ones(length, np.float32),
        types=np.zeros(length, np.int16),
    )
    return Targets(
        history=history,
        users=np.arange(len(wanted), dtype=np.int64) + 7,
        offsets=np.cumsum([0, *map(len, wanted)]).astype(np.int64),
        items=np.array([i for items in wanted for i in items], np.int32),
        now=np.zeros(len(wanted), np.int64),
        cold_users=0,
    )


def by_hand(scores, seen, wanted, k, mask_seen):
    """One user, the slow way: sort items by score, targets behind everything they tie with."""
    scores = [-1e300 if np.isnan(s) or s == -np.inf else float(s) for s in scores]
    items = [i for i in range(len(scores)) if not (mask_seen and i in seen)]
    wanted = [i for i in wanted if i in items]
    ranking = sorted(items, key=lambda i: (-scores[i], i in wanted))
    ranks = sorted(ranking.index(i) + 1 for i in wanted)
    if not ranks:
        return None
    found = [r for r in ranks if r <= k]
    dcg = sum(1 / np.log2(r + 1) for r in found)
    ideal = sum(1 / np.log2(r + 1) for r in range(1, min(k, len(ranks)) + 1))
    return bool(found), len(found) / len(ranks), dcg / ideal, 1 / ranks[0]


@st.composite
def cases(draw):
    n_items = draw(st.integers(1, 8))
    score = st.sampled_from([0.0, 1.0, 2.0, -np.inf, np.nan])  # few values: many ties
    item = st.integers(0, n_items - 1)
    users = draw(
        st.lists(
            st.tuples(
                st.lists(score, min_size=n_items, max_size=n_items),
                st.lists(item, min_size=1, max_size=6),
                st.sets(item, min_size=1).map(sorted),
            ),
            min_size=1,
            max_size=4,
        )
    )
    return *zip(*users, strict=True), draw(st.integers(1, 9)), draw(st.booleans())


@given(cases())
def test_agrees_with_a_loop(case):
    scores, seen, wanted, k, mask_seen = case
    before = np.array(scores, np.float32)
    found = rank_metrics(before, targets(seen, wanted), k=k, mask_seen=mask_seen)
    np.testing.assert_array_equal(before, np.array(scores, np.float32))  # left as they were
    expected = {
        user + 7: values
        for user in range(len(scores))
        if (values := by_hand(scores[user], seen[user], wanted[user], k, mask_seen))
    }
    assert found.users.tolist() == list(expected)
    mine = np.stack([found.hr, found.recall, found.ndcg, found.mrr], axis=1)
    np.testing.assert_allclose(mine, np.array(list(expected.values())).reshape(-1, 4), rtol=1e-12)
    for user, shown in zip(found.users - 7, found.lists, strict=True):
        shown = shown[shown >= 0]
        assert len(set(shown.tolist())) == len(shown)
        if mask_seen:
            assert not set(shown.tolist()) & set(seen[user])
        candidates = len(scores[user]) - (len(set(seen[user])) if mask_seen else 0)
        assert len(shown) == min(k, candidates)


RANX = """
import json, sys
from ranx import Qrels, Run, evaluate
asked, k = json.load(sys.stdin)
names = {"hr": f"hit_rate@{k}", "recall": f"recall@{k}", "ndcg": f"ndcg@{k}", "mrr": "mrr"}
for qrels, run in asked:
    found = evaluate(Qrels(qrels), Run(run), list(names.values()), return_mean=False)
    print(json.dumps({n: list(map(float, found[m])) for n, m in names.items()}))
"""


def test_agrees_with_ranx():
    rng = np.random.default_rng(3)
    users, n_items, k = 40, 60, 10
    scores = rng.normal(size=(users, n_items)).astype(np.float32)
    seen = [rng.choice(n_items, rng.integers(1, 20), replace=False).tolist() for _ in range(users)]
    wanted = [
        np.unique(rng.choice(n_items, rng.integers(1, 15), replace=False)) for _ in range(users)
    ]
    unseen = [np.setdiff1d(np.arange(n_items), items)[:1] for items in seen]
    wanted = [np.union1d(w, new) for w, new in zip(wanted, unseen, strict=True)]
    name = "user{:03d}".format

    def as_ranx_has_it(mask_seen):
        out = [set(s) if mask_seen else set() for s in seen]
        qrels = {
            name(u): {str(i): 1 for i in wanted[u].tolist() if i not in out[u]}
            for u in range(users)
        }
        run = {
            name(u): {str(i): float(scores[u, i]) for i in range(n_items) if i not in out[u]}
            for u in range(users)
        }
        return qrels, run

    # Interpreted, in a process of its own: compiling ranx takes most of a minute.
    answers = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RANX],
        input=json.dumps([[as_ranx_has_it(True), as_ranx_has_it(False)], k]),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[-2:]
    for mask_seen, answer in zip((True, False), answers, strict=True):
        found = rank_metrics(scores, targets(seen, wanted), k=k, mask_seen=mask_seen)
        theirs = json.loads(answer)
        for metric in ("hr", "recall", "ndcg", "mrr"):
            np.testing.assert_allclose(getattr(found, metric), theirs[metric], rtol=1e-9)


def test_a_constant_scorer_earns_nothing():
    found = rank_metrics(np.ones((1, 100)), targets([[0]], [[5, 6]]), k=10, mask_seen=False)
    assert found.ndcg[0] == found.hr[0] == 0
    assert found.mrr[0] == pytest.approx(1 / 99)  # two targets behind 98 others


def test_lists_come_best_first():
    found = rank_metrics(np.array([[3.0, 9, 1, 7]]), targets([[1]], [[2]]), k=2, mask_seen=True)
    assert found.lists.tolist() == [[3, 0]]


def test_no_users():
    found = rank_metrics(np.zeros((0, 4)), targets([], []), k=3, mask_seen=True)
    assert found.ndcg.shape == (0,)
    assert found.lists.shape == (0, 3)


def test_coverage_diversity_novelty_by_hand():
    lists = np.array([[0, 1], [0, 2], [3, -1]], np.int32)
    vectors = np.array([[2.0, 0], [0, 1], [3, 0], [0, 0]])
    assert coverage(lists, 8) == 0.5
    assert diversity(lists, vectors).tolist() == [1.0, 0.0, 0.0]
    popularity = np.array([4, 2, 1, 0])  # the last counts as one: shares 4/8, 2/8, 1/8, 1/8
    assert novelty(lists, popularity).tolist() == [1.5, 2.0, 3.0]


@given(st.integers(2, 6), st.integers(0, 5))
def test_diversity_agrees_with_pairs(k, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(20, 4))
    lists = np.stack([rng.choice(20, k, replace=False) for _ in range(3)]).astype(np.int32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, value in zip(lists, diversity(lists, vectors), strict=True):
        pairs = [unit[a] @ unit[b] for i, a in enumerate(row) for b in row[i + 1 :]]
        assert value == pytest.approx(1 - np.mean(pairs))
