"""A server bundle takes the place of the one before whole and checked, or not at all."""

import zipfile

import numpy as np
import pytest

from fedprofile.common.config import ModelConfig
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.items import ItemTable
from fedprofile.common.server_bundle import ServerBundle, ServerFacts, write_bundle


@pytest.fixture
def bundle(tmp_path):
    """Writes bundles."""
    table = ItemTable(np.eye(3, 2, dtype=np.float32), ("a", "b", "茶"), ((),) * 3, {"text": (0, 2)})
    table.save(tmp_path / "items")

    def write(name, *, ca=b"new", items=None, items_hash=None, **changes):
        facts = ServerFacts(
            federation="f",
            address="host:1",
            signing_key="0" * 64,
            population_size=3,
            event_types=("view",),
            model=ModelConfig(),
            items=items_hash or table.content_hash,
        ).model_copy(update=changes)
        content = (tmp_path / "items").read_bytes() if items is None else items
        write_bundle(tmp_path / name, facts=facts, ca=ca, items=content, model=b"m")
        return tmp_path / name

    return write


def held(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"items": b"no table"}, DataError),
        ({"population_size": 0}, ConfigError),
        ({"items_hash": "0" * 64}, DataError),
    ],
)
def test_what_is_refused_replaces_nothing(bundle, tmp_path, changes, error):
    folder = tmp_path / "device" / "server"
    ServerBundle.install(bundle("old.zip", ca=b"old"), folder)
    before = held(folder)
    with pytest.raises(error, match=r"new\.zip"):
        ServerBundle.install(bundle("new.zip", **changes), folder)
    assert held(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["server"]


def rewritten(archive, changes, **how):
    with zipfile.ZipFile(archive) as opened:
        contents = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(archive, "w", **how) as opened:
        for name, content in {**contents, **changes}.items():
            opened.writestr(name, content)


def test_what_is_compressed_is_no_bundle(bundle, tmp_path):
    archive = bundle("new.zip")
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        rewritten(archive, {}, compression=method)
        with pytest.raises(ConfigError, match="not a server bundle"):
            ServerBundle.install(archive, tmp_path / "server")


def test_what_is_not_approved_replaces_nothing(bundle, tmp_path):
    folder = tmp_path / "device" / "server"
    ServerBundle.install(bundle("old.zip", ca=b"old"), folder)
    before = held(folder)

    def refuse(new):
        assert new.ca.read_bytes() == b"new"
        raise DataError("no")

    with pytest.raises(DataError):
        ServerBundle.install(bundle("new.zip"), folder, approve=refuse)
    assert held(folder) == before
    installed = ServerBundle.install(bundle("new.zip"), folder)
    assert installed.ca.read_bytes() == b"new"
    assert installed.items.ids == ("a", "b", "茶")
