"""Canaries: users made up by an auditor, who join a real federation as one more Flower node.

A canary's update is a fixed random direction of the largest norm that the clip allows. All canaries are
enrolled, so the population, the sampling rate and the divisor don't depend on the auditor's coins; a
canary whose coin says "out" contributes zero when it is asked, as a user without data does. That is the
neighbouring population of add-or-remove-one user, and nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..client.host import DeviceHost
from ..client.lifetime import BudgetOf, no_budget
from ..client.local_privacy import PrivateTrainer
from ..client.local_training import Trainer
from ..common.histories import Histories
from ..common.messages import TrainTask
from ..common.randomness import NoiseSource
from ..common.updates import ClippedUpdate
from .population import Population

_BLOCK = 2**24  # numbers of directions in memory at once: 64 MiB


@dataclass(frozen=True, eq=False)
class Canaries:
    """k random directions, and which of them take part.

    Directions are made anew from the seed whenever they are needed: a thousand of them would fill
    hundreds of megabytes with a larger model.

    Attributes:
        included: bool [k], the auditor's coins.
        seed: of the directions; no secret, for the coins alone are.
    """

    included: NDArray[np.bool_]
    seed: int

    @classmethod
    def draw(cls, count: int, *, randomness: NoiseSource) -> Canaries:
        """``count`` canaries, each in or out by a fair coin of its own."""
        included = np.zeros(count, dtype=np.bool_)
        coins = randomness.child("coins")
        included[coins.poisson_sample(population_size=count, probability=0.5)] = True
        seed = int(randomness.child("directions").integers(1, below=2**62)[0])
        return cls(included, seed)

    @property
    def count(self) -> int:
        """k."""
        return len(self.included)

    def directions(self, canaries: NDArray[np.int64], dimension: int) -> NDArray[np.float32]:
        """float32 [len(canaries), dimension], unit vectors uniform on the sphere."""
        drawn = np.empty((len(canaries), dimension), dtype=np.float32)
        for row, canary in zip(drawn, canaries, strict=True):
            np.random.default_rng([self.seed, int(canary)]).standard_normal(
                dtype=np.float32, out=row
            )
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return drawn

    def along(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Inner product of every direction with every vector.

        Args:
            vectors: float32 [n, dimension].

        Returns:
            float64 [k, n].
        """
        rows = max(1, _BLOCK // vectors.shape[1])
        parts = [
            self.directions(np.arange(start, min(start + rows, self.count)), vectors.shape[1])
            @ vectors.T
            for start in range(0, self.count, rows)
        ]
        return np.concatenate(parts).astype(np.float64)


class CanaryHost(DeviceHost):
    """The node that speaks for the canaries, numbered after all other devices.

    In statistics they have no part: without events a device contributes zero.
    """

    def __init__(
        self, canaries: Canaries, *, first: int, population: Population, trainer: Trainer
    ) -> None:
        super().__init__(
            _no_events(population.histories, canaries.count),
            keys=np.arange(canaries.count, dtype=np.uint64),  # they make no random choices
            first=first,
            table=population.table,
            model=population.model,
            trainer=trainer,
        )
        self._canaries = canaries

    def train(self, task: TrainTask) -> ClippedUpdate:
        """The sum of the canaries' updates: a direction of norm ``clip_norm``, or zero for one that is out.

        Raises:
            MessageError: a canary isn't hosted here, or the task is about another item table.
        """
        self._asked(task)
        asked = task.devices - self.devices.start
        present = asked[self._canaries.included[asked]]
        shapes = {name: task.weights[name].shape for name in sorted(task.weights)}
        dimension = sum(weight.size for weight in task.weights.values())
        total = self._canaries.directions(present, dimension).sum(axis=0) * task.clip_norm
        return ClippedUpdate(
            arrays=dict(_parts(total, shapes)), devices=len(asked), clip_norm=task.clip_norm
        )


@dataclass(frozen=True, eq=False)
class AuditedPopulation(Population):
    """A population under audit: canaries join, on a host of their own, and some users stay outside.

    The attributes of :class:`Population` are those of the users who take part.

    Attributes:
        canaries: who joins, numbered after the users.
        outsiders: histories of users who were left out at random, to compare members with.
    """

    canaries: Canaries
    outsiders: Histories

    @classmethod
    def of_users(
        cls, population: Population, canaries: Canaries, *, outside: NDArray[np.bool_]
    ) -> AuditedPopulation:
        """Canaries and all users of ``population`` but those ``outside`` (bool [n])."""
        members, others = np.flatnonzero(~outside), np.flatnonzero(outside)
        return cls(
            histories=population.histories.take(members),
            users=population.users[members],
            keys=population.keys[members],
            table=population.table,
            model=population.model,
            n_types=population.n_types,
            canaries=canaries,
            outsiders=population.histories.take(others),
        )

    @property
    def members(self) -> Population:
        """The users alone."""
        return Population(
            self.histories, self.users, self.keys, self.table, self.model, self.n_types
        )

    @property
    def size(self) -> int:
        """Number of devices, canaries included."""
        return super().size + self.canaries.count

    def hosts(self, devices_per_host: int) -> int:
        """Number of hosts, that of the canaries included."""
        return self.members.hosts(devices_per_host) + 1

    def host_finder(
        self,
        devices_per_host: int,
        trainer: Trainer,
        budget_of: BudgetOf = no_budget,
        private_trainer: PrivateTrainer | None = None,
    ) -> Callable[[Any], DeviceHost]:
        """Node context → host; the last node is that of the canaries."""
        members = self.members
        last = members.hosts(devices_per_host)
        find = members.host_finder(devices_per_host, trainer, budget_of, private_trainer)
        canaries = CanaryHost(self.canaries, first=members.size, population=self, trainer=trainer)

        def host(context: Any) -> DeviceHost:
            partition = int(str(context.node_config["partition-id"]))
            return canaries if partition == last else find(context)

        return host


def flattened(arrays: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """All arrays as one vector, by name: the space that directions live in."""
    return np.concatenate([arrays[name].reshape(-1) for name in sorted(arrays)])


def _parts(
    vector: NDArray[np.float32], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Inverse of :func:`flattened`."""
    start = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        yield name, vector[start : start + size].reshape(shape)
        start += size


def _no_events(histories: Histories, devices: int) -> Histories:
    columns = {f.name: getattr(histories, f.name)[:0] for f in fields(Histories)[1:]}
    return Histories(offsets=np.zeros(devices + 1, dtype=np.int64), **columns)
