"""Flower's own Ray engine: the same apps, with hosts as its nodes, one Ray actor per core."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
from pathlib import Path
from threading import Event

import torch
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from ..client.app import build_client_app
from ..client.host import DeviceHost
from ..client.lifetime import BudgetOf, no_budget
from ..common.errors import ConfigError
from ..common.flower_switches import quieten_flower
from ..server.app import Federation
from .population import Population, PrivateTrainerOf

# Ray looks outside hosts up unless told not to.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_POLL = 0.2  # seconds
# Ray's ports ask nobody for a password. A Ray without clusters listens on loopback only, which is
# what this switch does on any system, whatever its name says.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def run_on_ray(
    federation: Federation,
    population: Population,
    *,
    devices_per_host: int,
    budget_of: BudgetOf = no_budget,
    events: PrivateTrainerOf | None = None,
) -> None:
    """Run ``federation`` with Ray actors for clients, on this machine alone.

    Where RAY_ADDRESS names a cluster, that one is used. The population is written once to a
    temporary folder that the actors map: on several machines TMPDIR must name one that all share,
    and so must ``ledger.device_folder`` where devices keep ledgers.

    Raises:
        ConfigError: Ray isn't installed.
        FedprofileError: what the federation itself raises.
    """
    quieten_flower()
    os.environ.update(_QUIET)
    if "RAY_ADDRESS" not in os.environ:
        os.environ.update(_LOOPBACK)
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Flower's Ray engine: pip install 'fedprofile[ray]'"
        ) from error
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.telemetry import EventType

    _silence_flower()
    stopped = Event()
    with (
        tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch,
        ThreadPoolExecutor(1) as thread,
    ):
        folder = Path(scratch)
        population.save(folder)
        try:  # around the start too: a Ctrl-C may come before the first wait
            simulation = thread.submit(
                _run_simulation,
                num_supernodes=population.hosts(devices_per_host),
                exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
                client_app=build_client_app(
                    partial(_find_host, folder, devices_per_host, budget_of, events)
                ),
                server_app=_server_app(federation, stopped),
                backend_config={
                    "init_args": {"include_dashboard": False},
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
            # In short steps: with Ray's signal handlers no wait is interrupted by Ctrl-C.
            while wait([simulation], timeout=_POLL).not_done:
                pass
        finally:
            stopped.set()
    simulation.result()


def _server_app(federation: Federation, stopped: Event) -> ServerApp:
    """The ServerApp of ``federation``, which gives up once the engine has stopped or should.

    Flower runs it in a thread that outlives an interrupt or a crash of the engine, and that would
    wait an hour for replies that nobody sends any more. Where it ends, Flower ends the engine.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001  # Flower's signature
        pull, send = grid.pull_messages, grid.send_and_receive

        def pull_while_running(message_ids: Iterable[str]) -> Iterable[Message]:
            if stopped.is_set():
                raise RuntimeError("the Ray engine was stopped")
            return pull(message_ids)

        def send_and_receive_in_order(
            messages: Iterable[Message], *, timeout: float | None = None
        ) -> list[Message]:
            asked = list(messages)
            place = {m.metadata.dst_node_id: number for number, m in enumerate(asked)}
            replies = send(asked, timeout=timeout)
            # Which actor was faster must not change a bit of a sum.
            return sorted(replies, key=lambda reply: place.get(reply.metadata.src_node_id, -1))

        grid.pull_messages = pull_while_running  # type: ignore[method-assign]
        grid.send_and_receive = send_and_receive_in_order  # type: ignore[method-assign]
        federation.run(grid)

    return app


def _find_host(
    folder: Path,
    devices_per_host: int,
    budget_of: BudgetOf,
    events: PrivateTrainerOf | None,
    context: Context,
) -> DeviceHost:
    return _finder(folder, devices_per_host, budget_of, events)(context)


@lru_cache(maxsize=1)
def _finder(
    folder: Path, devices_per_host: int, budget_of: BudgetOf, events: PrivateTrainerOf | None
) -> Callable[[Context], DeviceHost]:
    """Per actor: one population, one trainer on the actor's core."""
    _silence_flower()
    torch.set_num_threads(1)
    population = Population.load(folder)
    trainer = population.trainer(threads=1, compiled=False)
    private = None if events is None else events(population)
    return population.host_finder(devices_per_host, trainer, budget_of, private)


def _silence_flower() -> None:
    """Flower logs every step, and root handlers of other libraries repeat it."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
