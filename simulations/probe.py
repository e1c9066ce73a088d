"""Whether the mechanism runs as the ledger declares it: probes on the real code path.

Each probe is one figure and the interval it must lie in. Those that rest on chance state how often a
faultless mechanism falls outside; the others are exact up to float32 rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from ..common.config import RunConfig
from .chance_probes import (
    correlation_probes,
    noise_probes,
    popularity_noise_probes,
    sampler_probes,
)
from .exact_probes import (
    MEDDLING,
    ask_alone,
    clip_probes,
    ledger_probes,
    popularity_probes,
    step_probes,
    weights_probes,
)
from .probe_report import Report
from .probe_runs import Probed

STEPS = 5
"""Steps of :func:`run_probes`."""


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
        exact = probed.run_busy(folder / "exact", meddling=MEDDLING, noise=False)
        alone = ask_alone(exact, exact.rounds[0])
        advance("updates at the clip")
        noisy = probed.run_busy(folder / "noisy", meddling=MEDDLING, noise=True)
        advance("the same with noise")
        charged = probed.run_crashed(folder / "crashed")
        advance("a crash")
        probes = (
            *noise_probes(idle, noisy),
            *step_probes(idle, noisy),
            *correlation_probes(idle, twins),
            *clip_probes(exact, alone),
            *weights_probes(exact, alone),
            *sampler_probes(idle),
            *popularity_noise_probes(idle),
            *popularity_probes(exact),
            *ledger_probes([idle, *twins, exact, noisy], charged),
        )
    return Report(
        declared=idle.rounds[0].declared.describe(),
        randomness="csprng" if config.seed is None else "seeded",
        probes=probes,
    )
