"""Statistical tests run on seeded streams, so they pass or fail for good; all are two-sided."""

import copy
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedprofile.common.errors import ConfigError
from fedprofile.common.randomness import NoiseSource


def seeded(label="test", seed=0):
    return NoiseSource.seeded(seed=seed, label=label)


def assert_standard_normal(values):
    """Kolmogorov–Smirnov; mean, variance, kurtosis within five standard errors, two-sided."""
    n = values.size
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / n)


def test_normal_is_normal_from_both_kinds():
    assert_standard_normal(seeded().normal((400_000,), stddev=1.0))
    assert_standard_normal(NoiseSource.csprng().normal((400_000,), stddev=1.0))
    assert_standard_normal(seeded().normal((500, 800), stddev=0.05).ravel() / 0.05)


@pytest.mark.parametrize("factor", [2 / 3, 0.98, 1.02, 1.5])
def test_the_check_of_normality_sees_a_wrong_scale(factor):
    with pytest.raises(AssertionError):
        assert_standard_normal(seeded().normal((400_000,), stddev=factor))


def test_normal_reaches_the_tails():
    values = np.abs(seeded().normal((2_000_000,), stddev=1.0))
    beyond = stats.norm.sf(4) * 2 * values.size  # 127
    assert abs((values > 4).sum() - beyond) < 5 * np.sqrt(beyond)
    assert values.max() < 7


def test_neighbouring_numbers_and_chunks_are_uncorrelated():
    values = seeded().normal((300_000,), stddev=1.0)
    for lag in (1, 2, 3, 4, 1 << 14, 1 << 16):
        product = (values[:-lag] * values[lag:]).mean()
        assert abs(product) < 5 / np.sqrt(values.size - lag)


def test_uniforms_are_uniform_and_never_zero_or_one():
    values = seeded().uniforms(500_000)
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert ((values > 0) & (values < 1)).all()


def test_extreme_words_stay_inside_the_unit_interval(monkeypatch):
    source = seeded()
    extremes = np.array([0, 2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr(source, "words", lambda n: extremes)
    low, high = source.uniforms(2)
    assert 0 < low < 1e-15
    assert 1 - 1e-15 < high < 1


def test_words_are_the_keystream_of_aes_256_in_counter_mode():
    key = bytes(range(32))
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(80))
    source = NoiseSource(kind="seeded", key=key)
    words = np.concatenate([source.words(3), source.words(7)])
    assert words.tobytes() == stream


@given(below=st.integers(1, 2**63), seed=st.integers(0, 100))
def test_integers_stay_below(below, seed):
    values = seeded(seed=seed).integers(50, below=below)
    assert ((values >= 0) & (values < below)).all()


def test_integers_are_unbiased_where_a_remainder_would_not_be():
    below = 3 * 2**61  # 2⁶⁴ mod this is 2⁶²: a plain remainder favours the lower third 3 : 2
    values = seeded().integers(60_000, below=below)
    thirds = np.bincount(values // 2**61, minlength=3)
    assert stats.chisquare(thirds).pvalue > 1e-3


def test_seeded_streams_repeat_and_their_children_too():
    first, again = seeded(), seeded()
    np.testing.assert_array_equal(
        first.normal((7, 3), stddev=2.0), again.normal((7, 3), stddev=2.0)
    )
    first.uniforms(99)  # what was drawn before has no bearing on a child
    np.testing.assert_array_equal(
        first.child("round/3").uniforms(5), again.child("round/3").uniforms(5)
    )


def test_seeded_numbers_are_the_same_on_any_machine():
    assert seeded().words(2).tolist() == [16488243716505272228, 8015901735962657662]


def test_children_seeds_and_labels_are_independent():
    root = seeded()
    streams = [
        root.normal((50_000,), stddev=1.0),
        root.child("a").normal((50_000,), stddev=1.0),
        root.child("b").normal((50_000,), stddev=1.0),
        root.child("a").child("b").normal((50_000,), stddev=1.0),
        seeded(seed=1).normal((50_000,), stddev=1.0),
        seeded(label="other").normal((50_000,), stddev=1.0),
    ]
    correlations = np.corrcoef(streams)[np.triu_indices(len(streams), k=1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(50_000)


def test_csprng_never_repeats_even_for_a_label_used_twice():
    root = NoiseSource.csprng()
    streams = [root, NoiseSource.csprng(), root.child("round/1"), root.child("round/1")]
    assert [source.kind for source in streams] == ["csprng"] * 4
    assert len({source.words(4).tobytes() for source in streams}) == 4


def test_kind_is_told_and_the_key_is_not():
    assert seeded().kind == "seeded"
    assert seeded().child("x").kind == "seeded"
    assert repr(NoiseSource.csprng()) == "NoiseSource(csprng)"


def test_a_source_is_neither_copied_nor_pickled():
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="repeat its noise"):
            duplicate(NoiseSource.csprng())


def test_a_forked_process_does_not_repeat_its_parent():
    source = NoiseSource.csprng()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, source.words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 32) != source.words(4).tobytes()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("stddev", [-1.0, np.inf, np.nan])
def test_impossible_stddev_is_refused(stddev):
    with pytest.raises(ConfigError, match="stddev"):
        seeded().normal((3,), stddev=stddev)


def test_no_noise_is_zero_and_shapes_may_be_empty_or_scalar():
    np.testing.assert_array_equal(seeded().normal((2, 3), stddev=0.0), np.zeros((2, 3)))
    assert seeded().normal((0, 5), stddev=1.0).shape == (0, 5)
    assert seeded().normal((), stddev=1.0).shape == ()
    assert seeded().normal((), stddev=1.0) != 0


@given(
    population_size=st.integers(0, 3_000),
    probability=st.one_of(st.floats(0, 1), st.floats(0, 1 / 64)),
    seed=st.integers(0, 100),
)
def test_sample_is_ascending_distinct_members(population_size, probability, seed):
    sample = seeded(seed=seed).poisson_sample(
        population_size=population_size, probability=probability
    )
    assert sample.dtype == np.int64
    assert (np.diff(sample) > 0).all()
    assert ((sample >= 0) & (sample < population_size)).all()


def test_sample_of_all_and_of_none():
    everyone = seeded().poisson_sample(population_size=1_000, probability=1.0)
    np.testing.assert_array_equal(everyone, np.arange(1_000))
    for probability in (0.0, 1e-12):
        assert len(seeded().poisson_sample(population_size=1_000, probability=probability)) == 0


@pytest.mark.parametrize("probability", [0.01, 0.3])  # by choice, by coins
def test_sample_follows_independent_coins(probability):
    population_size, draws, source = 400, 4_000, seeded()
    taken = np.zeros((draws, population_size), dtype=bool)
    for row in taken:
        row[source.poisson_sample(population_size=population_size, probability=probability)] = True
    # Sizes are binomial: mean and variance, two-sided; a fixed size would have no variance.
    sizes, variance = taken.sum(axis=1), population_size * probability * (1 - probability)
    assert abs(sizes.mean() - population_size * probability) < 5 * np.sqrt(variance / draws)
    assert abs(sizes.var() / variance - 1) < 5 * np.sqrt(2.5 / draws)
    # Every member is as likely as another, and no two go together.
    counts = taken.sum(axis=0)
    dispersion = ((counts - draws * probability) ** 2).sum() / (
        draws * probability * (1 - probability)
    )
    assert stats.chi2.cdf(dispersion, population_size) == pytest.approx(0.5, abs=0.4995)
    together = (taken[:, :-1] & taken[:, 1:]).mean()
    pairs = draws * (population_size - 1)
    assert abs(together - probability**2) < 6 * probability / np.sqrt(pairs)


def test_few_of_a_million_cost_only_themselves(monkeypatch):
    source = seeded()
    drawn = []
    words = source.words
    monkeypatch.setattr(source, "words", lambda n: drawn.append(n) or words(n))
    sample = source.poisson_sample(population_size=1_000_000, probability=0.001)
    assert 800 < len(sample) < 1_200
    assert sum(drawn) < 2 * len(sample)


@pytest.mark.parametrize(("population_size", "probability"), [(-1, 0.5), (5, -0.1), (5, np.nan)])
def test_impossible_sample_is_refused(population_size, probability):
    with pytest.raises(ConfigError, match="Poisson sample"):
        seeded().poisson_sample(population_size=population_size, probability=probability)
