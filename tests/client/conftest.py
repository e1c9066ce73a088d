"""Devices with a small model, made without a federation."""

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from safetensors.numpy import save_file

from fedprofile.client.device import Device
from fedprofile.client.device_config import DeviceConfig
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.model_bundle import install_bundle
from fedprofile.client.serving import serving_table
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import build_encoder
from fedprofile.common.items import ItemTable
from fedprofile.common.weights import hash_of_weights

NOW = 1_750_000_000
N_ITEMS, K = 40, 6
BLOCKS = {"text": (0, 4), "category": (4, 6)}
EVENT_TYPES = ("purchase", "view")
PAGE, SALT, TAIL = 4096, 16, 80  # bytes; SQLCipher 4: IV (16) and HMAC (64) end each page


def write_bundle(
    folder,
    *,
    seed=0,
    n_items=N_ITEMS,
    event_types=EVENT_TYPES,
    ids=None,
    blocks=BLOCKS,
    successors=None,
    **model,
):
    """A model as a run leaves it, with random weights; returns its configuration and weights."""
    rng = np.random.default_rng(seed)
    config = ModelConfig(
        **{"width": 8, "window": 6, "half_lives_days": (3.0, 60.0), "half_lives_events": (4.0,)}
        | model
    )
    encoder = build_encoder(
        config, blocks=blocks, n_items=n_items, n_types=len(event_types), seed=seed
    )
    weights = {
        name: (0.3 * rng.standard_normal(p.shape)).astype(np.float32)
        for name, p in encoder.named_parameters()
    }
    table = ItemTable(
        rng.standard_normal((n_items, K)).astype(np.float32),
        tuple(ids or (f"商品{item}" for item in range(n_items))),
        tuple((("tea", "red"), ("茶",), ())[item % 3] for item in range(n_items)),
        blocks,
        successors,
    )
    prior = rng.standard_normal(n_items).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    serving_table(table, prior=prior, ids=weights.get("item_ids.weight")).save(
        folder / "items.safetensors"
    )
    metadata = {
        "model": config.model_dump_json(),
        "blocks": json.dumps(blocks),
        "event_types": json.dumps(event_types),
        "item_table": table.content_hash,
        "hash": hash_of_weights(weights),
    }
    save_file(weights, folder / "model.safetensors", metadata)
    return config, encoder, weights, table


@pytest.fixture(scope="session")
def bundle_writer():
    """See :func:`write_bundle`."""
    return write_bundle


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A run folder with a model."""
    folder = tmp_path_factory.mktemp("run")
    write_bundle(folder)
    return folder


@pytest.fixture
def make_device(tmp_path, monkeypatch, run_folder):
    """Devices by sections of their configuration; ``model=None``: without one.

    Their folders are named relative to the current one: names of sockets must be short.
    """
    monkeypatch.chdir(tmp_path)
    opened = []

    def make(name="device", *, model=run_folder, clock=lambda: NOW, **sections):
        folder = DeviceFolder.create(
            Path(name), DeviceConfig.model_validate({"name": name, **sections})
        )
        if model is not None:
            install_bundle(folder, model)
        opened.append(Device(folder, clock=clock))
        return opened[-1]

    yield make
    for device in opened:
        device.close()


def decrypt(path, key):
    """All pages of a store in clear, those of its log too, whether they are in use or not.

    An implementation of its own: AES-256-CBC by the published layout, with the raw key.
    """

    def page(content, salted):
        start = SALT if salted else 0
        iv = content[-TAIL : -TAIL + 16]
        cipher = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
        return cipher.update(content[start:-TAIL])

    content = path.read_bytes()
    pages = [page(content[at : at + PAGE], at == 0) for at in range(0, len(content), PAGE)]
    log = path.with_name(path.name + "-wal")
    frames = log.read_bytes()[32:] if log.exists() else b""
    for at in range(0, len(frames), PAGE + 24):
        number = int.from_bytes(frames[at : at + 4], "big")
        pages.append(page(frames[at + 24 : at + 24 + PAGE], number == 1))
    return b"".join(pages)


@pytest.fixture(scope="session")
def decrypted():
    """See :func:`decrypt`."""
    return decrypt
