from pathlib import Path

import pytest

from fedprofile.client.device_config import DeviceConfig, event_name, load_device_config
from fedprofile.client.device_config_docs import device_configuration_markdown
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.store_key import KeyFile, KeyringKey, find_key
from fedprofile.common.errors import ConfigError, DeviceError


def test_a_folder_is_for_its_owner_alone(tmp_path):
    config = DeviceConfig(name="küche", events={"weights": {"Add to-Cart": 3.0}})
    folder = DeviceFolder.create(tmp_path / "a" / "device", config)
    assert DeviceFolder.open(folder.path).config == config
    assert config.events.weights == {"add_to_cart": 3.0}
    for path in (folder.path, *folder.path.iterdir()):
        assert path.stat().st_mode & 0o077 == 0
    folder.path.chmod(0o755)
    with pytest.raises(DeviceError, match="others may look into"):
        DeviceFolder.open(folder.path)


def test_nothing_is_overwritten_and_nothing_made_up(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(DeviceError, match="isn't empty"):
        DeviceFolder.create(tmp_path, DeviceConfig(name="x"))
    with pytest.raises(DeviceError, match="no device; make one with"):
        DeviceFolder.open(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "not valid TOML"),
        ("", "name: Field required"),
        (
            'name = "x"\n[policy]\nclip = 3',
            "unknown key 'policy.clip'.*docs/device-configuration.md",
        ),
        ('name = "x"\n[policy]\nminimum_battery = 3', "policy.minimum_battery"),
        ('name = "x"\n[store]\nretention_days = true', "true and false are no value"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(tmp_path, text, message):
    (tmp_path / "device.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_device_config(tmp_path / "device.toml")


def test_the_document_is_up_to_date():
    document = Path(__file__).parents[2] / "docs" / "device-configuration.md"
    assert document.read_text(encoding="utf-8") == device_configuration_markdown(), (
        "run: python -m fedprofile.client.device_config_docs > docs/device-configuration.md"
    )


def test_event_types_have_one_spelling():
    assert event_name(" Add to-Cart ") == event_name("add_to_cart") == "add_to_cart"


def test_a_key_file_is_random_private_and_can_be_destroyed(tmp_path):
    place = KeyFile(tmp_path / "store.key")
    assert place.load() is None
    key = place.create()
    assert len(key) == 32
    assert place.load() == key
    assert (tmp_path / "store.key").stat().st_mode & 0o777 == 0o600
    assert place.create() != key
    place.destroy()
    place.destroy()
    assert place.load() is None


def test_a_key_that_others_may_read_or_that_is_none_is_refused(tmp_path):
    path = tmp_path / "store.key"
    KeyFile(path).create()
    path.chmod(0o640)
    with pytest.raises(DeviceError, match="others may read the store's key"):
        KeyFile(path).load()
    path.chmod(0o600)
    for content in (b"", b"00", b"zz" * 32, b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(DeviceError, match="64 hexadecimal digits"):
            KeyFile(path).load()


@pytest.fixture
def keyring():
    """A keyring in memory, in place of the system's."""
    library = pytest.importorskip("keyring")

    class Memory(library.backend.KeyringBackend):
        priority = 1
        held = {}  # noqa: RUF012
        locked = False

        def get_password(self, service, username):
            if self.locked:
                raise library.errors.KeyringLocked("locked")
            return self.held.get((service, username))

        def set_password(self, service, username, password):
            self.held[service, username] = password

        def delete_password(self, service, username):
            del self.held[service, username]

    before, memory = library.get_keyring(), Memory()
    library.set_keyring(memory)
    yield memory
    library.set_keyring(before)
    memory.held.clear()


def test_the_keyring_holds_the_key_where_the_configuration_says_so(keyring, make_device):
    device = make_device(store={"keyring": "device-1"})
    device.status()
    assert not device.folder.store_key.exists()
    assert isinstance(find_key(device.folder), KeyringKey)
    (key,) = keyring.held.values()
    place = KeyringKey("device-1")
    assert place.load() == bytes.fromhex(key)
    assert KeyringKey("other").load() is None
    place.destroy()
    place.destroy()
    assert place.load() is None
    keyring.locked = True
    with pytest.raises(DeviceError, match="unlock it"):
        place.load()
