"""Released models: signed, chained, whole after a crash, the same one only once."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fedprofile.common.errors import MessageError
from fedprofile.common.items import ItemTable
from fedprofile.common.releases import Manifest
from fedprofile.common.signing import SigningKey
from fedprofile.server.releases import Releases
from fedprofile.server.statistics import ItemStatistics


@pytest.fixture
def releases(server):
    return Releases(server, SigningKey.load(server.signing_key))


@pytest.fixture
def publish(releases, server):
    table = ItemTable.load(server.items)
    flat = np.zeros(table.n_items, dtype=np.float32)
    ledger = SimpleNamespace(epsilon_spent=lambda: 1.5, opening=SimpleNamespace(delta=1e-3))

    def publish(number, value=0.0):
        return releases.publish(
            round=number,
            release=2 * number,
            weights={"w": np.full((2, 3), value, dtype=np.float32)},
            statistics=ItemStatistics(flat, flat, np.zeros((len(flat), 0), dtype=np.float32)),
            table=table,
            ledger=ledger,
        )

    return publish


def test_releases_name_what_they_come_from(releases, publish, server):
    first, second = publish(1, 0.1), publish(2, 0.2)
    assert first.parent is None
    assert second.parent == first.model
    assert releases.latest() == second
    assert second.epsilon == 1.5
    found = releases.load()
    assert second.describes(found.model, found.statistics)
    assert not second.describes(found.model + b"x", found.statistics)
    assert not second.describes(found.model, found.statistics[:-4])


def test_the_same_model_is_released_once(releases, publish, server):
    assert publish(1, 0.1) == publish(1, 0.1)
    assert len(list(server.releases.glob("*/manifest.json"))) == 1


def test_a_release_that_a_crash_cut_short_is_none(releases, publish, server):
    first = publish(1, 0.1)
    (server.releases / "000002").mkdir()
    (server.releases / "000002" / "model.safetensors").write_bytes(b"half")
    assert releases.latest() == first
    second = publish(2, 0.2)
    assert releases.latest() == second


def test_manifests_are_kept_and_old_models_are_not(publish, server):
    for number in range(1, 7):
        publish(number, number)
    assert len(list(server.releases.glob("*/manifest.json"))) == 6
    assert len(list(server.releases.glob("*/model.safetensors"))) == 3


def test_a_manifest_holds_only_as_it_was_signed(publish):
    key = SigningKey.generate()
    manifest = publish(1, 0.1).signed(key)
    text = manifest.to_json()
    assert Manifest.read(text, public_key=key.public_key) == manifest
    for change in ({"round": 9}, {"epsilon": 0.1}, {"parent": "0" * 64}, {"extra": 1}):
        changed = json.dumps({**json.loads(text), **change})
        with pytest.raises(MessageError):
            Manifest.read(changed, public_key=key.public_key)
    for junk in ("", "null", "{}", "[" * 10_000, "x" * 20_000, text[:-1]):
        with pytest.raises(MessageError):
            Manifest.read(junk, public_key=key.public_key)
    with pytest.raises(MessageError, match="isn't signed"):
        Manifest.read(text, public_key=SigningKey.generate().public_key)
