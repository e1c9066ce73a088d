"""The folder of a server is audited as what it is: settings, weights, released models and keys."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.verify import verify
from fedprofile.common.cli import main
from fedprofile.common.errors import LedgerError
from fedprofile.common.releases import Manifest
from fedprofile.common.signing import SigningKey
from fedprofile.server.folder import ServerFolder

pytestmark = [
    pytest.mark.usefixtures("inline_accountants"),
    pytest.mark.xdist_group("server checks"),  # the federation is run once
]
OWN = ("configuration", "checkpoint", "releases", "server key")


@pytest.fixture(scope="module")
def finished(made_server, tmp_path_factory):
    """Where a server's folder is kept whose federation has ended."""
    return tmp_path_factory.mktemp("finished") / "shop"


@pytest.fixture
def shop(finished, made_server, serve, tmp_path):
    """A copy of it, to tamper with."""
    if not finished.exists():
        shutil.copytree(made_server.path, finished)
        # Three rounds: the last model is the average of two, which no single release led to.
        change(finished / "server.toml", b"rounds = 2", b"rounds = 3")
        serve(ServerFolder.open(finished))
    shutil.copytree(finished, tmp_path / "shop")
    return ServerFolder.open(tmp_path / "shop")


def findings(shop, **named):
    return {f.check: f for f in verify(find_evidence(shop.path), **named).findings}


def newest(shop):
    return sorted(shop.releases.glob("[0-9]*"))[-1]


def resigned(shop, **changes):
    """The newest manifest with other content, signed by the server itself."""
    path = newest(shop) / "manifest.json"
    key = SigningKey.load(shop.signing_key)
    manifest = Manifest.read(path.read_text(), public_key=key.public_key)
    path.write_text(Manifest(**{**vars(manifest), **changes}).signed(key).to_json())


def test_the_folder_of_a_server_holds_and_misses_nothing(shop):
    key = SigningKey.load(shop.signing_key).public_key
    found = findings(shop, public_key=key)
    assert {f.check: f.what for f in found.values() if f.outcome == "fails"} == {}
    # Everybody is sampled, and Opacus is left out here; nothing of a run folder is asked for.
    assert [f.check for f in found.values() if f.outcome == "not run"] == ["sampler", "PRV"]
    assert "metrics" not in found
    assert found["releases"].what.startswith("4 signed manifests")  # three rounds, and the average


def test_before_the_first_release_it_says_so(made_server):
    with pytest.raises(LedgerError, match="released nothing yet"):
        find_evidence(made_server.path)


def test_a_copy_without_private_parts_can_be_audited(shop):
    for path in (shop.signing_key, shop.ca_key, shop.certificate_key):
        path.unlink()
    found = findings(shop)
    assert found["server key"].outcome == "holds"
    shop.bundle.unlink()
    assert findings(shop)["server key"].outcome == "not run"


def change(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def other_weights(path):
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("weights/"))
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    save_file({**tensors, name: tensors[name] + np.float32(1)}, path, metadata)


FAULTS = {
    "other rounds": (
        lambda shop: change(shop.config_file, b"rounds = 3", b"rounds = 4"),
        "configuration",
    ),
    "a larger population": (
        lambda shop: change(shop.config_file, b"population_size = 3", b"population_size = 4"),
        "configuration",
    ),
    "no configuration": (lambda shop: shop.config_file.write_text("rounds"), "configuration"),
    "other weights kept": (
        lambda shop: other_weights(sorted(shop.checkpoints.iterdir())[-1]),
        "checkpoint",
    ),
    "a changed model": (lambda shop: other_weights_of_model(shop), "releases"),
    "a changed popularity": (
        lambda shop: (newest(shop) / "statistics.f32").write_bytes(b"\0" * 8),
        "releases",
    ),
    "a manifest of nobody's": (
        lambda shop: change(newest(shop) / "manifest.json", b'"signature":"', b'"signature":"0'),
        "releases",
    ),
    "a model that no release led to": (lambda shop: resigned(shop, weights="0" * 64), "releases"),
    "an average that the checkpoint doesn't hold": (
        lambda shop: sorted(shop.checkpoints.iterdir())[-1].unlink(),
        "releases",
    ),
    "a release that isn't in the ledger": (lambda shop: resigned(shop, release=99), "releases"),
    "a round that wasn't made": (lambda shop: resigned(shop, round=9), "releases"),
    "a nicer figure": (lambda shop: resigned(shop, epsilon=1e9), "releases"),
    "a figure that fell": (lambda shop: resigned(shop, epsilon=0.0), "releases"),
    "another federation's model": (lambda shop: resigned(shop, federation="x"), "releases"),
    "a parent that isn't here": (lambda shop: resigned(shop, parent="0" * 64), "releases"),
    "another key for devices": (
        lambda shop: change(
            shop.bundle, SigningKey.load(shop.signing_key).public_key.encode(), b"0" * 64
        ),
        "server key",
    ),
    "another private key": (
        lambda shop: (shop.signing_key.unlink(), SigningKey.create(shop.signing_key)),
        "server key",
    ),
    "no bundle any more": (lambda shop: shop.bundle.write_bytes(b"PK"), "server key"),
}


def other_weights_of_model(shop):
    """Signed anew, too: the file is the manifest's, and holds weights that aren't."""
    path = newest(shop) / "model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + np.float32(1)}, path)
    resigned(shop, model=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_by_the_check_that_is_for_it(shop, fault):
    tamper, check = FAULTS[fault]
    tamper(shop)
    found = findings(shop)
    failed = [f.check for f in found.values() if f.outcome == "fails"]
    assert check in failed
    assert set(failed) <= set(OWN)
    assert "\n" not in found[check].what


def test_what_a_crash_leaves_is_no_fault(shop):
    # A folder without a manifest, and a manifest that never became the latest.
    (shop.releases / "000009").mkdir()
    (shop.releases / "latest").write_text("000003")
    assert findings(shop)["releases"].outcome == "holds"


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fedprofile", "audit", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return exit_.value.code, capsys.readouterr().out


def test_verify_report_forecast_and_compose_take_it(shop, monkeypatch, capsys, tmp_path):
    code, out = run(monkeypatch, capsys, "verify", shop.path, "--json")
    assert code == 0
    assert {"releases", "server key"} <= {f["check"] for f in json.loads(out)["findings"]}
    code, out = run(monkeypatch, capsys, "forecast", shop.path, "--json")
    assert (code, json.loads(out)["target"]) == (0, 8.0)
    code, out = run(monkeypatch, capsys, "compose", shop.path, "--json")
    assert code == 0
    code, out = run(monkeypatch, capsys, "report", shop.path, "--out", tmp_path / "page", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["report"]["subject"], document["report"]["server"]) == ("shop", str(shop.path))
    asked = [check["asked"] for check in document["checks"]]
    assert not any("device" in question and "server tells" in question for question in asked)
    commands = " ".join(command["command"] for command in document["commands"])
    assert f"probe --config {shop.config_file} --out {shop.path / 'probe.json'}" in commands
    assert "canaries" not in commands
    page = Path(document["paths"]["page"]).read_text(encoding="utf-8")
    assert "config.toml" not in page
    assert "metrics.json" not in page
