"""Flower's own Ray engine: the same apps, with hosts as its nodes, on one machine or a cluster."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
from flwr.app import Context

from ..client.app import build_client_app
from ..client.host import DeviceHost
from ..common.errors import ConfigError
from ..server.app import Federation, build_server_app
from .population import Population

# Flower and Ray look outside hosts up unless told not to.
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def run_on_ray(federation: Federation, population: Population, *, devices_per_host: int) -> None:
    """Run ``federation`` with one Ray actor per core; each host is a node.

    The population is written once to a temporary folder that the actors map.

    Raises:
        ConfigError: Ray isn't installed.
        FedprofileError: what the federation itself raises.
    """
    os.environ.update(_QUIET)
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--engine ray needs Flower's Ray engine: pip install 'fedprofile[ray]'"
        ) from error
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.telemetry import EventType

    with tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch:
        folder = Path(scratch)
        population.save(folder)
        _run_simulation(
            num_supernodes=population.hosts(devices_per_host),
            exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
            client_app=build_client_app(partial(_find_host, folder, devices_per_host)),
            server_app=build_server_app(federation),
            backend_config={
                "init_args": {"include_dashboard": False},
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )


def _find_host(folder: Path, devices_per_host: int, context: Context) -> DeviceHost:
    return _finder(folder, devices_per_host)(context)


@lru_cache(maxsize=1)
def _finder(folder: Path, devices_per_host: int) -> Callable[[Context], DeviceHost]:
    """Per actor: one population, one trainer on the actor's core."""
    torch.set_num_threads(1)
    population = Population.load(folder)
    return population.host_finder(devices_per_host, population.trainer(threads=1, compiled=False))
