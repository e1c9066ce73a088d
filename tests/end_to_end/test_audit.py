"""The audit of what ``fedprofile simulate`` leaves, whole and tampered with by who has the key."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.verify import verify

pytestmark = pytest.mark.xdist_group("audit")  # the run is made once

RUN = Path("run")

PATIENT = """
seed = 1
data = { synthetic_users = 60, synthetic_items = 30 }
items = { dimension = 8 }
model = { encoder = "mean", width = 8, window = 8 }
training = { rounds = 6, patience = 1, cohort = 60, negatives = 8, server_learning_rate = 0.1 }
privacy = { enabled = false }
evaluation = { bootstrap_samples = 0, baselines = false }
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the one run is kept that all tests look at copies of."""
    return tmp_path_factory.mktemp("made") / "run"


@pytest.fixture
def run(made, fedprofile, small, log):
    if not made.exists():
        found = fedprofile("simulate", "--config", small(), "--data", log(), "--out", made)
        assert found.code == 0, found.err
    shutil.copytree(made, RUN)
    return RUN


def failed(run, **named):
    return {
        f.check: f for f in verify(find_evidence(run), **named).findings if f.outcome == "fails"
    }


def test_a_run_holds(fedprofile, run):
    found = fedprofile("audit", "verify", run, "--json")
    assert found.code == 0, found.out
    content = json.loads(found.out)
    by_check = {finding["check"]: finding["outcome"] for finding in content["findings"]}
    # No key is pinned, of twelve users all are in every cohort, and no device keeps a ledger.
    left_out = [check for check, outcome in by_check.items() if outcome == "not run"]
    assert left_out == ["public key", "sampler", "devices"]
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert content["cost"]["epsilon"] == pytest.approx(metrics["privacy"]["epsilon"], abs=1e-9)


@pytest.mark.usefixtures("inline_accountants")
def test_what_was_changed_in_a_run_folder_is_named(run):
    metrics = json.loads((run / "metrics.json").read_bytes())

    # A figure made nicer, and a round that nobody made.
    told = metrics["privacy"]["epsilon"]
    for section, key, value in [("privacy", "epsilon", told / 2), ("run", "rounds_done", 3)]:
        changed = {**metrics, section: {**metrics[section], key: value}}
        (run / "metrics.json").write_text(json.dumps(changed))
        assert set(failed(run)) == {"metrics"}
    (run / "metrics.json").write_text(json.dumps(metrics))

    # Other weights than those the last round led to.
    [*_, last] = sorted((run / "checkpoints").iterdir())
    kept = last.read_bytes()
    tensors = load_file(last)
    name = next(name for name in tensors if name.startswith("weights/"))
    tensors[name] = tensors[name] + 1
    state = json.loads(kept[8 : 8 + int.from_bytes(kept[:8], "little")])["__metadata__"]
    save_file(tensors, last, metadata=state)
    assert "other weights" in failed(run)["checkpoint"].what
    last.write_bytes(kept)

    # Another configuration.
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(
        text.replace("noise_multiplier = 4.0", "noise_multiplier = 5.0")
    )
    assert set(failed(run)) == {"configuration"}
    (run / "config.toml").write_text(text)
    assert failed(run) == {}


@pytest.mark.usefixtures("inline_accountants")
def test_a_run_whose_model_validation_chose_holds_and_its_best_round_can_not_be_swapped(fedprofile):
    Path("open.toml").write_text(PATIENT)
    made = fedprofile("simulate", "--config", "open.toml", "--out", "open")
    assert made.code == 0, made.err
    assert failed(Path("open")) == {}
    assert fedprofile("simulate", "--resume", "--out", "open").code == 0
    findings = verify(find_evidence(Path("open"))).findings
    by_check = {finding.check: finding for finding in findings}
    metrics = json.loads(Path("open/metrics.json").read_bytes())
    best, done = metrics["run"]["best_round"], metrics["run"]["rounds_done"]
    assert by_check["model"].what == f"has the weights that round {best} led to"
    assert by_check["metrics"].outcome == "holds"
    other = done if best < done else 1
    changed = {**metrics, "run": {**metrics["run"], "best_round": other}}
    Path("open/metrics.json").write_text(json.dumps(changed))
    assert set(failed(Path("open"))) == {"model"}


def test_a_run_is_told_on_one_page(fedprofile, run):
    found = fedprofile("audit", "report", run, "--out", "page", "--json")
    assert found.code == 0, found.out + found.err
    told = json.loads(found.out.splitlines()[-1])
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert told["cost"]["epsilon"] == pytest.approx(metrics["privacy"]["epsilon"], abs=1e-9)
    assert told["verdict"]["holds"] is True
    assert "12)" in told["guarantee"]["sentence"]
    assert [group["releases"] for group in told["releases"]] == [1, 2]
    commands = [row["command"] for row in told["commands"]]
    assert "fedprofile audit probe --config run/config.toml --out run/probe.json" in commands
    assert (Path("page") / "report.html").is_file()
    # The page of the run itself is another report.
    assert fedprofile("audit", "report", run, "--out", run).code == 2


@pytest.mark.usefixtures("inline_accountants")
def test_a_release_without_an_entry_shows_in_the_checkpoint(fedprofile, run, small, log):
    """Ledger and anchor of an earlier moment put back together: signed, whole, and too short."""
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    other = Path("other")
    shutil.copytree(run, other)
    (other / "anchor.json").unlink()
    (other / "ledger.jsonl").write_bytes(b"".join(lines[:-3]))  # without round 2
    found = failed(other)
    assert "round 2 was made, and the ledger has no release of it" in found["checkpoint"].what
    assert "missing" in found["anchor"].what or "can't read" in found["anchor"].what
    assert "metrics" in found


@pytest.mark.usefixtures("inline_accountants")
def test_keys_and_anchors_kept_elsewhere_and_a_budget_over_two_runs(fedprofile, small, log):
    data, config = log(), small()
    elsewhere = ("--signing-key", "operator.pem", "--anchor", "notary.json")
    first = fedprofile(
        "simulate", "--config", config, "--data", data, "--out", "first", *elsewhere, "--json"
    )
    assert first.code == 0, first.err
    assert not (Path("first") / "signing_key.pem").exists()
    assert {f.outcome for f in verify(find_evidence(Path("first"))).findings} <= {
        "holds",
        "not run",
    }
    assert fedprofile("audit", "verify", "first", "--anchor", "notary.json").code == 0

    again = ("simulate", "--config", config, "--data", data, "--earlier", "first", "--json")
    second = fedprofile(*again, "--out", "second")
    assert second.code == 0, second.err
    spent = [json.loads(r.out)["privacy"]["epsilon"] for r in (first, second)]
    assert spent[1] > spent[0]
    joint = json.loads(fedprofile("audit", "compose", "first", "second", "--json").out)
    assert joint["epsilon"] == pytest.approx(spent[1], abs=1e-9)
    assert fedprofile("audit", "verify", "second").code == 0
    Path("notary.json").unlink()
    for command in (("verify", "first"), ("compose", "first", "second")):
        assert fedprofile("audit", *command).code == 1

    refused = fedprofile(*again, "--out", "third", "--epsilon", f"{spent[0]:.2f}"[:-1])
    assert refused.code == 3
    assert "nothing is left" in refused.err
    assert not Path("third").exists()
    # What counts is part of the run: it can't be left out or added later.
    other = fedprofile("simulate", "--resume", "--out", "first", "--earlier", "second")
    assert (other.code, "ledger.earlier" in other.err) == (2, True)
