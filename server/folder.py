"""The folder of a server: where its configuration, keys, ledger and releases lie.

    server.toml       what the operator decides
    items.safetensors the public item table
    model.safetensors the untrained encoder, where training starts
    bundle.zip        what a device is given: CA, address, public signing key, item table
    ca.key, ca.crt    the authority that devices trust for this server, and no other
    server.key, .crt  the server's certificate
    signing.key       signs the ledger, tasks and releases
    devices.json      who is enrolled
    ledger.jsonl      what was released, and what it cost; anchor.json, its head
    crashes-seen      up to where in it the operator has looked after releases that were lost
    checkpoints/      state after the last rounds
    releases/         released models with signed manifests
    run/              what exists while the server runs: socket, status, Flower's own state
    log.jsonl         what happened, without names of items or users

The folder has mode 0700: its keys speak for the federation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..common.errors import LedgerError, ServerError
from ..common.files import sync_folder, write_atomically
from ..common.server_config import ServerConfig, load_server_config

_LONGEST_SOCKET = 100  # bytes; the system's limit is 104 or 108
_OTHERS = 0o077  # permission bits of everybody but the owner


@dataclass(frozen=True)
class ServerFolder:
    """Paths of a server; make one with :meth:`create` or :meth:`open`.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, config: ServerConfig) -> ServerFolder:
        """A new server's folder, with its configuration and nothing else.

        Raises:
            ServerError: the folder exists and isn't empty, or can't be made.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ServerError(f"{path}: exists and isn't empty; name a new folder")
        folder = cls(path.absolute())
        try:
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
            for inner in (folder.run, folder.releases, folder.checkpoints):
                inner.mkdir(mode=0o700)
            folder.write_config(config)
            sync_folder(path.parent)
        except OSError as error:
            raise ServerError(f"{path}: can't make the folder ({error.strerror})") from error
        return folder

    @classmethod
    def open(cls, path: Path) -> ServerFolder:
        """The folder of a server that ``fedprofile server init`` made.

        Raises:
            ServerError: there is none, it is incomplete, or others may look into it.
            ConfigError: its configuration can't be used.
        """
        folder = cls(path.absolute())
        if not folder.bundle.is_file():
            raise ServerError(f"{path}: no server; make one with fedprofile server init {path}")
        mode = path.stat().st_mode
        if mode & _OTHERS:
            raise ServerError(
                f"{path}: others may look into this folder (mode {mode & 0o777:03o}); chmod 700 it"
            )
        _ = folder.config, folder.socket
        return folder

    @cached_property
    def config(self) -> ServerConfig:
        """What the operator decided, as read the first time."""
        return load_server_config(self.config_file)

    def write_config(self, config: ServerConfig) -> None:
        """Replace ``server.toml``."""
        write_atomically(self.config_file, config.to_toml().encode(), mode=0o600)

    @property
    def config_file(self) -> Path:
        """What the operator decides."""
        return self.path / "server.toml"

    @property
    def items(self) -> Path:
        """The public item table."""
        return self.path / "items.safetensors"

    @property
    def model(self) -> Path:
        """The untrained encoder."""
        return self.path / "model.safetensors"

    @property
    def bundle(self) -> Path:
        """What a device is given; the last file that ``init`` makes."""
        return self.path / "bundle.zip"

    @property
    def ca_key(self) -> Path:
        """Private key of the authority."""
        return self.path / "ca.key"

    @property
    def ca(self) -> Path:
        """Certificate of the authority."""
        return self.path / "ca.crt"

    @property
    def certificate_key(self) -> Path:
        """Private key of the server's certificate."""
        return self.path / "server.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.path / "server.crt"

    @property
    def signing_key(self) -> Path:
        """Signs ledger, tasks and releases."""
        return self.path / "signing.key"

    @property
    def devices(self) -> Path:
        """Who is enrolled."""
        return self.path / "devices.json"

    @property
    def ledger(self) -> Path:
        """What was released, and what it cost."""
        return self.path / "ledger.jsonl"

    @property
    def anchor(self) -> Path:
        """The head of the ledger."""
        return self.path / "anchor.json"

    @property
    def begun(self) -> bool:
        """Whether there is a ledger, so that something may have been released.

        Raises:
            LedgerError: it is gone, for its anchor is there.
        """
        if self.ledger.exists():
            return True
        if self.anchor.exists():
            raise LedgerError(
                f"{self.ledger}: is gone, but {self.anchor} tells of it; put it back, for what was "
                "spent stays spent"
            )
        return False

    @property
    def checkpoints(self) -> Path:
        """State after the last rounds."""
        return self.path / "checkpoints"

    @property
    def releases(self) -> Path:
        """Released models."""
        return self.path / "releases"

    @property
    def run(self) -> Path:
        """What exists while the server runs."""
        return self.path / "run"

    @property
    def socket(self) -> Path:
        """Unix socket of Flower's Control and Runtime APIs.

        Raises:
            ServerError: its name is too long for a socket.
        """
        path = self.run / "link.sock"
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise ServerError(
                f"{path}: too long for a Unix socket ({_LONGEST_SOCKET} bytes); "
                "move the server to a folder with a shorter name"
            )
        return path

    @property
    def state(self) -> Path:
        """Flower's own database: messages on their way."""
        return self.run / "superlink.db"

    @property
    def flower(self) -> Path:
        """Flower's home."""
        return self.run / "flower"

    @property
    def status(self) -> Path:
        """What the running server says of itself."""
        return self.run / "status.json"

    @property
    def crashes_seen(self) -> Path:
        """How much of the ledger the operator has looked at after crashes."""
        return self.path / "crashes-seen"

    @property
    def lock(self) -> Path:
        """Held by the one supervisor that runs."""
        return self.run / "lock"

    @property
    def log(self) -> Path:
        """What happened, a JSON line each."""
        return self.path / "log.jsonl"
