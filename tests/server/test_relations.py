from dataclasses import replace

import numpy as np
import pytest

from fedprofile.common.items import COOCCURRENCE_BLOCK, ID_BLOCK, ItemTable
from fedprofile.common.mechanism import Mechanism
from fedprofile.server import relations
from fedprofile.server.beyond_content import beyond_content
from fedprofile.server.cooccurrence import item_vectors
from fedprofile.server.neighbours import neighbours_of
from fedprofile.server.popularity import ItemPriors
from fedprofile.server.relations import item_relations
from fedprofile.server.successors import successors_of

SIZE = 40
N_ITEMS = SIZE + 8
COLUMNS = 6
HEAD = np.random.default_rng(1).permutation(N_ITEMS)[:SIZE]
POPULARITY = np.full(N_ITEMS, -np.log(N_ITEMS), dtype=np.float32)
MECHANISM = Mechanism(
    clip_norm=1.0, noise_multiplier=0.0, sampling_probability=1.0, population_size=2_000
)


def release():
    """Two items of each four are taken together far more often than chance, and in their order."""
    low, high = np.triu_indices(SIZE, 1)
    together = (low % 4 == 0) & (high == low + 1)
    sums = 2.0 + np.random.default_rng(2).normal(scale=0.1, size=len(low)) + 60.0 * together
    return np.concatenate([sums, 0.3 * 60.0 * together])


def table_of(content, name="text"):
    ids = tuple(f"商品{item}" for item in range(N_ITEMS))
    blocks = {name: (0, content.shape[1])} if content.shape[1] else {}
    table = ItemTable(content, ids, ((),) * N_ITEMS, blocks)
    return table.with_block(COOCCURRENCE_BLOCK, np.zeros((N_ITEMS, COLUMNS), np.float32))


def made(table):
    priors = ItemPriors(POPULARITY, POPULARITY)
    return item_relations(
        release(), table=table, head=HEAD, priors=priors, mechanism=MECHANISM, devices=2_000
    )


def alone():
    settings = {"head": HEAD, "popularity": POPULARITY, "stddev": 0.0}
    vectors = item_vectors(release()[: SIZE * (SIZE - 1) // 2], dimension=COLUMNS, **settings)
    return vectors, successors_of(release(), population_size=2_000, **settings)


def words(apart):
    """Content by which the two of a pair are the nearest of all, and less so the larger ``apart``."""
    rng = np.random.default_rng(3)
    found = rng.standard_normal((N_ITEMS, 16)).astype(np.float32)
    twin = np.arange(0, SIZE, 4)
    found[HEAD[twin + 1]] = found[HEAD[twin]] + apart * found[HEAD[twin + 1]]
    return found


@pytest.mark.parametrize("apart", [0.3, 1.0])
def test_what_content_says_too_counts_less(apart):
    vectors, successors = alone()
    share = beyond_content(successors, content=words(apart), head=HEAD, popularity=POPULARITY)
    assert 0 < share < 0.8
    told = made(table_of(words(apart)))
    assert told.beyond_content == share
    np.testing.assert_array_equal(told.vectors, vectors)
    np.testing.assert_array_equal(told.successors.pairs, successors.pairs)
    np.testing.assert_allclose(told.successors.chances, share * successors.chances, rtol=1e-5)


def test_directions_that_stand_in_for_content_say_nothing():
    vectors, successors = alone()
    told = made(table_of(words(0.0), name=ID_BLOCK))
    assert told.beyond_content == 1
    np.testing.assert_array_equal(told.vectors, vectors)
    np.testing.assert_array_equal(told.successors.chances, successors.chances)


def test_vectors_are_made_of_the_items_that_noise_leaves(monkeypatch):
    monkeypatch.setattr(relations, "vectors_size", lambda head, _: head // 2)
    told = made(table_of(words(1.0)))
    assert told.vectors[HEAD[: SIZE // 2]].any(axis=1).all()
    assert not told.vectors[HEAD[SIZE // 2 :]].any()
    assert np.isin(told.successors.pairs, HEAD[SIZE // 2 :]).any()


def test_of_whole_histories_neighbours_are_told_whatever_content_says():
    ids = tuple(f"商品{item}" for item in range(N_ITEMS))
    content = words(0.0)
    table = ItemTable(content, ids, ((),) * N_ITEMS, {"text": (0, content.shape[1])}, whole=True)
    rising = POPULARITY + np.linspace(-1, 1, N_ITEMS, dtype=np.float32)
    priors = ItemPriors(long_run=POPULARITY, current=rising)
    sums = release()[: SIZE * (SIZE - 1) // 2]
    noisy = Mechanism(
        clip_norm=1.0, noise_multiplier=0.3, sampling_probability=1.0, population_size=2_000
    )
    told = item_relations(
        sums, table=table, head=HEAD, priors=priors, mechanism=noisy, devices=1_500
    )
    settings = {"priors": priors, "stddev": 0.3, "devices": 1_500}
    alone = neighbours_of(sums, head=HEAD, voice=0.5, **settings)
    assert told.beyond_content == 1
    assert told.vectors.shape == (N_ITEMS, 0)
    np.testing.assert_array_equal(told.successors.pairs, alone.pairs)
    np.testing.assert_array_equal(told.successors.chances, alone.chances)
    # Beside nothing but ids it has no other to share with.
    bare = replace(table, blocks={ID_BLOCK: (0, content.shape[1])})
    told = item_relations(
        sums, table=bare, head=HEAD, priors=priors, mechanism=noisy, devices=1_500
    )
    alone = neighbours_of(sums, head=HEAD, voice=1.0, **settings)
    np.testing.assert_array_equal(told.successors.chances, alone.chances)
