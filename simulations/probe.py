"""Whether the mechanism runs as the ledger declares it: probes on the real code path.

Each probe is one figure and the interval it must lie in. Those that rest on chance state how often a
faultless mechanism falls outside; the others are exact up to float32 rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.config import RunConfig
from .chance_probes import (
    correlation_probes,
    noise_probes,
    sampler_probes,
    statistics_noise_probes,
)
from .exact_probes import (
    MEDDLING,
    ask_alone,
    clip_probes,
    ledger_probes,
    statistics_probes,
    step_probes,
    weights_probes,
)
from .probe_observed import Observed
from .probe_report import Probe, Report
from .probe_runs import Probed

STEPS = 5
"""Steps of :func:`run_probes`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """All federations of a probe.

    Attributes:
        idle: noise alone.
        twins: two unseeded runs, one round each.
        exact: updates at the clip, without noise.
        noisy: the same with noise.
        charged: rounds that the ledger charges for two, the second repeated after a crash.
    """

    idle: Observed
    twins: Sequence[Observed]
    exact: Observed
    noisy: Observed
    charged: int


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
        twins = probed.run_twins(folder)
        advance("the same twice")
        exact = probed.run_busy(folder / "exact", meddling=MEDDLING, noise=False)
        advance("updates at the clip")
        noisy = probed.run_busy(folder / "noisy", meddling=MEDDLING, noise=True)
        advance("the same with noise")
        charged = probed.run_crashed(folder / "crashed")
        advance("a crash")
    seen = Seen(idle=idle, twins=twins, exact=exact, noisy=noisy, charged=charged)
    return Report(
        declared=idle.rounds[0].declared.describe(),
        randomness="csprng" if config.seed is None else "seeded",
        probes=tuple(measure(seen)),
    )


def measure(seen: Seen) -> Iterator[Probe]:
    """All probes, area by area."""
    idle, exact, noisy = seen.idle, seen.exact, seen.noisy
    alone = ask_alone(exact, exact.rounds[0])
    yield from noise_probes(idle, noisy)
    yield from step_probes(idle, noisy)
    yield from correlation_probes(idle, seen.twins)
    yield from clip_probes(exact, alone)
    yield from weights_probes(exact, alone)
    yield from sampler_probes(idle)
    yield from statistics_noise_probes(idle, noisy)
    yield from statistics_probes(exact, noisy)
    yield from ledger_probes([idle, *seen.twins, exact, noisy], seen.charged)
