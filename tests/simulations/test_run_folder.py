import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fedprofile.audit.ledgers import find_evidence
from fedprofile.common.config import RunConfig, load_config
from fedprofile.common.errors import RunFolderError
from fedprofile.simulations.run_folder import RunFolder, check_writable


def config(**sections):
    return RunConfig.model_validate(sections)


def test_a_new_folder_is_only_promised_until_it_is_created(tmp_path):
    folder = RunFolder.new(tmp_path / "runs" / "a")
    assert not (tmp_path / "runs").exists()
    folder.create(config(seed=3))
    assert load_config(folder.config) == config(seed=3)
    assert [entry.name for entry in folder.path.iterdir()] == ["config.toml"]


def test_places_that_a_run_names_are_found_from_everywhere(tmp_path, monkeypatch):
    """An officer verifies from another folder than the operator ran in."""
    monkeypatch.chdir(tmp_path)
    places = {"anchor": "notary.json", "device_folder": "kept", "signing_key": "/keys/shop.pem"}
    run, folder = config(ledger=places), RunFolder.new(tmp_path / "a")
    folder.create(run)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.ledger.touch()
    evidence = find_evidence(folder.path)
    assert evidence.anchor == tmp_path / "notary.json"
    assert evidence.devices == tmp_path / "kept"
    assert load_config(folder.config).ledger.signing_key == "/keys/shop.pem"
    RunFolder.reopen(folder.path, run)


def test_an_empty_folder_will_do(tmp_path):
    RunFolder.new(tmp_path).create(config())


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(RunFolderError, match="exists already"):
        RunFolder.new(tmp_path)
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.new(tmp_path / "mine")


def test_a_folder_taken_since_it_was_promised_is_refused(tmp_path):
    first, second = RunFolder.new(tmp_path / "a"), RunFolder.new(tmp_path / "a")
    first.create(config(seed=1))
    with pytest.raises(RunFolderError, match="exists already"):
        second.create(config(seed=2))
    assert load_config(first.config).seed == 1


def test_reopening_needs_the_same_configuration_but_for_the_engine(tmp_path):
    RunFolder.new(tmp_path / "a").create(config(seed=1))
    RunFolder.reopen(tmp_path / "a", config(seed=1, engine={"devices_per_host": 7}))
    changed = config(seed=2, training={"rounds": 7})
    with pytest.raises(RunFolderError, match=r"\(seed, training.rounds differ\)"):
        RunFolder.reopen(tmp_path / "a", changed)
    with pytest.raises(RunFolderError, match="no run to resume"):
        RunFolder.reopen(tmp_path, config())


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="Not a directory"):
        check_writable(tmp_path / "file" / "deep" / "run")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "deep" / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_metrics_are_json_whatever_the_text(tmp_path):
    folder = RunFolder(tmp_path)
    metrics = {"run": "猫", "command": b"x\xff".decode("utf8", "surrogateescape"), "none": None}
    folder.write_metrics(metrics)
    assert json.loads(folder.metrics.read_text(encoding="utf-8")) == metrics
    with pytest.raises(ValueError, match="JSON"):
        folder.write_metrics({"ndcg": float("nan")})


def test_a_model_is_written_with_what_it_takes_to_read_it(tmp_path):
    folder = RunFolder(tmp_path)
    weights = {"out.weight": torch.arange(6.0).reshape(2, 3).T}  # not contiguous
    folder.write_model(weights, {"model": "{}"})
    with safe_open(folder.model, framework="np") as file:
        assert file.metadata() == {"model": "{}"}
        np.testing.assert_array_equal(file.get_tensor("out.weight"), weights["out.weight"].numpy())


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    for _ in range(4):
        made.append(RunFolder.stamped("猫").path)
        made[-1].mkdir(parents=True)
    assert len(set(made)) == 4
    assert all(path.parent.name == "runs" and path.name.startswith("猫-") for path in made)
