import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.cooccurrence import together_contribution
from fedprofile.common.histories import Histories
from fedprofile.server.neighbours import neighbours_of
from fedprofile.server.popularity import ItemPriors

N_ITEMS = 24
FLAT = np.full(N_ITEMS, -np.log(N_ITEMS), dtype=np.float32)
EVEN = ItemPriors(long_run=FLAT, current=FLAT)
PAIRS = np.triu_indices(N_ITEMS, 1)
HEAD = np.arange(N_ITEMS)


def released(held):
    """The exact release of users by what each holds; bool [n, N_ITEMS]."""
    counts = held.sum(axis=1)
    histories = Histories(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        items=np.nonzero(held)[1].astype(np.int32),
        times=np.arange(counts.sum(), dtype=np.int64),
        sessions=np.zeros(counts.sum(), dtype=np.int32),
        weights=np.ones(counts.sum(), dtype=np.float32),
        types=np.zeros(counts.sum(), dtype=np.int16),
    )
    found = together_contribution(histories, head=HEAD, n_items=N_ITEMS, clip_norm=1.0)
    return found.arrays["cooccurrence"].astype(np.float64)


def chances(noisy, *, priors=EVEN, voice=0.5, stddev=0.0, users=3_000, head=HEAD, n_items=N_ITEMS):
    """As a matrix [item held, item that goes with it]."""
    told = neighbours_of(noisy, head=head, priors=priors, voice=voice, stddev=stddev, devices=users)
    told.check(n_items)
    found = np.zeros((n_items, n_items))
    found[tuple(told.pairs.T)] = told.chances
    return found


def twins(users=3_000, seed=0):
    """Everybody holds some items at random; who holds an even one mostly holds the next one, too."""
    rng = np.random.default_rng(seed)
    held = rng.random((users, N_ITEMS)) < 0.15
    held[:, 1::2] |= held[:, ::2] & (rng.random((users, N_ITEMS // 2)) < 0.7)
    return held


def test_they_are_the_weights_of_a_ridge_regression_of_each_item_on_the_others():
    # Of users who all hold as much, the sums tell the diagonal exactly.
    rng = np.random.default_rng(1)
    held = np.zeros((500, N_ITEMS))
    for user in held:
        user[rng.choice(N_ITEMS, 6, replace=False, p=np.arange(1, 25) / 300)] = 1
    scaled = held / math.sqrt(math.sqrt(15))  # 15 pairs, and the norm of all is 1
    gram = scaled.T @ scaled
    off = gram - np.diag(np.diag(gram))
    unit = 500 / off[PAIRS].sum()
    # Six items are 15 pairs: √2·u is 5 % off from what one of 6 · 5 ordered pairs counts.
    diagonal = np.diag(off.sum(axis=1) * unit / math.sqrt(2))
    np.testing.assert_allclose(np.diag(diagonal), np.diag(gram), rtol=0.1)
    ridge = 2 * math.sqrt(unit * off.sum(axis=1).max())
    expected = np.zeros((N_ITEMS, N_ITEMS))
    for item in range(N_ITEMS):  # one regression at a time, by its normal equations
        others = np.delete(np.arange(N_ITEMS), item)
        left = (off + diagonal)[np.ix_(others, others)] + ridge * np.eye(N_ITEMS - 1)
        expected[others, item] = np.linalg.solve(left, off[others, item])
    found = chances(off[PAIRS], users=500)
    np.testing.assert_allclose(found, 0.5 * np.maximum(expected, 0), rtol=1e-4, atol=1e-7)
    assert (found > 0).sum() > N_ITEMS
    np.testing.assert_allclose(chances(off[PAIRS], users=500, voice=0.25), found / 2, rtol=1e-5)


def test_what_goes_together_is_found_without_noise_and_under_some_and_not_under_much():
    noisy = released(twins())
    rng = np.random.default_rng(2)
    even = np.arange(0, N_ITEMS, 2)
    for stddev in (0.0, 3.0):
        found = chances(noisy + stddev * rng.normal(size=noisy.shape), stddev=stddev)
        assert (found[even].argmax(axis=1) == even + 1).all()
        assert found[even, even + 1].min() > 3 * np.median(found[even])
    assert not chances(noisy + 1e4 * rng.normal(size=noisy.shape), stddev=1e4).any()


def test_under_noise_they_are_regressed_on_what_noise_leaves():
    """By formula, with another decomposition: eigenvalues below the edge are nothing, others are shrunk."""
    noise, users = 14.0, 3_000
    noisy = released(twins()) + noise * np.random.default_rng(6).normal(size=len(PAIRS[0]))
    gram = np.zeros((N_ITEMS, N_ITEMS))
    gram[PAIRS] = noisy
    gram += gram.T
    unit = users / noisy.sum()
    spread = math.sqrt(N_ITEMS * noise**2 + unit * gram.sum(axis=1).max())
    gram += np.diag(gram.sum(axis=1) * unit / math.sqrt(2))
    left, values, _ = np.linalg.svd(gram)
    values *= np.sign(np.einsum("ij,ij->j", left, gram @ left))
    edge = 2 * noise * math.sqrt(N_ITEMS)
    assert 2 < (values > edge).sum() < N_ITEMS
    kept = np.where(values > edge, np.sqrt(np.maximum(values**2 - edge**2, 0)), 0)
    smooth = np.linalg.inv((left * kept) @ left.T + 2 * spread * np.eye(N_ITEMS))
    expected = np.maximum(-smooth / np.diag(smooth), 0)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(chances(noisy, stddev=noise), 0.5 * expected, rtol=1e-3, atol=2e-6)


def test_of_what_noise_drowns_nothing_is_told():
    noise = 0.1
    doubt = noise * math.sqrt(len(PAIRS[0]))  # of the sum of all pairs
    single = np.zeros(len(PAIRS[0]))
    single[7] = 1
    assert not chances(2.9 * doubt * single, stddev=noise, users=5).any()
    assert chances(3.1 * doubt * single, stddev=noise, users=5).any()


def test_of_how_many_answered_the_sums_are_is_part_of_what_they_say():
    noisy = released(twins())
    even = np.arange(0, N_ITEMS, 2)
    assert chances(noisy, users=3_000)[even, even + 1].mean() > 1.3 * (
        chances(noisy, users=30_000)[even, even + 1].mean()
    )


def test_what_is_sought_now_counts_more():
    rising = FLAT.copy()
    rising[5] += np.log(4)
    noisy = released(twins())
    plain = chances(noisy)
    found = chances(noisy, priors=ItemPriors(long_run=FLAT, current=rising))
    np.testing.assert_allclose(found[:, 5], 2 * plain[:, 5], rtol=1e-5)
    np.testing.assert_allclose(np.delete(found, 5, axis=1), np.delete(plain, 5, axis=1), rtol=1e-5)


def test_rounding_tells_of_no_pair():
    group = np.arange(N_ITEMS) % 3
    rng = np.random.default_rng(8)
    # Nobody holds items of two groups.
    held = (rng.random((900, N_ITEMS)) < 0.5) & (group == rng.integers(3, size=900)[:, None])
    found = chances(released(held), users=900)
    apart = group[:, None] != group
    assert not found[apart].any()
    assert found[~apart].any()


def test_only_what_says_most_of_an_item_is_told():
    n_items, users = 80, 4_000
    rng = np.random.default_rng(4)
    noisy = rng.gamma(20.0, size=n_items * (n_items - 1) // 2)
    flat = np.full(n_items, -np.log(n_items), dtype=np.float32)
    found = chances(
        noisy,
        priors=ItemPriors(flat, flat),
        users=users,
        head=np.arange(n_items)[::-1].copy(),
        n_items=n_items,
    )
    assert ((found > 0).sum(axis=0) <= 30).all()
    assert ((found > 0).sum(axis=0) == 30).mean() > 0.5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 12),
    st.sampled_from([0.0, 0.3, 5.0]),
    st.floats(0, 30),
    st.floats(-12, 12),
    st.integers(0, 9),
)
def test_whatever_was_released_they_are_chances(size, stddev, scale, trend, seed):
    rng = np.random.default_rng(seed)
    noisy = scale * rng.random(size * (size - 1) // 2) + stddev * rng.normal(
        size=size * (size - 1) // 2
    )
    head = rng.permutation(N_ITEMS)[:size]
    current = (FLAT + trend * rng.random(N_ITEMS)).astype(np.float32)
    found = chances(noisy, priors=ItemPriors(FLAT, current), stddev=stddev, users=50, head=head)
    assert np.isfinite(found).all()
    outside = np.setdiff1d(np.arange(N_ITEMS), head)
    assert not found[outside].any()
    assert not found[:, outside].any()


def test_of_nothing_nothing_is_told():
    assert not chances(np.zeros(len(PAIRS[0]))).any()
    assert not chances(-np.ones(len(PAIRS[0])), stddev=1.0).any()


def test_one_pair_is_enough():
    found = chances(np.array([40.0]), users=100, head=np.array([7, 3]))
    assert found[7, 3] == pytest.approx(found[3, 7])
    assert 0 < found[7, 3] < 0.5
