import time

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer

from fedprofile.simulations.synthetic import synthesise


@pytest.fixture(scope="module")
def log():
    return synthesise(4_000, 1_500, 0)


def fields(log):
    h = log.histories
    return (h.offsets, h.items, h.times, h.sessions, h.weights, h.types)


def test_the_seed_decides_everything():
    one, same, other = (synthesise(50, 40, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(fields(one), fields(same), strict=True))
    assert one.catalogue.equals(same.catalogue)
    assert not one.catalogue.equals(other.catalogue)
    assert not np.array_equal(one.histories.items, other.histories.items)


def test_population_has_the_shape_asked_for(log):
    h = log.histories
    assert (log.n_users, log.n_items) == (4_000, 1_500)
    assert 22 <= np.median(h.lengths) <= 32
    assert np.quantile(h.lengths, 0.02) >= 12
    assert h.lengths.max() <= 60
    days = (h.times.max() - h.times.min()) / 86_400
    assert 520 <= days <= 548
    assert np.median(h.weights) == pytest.approx(1.0)
    assert [column.dtype for column in fields(log)] == [
        np.int64,
        np.int32,
        np.int64,
        np.int32,
        np.float32,
        np.int16,
    ]
    assert log.quality.rows_read == log.quality.rows_kept == h.n_events
    assert set(log.catalogue.columns) == {"item_id", "text", "category", "price", "tags"}


def test_columns_keep_the_order_of_histories(log):
    h = log.histories
    inside = np.diff(h.devices) == 0
    assert (np.diff(h.times)[inside] >= 0).all()
    assert set(np.diff(h.sessions)[inside]) == {0, 1}
    assert (h.sessions[h.offsets[:-1]] == 0).all()
    # A basket has one time, and an item once.
    basket = h.devices * 1_000 + h.sessions
    assert (np.diff(h.times)[np.diff(basket) == 0] == 0).all()
    assert len(np.unique(np.stack([basket, h.items]), axis=1)[0]) == h.n_events
    assert log.quality.sessions == len(np.unique(basket))


def test_people_buy_several_things_and_buy_again(log):
    h = log.histories
    assert 2 < h.n_events / log.quality.sessions < 4
    pairs = np.unique(h.devices * log.n_items + h.items)
    assert 0.1 < 1 - len(pairs) / h.n_events < 0.35


@pytest.mark.parametrize(("users", "items"), [(1, 2), (2, 3), (5, 24), (4_097, 30)])
def test_small_and_odd_sizes(users, items):
    log = synthesise(users, items, 0)
    assert (log.n_users, log.n_items) == (users, items)
    assert log.histories.n_events > 0
    assert list(log.item_ids) == sorted(log.item_ids)
    assert list(log.user_ids) == sorted(log.user_ids)


def test_it_is_quick():
    start = time.process_time()
    synthesise(4_000, 1_500, 3)
    assert time.process_time() - start < 4  # 0.3 s on an idle core


def test_the_next_basket_is_learned_from_people_not_from_names(log):
    """Item names and a matrix fitted over users rank the next basket; names alone do worse."""
    h = log.histories
    vectors = TfidfVectorizer().fit_transform(log.catalogue["text"].to_list()).toarray()
    basket = np.cumsum(np.append(True, np.diff(h.devices * 1_000 + h.sessions) != 0)) - 1
    user = h.devices[np.append(True, np.diff(basket) > 0)]
    contents = csr_array((np.ones(h.n_events), (basket, h.items)), (len(user), log.n_items))
    profile = contents @ vectors
    profile /= np.linalg.norm(profile, axis=1, keepdims=True)
    follows = np.flatnonzero(user[1:] == user[:-1])
    seen, held_out = follows[user[follows] < 3_000], follows[user[follows] >= 3_000][::8]
    x, y = profile[seen], profile[seen + 1]
    fitted = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
    bought = contents[: seen.max()].sum(axis=0)

    def rank_of_bought(scores):
        """Mean share of the catalogue ranked above what the next basket holds."""
        place = scores.argsort(axis=1).argsort(axis=1)
        return 1 - place[contents[held_out + 1].nonzero()].mean() / log.n_items

    items = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = profile[held_out] @ fitted @ items.T
    by_name = rank_of_bought(profile[held_out] @ items.T)
    by_people = rank_of_bought(expected)
    by_both = rank_of_bought(expected + 0.05 * np.log1p(bought))
    popular = rank_of_bought(np.broadcast_to(bought, expected.shape))
    assert by_people < by_name - 0.03
    assert by_both < popular - 0.03
