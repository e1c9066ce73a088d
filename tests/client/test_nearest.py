"""The nearest item held: against every pair worked out one by one, kept in step, and in scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.nearest import SHARE, NearestHeld, nearest_matrix, nearest_of, tells_nearest
from fedprofile.client.profile import build
from fedprofile.client.scoring import score, score_matrix, top_k
from fedprofile.client.serving import serving_table
from fedprofile.common.decay import CONTENT_TEMPERATURE, Scale
from fedprofile.common.histories import Histories
from fedprofile.common.items import COOCCURRENCE_BLOCK, ID_BLOCK, ItemTable

N_ITEMS = 600  # more than are worked out at once
SCALES = (Scale("days", 5.0), Scale("events", 2.0))


def make_table(first_block="text"):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((N_ITEMS, 7)).astype(np.float32)
    vectors[3] = 0  # an item that nothing is told of
    blocks = {first_block: (0, 5), COOCCURRENCE_BLOCK: (5, 7)}
    return ItemTable(vectors, tuple(map(str, range(N_ITEMS))), ((),) * N_ITEMS, blocks)


TABLE = make_table()
PRIOR = np.random.default_rng(1).standard_normal(N_ITEMS).astype(np.float32)
SERVED = serving_table(TABLE, prior=PRIOR, ids=None)


def history(*devices):
    lengths = [len(items) for items in devices]
    n = sum(lengths)
    return Histories(
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        items=np.array([item for items in devices for item in items], dtype=np.int32),
        times=np.arange(n, dtype=np.int64) * 3600,
        sessions=np.zeros(n, dtype=np.int32),
        weights=np.ones(n, dtype=np.float32),
        types=np.zeros(n, dtype=np.int16),
    )


def one_by_one(held, columns=slice(0, 7), vectors=TABLE.vectors):
    """max(0, cosine) with the nearest, a pair at a time."""
    found = np.zeros(len(vectors))
    for item, vector in enumerate(vectors[:, columns].astype(float)):
        for other in held:
            known = vectors[other, columns].astype(float)
            lengths = np.linalg.norm(vector) * np.linalg.norm(known)
            if lengths > 0:
                found[item] = max(found[item], vector @ known / lengths)
    return found


@pytest.mark.parametrize("held", [[], [3], [17], [0, 3, 99, 599]])
def test_every_way_gives_the_nearest_of_all_pairs(held):
    expected = one_by_one(held)
    items = np.array([5, 599, 3, 17], dtype=np.int32)
    held = np.array(held, dtype=np.int32)
    kept = NearestHeld(TABLE).to(held)
    assert kept.dtype == np.float32
    np.testing.assert_allclose(kept, expected, atol=1e-5)
    np.testing.assert_allclose(nearest_of(TABLE, held, items), expected[items], atol=1e-5)
    found = nearest_matrix(TABLE, history([7, 8], held.tolist(), [], [9]))
    np.testing.assert_allclose(found[1], expected, atol=1e-5)
    np.testing.assert_allclose(found[0], one_by_one([7, 8]), atol=1e-5)
    assert not found[2].any()


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 20), max_size=8), max_size=6))
def test_what_is_kept_is_what_would_be_made_anew(steps):
    kept = NearestHeld(TABLE)
    for held in steps:  # items come, and where something is forgotten they go
        items = np.array(sorted(held), dtype=np.int32)
        np.testing.assert_allclose(kept.to(items), NearestHeld(TABLE).to(items), atol=1e-6)


def test_more_items_than_are_learned_at_once():
    held = np.arange(0, 400, 2, dtype=np.int32)
    np.testing.assert_allclose(NearestHeld(TABLE).to(held), one_by_one(held), atol=1e-5)


def test_a_score_pools_the_encoder_with_popularity_and_the_nearest_item():
    log = history([4, 90, 4, 311])
    profile = build(log, table=TABLE, scales=SCALES, window_size=8)
    vector = np.append(profile.vector, np.float32(1))
    logits = TABLE.vectors.astype(float) @ profile.vector + PRIOR
    other = PRIOR + CONTENT_TEMPERATURE * one_by_one([4, 90, 311])
    expected = (1 - SHARE) * logits + SHARE * other
    served = build(log, table=TABLE, scales=SCALES, window_size=8, encode=lambda _: vector)
    np.testing.assert_allclose(score(served, SERVED), expected, atol=1e-4)
    some = np.array([311, 2, 3], dtype=np.int32)
    np.testing.assert_allclose(score(served, SERVED, some), expected[some], atol=1e-4)
    np.testing.assert_allclose(
        score_matrix(vector[None], log, SERVED, window=8)[0], expected, atol=1e-4
    )
    best = top_k(served, SERVED, 5)
    expected[[4, 90, 311]] = -np.inf
    assert best.items.tolist() == np.argsort(-expected)[:5].tolist()


def test_two_unlike_interests_are_both_served_and_their_mean_is_not():
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 1]], dtype=np.float32)
    table = ItemTable(vectors, tuple("abcde"), ((),) * 5, {"text": (0, 2)})
    found = NearestHeld(table).to(np.array([0, 1], dtype=np.int32))
    assert found[2] > 0.99
    assert found[3] > 0.99
    assert found[4] < 0.75  # what the mean of a and b is most like


def test_ids_that_stand_in_for_content_and_trained_vectors_ask_no_nearest():
    ids_alone = make_table(ID_BLOCK)
    kept = NearestHeld(ids_alone).to(np.array([8], dtype=np.int32))
    np.testing.assert_allclose(kept, one_by_one([8], slice(5, 7)), atol=1e-5)
    assert tells_nearest(SERVED)
    assert tells_nearest(ids_alone)
    trained = serving_table(TABLE, prior=PRIOR, ids=np.ones((N_ITEMS, 2), np.float32))
    # Of what is taken together noise may leave nothing.
    drowned = ids_alone.with_values(COOCCURRENCE_BLOCK, np.zeros((N_ITEMS, 2), np.float32))
    assert not tells_nearest(drowned)
    assert not NearestHeld(drowned).asked
    bare = ItemTable(TABLE.vectors, TABLE.ids, TABLE.tags, {ID_BLOCK: (0, 7)})
    log = history([4, 90])
    for table in (trained, serving_table(bare, prior=PRIOR, ids=None)):
        assert not tells_nearest(table)
        vector = np.ones((1, table.dimension), dtype=np.float32)
        logits = vector @ table.vectors.T
        np.testing.assert_array_equal(score_matrix(vector, log, table, window=8), logits)
