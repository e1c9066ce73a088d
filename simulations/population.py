"""A population of simulated devices and the hosts that speak for them.

Hosts are slices of the same columns: a million devices are six arrays, in memory or mapped from disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import Context
from numpy.typing import NDArray

from ..client.host import DeviceHost
from ..client.lifetime import BudgetOf, no_budget
from ..client.local_privacy import PrivateTrainer
from ..client.local_training import Trainer
from ..common.config import ModelConfig
from ..common.encoder import Encoder, build_encoder
from ..common.histories import Histories
from ..common.items import ItemTable


@dataclass(frozen=True, eq=False)
class Population:
    """Devices that have something recorded, numbered from 0.

    Attributes:
        histories: what each recorded before training.
        users: int64 [n], index of each device's owner in the log.
        keys: uint64 [n], key of each device's random choices: a hash of its owner's id, so that it
            is the same whoever else takes part.
        table: the public item table they hold.
        model: the encoder they train.
        n_types: number of event types.
    """

    histories: Histories
    users: NDArray[np.int64]
    keys: NDArray[np.uint64]
    table: ItemTable
    model: ModelConfig
    n_types: int

    @classmethod
    def of(
        cls,
        train: Histories,
        *,
        user_ids: Sequence[str],
        table: ItemTable,
        model: ModelConfig,
        n_types: int,
    ) -> Population:
        """The users of ``train`` that have events; ``user_ids`` names all of its users."""
        users = np.flatnonzero(train.lengths)
        histories = train if len(users) == train.n_devices else train.take(users)
        keys = device_keys([user_ids[user] for user in users.tolist()])
        return cls(histories, users, keys, table, model, n_types)

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.histories.n_devices

    def hosts(self, devices_per_host: int) -> int:
        """Number of hosts."""
        return -(-self.size // devices_per_host)

    def untrained_encoder(self) -> Encoder:
        """The architecture that this population trains."""
        return build_encoder(
            self.model,
            blocks=self.table.blocks,
            n_items=self.table.n_items,
            n_types=self.n_types,
            seed=0,
        )

    def trainer(self, *, threads: int, compiled: bool) -> Trainer:
        """A trainer for this population's encoder."""
        return Trainer(self.untrained_encoder(), threads=threads, compiled=compiled)

    def host_finder(
        self,
        devices_per_host: int,
        trainer: Trainer,
        budget_of: BudgetOf = no_budget,
        private_trainer: PrivateTrainer | None = None,
    ) -> Callable[[Context], DeviceHost]:
        """Node context → host, for hosts of this process that share their trainers."""

        @cache
        def host(partition: int) -> DeviceHost:
            first = partition * devices_per_host
            stop = min(first + devices_per_host, self.size)
            return DeviceHost(
                _slice(self.histories, first, stop),
                keys=self.keys[first:stop],
                first=first,
                table=self.table,
                model=self.model,
                trainer=trainer,
                budget_of=budget_of,
                private_trainer=private_trainer,
            )

        return lambda context: host(int(str(context.node_config["partition-id"])))

    def save(self, folder: Path) -> None:
        """Write the columns as mappable arrays, for other processes on this machine."""
        folder.mkdir(parents=True, exist_ok=True)
        for column in fields(Histories):
            np.save(folder / f"{column.name}.npy", getattr(self.histories, column.name))
        np.save(folder / "users.npy", self.users)
        np.save(folder / "keys.npy", self.keys)
        self.table.save(folder / "items.safetensors")
        (folder / "model.json").write_text(self.model.model_dump_json(), encoding="utf-8")
        np.save(folder / "n_types.npy", np.array(self.n_types))

    @classmethod
    def load(cls, folder: Path) -> Population:
        """Map what :meth:`save` wrote; a process touches only the pages of its devices."""
        columns = {
            column.name: np.load(folder / f"{column.name}.npy", mmap_mode="r")
            for column in fields(Histories)
        }
        table = ItemTable.load(folder / "items.safetensors")
        return cls(
            histories=Histories(**columns),
            users=np.load(folder / "users.npy", mmap_mode="r"),
            keys=np.load(folder / "keys.npy", mmap_mode="r"),
            table=table,
            model=ModelConfig.model_validate_json(
                (folder / "model.json").read_text(encoding="utf-8")
            ),
            n_types=int(np.load(folder / "n_types.npy")),
        )


PrivateTrainerOf = Callable[[Population], PrivateTrainer]
"""Makes the private trainer of a population, in whatever process its hosts are."""


def device_keys(user_ids: Sequence[str]) -> NDArray[np.uint64]:
    """uint64 [n]: the first eight bytes of BLAKE2b of each id in UTF-8."""
    digests = (hashlib.blake2b(user.encode(), digest_size=8).digest() for user in user_ids)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)


def _slice(histories: Histories, first: int, stop: int) -> Histories:
    """Devices ``first`` … ``stop − 1`` as views."""
    begin, end = int(histories.offsets[first]), int(histories.offsets[stop])
    columns = {
        column.name: getattr(histories, column.name)[begin:end] for column in fields(Histories)[1:]
    }
    return Histories(offsets=histories.offsets[first : stop + 1] - begin, **columns)
