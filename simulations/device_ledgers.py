"""Ledgers of simulated devices, kept as a deployed device keeps its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..client.lifetime import LifetimeBudget, Terms
from ..common.code_version import code_version
from ..common.config import RunConfig
from ..common.errors import ConfigError
from ..common.randomness import NoiseSource
from .population import Population
from .run_folder import RunFolder
from .run_ledger import population_name


@dataclass(frozen=True)
class DeviceLedgers:
    """Called with a device's number, the :data:`~fedprofile.client.lifetime.BudgetOf` of a host.

    It is plain values, so that processes of an engine can be handed a copy.

    Attributes:
        paths: where each device would keep its ledger, by its number.
        terms: of all these ledgers.
        devices: those that keep one.
    """

    paths: tuple[Path, ...]
    terms: Terms
    devices: frozenset[int]

    def __call__(self, device: int) -> LifetimeBudget | None:
        """The device's lifetime budget; None where it keeps no ledger."""
        if device not in self.devices:
            return None
        return LifetimeBudget.open(self.paths[device], terms=self.terms)


def open_device_ledgers(
    folder: RunFolder,
    config: RunConfig,
    *,
    population: Population,
    delta: float,
    randomness: NoiseSource,
) -> DeviceLedgers:
    """Choose the devices that keep user-level ledgers, and begin those that are missing.

    Devices that have one already come first: a run that goes on finds its own again, and with
    ``ledger.device_folder`` several runs share the devices' lifetimes.

    Raises:
        ConfigError: there are fewer devices than are to keep one, or a ledger was begun on other terms.
        LedgerError: a ledger can't be read or written.
    """
    wanted, size = config.ledger.devices, len(population.keys)
    if wanted > size:
        raise ConfigError(
            f"ledger.devices: {wanted:,} of {size:,} devices; ask for {size:,} or fewer"
        )
    paths = ledger_paths(folder, config, population, ending=".jsonl")
    order = np.argsort(randomness.uniforms(size)).tolist() if wanted else []
    chosen = sorted(order, key=lambda device: not paths[device].exists())[:wanted]
    terms = Terms(
        population=population_name(config),
        target_epsilon=config.ledger.device_epsilon,
        delta=delta,
        randomness="csprng" if config.seed is None else "seeded",
        code_version=code_version(),
        config_digest=config.digest(),
    )
    for device in chosen:
        LifetimeBudget.open(paths[device], terms=terms).close()
    return DeviceLedgers(paths, terms, frozenset(chosen))


def ledger_paths(
    folder: RunFolder, config: RunConfig, population: Population, *, ending: str
) -> tuple[Path, ...]:
    """Where each device would keep its ledger: named by a hash of its owner's id."""
    place = Path(config.ledger.device_folder or folder.devices).resolve()
    return tuple(place / f"{key:016x}{ending}" for key in population.keys.tolist())
