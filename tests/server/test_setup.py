"""A server's folder: complete or not there, for its operator alone; and what devices are given."""

import zipfile

import pytest

from fedprofile.common.errors import ConfigError, DataError, ServerError
from fedprofile.common.server_bundle import ServerBundle
from fedprofile.common.signing import SigningKey
from fedprofile.server.folder import ServerFolder
from fedprofile.server.setup import create_server


def test_secrets_are_for_the_operator_alone(server):
    assert server.path.stat().st_mode & 0o077 == 0
    for path in (server.ca_key, server.certificate_key, server.signing_key, server.config_file):
        assert path.stat().st_mode & 0o077 == 0
    server.path.chmod(0o750)
    with pytest.raises(ServerError, match="chmod 700"):
        ServerFolder.open(server.path)


def test_a_bundle_holds_what_is_public_and_no_key(server, tmp_path):
    bundle = ServerBundle.install(server.bundle, tmp_path / "taken")
    facts = bundle.facts
    assert facts.signing_key == SigningKey.load(server.signing_key).public_key
    assert facts.address == f"127.0.0.1:{server.config.federation.port}"
    assert bundle.items.content_hash == facts.items
    assert next(iter(bundle.items.blocks.values()))[0] == 0
    with zipfile.ZipFile(server.bundle) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"PRIVATE" not in content


def test_what_is_no_bundle_is_refused_and_changes_nothing(server, tmp_path):
    taken = tmp_path / "taken"
    ServerBundle.install(server.bundle, taken)
    before = {path.name: path.read_bytes() for path in taken.iterdir()}
    bad = tmp_path / "bad.zip"
    bad.write_bytes(server.bundle.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not a server bundle"):
        ServerBundle.install(bad, taken)
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("../../escape", "x")
    with pytest.raises(ConfigError, match="not a server bundle"):
        ServerBundle.install(bad, taken)
    with pytest.raises(ConfigError, match="can't read"):
        ServerBundle.install(tmp_path / "none.zip", taken)
    assert {path.name: path.read_bytes() for path in taken.iterdir()} == before
    assert not (tmp_path.parent / "escape").exists()


def test_a_folder_is_not_taken_twice(server):
    with pytest.raises(ServerError, match="isn't empty"):
        create_server(server.path, server.config, items=None)


def test_a_bad_catalogue_leaves_nothing(made_server, tmp_path):
    items = tmp_path / "items.csv"
    for text, why in (("id,text\n1,tea\n", "item_id"), ("item_id\na\na\n", "twice"), ("", "read")):
        items.write_text(text)
        with pytest.raises(DataError, match=why):
            create_server(tmp_path / "new", made_server.config, items=items)
        assert not (tmp_path / "new").exists()


def test_codes_stay_codes_and_scripts_stay_scripts(made_server, tmp_path):
    items = tmp_path / "items.csv"
    items.write_text("item_id,text,price\n00123,煎茶 抹茶,8.9\n00124,tea,?\n", encoding="utf-8")
    folder = create_server(tmp_path / "new", made_server.config, items=items)
    bundle = ServerBundle.install(folder.bundle, tmp_path / "taken")
    assert bundle.items.ids == ("00123", "00124")
