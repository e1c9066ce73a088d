import math

import numpy as np
import pytest

from fedprofile.common.mechanism import Mechanism
from fedprofile.server.cooccurrence import head_of, head_size, item_vectors

UNIFORM = np.full(60, -math.log(60), dtype=np.float32)


def upper(matrix):
    return matrix[np.triu_indices(len(matrix), 1)]


def noise(size, *, stddev, seed=0):
    return np.random.default_rng(seed).normal(scale=stddev, size=size * (size - 1) // 2)


def groups(size, *, of, strength):
    """Pairs of items in the same group of neighbours are taken together, others are not."""
    group = np.arange(size) // of
    return upper((group[:, None] == group).astype(float)) * strength, group


def vectors_of(pairs, head, *, stddev, popularity=UNIFORM, dimension=16):
    return item_vectors(pairs, head=head, popularity=popularity, stddev=stddev, dimension=dimension)


@pytest.mark.parametrize("stddev", [0.0, 1.0])
def test_items_taken_together_are_alike(stddev):
    head = np.random.default_rng(1).permutation(60)[:48]
    pairs, group = groups(48, of=8, strength=20.0)
    found = vectors_of(pairs + noise(48, stddev=stddev), head, stddev=stddev)
    likeness = found[head] @ found[head].T
    same = group[:, None] == group
    assert likeness[same].min() > 0.8
    assert likeness[~same].max() < 0.2
    np.testing.assert_allclose(np.linalg.norm(found[head], axis=1), 1, rtol=1e-5)
    assert not np.delete(found, head, axis=0).any()


def test_of_noise_alone_next_to_nothing_is_left():
    """The largest of the eigenvalues goes beyond the edge now and then."""
    head, kept = np.arange(60), []
    for seed in range(200):
        found = vectors_of(noise(60, stddev=3.0, seed=seed), head, stddev=3.0)
        kept.append(found.any())
    # P(λ₁ > 2s√K) is .17 in the limit (Tracy & Widom 1996, β = 1): most of that is too little.
    assert np.count_nonzero(kept) <= 0.02 * len(kept)


def test_noise_that_is_larger_than_stated_shows():
    head = np.arange(60)
    kept = [
        vectors_of(noise(60, stddev=1.5, seed=seed), head, stddev=1.0).any() for seed in range(20)
    ]
    assert all(kept)


def test_eigenvalues_are_shrunk_to_the_published_optimum():
    """Of a direction that noise spreads, √(λ² − 4s²K) is left: weak ones lose most."""
    size, stddev = 64, 1.0
    strong = np.repeat([1.0, -1.0], size // 2) / math.sqrt(size)
    weak = np.tile([1.0, -1.0], size // 2) / math.sqrt(size)
    pairs = upper(60 * np.outer(strong, strong) + 22 * np.outer(weak, weak))
    found = vectors_of(
        pairs, np.arange(size), stddev=stddev, popularity=np.zeros(size), dimension=2
    )
    # Without a diagonal, whose mean over the items is (60 + 22) / 64, both are that much smaller.
    kept = [math.sqrt((value - 82 / 64) ** 2 - 4 * stddev**2 * size) for value in (60, 22)]
    ratio = np.abs(found[:, 1] / found[:, 0])
    np.testing.assert_allclose(ratio, math.sqrt(kept[1] / kept[0]), rtol=0.02)
    assert ratio.max() < 0.9 * math.sqrt(22 / 60)


def test_what_popularity_explains_is_left_out():
    popularity = np.log(1 / np.arange(1, 41)).astype(np.float32)
    shares = np.exp(popularity.astype(np.float64))
    chance = upper(np.outer(shares, shares)) * 1e4
    assert not vectors_of(chance, np.arange(40), stddev=0.5, popularity=popularity).any()
    pairs, group = groups(40, of=10, strength=100.0)
    found = vectors_of(chance + pairs, np.arange(40), stddev=0.5, popularity=popularity)
    likeness = found @ found.T
    assert likeness[group[:, None] == group].mean() > likeness[group[:, None] != group].mean() + 0.5


def test_a_head_of_two_and_a_result_wider_than_it():
    found = vectors_of(np.array([5.0]), np.array([3, 1]), stddev=0.0, dimension=9)
    assert found.shape == (60, 9)
    assert np.isfinite(found).all()


def test_the_head_is_as_large_as_the_noise_allows():
    def size(n_items, noise_multiplier, population_size):
        mechanism = Mechanism(
            clip_norm=1.0,
            noise_multiplier=noise_multiplier,
            sampling_probability=1.0,
            population_size=population_size,
        )
        return head_size(n_items, mechanism)

    assert size(3_000, 0.0, 9) == 2_048
    assert size(100, 0.0, 9) == 100
    assert size(3_000, 1.2, 6_000) == 1_000
    assert size(3_000, 2.4, 6_000) == 500
    assert size(3_000, 6.25, 1_000) == 32
    assert size(3_000, 6.3, 1_000) == 0
    assert size(8, 1.0, 80) == 8
    popularity = np.log(np.float32([0.1, 0.4, 0.4, 0.05, 0.05]))
    assert head_of(popularity, 3).tolist() == [1, 2, 0]
