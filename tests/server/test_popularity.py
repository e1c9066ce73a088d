import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.server.popularity import item_priors


def vectors(n_items, dimension=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n_items, dimension)).astype(np.float32)


def assert_log_probabilities(priors, n_items):
    for prior in (priors.long_run, priors.current):
        assert prior.dtype == np.float32
        assert prior.shape == (n_items,)
        assert np.isfinite(prior).all()
        assert np.exp(prior.astype(np.float64)).sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.filterwarnings("error")
@settings(max_examples=60, deadline=None)
@given(
    n_items=st.integers(1, 40),
    scales=st.integers(1, 3),
    stddev=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
    kind=st.sampled_from(["noise", "zero", "one item", "counts", "negative", "tiny"]),
    seed=st.integers(0, 2**30),
)
def test_any_release_makes_log_probabilities(n_items, scales, stddev, kind, seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(scales, n_items)) * stddev
    sums = {
        "noise": noise,
        "zero": np.zeros((scales, n_items)),
        "one item": noise + 100 * (np.arange(n_items) == 0),
        "counts": noise + rng.poisson(3, size=(scales, n_items)),
        "negative": -np.abs(noise) - 1,
        "tiny": np.full((scales, n_items), 1e-40),
    }[kind]
    priors = item_priors(sums, stddev=stddev, vectors=vectors(n_items))
    assert_log_probabilities(priors, n_items)


def test_without_noise_popularity_is_kept():
    sums = np.array([[8.0, 4, 2, 2], [1, 1, 1, 1]])
    priors = item_priors(sums, stddev=0.0, vectors=vectors(4))
    np.testing.assert_allclose(np.exp(priors.long_run), [0.5, 0.25, 0.125, 0.125], rtol=1e-5)
    np.testing.assert_allclose(np.exp(priors.current), [0.375, 0.25, 0.1875, 0.1875], rtol=1e-5)


def test_items_that_nobody_took_keep_a_chance():
    sums = np.array([[9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]])
    prior = item_priors(sums, stddev=0.0, vectors=vectors(11)).long_run
    assert (np.diff(prior[:8]) < 0).all()
    # As rare as the rarest that were taken, no rarer.
    assert prior[8] == prior[9] == prior[10]


def relative_entropy(truth, prior):
    share = truth / truth.sum()
    return float((share * (np.log(share) - prior)).sum())


@pytest.mark.parametrize("features", [True, False])
def test_shrinkage_brings_noisy_sums_closer_to_the_truth(features):
    # Popularity that features tell in part, or not at all; noise of the size of the differences.
    n_items, stddev, gains = 300, 8.0, []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        table = vectors(n_items, 6, seed)
        told = table @ rng.normal(size=6) if features else 0
        truth = np.maximum(20 + 6 * told + 4 * rng.normal(size=n_items), 0.5)
        noisy = truth + stddev * rng.normal(size=n_items)
        raw = np.maximum(noisy, 0.3 * stddev)
        plain = relative_entropy(truth, np.log(raw / raw.sum()))
        shrunk = item_priors(noisy[None], stddev=stddev, vectors=table).long_run
        gains.append(plain / relative_entropy(truth, shrunk))
    assert np.median(gains) > (2.0 if features else 1.3)
