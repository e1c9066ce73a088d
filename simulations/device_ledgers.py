"""Devices of a simulation that keep ledgers of their own, as every deployed device does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..client.lifetime import LifetimeBudget, Terms
from ..common.config import RunConfig
from ..common.errors import ConfigError
from ..common.randomness import NoiseSource
from .population import Population
from .results import version
from .run_folder import RunFolder
from .run_ledger import population_name


@dataclass(frozen=True)
class DeviceLedgers:
    """Called with a device's number, the :data:`~fedprofile.client.lifetime.BudgetOf` of a host.

    It is plain values, so that processes of an engine can be handed a copy.

    Attributes:
        paths: number of each such device and its ledger, by number.
        terms: of all these ledgers.
    """

    paths: tuple[tuple[int, Path], ...]
    terms: Terms

    def __call__(self, device: int) -> LifetimeBudget | None:
        """The device's lifetime budget; None where it keeps no ledger."""
        path = dict(self.paths).get(device)
        return None if path is None else LifetimeBudget.open(path, terms=self.terms)


def open_device_ledgers(
    folder: RunFolder,
    config: RunConfig,
    *,
    population: Population,
    delta: float,
    randomness: NoiseSource,
) -> DeviceLedgers:
    """Choose the devices that keep ledgers, and begin those that are missing.

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
    place = Path(config.ledger.device_folder or folder.devices).resolve()
    names = [place / f"{key:016x}.jsonl" for key in population.keys.tolist()]
    order = np.argsort(randomness.uniforms(size)).tolist() if wanted else []
    chosen = sorted(order, key=lambda device: not names[device].exists())[:wanted]
    terms = Terms(
        population=population_name(config),
        target_epsilon=config.ledger.device_epsilon,
        delta=delta,
        randomness="csprng" if config.seed is None else "seeded",
        code_version=version(),
        config_digest=config.digest(),
    )
    ledgers = DeviceLedgers(tuple((device, names[device]) for device in sorted(chosen)), terms)
    for device in chosen:
        budget = ledgers(device)
        assert budget is not None, "it was chosen to keep one"
        budget.close()
    return ledgers
