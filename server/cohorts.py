"""Who takes part in a round: Poisson sampling over the population, then by host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConfigError
from ..common.mechanism import Mechanism
from ..common.randomness import NoiseSource


def sample_cohort(mechanism: Mechanism, *, coins: NoiseSource) -> NDArray[np.int64]:
    """Devices of a round, ascending: each independently with the mechanism's probability.

    The coins must stay secret: amplification by sampling holds against those who don't know who was
    drawn.
    """
    return coins.poisson_sample(
        population_size=mechanism.population_size, probability=mechanism.sampling_probability
    )


def split_by_host(
    cohort: NDArray[np.int64], hosts: Mapping[int, range]
) -> dict[int, NDArray[np.int64]]:
    """Node → its sampled devices; nodes without any are left out."""
    split = {}
    for node, devices in hosts.items():
        start, stop = np.searchsorted(cohort, (devices.start, devices.stop))
        if stop > start:
            split[node] = cohort[start:stop]
    return split


def check_coverage(hosts: Mapping[int, range], *, population_size: int) -> None:
    """Every device of the population is hosted once.

    Raises:
        ConfigError: a device is hosted twice, or nowhere, or isn't of the population.
    """
    expected = 0
    for devices in sorted((d for d in hosts.values() if d), key=lambda d: d.start):
        if devices.start != expected:
            kind = "twice" if devices.start < expected else "nowhere"
            raise ConfigError(f"device {min(devices.start, expected)} is hosted {kind}")
        expected = devices.stop
    if expected != population_size:
        raise ConfigError(f"nodes host {expected} devices, but the population is {population_size}")
