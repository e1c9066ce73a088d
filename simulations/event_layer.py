"""The event-level layer of simulated devices: its noise, its ledgers, and what it came to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..client.lifetime import Terms
from ..client.local_privacy import EventPrivacy, PrivateTrainer
from ..common import accounting
from ..common.calibration import calibrate_noise_multiplier
from ..common.code_version import code_version
from ..common.config import LocalPrivacyConfig, RunConfig
from ..common.ledger_entries import Reserve, read_ledger
from ..common.mechanism import Mechanism
from ..common.randomness import NoiseSource
from .device_ledgers import DeviceLedgers, ledger_paths
from .population import Population
from .run_folder import RunFolder
from .run_ledger import population_name

_DAY = 86_400
ENDING = ".events.jsonl"
"""Of the names of event-level ledgers, which lie beside the user-level ones."""


@dataclass(frozen=True)
class EventLayer:
    """The :data:`~fedprofile.simulations.population.PrivateTrainerOf` of a run; plain values.

    Attributes:
        privacy: clip, noise and slots.
        ledgers: one of each device.
        seed: of coins and noise; None: they are secret.
    """

    privacy: EventPrivacy
    ledgers: DeviceLedgers
    seed: int | None

    def __call__(self, population: Population) -> PrivateTrainer:
        """A trainer for the population's encoder.

        Raises:
            ConfigError: gradients of single examples of this encoder would be wrong.
        """
        if self.seed is None:
            randomness = NoiseSource.csprng()
        else:
            randomness = NoiseSource.seeded(seed=self.seed, label="event layer")
        return PrivateTrainer(
            population.untrained_encoder(),
            population.table,
            population.model,
            privacy=self.privacy,
            randomness=randomness,
            budget_of=self.ledgers,
        )


def open_event_layer(
    folder: RunFolder, config: RunConfig, *, population: Population, sampling_probability: float
) -> EventLayer | None:
    """The layer that ``privacy.local`` asks for; None where it is off.

    Args:
        folder: where devices keep their ledgers.
        config: of the run.
        population: the devices.
        sampling_probability: chance of a device to be asked in a round.

    Raises:
        ConfigError: the noise can't be calibrated.
    """
    local = config.privacy.local
    if not local.enabled:
        return None
    mechanism = Mechanism(
        clip_norm=local.clip_norm,
        noise_multiplier=local.noise_multiplier or _calibrated(config, sampling_probability),
        sampling_probability=local.batch_size / local.max_examples,
        population_size=local.max_examples,
    )
    terms = Terms(
        population=population_name(config),
        target_epsilon=local.epsilon,
        delta=local.delta,
        randomness="csprng" if config.seed is None else "seeded",
        code_version=code_version(),
        config_digest=config.digest(),
        unit="event",
        population_size=local.max_examples,
    )
    paths = ledger_paths(folder, config, population, ending=ENDING)
    return EventLayer(
        EventPrivacy(mechanism=mechanism, period_seconds=round(local.period_days * _DAY)),
        DeviceLedgers(paths, terms, frozenset(range(len(paths)))),
        config.seed,
    )


def planned_visits(local: LocalPrivacyConfig, *, rounds: int, sampling_probability: float) -> int:
    """How often a device is planned to answer: few are asked oftener than two deviations above the mean."""
    mean = rounds * sampling_probability
    spread = math.sqrt(mean * (1 - sampling_probability))
    return local.visits or min(rounds, math.ceil(mean + 2 * spread))


def event_metrics(layer: EventLayer, config: RunConfig) -> dict[str, Any]:
    """What the devices' event-level ledgers come to, JSON-ready.

    Raises:
        LedgerError: one can't be read.
    """
    terms, mechanism = layer.ledgers.terms, layer.privacy.mechanism
    spent, releases = 0.0, 0
    kept = [path for path in layer.ledgers.paths if path.exists()]
    for events in {_releases(path) for path in kept}:
        counted = dict(events)
        releases = max(releases, sum(counted.values()))
        reached = accounting.epsilon(
            {m.event(): count for m, count in counted.items()},
            delta=terms.delta,
            adjacency="replace-one",
        )
        spent = max(spent, reached)
    return {
        "unit": "event",
        "adjacency": "replace-one",
        "epsilon": spent,
        "delta": terms.delta,
        "target_epsilon": terms.target_epsilon,
        "devices": len(kept),
        "most_steps": releases,
        "noise_multiplier": mechanism.noise_multiplier,
        "clip_norm": mechanism.clip_norm,
        "sampling_probability": mechanism.sampling_probability,
        "max_examples": mechanism.population_size,
        "period_days": config.privacy.local.period_days,
    }


def _releases(path: Path) -> frozenset[tuple[Mechanism, int]]:
    counts: dict[Mechanism, int] = {}
    for entry in read_ledger(path):
        if isinstance(entry, Reserve):
            counts[entry.mechanism] = counts.get(entry.mechanism, 0) + 1
    return frozenset(counts.items())


def _calibrated(config: RunConfig, sampling_probability: float) -> float:
    local = config.privacy.local
    visits = planned_visits(
        local, rounds=config.training.rounds, sampling_probability=sampling_probability
    )
    return calibrate_noise_multiplier(
        target_epsilon=local.epsilon,
        delta=local.delta,
        sampling_probability=local.batch_size / local.max_examples,
        rounds=visits * config.training.local_steps,
        adjacency="replace-one",
    )
