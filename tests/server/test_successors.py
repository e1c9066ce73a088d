import math

import numpy as np
import pytest

from fedprofile.client.cooccurrence import cooccurrence_contribution
from fedprofile.client.popularity import popularity_contribution
from fedprofile.common.histories import Histories
from fedprofile.common.successors import ORDER_SHARE
from fedprofile.server.cooccurrence import head_of
from fedprofile.server.popularity import item_priors
from fedprofile.server.successors import _shares, _Spikes, successors_of

SIZE = 80
POPULATION = 2_000
PAIRS = SIZE * (SIZE - 1) // 2
UNIFORM = np.full(SIZE, -math.log(SIZE), dtype=np.float32)
HEAD = np.random.default_rng(4).permutation(SIZE)


def release(forward, *, chance=2.0, stddev=0.0, seed=0):
    """Sums and differences of m [K, K] on top of what chance makes of every pair."""
    low, high = np.triu_indices(SIZE, 1)
    sums = (forward + forward.T)[low, high] + chance
    differences = ORDER_SHARE * (forward - forward.T)[low, high]
    rng = np.random.default_rng(seed)
    return np.concatenate([sums, differences]) + rng.normal(scale=stddev or 0, size=2 * PAIRS)


def found(noisy, stddev=0.0, popularity=UNIFORM, population=POPULATION, head=HEAD):
    successors = successors_of(
        noisy, head=head, popularity=popularity, stddev=stddev, population_size=population
    )
    successors.check(len(popularity))
    chances = np.zeros((len(popularity),) * 2)
    chances[tuple(successors.pairs.T)] = successors.chances
    return chances[np.ix_(head, head)]


def planted(strength, share=1.0):
    """Every fourth item is followed by the next one of the head, ``share`` of the time in this order."""
    forward = np.zeros((SIZE, SIZE))
    first = np.arange(0, SIZE, 4)
    forward[first, first + 1] = strength * share
    forward[first + 1, first] = strength * (1 - share)
    return forward


@pytest.mark.parametrize("stddev", [0.0, 2.0])
def test_strong_pairs_are_found_and_in_their_order(stddev):
    forward = planted(60.0)
    chances = found(release(forward, stddev=stddev), stddev)
    there = forward > 0
    assert (chances[there] > 0.05).all()
    assert (chances[there] > 5 * chances.T[there]).all()
    # Of the whole, and not of what was planted: what it is of all that is taken soon after the item.
    whole = 60 * there.sum() + 2 * PAIRS
    expected = 60 / (whole / SIZE)
    np.testing.assert_allclose(chances[there].mean(), expected, rtol=0.15)
    others = ~there & ~there.T
    assert np.count_nonzero(chances[others]) <= 0.02 * others.sum()


def test_pairs_without_an_order_are_told_both_ways():
    forward = planted(60.0, share=0.5)
    chances = found(release(forward, stddev=1.0), 1.0)
    there = forward > 0
    assert (chances[there] > 0).all()
    assert chances[there].max() < 4 * chances[there].min()


def test_of_noise_alone_next_to_nothing_is_told():
    told = [
        np.count_nonzero(found(release(planted(0), chance=1.0, stddev=4.0, seed=seed), 4.0))
        for seed in range(50)
    ]
    assert np.mean(told) <= 0.001 * 2 * PAIRS
    # Without anything to compare with, nothing.
    nothing = [
        np.count_nonzero(found(release(planted(0), chance=0.0, stddev=4.0, seed=seed), 4.0))
        for seed in range(50)
    ]
    assert np.count_nonzero(nothing) <= 2


def test_noise_that_is_larger_than_stated_shows():
    told = [
        np.count_nonzero(found(release(planted(0), chance=2.0, stddev=4.0, seed=seed), 1.0))
        for seed in range(5)
    ]
    assert min(told) > 0.01 * 2 * PAIRS


def test_weak_pairs_count_less_than_they_seem():
    """Of what stands out by chance as much as by its strength, part is taken for noise."""
    seen = release(planted(9.0), stddev=2.0)
    chances = found(seen, 2.0)
    there = planted(1.0) > 0
    exact = found(release(planted(9.0)), 0.0)
    assert 0 < chances[there].mean() < exact[there].mean()


def test_what_popularity_explains_is_left_out():
    popularity = np.log(1 / np.arange(1.0, SIZE + 1)).astype(np.float32)
    head = np.arange(SIZE)
    shares = np.exp(popularity.astype(np.float64))
    low, high = np.triu_indices(SIZE, 1)
    chance = shares[low] * shares[high] * 4e3
    noise = np.random.default_rng(1).normal(scale=0.5, size=2 * PAIRS)
    noisy = np.concatenate([chance, np.zeros(PAIRS)]) + noise
    assert not found(noisy, 0.5, popularity, head=head).any()


def test_something_else_is_always_possible():
    chances = found(release(planted(1e5), chance=0.0), 0.0)
    assert chances.sum(axis=1).max() <= 0.9 + 1e-6
    assert chances.max() == pytest.approx(0.9, rel=1e-5)


def test_the_mixture_is_fitted_to_what_was_drawn():
    rng = np.random.default_rng(0)
    signal = np.where(rng.random(400_000) < 0.01, rng.exponential(5.0, size=400_000), 0.0)
    fitted = _Spikes.fitted(signal + rng.normal(size=400_000))
    assert fitted.share == pytest.approx(0.01, rel=0.1)
    assert fitted.mean == pytest.approx(5.0, rel=0.1)


def test_the_posterior_is_that_of_an_integral():
    """Against sums over a fine grid of signals."""
    spikes, scores = _Spikes(share=0.02, mean=4.0), np.array([-3.0, 0.0, 2.0, 3.5, 8.0, 60.0])
    grid = np.linspace(0, 120, 600_001)
    step = grid[1]
    prior = np.exp(-grid / 4) / 4
    normal = np.exp(-0.5 * (scores[:, None] - grid) ** 2) / math.sqrt(2 * math.pi)
    evidence = (normal * prior).sum(axis=1) * step
    noise = np.exp(-0.5 * scores**2) / math.sqrt(2 * math.pi)
    probability, mean = spikes.posterior(scores)
    np.testing.assert_allclose(
        probability, 0.02 * evidence / (0.02 * evidence + 0.98 * noise), rtol=1e-3
    )
    np.testing.assert_allclose(
        mean, (normal * prior * grid).sum(axis=1) * step / evidence, rtol=1e-3
    )


@pytest.mark.parametrize("stddev", [0.0, 1.0])
def test_items_have_the_share_of_pairs_that_the_release_shows(stddev):
    """Popularity counts first times, and what is taken again and again is in more pairs."""
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.full(SIZE, 4.0))
    low, high = np.triu_indices(SIZE, 1)
    sums = 4e4 * shares[low] * shares[high]
    noisy = sums + rng.normal(scale=stddev, size=PAIRS)
    found_shares = _shares(noisy, np.full(SIZE, 3.0), stddev=stddev, one=1e-3)
    np.testing.assert_allclose(found_shares, shares, rtol=1e-2 if not stddev else 0.1, atol=5e-4)
    # Where noise is all there is, popularity stays.
    lost = _shares(sums + rng.normal(scale=1e4, size=PAIRS), shares, stddev=1e4, one=1.0)
    np.testing.assert_allclose(lost, shares, rtol=0.5)


def test_one_item_in_nearly_all_pairs_leaves_shares_that_are_numbers():
    low, _ = np.triu_indices(SIZE, 1)
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(scale=8.0, size=PAIRS)
        star = np.where(low == 0, 30.0, 0.0) + noise
        shares = _shares(star, 1 / np.arange(1, SIZE + 1) ** 1.2, stddev=8.0, one=0.01)
        assert np.isfinite(shares).all()
        assert shares.min() > 0
        assert 0.4 < shares[0] < 0.99
        assert shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_of_users_who_take_everything_at_random_nothing_follows_on_anything(noise):
    rng = np.random.default_rng(0)
    n_users, n_items, each = 3_000, 400, 25
    taken = 1 / np.arange(1, n_items + 1) ** 0.8
    items = rng.choice(n_items, size=n_users * each, p=taken / taken.sum()).astype(np.int32)
    histories = Histories(
        offsets=np.arange(0, n_users * each + 1, each),
        items=items,
        times=np.tile(np.arange(each), n_users),
        sessions=np.zeros(len(items), dtype=np.int32),
        weights=np.ones(len(items), dtype=np.float32),
        types=np.zeros(len(items), dtype=np.int16),
    )
    popularity = popularity_contribution(
        histories, now=each, half_lives_days=(14.0,), n_items=n_items, clip_norm=1.0
    ).arrays["popularity"]
    told = item_priors(popularity.astype(np.float64), stddev=0.0).long_run
    head = head_of(told, n_items)
    exact = cooccurrence_contribution(histories, head=head, n_items=n_items, clip_norm=1.0)
    pairs = exact.arrays["cooccurrence"].astype(np.float64)
    successors = successors_of(
        pairs + rng.normal(scale=noise, size=len(pairs)),
        head=head,
        popularity=told,
        stddev=noise,
        population_size=n_users,
    )
    totals = np.bincount(successors.pairs[:, 0], successors.chances, n_items)
    assert totals.max() < 0.1
    assert len(successors) < 0.005 * n_items**2
