"""Probes that rest on chance: noise, its independence, and who is sampled.

Each is a statistical test, two-sided, that a faultless mechanism fails with probability
:data:`FALSE_ALARM_RATE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..audit.statistics import (
    all_pairs,
    binomial_spread,
    cohort_overlap,
    noise_mean,
    noise_shape,
    noise_size,
    sampling_rate,
    worst_correlation,
    worst_lag,
    worst_layer,
)
from .probe_observed import Observed, flat
from .probe_report import Probe

Floats = NDArray[np.float64]

FALSE_ALARM_RATE = 5e-4
"""Of each probe; of all of them together below 1 %."""


def noise_probes(idle: Observed, noisy: Observed) -> Iterator[Probe]:
    """What is released where nobody contributes, and beside updates."""
    layers, stddev = _layers(idle), idle.rounds[0].declared.noise_stddev
    everything = np.concatenate(list(layers.values()), axis=1)
    yield Probe(
        name="noise/size",
        claim="Where nobody contributes, what is released has standard deviation σC (in σC)",
        result=noise_size(everything, stddev=stddev, false_alarm_rate=FALSE_ALARM_RATE),
    )
    layer, size = worst_layer(layers, stddev=stddev, false_alarm_rate=FALSE_ALARM_RATE)
    yield Probe(
        name="noise/layers",
        claim="So it has in each layer by itself (the layer farthest off, in σC)",
        result=size,
        where=layer,
    )
    yield Probe(
        name="noise/mean",
        claim="Its mean is 0 (in standard errors)",
        result=noise_mean(everything, stddev=stddev, false_alarm_rate=FALSE_ALARM_RATE),
    )
    yield Probe(
        name="noise/shape",
        claim="Its distribution is normal (Kolmogorov–Smirnov distance × √n)",
        result=noise_shape(everything, stddev=stddev, false_alarm_rate=FALSE_ALARM_RATE),
    )
    beside = np.concatenate(list(_layers(noisy).values()), axis=1)
    yield Probe(
        name="noise/beside-updates",
        claim="Beside updates, doubled and missing replies it has standard deviation σC, too (in σC)",
        result=noise_size(
            beside, stddev=noisy.rounds[0].declared.noise_stddev, false_alarm_rate=FALSE_ALARM_RATE
        ),
    )


def correlation_probes(idle: Observed, twins: Sequence[Observed]) -> Iterator[Probe]:
    """Whether noise is fresh in every round, layer, coordinate and run."""
    layers = _layers(idle)
    rounds = np.concatenate(list(layers.values()), axis=1)
    pair, found = worst_correlation(
        all_pairs({f"round {number}": noise for number, noise in enumerate(rounds, start=1)}),
        false_alarm_rate=FALSE_ALARM_RATE,
    )
    yield Probe(
        name="correlation/rounds",
        claim="No two rounds share their noise (correlation × √n of the worst pair)",
        result=found,
        where=pair,
    )
    pair, found = worst_correlation(all_pairs(layers), false_alarm_rate=FALSE_ALARM_RATE)
    yield Probe(
        name="correlation/layers",
        claim="No two layers share their noise (correlation × √n of the worst pair)",
        result=found,
        where=pair,
    )
    lag, found = worst_lag(rounds, false_alarm_rate=FALSE_ALARM_RATE)
    yield Probe(
        name="correlation/coordinates",
        claim="Noise doesn't repeat within a round (autocorrelation × √n at the worst lag)",
        result=found,
        where=f"lag {lag}",
    )
    firsts = {
        "this run": rounds[0],
        **{
            f"unseeded run {number}": np.concatenate(list(_layers(twin).values()), axis=1)[0]
            for number, twin in enumerate(twins, start=1)
        },
    }
    pairs = all_pairs(firsts)
    for name in idle.statistics:
        one, other = (flat(twin.statistics[name].residual()) for twin in twins)
        pairs[f"{name} of both unseeded runs"] = (one, other)
    pair, found = worst_correlation(pairs, false_alarm_rate=FALSE_ALARM_RATE)
    yield Probe(
        name="correlation/runs",
        claim="Runs without a seed don't share their noise (correlation × √n of the worst pair)",
        result=found,
        where=pair,
    )
    yield from _statistics_correlation(idle)


def _statistics_correlation(idle: Observed) -> Iterator[Probe]:
    """Whether the one-shot statistics and the first round have noise of their own."""
    if not idle.statistics:
        return
    noise = {name: flat(release.residual()) for name, release in idle.statistics.items()}
    pair, found = worst_correlation(
        all_pairs({**noise, "round 1": flat(idle.rounds[0].residual())}),
        false_alarm_rate=FALSE_ALARM_RATE,
    )
    yield Probe(
        name="correlation/statistics",
        claim="Statistics and the first round don't share noise (correlation × √n of the worst pair)",
        result=found,
        where=pair,
    )


def sampler_probes(idle: Observed) -> Iterator[Probe]:
    """Cohorts on the wire against independent coins."""
    declared = idle.rounds[0].declared
    size, q = declared.population_size, declared.sampling_probability
    cohorts = [release.cohort for release in idle.rounds]
    sizes = np.array([len(cohort) for cohort in cohorts])
    yield Probe(
        name="sampler/rate",
        claim="Devices are sampled at the declared rate (in q)",
        result=sampling_rate(
            sizes, population_size=size, probability=q, false_alarm_rate=FALSE_ALARM_RATE
        ),
    )
    if q == 1:
        return  # everyone, always: nothing to vary
    yield Probe(
        name="sampler/spread",
        claim="Cohort sizes vary as independent coins do (variance, in N·q·(1 − q))",
        result=binomial_spread(
            sizes, trials=size, probability=q, false_alarm_rate=FALSE_ALARM_RATE
        ),
    )
    yield Probe(
        name="sampler/devices",
        claim="No device is sampled more often than chance has it (variance over devices, in R·q·(1 − q))",
        result=binomial_spread(
            np.bincount(np.concatenate(cohorts), minlength=size),
            trials=len(cohorts),
            probability=q,
            false_alarm_rate=FALSE_ALARM_RATE,
        ),
    )
    yield Probe(
        name="sampler/rounds",
        claim="Successive cohorts are independent (devices in both, over those expected)",
        result=cohort_overlap(cohorts, population_size=size, false_alarm_rate=FALSE_ALARM_RATE),
    )


def statistics_noise_probes(idle: Observed, noisy: Observed) -> Iterator[Probe]:
    """Noise of the one-shot statistics, two-sided; nothing where there are none."""
    runs = {
        "noise": (idle, "Where nobody contributes"),
        "beside-updates": (noisy, "Beside contributions"),
    }
    for what, (run, where) in runs.items():
        for name, release in run.statistics.items():
            yield Probe(
                name=f"{name}/{what}",
                claim=f"{where}, released {name} has standard deviation σC (in σC)",
                result=noise_size(
                    flat(release.residual()),
                    stddev=release.declared.noise_stddev,
                    false_alarm_rate=FALSE_ALARM_RATE,
                ),
            )


def _layers(run: Observed) -> dict[str, Floats]:
    """Name → [rounds, coordinates], what was released beside the contributions."""
    noise = [release.residual() for release in run.rounds]
    return {name: np.stack([part[name].reshape(-1) for part in noise]) for name in noise[0]}
