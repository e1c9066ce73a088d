"""Models that come from the server: checked against the server's key, then put to use."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..common.console import remark
from ..common.errors import (
    ConfigError,
    DataError,
    DeviceError,
    LedgerError,
    MessageError,
    TaskRefused,
)
from ..common.files import write_atomically
from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from ..common.messages import Release
from ..common.releases import Manifest
from ..common.server_bundle import ServerBundle
from ..common.successors import Successors
from .device import Device
from .device_folder import DeviceFolder
from .model_bundle import ITEMS, MODEL, install_bundle
from .serving import serving_table
from .withdrawal import withdraw_answers

_ID_TABLE = "item_ids.weight"


def join_server(folder: DeviceFolder, archive: Path) -> ServerBundle:
    """Take a server's bundle, and rank with the untrained encoder until a trained one comes.

    What the owner agreed to with another server, and what was made for it, doesn't carry over.

    Raises:
        ConfigError: it is no server bundle.
        DataError: its item table or encoder can't be used.
        DeviceError: the device's ledger is about another federation.
    """

    def take(new: ServerBundle) -> None:
        _check_population(folder, new)
        n_items = new.items.n_items
        known = np.zeros((n_items, 1 + new.items.width_of(COOCCURRENCE_BLOCK)), dtype=np.float32)
        known[:, 0] = -np.log(n_items)
        _install(folder, new, new.model.read_bytes(), known)
        if folder.server_facts.exists() and _signing_key(folder) != new.facts.signing_key:
            _leave_server(folder)

    return ServerBundle.install(archive, folder.server, approve=take)


def _check_population(folder: DeviceFolder, new: ServerBundle) -> None:
    """Told now, for no round of it could be charged."""
    from ..common.ledger_entries import read_chain  # slow to load, and not needed where models come

    try:
        population = read_chain(folder.ledger).opening.population
    except LedgerError:  # none yet, or one that `device status` tells what is wrong with
        return
    if population != new.facts.federation:
        raise DeviceError(
            f"{folder.ledger}: counts what this device gave to federation '{population}', for life, "
            f"and can't count for '{new.facts.federation}'; join a server of that name, or keep another "
            "folder for this one, with a budget of its own, by fedprofile device init"
        )


def _signing_key(folder: DeviceFolder) -> str | None:
    """Of the server in use; None where that can't be told."""
    try:
        return ServerBundle.load(folder.server).facts.signing_key
    except ConfigError:
        return None


def _leave_server(folder: DeviceFolder) -> None:
    with Device(folder) as device:
        device.set_consent(False)
    withdraw_answers(folder)
    _manifest(folder).unlink(missing_ok=True)  # releases of another server are numbered anew
    remark(
        "Another server: consent to training is off, and replies that waited are deleted; "
        f"agree by: fedprofile device consent {folder.path} on"
    )


def keep_release(folder: DeviceFolder, bundle: ServerBundle, release: Release) -> str:
    """Put a released model to use; the one before is kept.

    Returns:
        Its name on this device.

    Raises:
        TaskRefused: ``signature``: the server didn't sign it; ``model``: it isn't what was signed;
            ``stale``: it is older than the one that came last.
        DataError: the model can't be used.
    """
    facts = bundle.facts
    try:
        manifest = Manifest.read(release.manifest, public_key=facts.signing_key)
    except MessageError as error:
        raise TaskRefused("signature", str(error)) from error
    if manifest.federation != facts.federation or manifest.items != facts.items:
        raise TaskRefused("model", "the release is of another federation or item table")
    if not manifest.describes(release.model, release.statistics):
        raise TaskRefused("model", "the model isn't the one that was signed")
    kept = _manifest(folder)
    if kept.exists():
        last = Manifest.read(kept.read_text(encoding="utf-8"), public_key=facts.signing_key)
        if (manifest.release, manifest.round) < (last.release, last.round):
            raise TaskRefused("stale", f"the release is of round {manifest.round}, not a newer one")
    known, successors = _read_statistics(release.statistics, bundle.items)
    name = _install(folder, bundle, release.model, known, successors)
    write_atomically(kept, release.manifest.encode(), mode=0o600)
    return name


def _read_statistics(
    content: bytes, items: ItemTable
) -> tuple[NDArray[np.float32], Successors | None]:
    """Numbers of each item, float32 [n_items, 1 + r], and what follows or goes with what, where told."""
    shape = (items.n_items, 1 + items.width_of(COOCCURRENCE_BLOCK))
    count = shape[0] * shape[1]
    if len(content) < 4 * count:
        raise DataError(
            f"statistics of {len(content)} bytes for {shape} numbers; release them again"
        )
    known = np.frombuffer(content, dtype="<f4", count=count).astype(np.float32).reshape(shape)
    if len(content) == 4 * count:
        return known, None
    successors = Successors.from_bytes(content[4 * count :])
    successors.check(items.n_items)
    return known, successors


def _manifest(folder: DeviceFolder) -> Path:
    """The manifest of the release in use."""
    return folder.models / "manifest.json"


def _install(
    folder: DeviceFolder,
    bundle: ServerBundle,
    model: bytes,
    known: NDArray[np.float32],
    successors: Successors | None = None,
) -> str:
    with tempfile.TemporaryDirectory(dir=folder.models, prefix=".release-") as scratch:
        source = Path(scratch)
        (source / MODEL).write_bytes(model)
        served = _served(source / MODEL, bundle.items, known)
        replace(served, successors=successors).save(source / ITEMS)
        return install_bundle(folder, source).name


def _served(model: Path, table: ItemTable, known: NDArray[np.float32]) -> ItemTable:
    try:
        ids = load_file(model).get(_ID_TABLE)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{model.name}: not a model ({error})") from error
    if COOCCURRENCE_BLOCK in table.blocks:
        table = table.with_values(COOCCURRENCE_BLOCK, known[:, 1:])
    return serving_table(table, prior=known[:, 0], ids=ids)
