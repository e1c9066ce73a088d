import numpy as np
import pytest

from fedprofile.simulations.sequences import _make_world, sequences

ITEMS = 300


@pytest.fixture(scope="module")
def log():
    return sequences(1_500, ITEMS, 0)


def columns(log):
    h = log.histories
    return (h.offsets, h.items, h.times, h.sessions, h.weights, h.types)


def test_the_seed_decides_everything():
    one, same, other = (sequences(30, 40, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(columns(one), columns(same), strict=True))
    assert not np.array_equal(one.histories.items, other.histories.items)


def test_columns_keep_the_order_of_histories(log):
    h = log.histories
    inside = np.diff(h.devices) == 0
    assert (np.diff(h.times)[inside] > 0).all()
    assert set(np.diff(h.sessions)[inside]) == {0, 1}
    assert (h.sessions[h.offsets[:-1]] == 0).all()
    assert 50 <= np.median(h.lengths) <= 70
    assert (h.lengths.min(), h.lengths.max()) >= (10, 100)
    assert log.catalogue.columns == ["item_id"]


@pytest.mark.parametrize(("users", "items"), [(1, 2), (3, 3), (5, 51), (4_097, 20)])
def test_small_and_odd_sizes(users, items):
    log = sequences(users, items, 0)
    assert (log.n_users, log.n_items) == (users, items)
    assert set(log.histories.items) <= set(range(items))


def follow(h):
    """Pairs of items that one user took one after another."""
    inside = np.diff(h.devices) == 0
    return h.items[:-1][inside], h.items[1:][inside]


def found_by_the_commonest(counts, first, then, most=4):
    best = np.argsort(-counts, axis=1)[:, :most]
    return np.mean((best[first] == then[:, None]).any(axis=1))


def test_order_tells_what_comes_next_and_the_same_items_without_order_do_not(log):
    h = log.histories
    learn, ask = h.take(np.arange(1_000)), h.take(np.arange(1_000, 1_500))
    counts = np.zeros((ITEMS, ITEMS))
    np.add.at(counts, follow(learn), 1)
    first, then = follow(ask)
    forward = found_by_the_commonest(counts, first, then)
    backward = found_by_the_commonest(counts, then, first)
    assert forward > 0.25
    assert backward < 0.5 * forward


def test_the_last_item_alone_does_not_tell(log):
    """After two items of one genre the chain goes on; after a change it does so half as often."""
    rng = np.random.default_rng(0)
    world = _make_world(ITEMS, rng)
    place = np.argsort(rng.permutation(ITEMS))  # public item index → position in genre order
    taken = place[log.histories.items]
    inside = np.diff(log.histories.devices) == 0
    in_threes = inside[1:] & inside[:-1]
    before, last, then = taken[:-2][in_threes], taken[1:-1][in_threes], taken[2:][in_threes]
    stayed = world.genre[before] == world.genre[last]
    chain = (world.successors[last] == then[:, None]).any(axis=1)
    turn = world.entries[last] == then
    assert chain[stayed].mean() > 1.5 * chain[~stayed].mean()
    assert turn[~stayed].mean() > 5 * turn[stayed].mean()
