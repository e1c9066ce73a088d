"""The folder of a device: where its configuration, store, keys, models and ledger lie.

    device.toml      what its owner decides
    store.db         events and profile, encrypted
    store.key        the store's key, unless the OS keyring holds it
    store.ballast    room for erasing on a full disk
    node.key         private key of its Flower node, and node.pub
    server/          the server it belongs to: CA, address, public signing key
    models/NAME/     a model bundle: model.safetensors and items.safetensors
    models/current   the NAME of the one in use
    ledger.jsonl     rounds it took part in, and what they cost
    outbox/          replies that are stored before they are sent
    run/             the socket of the local service, and the lock of the process that runs it

Everything is for the owner's eyes: the folder has mode 0700.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..common.errors import DeviceError
from ..common.files import sync_folder, write_atomically
from .device_config import DeviceConfig, load_device_config

_OTHERS = 0o077  # permission bits of everybody but the owner
_LONGEST_SOCKET = 100  # bytes; the system's limit is 104 or 108


@dataclass(frozen=True)
class DeviceFolder:
    """Paths of a device; make one with :meth:`create` or :meth:`open`.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: DeviceConfig) -> DeviceFolder:
        """A new device's folder, with its configuration and nothing else.

        Raises:
            DeviceError: the folder exists and isn't empty, or can't be made.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise DeviceError(f"{path}: exists and isn't empty; name a new folder")
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
            for inner in (folder.models, folder.outbox, folder.server, folder.run):
                inner.mkdir(mode=0o700)
            write_atomically(folder.config_file, config.to_toml().encode(), mode=0o600)
            sync_folder(path.parent)
        except OSError as error:
            raise DeviceError(f"{path}: can't make the folder ({error.strerror})") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> DeviceFolder:
        """The folder of a device that :meth:`create` made.

        Raises:
            DeviceError: there is none, or others may look into it.
            ConfigError: its configuration can't be used.
        """
        folder = cls(path)
        if not folder.config_file.is_file():
            raise DeviceError(f"{path}: no device; make one with fedprofile device init {path}")
        mode = path.stat().st_mode
        if mode & _OTHERS:
            raise DeviceError(
                f"{path}: others may look into this folder (mode {mode & 0o777:03o}); chmod 700 it"
            )
        _ = folder.config
        return folder

    @cached_property
    def config(self) -> DeviceConfig:
        """What the owner decided, as read the first time."""
        return load_device_config(self.config_file)

    @property
    def config_file(self) -> Path:
        """What the owner decides."""
        return self.path / "device.toml"

    @property
    def store(self) -> Path:
        """Events and profile, encrypted."""
        return self.path / "store.db"

    @property
    def store_key(self) -> Path:
        """The file with the store's key, where the keyring doesn't hold it."""
        return self.path / self.config.store.key_file

    @property
    def ballast(self) -> Path:
        """Room for erasing on a full disk."""
        return self.path / "store.ballast"

    @property
    def node_key(self) -> Path:
        """Private key of the Flower node."""
        return self.path / "node.key"

    @property
    def node_public_key(self) -> Path:
        """Public key of the Flower node, to be enrolled."""
        return self.path / "node.pub"

    @property
    def server(self) -> Path:
        """The server this device belongs to: CA, address, public signing key."""
        return self.path / "server"

    @property
    def server_facts(self) -> Path:
        """What is public of the server; there once its bundle is installed."""
        return self.server / "server.json"

    @property
    def models(self) -> Path:
        """Model bundles."""
        return self.path / "models"

    @property
    def ledger(self) -> Path:
        """Rounds that the device took part in, and what they cost."""
        return self.path / "ledger.jsonl"

    @property
    def outbox(self) -> Path:
        """Replies, stored before they are sent."""
        return self.path / "outbox"

    @property
    def diary(self) -> Path:
        """The rounds that were begun."""
        return self.outbox / "diary.json"

    @property
    def run(self) -> Path:
        """What exists while the device runs."""
        return self.path / "run"

    @property
    def fit_log(self) -> Path:
        """What the process that trained last had to say."""
        return self.run / "fit.log"

    @property
    def service_lock(self) -> Path:
        """Locked by the process that runs the device."""
        return self.run / "lock"

    @property
    def socket(self) -> Path:
        """Unix socket of the local service.

        Raises:
            DeviceError: its name is too long for a socket.
        """
        path = self.path / self.config.api.socket
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise DeviceError(
                f"{path}: too long for a Unix socket ({_LONGEST_SOCKET} bytes); "
                f"set api.socket in {self.config_file} to a shorter name"
            )
        return path
