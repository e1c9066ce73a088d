"""A population of simulated devices and the hosts that speak for them.

Hosts are slices of the same columns: a million devices are six arrays, in memory or mapped from disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import Context
from numpy.typing import NDArray

from ..client.host import DeviceHost
from ..client.local_training import Trainer
from ..common.config import ModelConfig
from ..common.encoder import build_encoder
from ..common.histories import Histories
from ..common.items import ItemTable


@dataclass(frozen=True, eq=False)
class Population:
    """Devices that have something recorded, numbered from 0.

    Attributes:
        histories: what each recorded before training.
        users: int64 [n], index of each device's owner in the log.
        table: the public item table they hold.
        model: the encoder they train.
        n_types: number of event types.
    """

    histories: Histories
    users: NDArray[np.int64]
    table: ItemTable
    model: ModelConfig
    n_types: int

    @classmethod
    def of(
        cls, train: Histories, *, table: ItemTable, model: ModelConfig, n_types: int
    ) -> Population:
        """The users of ``train`` that have events."""
        users = np.flatnonzero(train.lengths)
        histories = train if len(users) == train.n_devices else train.take(users)
        return cls(histories, users, table, model, n_types)

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.histories.n_devices

    def hosts(self, devices_per_host: int) -> int:
        """Number of hosts."""
        return -(-self.size // devices_per_host)

    def trainer(self, *, threads: int, compiled: bool) -> Trainer:
        """A trainer for this population's encoder."""
        encoder = build_encoder(
            self.model,
            blocks=self.table.blocks,
            n_items=self.table.n_items,
            n_types=self.n_types,
            seed=0,
        )
        return Trainer(encoder, self.table.vectors, threads=threads, compiled=compiled)

    def host_finder(
        self, devices_per_host: int, trainer: Trainer
    ) -> Callable[[Context], DeviceHost]:
        """Node context → host, for hosts of this process that share one trainer."""

        @cache
        def host(partition: int) -> DeviceHost:
            first = partition * devices_per_host
            return DeviceHost(
                _slice(self.histories, first, min(first + devices_per_host, self.size)),
                first=first,
                table=self.table,
                model=self.model,
                trainer=trainer,
            )

        return lambda context: host(int(str(context.node_config["partition-id"])))

    def save(self, folder: Path) -> None:
        """Write the columns as mappable arrays, for other processes on this machine."""
        folder.mkdir(parents=True, exist_ok=True)
        for column in fields(Histories):
            np.save(folder / f"{column.name}.npy", getattr(self.histories, column.name))
        np.save(folder / "users.npy", self.users)
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
        # A saved table names its blocks in alphabetical order; an encoder reads them by place.
        blocks = dict(sorted(table.blocks.items(), key=lambda block: block[1]))
        return cls(
            histories=Histories(**columns),
            users=np.load(folder / "users.npy", mmap_mode="r"),
            table=replace(table, blocks=blocks),
            model=ModelConfig.model_validate_json(
                (folder / "model.json").read_text(encoding="utf-8")
            ),
            n_types=int(np.load(folder / "n_types.npy")),
        )


def _slice(histories: Histories, first: int, stop: int) -> Histories:
    """Devices ``first`` … ``stop − 1`` as views."""
    begin, end = int(histories.offsets[first]), int(histories.offsets[stop])
    columns = {
        column.name: getattr(histories, column.name)[begin:end] for column in fields(Histories)[1:]
    }
    return Histories(offsets=histories.offsets[first : stop + 1] - begin, **columns)
