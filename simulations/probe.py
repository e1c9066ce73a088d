"""Whether the mechanism runs as the ledger declares it: probes on the real code path.

Each probe is one figure and the interval it must lie in. Those that rest on chance state how often a
faultless mechanism falls outside; the others are exact up to float32 rounding.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..audit.statistics import (
    Measurement,
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
from ..common.config import RunConfig
from ..common.errors import ReplyRejected
from .probe_runs import Observed, Probed, Release
from .watched_grid import Exchange, absent, twice, unclipped, untouched

Floats = NDArray[np.float64]
Parts = tuple[Exchange, list[Exchange]]
"""A host's exchange, and one with each of its devices alone."""

FALSE_ALARM_RATE = 5e-4
"""Of each probe that rests on chance; of all of them together below 1 %."""

_MEDDLING = {1: untouched, 2: twice, 3: absent, 4: unclipped}
_PLAIN, _DOUBLED, _THINNED, _INFLATED = range(4)
_OVER = 1e-5  # relative to C: clipping runs in float32
_NEAR = 1e-3  # relative to C or q·N: sums of float32 contributions, in another order
STEPS = 5
"""Steps of :func:`run_probes`."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One figure of the mechanism, and what it must be.

    Attributes:
        name: ``area/what``.
        claim: what holds if the figure is as expected; says its unit.
        result: the figure and its interval.
        where: what the figure belongs to, where it was the worst of several.
    """

    name: str
    claim: str
    result: Measurement
    where: str = ""

    @property
    def holds(self) -> bool:
        """Whether the claim stands."""
        return self.result.holds

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        if self.holds:
            return f"{self.claim}."
        at = f" ({self.where})" if self.where else ""
        low, high = self.result.low, self.result.high
        expected = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
        return (
            f"Not so: {self.claim}; measured {self.result.measured:.6g}{at}, expected {expected}."
        )

    def describe(self) -> dict[str, Any]:
        """The probe as JSON values; a figure that isn't finite is None."""
        result = self.result
        return {
            "name": self.name,
            "holds": self.holds,
            "measured": result.measured if math.isfinite(result.measured) else None,
            "expected": [result.low, result.high],
            "false_alarm_rate": result.false_alarm_rate,
            "sentence": self.sentence,
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """What all probes found.

    Attributes:
        declared: the mechanism of a round, as the ledger has it.
        randomness: ``csprng`` or ``seeded``: of the configuration.
        probes: in the order of the areas.
    """

    declared: dict[str, Any]
    randomness: str
    probes: tuple[Probe, ...]

    @property
    def holds(self) -> bool:
        """Whether every probe holds."""
        return all(probe.holds for probe in self.probes)

    @property
    def false_alarm_rate(self) -> float:
        """Bound on the chance that any probe fails without a fault."""
        return sum(probe.result.false_alarm_rate for probe in self.probes)

    def describe(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "holds": self.holds,
            "declared": self.declared,
            "randomness": self.randomness,
            "false_alarm_rate": self.false_alarm_rate,
            "probes": [probe.describe() for probe in self.probes],
        }


def run_probes(
    config: RunConfig, *, rounds: int = 40, advance: Callable[[str], None] = lambda _: None
) -> Report:
    """Run small federations of this configuration and measure what they did.

    Encoder, clip, noise, sampling rate, local training and server optimizer are the configuration's;
    users and items are made up.

    Args:
        config: of the user; its data is not read.
        rounds: of noise alone, 2 or more.
        advance: called after each of :data:`STEPS` steps with what it was.

    Raises:
        ConfigError: privacy is switched off, or the budget allows no release.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        probed = Probed.of(config)
        idle = probed.run_idle(folder / "idle", rounds=rounds)
        advance("noise alone")
        twins = [
            probed.run_idle(folder / name, rounds=1, secret=True) for name in ("one", "another")
        ]
        advance("the same twice")
        exact = probed.run_busy(folder / "exact", meddling=_MEDDLING, noise=False)
        alone = _alone(exact, exact.rounds[_PLAIN])
        advance("updates at the clip")
        noisy = probed.run_busy(folder / "noisy", meddling=_MEDDLING, noise=True)
        advance("the same with noise")
        charged = probed.run_crashed(folder / "crashed")
        advance("a crash")
        probes = (
            *noise_probes(idle, noisy),
            *correlation_probes(idle, twins),
            *clip_probes(exact, alone),
            *weights_probes(exact, alone),
            *sampler_probes(idle),
            *popularity_probes(idle, exact),
            *ledger_probes([idle, *twins, exact, noisy], charged),
        )
    return Report(
        declared=idle.rounds[0].declared.describe(),
        randomness="csprng" if config.seed is None else "seeded",
        probes=probes,
    )


def noise_probes(idle: Observed, noisy: Observed) -> Iterator[Probe]:
    """What is released where nobody contributes, and beside updates."""
    layers, stddev = _layers(idle), _stddev(idle.rounds[0])
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
            beside, stddev=_stddev(noisy.rounds[0]), false_alarm_rate=FALSE_ALARM_RATE
        ),
    )
    yield Probe(
        name="noise/step",
        claim="The weights move along what is released and nothing else (weights that don't)",
        result=_exactly(0, idle.missteps + noisy.missteps),
    )


def correlation_probes(idle: Observed, twins: list[Observed]) -> Iterator[Probe]:
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
    if idle.popularity and twins[0].popularity and twins[1].popularity:
        one, other = (twin.popularity.residual()["popularity"] for twin in twins if twin.popularity)
        pairs["popularity of both unseeded runs"] = (one, other)
    pair, found = worst_correlation(pairs, false_alarm_rate=FALSE_ALARM_RATE)
    yield Probe(
        name="correlation/runs",
        claim="Runs without a seed don't share their noise (correlation × √n of the worst pair)",
        result=found,
        where=pair,
    )


def clip_probes(exact: Observed, alone: Sequence[Parts]) -> Iterator[Probe]:
    """The bound on one device, kept by hosts and enforced by the server."""
    norms = _norms(alone, exact.rounds[_PLAIN])
    yield Probe(
        name="clip/devices",
        claim="Of devices that learn far too fast, the largest update over all layers is C (in C)",
        result=Measurement(measured=max(norms, default=math.nan), low=1 - _NEAR, high=1 + _OVER),
    )
    yield Probe(
        name="clip/server",
        claim="A reply above devices · C doesn't get into the sum (what did, in C)",
        result=_nothing(exact.rounds[_INFLATED]),
    )


def weights_probes(exact: Observed, alone: Sequence[Parts]) -> Iterator[Probe]:
    """What one device counts for, and what the sum is divided by."""
    plain = exact.rounds[_PLAIN]
    learnt = [norm for norm in _norms(alone, plain) if norm > 0]
    yield Probe(
        name="weights/equal",
        claim="Of the same devices, with histories short and long, the smallest update is C (in C)",
        result=Measurement(measured=min(learnt, default=math.nan), low=1 - _NEAR, high=1 + _OVER),
    )
    yield Probe(
        name="weights/alone",
        claim="A host sends the sum of what its devices send alone (largest difference, in C)",
        result=Measurement(measured=_joint_difference(alone, plain), low=0.0, high=_NEAR),
    )
    yield Probe(
        name="weights/sum",
        claim="Without noise, the sum of all replies is released, each counted once (difference, in C)",
        result=_nothing(plain),
    )
    doubled = exact.rounds[_DOUBLED]
    yield Probe(
        name="weights/twice",
        claim="Neither a reply nor a device counts twice (difference, in C)",
        result=replace(
            _nothing(doubled), measured=_nothing(doubled).measured + _named_twice(exact, doubled)
        ),
    )
    thinned = exact.rounds[_THINNED]
    contributed, _ = thinned.contributed()
    total, sum_ = _flat(thinned.total), _flat(contributed)
    along = float(total @ sum_)
    yield Probe(
        name="divisor/dropouts",
        claim="The sum is divided by q·N though hosts fail and don't answer (in q·N)",
        result=Measurement(
            measured=float(sum_ @ sum_) / along if along else math.nan,
            low=1 - _NEAR,
            high=1 + _NEAR,
        ),
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


def popularity_probes(idle: Observed, exact: Observed) -> Iterator[Probe]:
    """Noise, clip and sum of the one-shot statistics; nothing where there are none."""
    if idle.popularity is None or exact.popularity is None:
        return
    yield Probe(
        name="popularity/noise",
        claim="Where nobody contributes, released popularity has standard deviation σC (in σC)",
        result=noise_size(
            _flat(idle.popularity.residual()),
            stddev=_stddev(idle.popularity),
            false_alarm_rate=FALSE_ALARM_RATE,
        ),
    )
    alone = _alone(exact, exact.popularity)
    yield Probe(
        name="popularity/clip",
        claim="No device contributes more than C to popularity (largest, in C)",
        result=Measurement(measured=max(_norms(alone, exact.popularity)), low=0.0, high=1 + _OVER),
    )
    difference = _nothing(exact.popularity).measured + _joint_difference(alone, exact.popularity)
    yield Probe(
        name="popularity/sum",
        claim="Without noise, what is released is the sum of what devices send alone (difference, in C)",
        result=Measurement(measured=difference, low=0.0, high=_NEAR),
    )


def ledger_probes(observed: list[Observed], charged: int) -> Iterator[Probe]:
    """What the ledger on disk held, and when."""
    yield Probe(
        name="ledger/reserved",
        claim="The ledger on disk holds a release before devices are asked (releases it doesn't)",
        result=_exactly(0, sum(run.unreserved for run in observed)),
    )
    yield Probe(
        name="ledger/counts",
        claim="It tells of each release the cohort and replies on the wire (releases it doesn't)",
        result=_exactly(0, sum(run.miscounted for run in observed)),
    )
    yield Probe(
        name="ledger/crash",
        claim="Two rounds, the second repeated after a crash, are charged as three (rounds charged)",
        result=_exactly(3, charged),
    )


def _layers(run: Observed) -> dict[str, Floats]:
    """Name → [rounds, coordinates], what was released beside the contributions."""
    noise = [release.residual() for release in run.rounds]
    return {name: np.stack([part[name].reshape(-1) for part in noise]) for name in noise[0]}


def _stddev(release: Release) -> float:
    """σC by the ledger."""
    return release.declared.noise_multiplier * release.declared.clip_norm


def _flat(arrays: dict[str, Floats]) -> Floats:
    return np.concatenate([array.reshape(-1) for array in arrays.values()])


def _exactly(expected: float, measured: float) -> Measurement:
    return Measurement(measured=measured, low=expected, high=expected)


def _nothing(release: Release) -> Measurement:
    """Norm of what was released beside the contributions, in C; 0 without noise."""
    norm = float(np.linalg.norm(_flat(release.residual()))) / release.declared.clip_norm
    return Measurement(measured=norm, low=0.0, high=_NEAR)


def _alone(run: Observed, release: Release) -> list[Parts]:
    """Each exchange of a release, and its devices asked one by one."""
    return [
        (
            exchange,
            [
                run.grid.ask(exchange.node, replace(exchange.task, devices=np.array([device])))
                for device in exchange.task.devices
            ],
        )
        for exchange in release.exchanges
    ]


def _norms(alone: Sequence[Parts], release: Release) -> list[float]:
    """Norm of what each device sends alone, in the declared C; ∞ where it is refused."""
    norms = []
    for _, parts in alone:
        for part in parts:
            try:
                norms.append(part.update().norm / release.declared.clip_norm)
            except ReplyRejected:
                norms.append(math.inf)
    return norms


def _joint_difference(alone: Sequence[Parts], release: Release) -> float:
    """Largest norm of a host's reply less what its devices send alone, in C; NaN if one is refused."""
    largest = 0.0
    for exchange, parts in alone:
        try:
            difference = {n: a.astype(np.float64) for n, a in exchange.update().arrays.items()}
            for part in parts:
                for name, array in part.update().arrays.items():
                    difference[name] -= array
        except ReplyRejected:
            return math.nan
        largest = max(largest, float(np.linalg.norm(_flat(difference))))
    return largest / release.declared.clip_norm


def _named_twice(run: Observed, release: Release) -> float:
    """Largest norm of a reply to a task that names a device twice, in C; 0 where all are refused."""
    largest = 0.0
    for exchange in release.exchanges:
        again = replace(exchange.task, devices=np.repeat(exchange.task.devices[:1], 2))
        try:
            largest = max(largest, run.grid.ask(exchange.node, again).update().norm)
        except ReplyRejected:
            continue
    return largest / release.declared.clip_norm
