"""What a run folder keeps to rank with, held against the checkpoint and the ledger."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fedprofile.audit.privacy_checks import Cost
from fedprofile.audit.run_checks import check_run
from fedprofile.common.items import ItemTable
from fedprofile.common.weights import hash_of_weights

NOTHING = Cost(1e-5, None, None, None, None, None, None)

VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)
STATISTICS = {
    "statistics/popularity": {"popularity": np.linspace(0, 1, 6).reshape(2, 3)},
    "statistics/cooccurrence": {"vectors": VECTORS},
}


def weights(number):
    return {"a": np.full((2, 3), number, np.float32), "b": np.full(4, number, np.float32)}


def begun(forge):
    """A ledger with the statistics that come before all rounds."""
    writer = forge.Writer().open()
    for task, statistic in STATISTICS.items():
        release = writer.reserve(task=task, round=None, model_before=None)
        writer.commit(release, model_after=hash_of_weights(statistic))
    return writer


@pytest.fixture
def made(tmp_path, forge):
    """A run folder with its ledger's chain: the model is the mean of the last ``averaged`` rounds."""

    def make(*, rounds=3, averaged=2):
        writer = begun(forge)
        for number in range(1, rounds + 1):
            before, after = (hash_of_weights(weights(n)) for n in (number - 1, number))
            release = writer.reserve(round=number, model_before=before)
            writer.commit(release, model_after=after)
        last = range(rounds - averaged + 1, rounds + 1)
        total = weights(sum(last))
        tensors = {f"weights/{name}": t for name, t in weights(rounds).items()}
        tensors |= {name: t for statistic in STATISTICS.values() for name, t in statistic.items()}
        if averaged:
            tensors |= {f"average/{name}": t for name, t in total.items()}
        numbers = [0] * len(STATISTICS) + list(range(1, rounds + 1))
        records = [{"round": number, "sampled": 50} for number in numbers]
        state = {
            "round": rounds,
            "release": 2 * rounds + 3 if rounds else 3,
            "averaged": averaged,
            "rounds": records,
        }
        (tmp_path / "checkpoints").mkdir()
        save_file(
            tensors,
            tmp_path / "checkpoints" / f"round-{rounds:06}.safetensors",
            metadata={"state": json.dumps(state)},
        )
        released = weights(sum(last) / averaged) if averaged else weights(rounds)
        save_file(released, tmp_path / "model.safetensors")
        ItemTable(
            vectors=np.hstack([np.ones((3, 2), np.float32), VECTORS]),
            ids=("x", "y", "z"),
            tags=((),) * 3,
            blocks={"text": (0, 2), "cooccurrence": (2, 4)},
        ).save(tmp_path / "items.safetensors")
        return writer.chain()[0]

    return make


def found(folder, chain):
    return {finding.check: finding for finding in check_run(folder, chain, NOTHING)}


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("rounds", "averaged", "what"),
    [
        (3, 0, "has the weights that the last round led to"),
        (3, 1, "has the weights that the last round led to"),
        (3, 2, "the average of 2 rounds in the last checkpoint; not compared with the ledger"),
        (0, 0, "those of the last checkpoint; not compared with the ledger, which has no round"),
    ],
)
def test_a_changed_model_shows(tmp_path, made, rounds, averaged, what):
    chain = made(rounds=rounds, averaged=averaged)
    told = found(tmp_path, chain)["model"]
    assert (told.outcome, what in told.what) == ("holds", True), told
    flip(tmp_path / "model.safetensors", -1)
    told = found(tmp_path, chain)["model"]
    assert told.outcome == "fails"
    assert "other weights than the run ended with" in told.what
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert "isn't a model" in found(tmp_path, chain)["model"].what


def test_an_average_has_nothing_to_be_held_against_without_its_checkpoint(tmp_path, made):
    chain = made()
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    checkpoint.write_bytes(b"nonsense")
    told = found(tmp_path, chain)
    assert (told["checkpoint"].outcome, told["model"].outcome) == ("fails", "not run")
    checkpoint.unlink()
    assert found(tmp_path, chain)["model"].outcome == "not run"
    (tmp_path / "model.safetensors").unlink()
    assert "isn't finished" in found(tmp_path, chain)["model"].what


def test_changed_items_show(tmp_path, made):
    chain = made()
    assert found(tmp_path, chain)["items"].outcome == "holds"
    flip(tmp_path / "items.safetensors", -1)
    told = found(tmp_path, chain)["items"]
    assert (told.outcome, "doesn't match its hash" in told.what) == ("fails", True)
    (tmp_path / "items.safetensors").unlink()
    assert found(tmp_path, chain)["items"].outcome == "not run"


def test_statistics_that_were_not_released_show(tmp_path, made):
    chain = made()
    assert found(tmp_path, chain)["checkpoint"].outcome == "holds"
    [path] = (tmp_path / "checkpoints").iterdir()
    with safe_open(path, framework="np") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        metadata = file.metadata()
    for name, line in (("popularity", 3), ("vectors", 5)):
        save_file({**kept, name: kept[name] + 1}, path, metadata=metadata)
        told = found(tmp_path, chain)["checkpoint"]
        assert (told.outcome, told.line) == ("fails", line), told
        assert "other numbers than those kept" in told.what
    table = ItemTable.load(tmp_path / "items.safetensors")
    table.with_values("cooccurrence", VECTORS[::-1]).save(tmp_path / "items.safetensors")
    told = found(tmp_path, chain)["items"]
    assert (told.outcome, told.line) == ("fails", 5), told


def test_the_checkpoint_of_a_run_without_rounds_claims_no_comparison(tmp_path, made):
    told = found(tmp_path, made(rounds=0, averaged=0))["checkpoint"]
    assert (told.outcome, "weights are not compared" in told.what) == ("holds", True)


def test_a_round_that_is_not_committed_yet_claims_no_comparison(tmp_path, made, forge):
    made(rounds=3)
    running = begun(forge)
    for number in range(1, 4):
        release = running.reserve(round=number)
        if number < 3:
            running.commit(release)
    told = found(tmp_path, running.chain()[0])["checkpoint"]
    assert (told.outcome, "its weights are not compared" in told.what) == ("holds", True)
