import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.server.popularity import denoised, item_priors


def assert_log_probabilities(priors, n_items):
    for prior in (priors.long_run, priors.current):
        assert prior.dtype == np.float32
        assert prior.shape == (n_items,)
        assert np.isfinite(prior).all()
        assert np.exp(prior.astype(np.float64)).sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.filterwarnings("error::RuntimeWarning")
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
    priors = item_priors(sums, stddev=stddev)
    assert_log_probabilities(priors, n_items)


def dirichlet(counts, prior, pseudo_counts):
    found = np.asarray(counts) + pseudo_counts * np.asarray(prior)
    return found / found.sum()


def test_without_noise_a_scale_falls_back_on_the_longer_one():
    sums = np.array([[8.0, 4, 2, 2], [1, 0, 0, 0], [3, 2, 0, 1]])
    priors = item_priors(sums, stddev=0.0)
    long_run = dirichlet(sums[0], np.full(4, 0.25), 2)
    middle = dirichlet(sums[2], long_run, 2)
    recent = dirichlet(sums[1], middle, 2)
    np.testing.assert_allclose(np.exp(priors.long_run), long_run, rtol=1e-5)
    np.testing.assert_allclose(np.exp(priors.current), (middle + recent) / 2, rtol=1e-5)


def test_where_nothing_was_recent_all_time_decides():
    sums = np.zeros((3, 50))
    sums[0] = np.arange(50)
    priors = item_priors(sums, stddev=0.0)
    np.testing.assert_allclose(priors.current, priors.long_run, atol=1e-5)


def test_items_that_nobody_took_keep_a_chance():
    sums = np.array([[9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0]])
    prior = item_priors(sums, stddev=0.0).long_run
    assert (np.diff(prior[:10]) < 0).all()
    assert prior[9] == prior[10] > np.log(0.005)


def test_pure_noise_denoises_to_next_to_nothing():
    noise = 7.0 * np.random.default_rng(0).normal(size=(3, 4_000))
    found = denoised(noise, stddev=7.0)
    assert np.sqrt(np.mean(found**2)) < 0.15 * 7.0


def long_tail(rng, n_items):
    """Two scales of sums that go together, most of them small."""
    popular = 4_000 / np.arange(10, n_items + 10)
    return np.stack([popular, 0.3 * popular * rng.lognormal(0, 0.5, n_items)])


def test_denoising_beats_the_best_straight_shrinkage():
    # The best straight line knows the truth; a long tail has a posterior mean that is no line.
    stddev, gains = 6.0, []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = long_tail(rng, 1_500)
        noisy = truth + stddev * rng.normal(size=truth.shape)
        lines = [np.polyval(np.polyfit(y, t, 1), y) for y, t in zip(noisy, truth, strict=True)]
        linear = np.mean((np.array(lines) - truth) ** 2)
        gains.append(linear / np.mean((denoised(noisy, stddev=stddev) - truth) ** 2))
    assert min(gains) > 1.3


def test_little_noise_changes_little():
    truth = long_tail(np.random.default_rng(1), 20_000)
    found = denoised(truth, stddev=1e-3)
    np.testing.assert_allclose(found, truth, atol=6e-3)


def relative_entropy(truth, prior):
    share = truth / truth.sum()
    return float((share * (np.log(share) - prior)).sum())


def test_priors_come_closer_to_the_truth_than_clipped_sums():
    gains = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = long_tail(rng, 1_000)
        noisy = truth + 8 * rng.normal(size=truth.shape)
        raw = np.maximum(noisy[0], 0.3 * 8)
        plain = relative_entropy(truth[0], np.log(raw / raw.sum()))
        gains.append(plain / relative_entropy(truth[0], item_priors(noisy, stddev=8.0).long_run))
    assert min(gains) > 1.3
