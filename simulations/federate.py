"""One federation over a simulated population, on the engine the configuration names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..client.app import build_client_app
from ..client.lifetime import BudgetOf, no_budget
from ..client.local_training import Trainer
from ..common.config import RunConfig
from ..common.encoder import Encoder
from ..common.ledger import Ledger
from ..common.ledger_entries import Reserve
from ..common.randomness import NoiseSource
from ..server.app import Enough, Federation, FederationResult, OnStatistic, build_server_app
from ..server.budget import BudgetPlan
from ..server.statistics import ItemStatistics
from ..server.strategy import RoundRecord
from .grid import InProcessGrid
from .population import Population, PrivateTrainerOf
from .ray_engine import run_on_ray
from .splits import Split, midnight


def run_federation(
    config: RunConfig,
    *,
    name: str,
    population: Population,
    trainer: Trainer,
    encoder: Encoder,
    plan: BudgetPlan,
    ledger: Ledger,
    checkpoints: Path,
    now: int,
    on_round: Callable[[RoundRecord, dict[str, Tensor], ItemStatistics], None],
    enough: Enough = lambda *_: None,
    on_statistic: OnStatistic = lambda *_: None,
    grid: Callable[..., InProcessGrid] = InProcessGrid,
    budget_of: BudgetOf = no_budget,
    events: PrivateTrainerOf | None = None,
) -> FederationResult:
    """Run to the last round the budget allows; the arguments are those of :class:`Federation`.

    Args:
        name: of the run; devices are told it with part of the ledger's nonce.
        grid: makes the grid of the local engine, called as :class:`InProcessGrid` is.
        budget_of: device → its own ledger, where it keeps one.
        events: the event-level layer of the devices, if any.

    Raises:
        FedprofileError: what the federation raises.
    """
    federation = Federation(
        run=run_name(name, ledger),
        config=config,
        plan=plan,
        encoder=encoder,
        table=population.table,
        ledger=ledger,
        randomness=randomness(config, label="federation"),
        checkpoints=checkpoints,
        now=now,
        on_round=on_round,
        enough=enough,
        on_statistic=on_statistic,
    )
    size = config.engine.devices_per_host
    if config.engine.kind == "ray":
        run_on_ray(
            federation, population, devices_per_host=size, budget_of=budget_of, events=events
        )
    else:
        private = None if events is None else events(population)
        client_app = build_client_app(population.host_finder(size, trainer, budget_of, private))
        local = grid(client_app, nodes=population.hosts(size))
        build_server_app(federation)(local, local.server_context)
    assert federation.result is not None, "a federation that raises nothing has a result"
    return federation.result


def randomness(config: RunConfig, *, label: str) -> NoiseSource:
    """Secret randomness, or repeatable one where the configuration has a seed."""
    if config.seed is None:
        return NoiseSource.csprng()
    return NoiseSource.seeded(seed=config.seed, label=label)


def time_is_read_off_data(config: RunConfig) -> bool:
    """Whether :func:`statistics_time` follows from what users did, for want of a date."""
    dated = config.evaluation.split == "global-time" and config.evaluation.validation_from
    return not (config.statistics.as_of or dated)


def statistics_time(config: RunConfig, split: Split, population: Population) -> int:
    """The moment popularity is released: ``statistics.as_of``, the end of training, or that of
    the data; every device's contribution depends on it."""
    if config.statistics.as_of is not None:
        return midnight(config.statistics.as_of)
    if split.train_time is not None:
        return split.train_time
    return int(population.histories.times.max()) + 1


def run_name(name: str, ledger: Ledger) -> str:
    """What devices are told a run is called: those of one folder name may share their ledgers.

    A run that goes on keeps the one it began with, wherever its folder is by now.
    """
    began = (e.run for e in ledger.entries if isinstance(e, Reserve) and e.run is not None)
    return next(began, f"{name}-{ledger.opening.nonce[:8]}")
