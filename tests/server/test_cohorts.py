import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.errors import ConfigError
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.randomness import NoiseSource
from fedprofile.server.cohorts import check_coverage, sample_cohort, split_by_host

# Host sizes make a partition of 0 … n − 1; some hosts may be empty.
sizes = st.lists(st.integers(0, 6), min_size=1, max_size=8).filter(sum)


def hosts_of(sizes):
    stops = np.cumsum(sizes).tolist()
    return {
        10 + node: range(stop - size, stop)
        for node, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    }


def mechanism(q, n=2_000):
    return Mechanism(clip_norm=1.0, noise_multiplier=1.0, sampling_probability=q, population_size=n)


@pytest.mark.parametrize("q", [0.005, 0.3])
def test_every_device_is_drawn_with_the_rate_of_the_mechanism(q):
    coins, trials, n = NoiseSource.seeded(seed=1, label="coins"), 400, 2_000
    drawn = np.zeros(n)
    lengths = []
    for _ in range(trials):
        cohort = sample_cohort(mechanism(q), coins=coins)
        assert (np.diff(cohort) > 0).all()
        drawn[cohort] += 1
        lengths.append(len(cohort))
    # The size of a cohort varies as a binomial count does; a fixed size would not vary at all.
    assert np.mean(lengths) == pytest.approx(q * n, abs=5 * np.sqrt(q * n / trials))
    assert np.var(lengths) == pytest.approx(q * (1 - q) * n, rel=0.35)
    assert np.abs(drawn - q * trials).max() < 5.5 * np.sqrt(q * trials) + 3


def test_everybody_is_drawn_at_rate_one():
    cohort = sample_cohort(mechanism(1.0, n=7), coins=NoiseSource.csprng())
    assert cohort.tolist() == list(range(7))


@given(sizes, st.data())
def test_each_sampled_device_goes_to_its_host(sizes, data):
    hosts = hosts_of(sizes)
    cohort = np.array(sorted(data.draw(st.sets(st.integers(0, sum(sizes) - 1)))), dtype=np.int64)
    split = split_by_host(cohort, hosts)
    assert sorted(d for devices in split.values() for d in devices) == cohort.tolist()
    assert all(len(devices) and set(devices) <= set(hosts[n]) for n, devices in split.items())


@given(sizes, st.randoms(use_true_random=False))
def test_a_partition_covers_in_any_order(sizes, random):
    items = list(hosts_of(sizes).items())
    random.shuffle(items)
    check_coverage(dict(items), population_size=sum(sizes))


@pytest.mark.parametrize(
    ("hosts", "complaint"),
    [
        ([], "host 0 devices"),
        ([(0, 9)], "host 9 devices"),
        ([(0, 11)], "host 11 devices"),
        ([(0, 4), (5, 10)], "device 4 is hosted nowhere"),
        ([(1, 10)], "device 0 is hosted nowhere"),
        ([(0, 6), (5, 10)], "device 5 is hosted twice"),
        ([(0, 10), (0, 10)], "device 0 is hosted twice"),
        ([(0, 10), (3, 4)], "device 3 is hosted twice"),
        ([(0, 2**62)], "host 4611686018427387904 devices"),
    ],
)
def test_gaps_and_overlaps_are_named(hosts, complaint):
    with pytest.raises(ConfigError, match=complaint):
        check_coverage({n: range(*r) for n, r in enumerate(hosts)}, population_size=10)
