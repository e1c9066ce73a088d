import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedprofile.client.device_config import DeviceConfig
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.model_bundle import (
    ModelBundle,
    current_bundle,
    current_name,
    install_bundle,
)
from fedprofile.common.errors import DataError, DeviceError
from fedprofile.common.weights import hash_of_weights


@pytest.fixture
def folder(tmp_path):
    return DeviceFolder.create(tmp_path / "device", DeviceConfig(name="x"))


def test_a_bundle_has_the_table_to_profile_with_and_the_one_to_rank_with(bundle_writer, tmp_path):
    for ids in (False, True):
        config, _, weights, table = bundle_writer(tmp_path / str(ids), item_ids=ids)
        bundle = ModelBundle.load(tmp_path / str(ids))
        assert bundle.config == config
        assert bundle.public.content_hash == table.content_hash
        assert bundle.served.dimension == table.dimension + 1 + 32 * ids
        assert bundle.hash == hash_of_weights(weights)
        # Of one user's scores, the fast way round.
        assert bundle.served.vectors.flags.f_contiguous
        assert bundle.index["商品3"] == 3


def test_installing_switches_and_keeps_the_one_before(folder, bundle_writer, tmp_path):
    assert current_bundle(folder) is None
    names = []
    for seed in range(3):
        bundle_writer(tmp_path / str(seed), seed=seed)
        names.append(install_bundle(folder, tmp_path / str(seed)).name)
        assert current_name(folder) == current_bundle(folder).name == names[-1]
    kept = {path.name for path in folder.models.iterdir()}
    assert kept == {"current", names[1], names[2]}
    assert install_bundle(folder, tmp_path / "2").name == names[2]  # again


def test_a_copy_that_is_cut_off_changes_nothing(folder, bundle_writer, tmp_path, monkeypatch):
    for seed in range(2):
        bundle_writer(tmp_path / str(seed), seed=seed)
    first = install_bundle(folder, tmp_path / "0").name

    def fail(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.raises(DeviceError, match="can't install the model"):
        install_bundle(folder, tmp_path / "1")
    assert {path.name for path in folder.models.iterdir()} == {"current", first}
    assert current_bundle(folder).name == first


def flip(path):
    """One bit of the last number."""
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: (f / "items.safetensors").unlink(),
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100),
        lambda f: (f / "items.safetensors").write_bytes(b""),
        lambda f: save_file({"a": np.zeros(1, np.float32)}, f / "model.safetensors"),
        lambda f: save_file(
            {"a": np.zeros(1, np.float32)},
            f / "model.safetensors",
            {"model": "{}", "blocks": "{}", "event_types": "[]"},
        ),
        lambda f: save_file(
            load_file(f / "model.safetensors"),
            f / "model.safetensors",
            {"model": '{"width": -1}', "blocks": "{}", "event_types": "[]"},
        ),
        lambda f: save_file(
            load_file(f / "model.safetensors"),
            f / "model.safetensors",
            {"model": "{}", "blocks": '{"text": [0, 3]}', "event_types": "[]"},
        ),
        lambda f: flip(f / "model.safetensors"),
    ],
)
def test_what_is_no_bundle_is_refused(damage, folder, bundle_writer, tmp_path):
    run = tmp_path / "run"
    bundle_writer(run)
    damage(run)
    with pytest.raises(DataError, match=r"run|weight|table"):
        install_bundle(folder, run)
    assert list(folder.models.iterdir()) == []


def test_files_of_two_runs_do_not_mix(bundle_writer, tmp_path):
    bundle_writer(tmp_path / "a")
    bundle_writer(tmp_path / "b", n_items=41, item_ids=True)
    (tmp_path / "b" / "items.safetensors").write_bytes(
        (tmp_path / "a" / "items.safetensors").read_bytes()
    )
    with pytest.raises(DataError):
        ModelBundle.load(tmp_path / "b")


def test_a_model_in_the_place_of_another_is_noticed(folder, bundle_writer, tmp_path):
    bundle_writer(tmp_path / "a")
    name = install_bundle(folder, tmp_path / "a").name
    bundle_writer(folder.models / name, seed=1)
    with pytest.raises(DataError, match="content doesn't match its name"):
        current_bundle(folder)
