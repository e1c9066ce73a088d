"""A released model as a device holds it: what is needed to keep a profile and to rank, no more.

A bundle is a folder with ``model.safetensors`` (the encoder's weights) and ``items.safetensors`` (the
table to rank with), which is what a run of ``fedprofile simulate`` leaves and what a server releases.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ..common.config import ModelConfig
from ..common.errors import DataError, DeviceError
from ..common.files import sync_folder, write_atomically
from ..common.items import ItemTable
from ..common.weights import hash_of_weights
from .device_folder import DeviceFolder
from .numpy_encoder import NumpyEncoder

MODEL, ITEMS, CURRENT = "model.safetensors", "items.safetensors", "current"
_LONGEST_NAME = 255  # bytes of a bundle's name
_NAME = re.compile("[0-9a-f]{16}-[0-9a-f]{16}")


@dataclass(frozen=True, eq=False)
class ModelBundle:
    """A model and the items it ranks; make one with :meth:`load`.

    Attributes:
        name: names the bundle: hashes of weights and table, so that both decide.
        hash: of the encoder's weights, as messages and ledgers name them.
        config: window and time scales.
        event_types: names of the event types it knows, in index order.
        served: the table to rank with: public vectors, trained ones if any, log popularity.
        public: the table that profiles are built with: the public vectors, a view.
        encode: from a profile to its vector U.
    """

    name: str
    hash: str
    config: ModelConfig
    event_types: tuple[str, ...]
    served: ItemTable
    public: ItemTable
    encode: NumpyEncoder

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id → index into both tables."""
        return {name: index for index, name in enumerate(self.served.ids)}

    @classmethod
    def load(cls, folder: Path) -> ModelBundle:
        """The bundle in ``folder``.

        Raises:
            DataError: a file is missing or damaged, or model and table don't belong together.
        """
        path = folder / MODEL
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata()
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            config = ModelConfig.model_validate_json(metadata["model"])
            blocks = {
                name: (int(a), int(b)) for name, (a, b) in json.loads(metadata["blocks"]).items()
            }
            event_types = tuple(map(str, json.loads(metadata["event_types"])))
        except (
            OSError,
            SafetensorError,
            ValidationError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            what = str(error).partition("\n")[0]
            raise DataError(f"{path}: no model of a run ({what}); get it again") from error
        hashed, table = hash_of_weights(weights), ItemTable.load(folder / ITEMS)
        if metadata.get("hash", hashed) != hashed:  # older runs don't tell it
            raise DataError(f"{path}: the weights aren't those the run wrote; get it again")
        # Column by column in memory: one user's scores of all items then take half the time.
        served = replace(table, vectors=np.asfortranarray(table.vectors))
        public = _public(served, blocks, folder)
        return cls(
            name=f"{hashed[:16]}-{table.content_hash[:16]}",
            hash=hashed,
            config=config,
            event_types=event_types,
            served=served,
            public=public,
            encode=NumpyEncoder(
                config,
                weights,
                blocks=blocks,
                vectors=public.vectors,
                n_types=len(event_types),
            ),
        )


def _public(served: ItemTable, blocks: dict[str, tuple[int, int]], folder: Path) -> ItemTable:
    """The first columns of the served table, which hold the public vectors."""
    held = {name: served.blocks.get(name) for name in blocks}
    if held != blocks or not blocks:
        raise DataError(f"{folder}: {MODEL} and {ITEMS} are of different runs; copy both from one")
    stop = max(stop for _, stop in blocks.values())
    if not np.isfinite(served.vectors).all():
        raise DataError(f"{folder / ITEMS}: vectors that aren't finite; get it again")
    return ItemTable(served.vectors[:, :stop], served.ids, served.tags, blocks, whole=served.whole)


def install_bundle(folder: DeviceFolder, source: Path) -> ModelBundle:
    """Copy the bundle in ``source`` into the device's folder and make it the current one.

    A reader sees the old model or the new, whenever this is interrupted. The one before is kept.

    Raises:
        DataError: ``source`` holds no usable bundle.
        DeviceError: it can't be copied.
    """
    bundle = ModelBundle.load(source)
    target = folder.models / bundle.name
    try:
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder.models, prefix=".new-") as scratch:
                made = Path(scratch) / bundle.name
                made.mkdir(mode=0o700)
                for name in (MODEL, ITEMS):
                    shutil.copyfile(source / name, made / name)
                    with (made / name).open("rb") as file:
                        os.fsync(file.fileno())
                sync_folder(made)
                made.rename(target)
        before = current_name(folder)
        write_atomically(folder.models / CURRENT, bundle.name.encode())
        for old in folder.models.iterdir():
            if old.is_dir() and old.name not in (bundle.name, before):
                shutil.rmtree(old)
    except OSError as error:
        raise DeviceError(f"{target}: can't install the model ({error.strerror})") from error
    return bundle


def current_name(folder: DeviceFolder) -> str | None:
    """Name of the bundle in use; None while there is none.

    What can't be read is a name that no bundle has: only :func:`current_bundle` needs more than that.
    """
    try:
        file = os.open(folder.models / CURRENT, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    # Every call of a device looks here, and to open a text takes four times as long.
    try:
        return os.read(file, _LONGEST_NAME).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(file)


def current_bundle(folder: DeviceFolder) -> ModelBundle | None:
    """The bundle in use; None while there is none.

    Raises:
        DataError: it is damaged, or what is to name it.
    """
    name = current_name(folder)
    if name is None:
        return None
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{folder.models / CURRENT}: names no model; install one with "
            f"fedprofile device model {folder.path} RUN"
        )
    bundle = ModelBundle.load(folder.models / name)
    if bundle.name != name:
        raise DataError(f"{folder.models / name}: content doesn't match its name; get it again")
    return bundle
