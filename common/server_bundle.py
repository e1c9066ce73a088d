"""What a device is given of its server: where it is, whom to trust, and what is public.

One file to hand over, a ZIP archive of four: ``server.json``, ``ca.crt``, ``items.safetensors`` and
``model.safetensors``, the untrained encoder, with which a device ranks until a trained one comes. A
device keeps them unpacked. Nothing in it is secret; whoever changes it on the way decides which
server the device trusts, so it is handed over as a key is.
"""

from __future__ import annotations

import hashlib
import io
import json
import ssl
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from .config import ModelConfig
from .errors import ConfigError, DataError
from .files import sync_folder, write_atomically
from .items import ItemTable
from .sections import Section, validated

_FACTS, _CA, _ITEMS, _MODEL = "server.json", "ca.crt", "items.safetensors", "model.safetensors"
_LARGEST = 2 * 2**30  # bytes, unpacked
_LARGEST_FACTS = 2**20


class ServerFacts(Section):
    """What ``server.json`` holds."""

    federation: str = Field(min_length=1, description="name of the federation")
    address: str = Field(min_length=3, description="host:port of the Fleet API")
    signing_key: str = Field(
        pattern="^[0-9a-f]{64}$", description="public key that signs tasks and releases"
    )
    population_size: int = Field(ge=1, description="N, a public constant")
    event_types: tuple[str, ...] = Field(min_length=1, description="names, in the encoder's order")
    model: ModelConfig = Field(description="the shared encoder")
    items: str = Field(description="content hash of the item table")


@dataclass(frozen=True)
class ServerBundle:
    """A server as its devices know it, unpacked in a folder.

    Attributes:
        folder: where the files are.
        facts: what is public of the server.
    """

    folder: Path
    facts: ServerFacts

    @classmethod
    def load(cls, folder: Path) -> ServerBundle:
        """The bundle unpacked in ``folder``.

        Raises:
            ConfigError: it isn't there, or its facts can't be used.
        """
        path = folder / _FACTS
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{path}: no server bundle ({error.strerror}); give the device one by "
                "fedprofile device init DIR --server-bundle FILE"
            ) from error
        return cls(folder, _facts(content, where=str(path)))

    @classmethod
    def install(
        cls,
        archive: Path,
        folder: Path,
        *,
        approve: Callable[[ServerBundle], None] = lambda _: None,
    ) -> ServerBundle:
        """Unpack ``archive`` into ``folder``; what was there stays where the archive is no good.

        Args:
            archive: the bundle.
            folder: where it is kept.
            approve: called with the new bundle, checked and unpacked elsewhere, before it takes the
                place of the old one; what it raises prevents that.

        Raises:
            ConfigError: it is no server bundle.
            DataError: its item table is damaged.
        """
        try:
            with zipfile.ZipFile(archive) as opened:
                found = opened.infolist()
                sizes = {info.filename: info.file_size for info in found}
                if (
                    set(sizes) != {_FACTS, _CA, _ITEMS, _MODEL}
                    or sum(sizes.values()) > _LARGEST
                    # As write_bundle stores them: nothing to decompress, nothing that grows.
                    or any(info.compress_type != zipfile.ZIP_STORED for info in found)
                ):
                    raise ConfigError(f"{archive}: not a server bundle; ask for bundle.zip")
                contents = {name: opened.read(name) for name in (_CA, _ITEMS, _MODEL, _FACTS)}
        except OSError as error:
            raise ConfigError(f"{archive}: can't read it ({error.strerror})") from error
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise ConfigError(f"{archive}: not a server bundle ({error})") from error
        facts = _facts(contents[_FACTS], where=f"{archive}: {_FACTS}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".server-") as scratch:
            new = cls(Path(scratch), facts)
            for name, content in contents.items():
                write_atomically(new.folder / name, content)
            try:
                items = new.items
            except DataError as error:
                raise DataError(f"{archive}: {error}") from error
            if items.content_hash != facts.items:
                raise DataError(
                    f"{archive}: its item table isn't the one it names; ask for it again"
                )
            approve(new)
            # A bundle is there when its facts are: away first, and last to come.
            (folder / _FACTS).unlink(missing_ok=True)
            sync_folder(folder)
            for name in contents:
                (new.folder / name).replace(folder / name)
            sync_folder(folder)
        return cls(folder, facts)

    @property
    def ca(self) -> Path:
        """Certificate of the one authority to trust for this server."""
        return self.folder / _CA

    @property
    def ca_sha256(self) -> str:
        """Fingerprint of that certificate, hex.

        Raises:
            ConfigError: it is missing or no certificate.
        """
        return certificate_sha256(self.ca)

    @property
    def model(self) -> Path:
        """The untrained encoder."""
        return self.folder / _MODEL

    @cached_property
    def items(self) -> ItemTable:
        """The public item table.

        Raises:
            DataError: it is missing or damaged.
        """
        return ItemTable.load(self.folder / _ITEMS)


def read_facts(archive: Path) -> ServerFacts:
    """What a bundle says of its server, without unpacking it.

    Raises:
        ConfigError: it is no server bundle.
    """
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(_FACTS) as file:
            content = file.read(_LARGEST_FACTS + 1)
    except OSError as error:
        raise ConfigError(f"{archive}: can't read it ({error.strerror})") from error
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError) as error:
        raise ConfigError(f"{archive}: not a server bundle ({error})") from error
    if len(content) > _LARGEST_FACTS:
        raise ConfigError(f"{archive}: not a server bundle; its {_FACTS} is too long")
    return _facts(content, where=f"{archive}: {_FACTS}")


def certificate_sha256(path: Path) -> str:
    """Fingerprint of the PEM certificate in ``path``, hex: SHA-256, as ``openssl x509`` tells it.

    Raises:
        ConfigError: it can't be read, or is no certificate.
    """
    try:
        der = ssl.PEM_cert_to_DER_cert(path.read_text(encoding="ascii"))
    except OSError as error:
        raise ConfigError(f"{path}: can't read the certificate ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no certificate; put it back") from error
    return hashlib.sha256(der).hexdigest()


def _facts(content: bytes, *, where: str) -> ServerFacts:
    try:
        read: Any = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{where}: no valid JSON; install the server bundle again") from error
    return validated(ServerFacts, read, where=f"{where}: ", documented="docs/deploy.md")


def write_bundle(path: Path, *, facts: ServerFacts, ca: bytes, items: bytes, model: bytes) -> None:
    """Write the archive; the same content gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (
            (_FACTS, facts.model_dump_json(indent=1).encode()),
            (_CA, ca),
            (_ITEMS, items),
            (_MODEL, model),
        ):
            archive.writestr(zipfile.ZipInfo(name), content)
    write_atomically(path, buffer.getvalue())
