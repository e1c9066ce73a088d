"""What a run folder keeps to rank with, held against the checkpoint and the ledger."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fedprofile.audit.privacy_checks import Cost
from fedprofile.audit.run_checks import check_run
from fedprofile.common.accounting import epsilon, epsilon_after_each
from fedprofile.common.config import RunConfig
from fedprofile.common.items import ItemTable
from fedprofile.common.ledger_entries import Commit, Reserve
from fedprofile.common.weights import hash_of_weights

NOTHING = Cost(1e-5, None, None, None, None, None, None)

VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)
STATISTICS = {
    "statistics/popularity": {"popularity": np.linspace(0, 1, 6).reshape(2, 3)},
    "statistics/cooccurrence": {"vectors": VECTORS},
}


def weights(number):
    return {"a": np.full((2, 3), number, np.float32), "b": np.full(4, number, np.float32)}


def begun(forge, **changes):
    """A ledger with the statistics that come before all rounds."""
    writer = forge.Writer().open()
    for task, statistic in STATISTICS.items():
        mechanism = forge.mechanism(**changes)
        release = writer.reserve(mechanism, task=task, round=None, model_before=None)
        writer.commit(release, model_after=hash_of_weights(statistic))
    return writer


@pytest.fixture
def made(tmp_path, forge):
    """A run folder with its ledger's chain: the model is the mean of the last ``averaged`` rounds."""

    def make(*, rounds=3, averaged=2, stop=None, **changes):
        writer = begun(forge, **changes)
        for number in range(1, rounds + 1):
            before, after = (hash_of_weights(weights(n)) for n in (number - 1, number))
            mechanism = forge.mechanism(**changes)
            release = writer.reserve(mechanism, round=number, model_before=before)
            writer.commit(release, model_after=after)
        if stop is not None:
            writer.stop(reason=stop)
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


def choosing(folder, *, best_round=2, patience=1, **run):
    """Have the folder be of a run whose model validation chose, of the round that its metrics name."""
    training = {} if patience is None else {"patience": patience}
    config = RunConfig.model_validate({"training": training, "privacy": {"enabled": False}})
    (folder / "config.toml").write_text(config.to_toml())
    told = {"rounds_done": 4, "stopped": None, "best_round": best_round, **run}
    (folder / "metrics.json").write_text(json.dumps({"run": told}))


def test_a_model_that_validation_chose_is_that_of_the_round_that_metrics_name(tmp_path, made):
    chain = made(rounds=4, averaged=2)
    save_file(weights(2), tmp_path / "model.safetensors")
    assert found(tmp_path, chain)["model"].outcome == "fails"
    choosing(tmp_path)
    told = found(tmp_path, chain)["model"]
    assert (told.outcome, told.what) == ("holds", "has the weights that round 2 led to"), told
    # Those of another round, the last among them, of none, and the average.
    for other in (3, 4, 9, 3.5):
        save_file(weights(other), tmp_path / "model.safetensors")
        told = found(tmp_path, chain)["model"]
        assert (told.outcome, "other weights than round 2 led to" in told.what) == ("fails", True)
    choosing(tmp_path, best_round=4)
    save_file(weights(4), tmp_path / "model.safetensors")
    assert found(tmp_path, chain)["model"].outcome == "holds"


@pytest.mark.parametrize("best_round", [None, 0, 5, -1, "2", [2]])
def test_a_model_of_a_round_that_nobody_made_shows(tmp_path, made, best_round):
    chain = made(rounds=4, averaged=2)
    save_file(weights(4), tmp_path / "model.safetensors")
    choosing(tmp_path, best_round=best_round)
    told = found(tmp_path, chain)["model"]
    assert told.outcome == "fails"
    assert "names no round of the ledger" in told.what


def test_without_metrics_it_is_not_known_which_round_validation_chose(tmp_path, made):
    chain = made(rounds=4, averaged=2)
    save_file(weights(2), tmp_path / "model.safetensors")
    choosing(tmp_path)
    (tmp_path / "metrics.json").unlink()
    assert found(tmp_path, chain)["model"].outcome == "not run"
    for content in ("", "[]", "{}", '{"run": {}}'):
        (tmp_path / "metrics.json").write_text(content)
        told = found(tmp_path, chain)
        assert (told["model"].outcome, told["metrics"].outcome) == ("fails", "fails")


def test_changed_items_show(tmp_path, made):
    chain = made()
    assert found(tmp_path, chain)["items"].outcome == "holds"
    flip(tmp_path / "items.safetensors", -1)
    told = found(tmp_path, chain)["items"]
    assert (told.outcome, "doesn't match its hash" in told.what) == ("fails", True)
    (tmp_path / "items.safetensors").unlink()
    assert found(tmp_path, chain)["items"].outcome == "not run"


def test_a_model_without_an_average_is_held_against_the_ledger(tmp_path, made):
    chain = made(rounds=3, averaged=0)
    told = found(tmp_path, chain)["model"]
    assert (told.outcome, told.what) == ("holds", "has the weights that the last round led to")
    change_checkpoint(tmp_path, tensors={f"weights/{n}": t for n, t in weights(9).items()})
    save_file(weights(9), tmp_path / "model.safetensors")
    told = found(tmp_path, chain)
    assert (told["model"].outcome, told["checkpoint"].outcome) == ("fails", "fails")
    assert "other weights than the last round led to" in told["model"].what


def change_checkpoint(folder, *, tensors=None, **state):
    """Other tensors (None: without it), and other numbers in its state."""
    [path] = (folder / "checkpoints").iterdir()
    with safe_open(path, framework="np") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
        known = json.loads(file.metadata()["state"])
    kept = {name: t for name, t in {**kept, **(tensors or {})}.items() if t is not None}
    save_file(kept, path, metadata={"state": json.dumps({**known, **state})})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"release": None}, "isn't of the last release"),
        ({"release": 5}, "isn't of the last release"),
        ({"release": 99}, "isn't of the last release"),
        ({"round": 0}, "says it is of round 0"),
        ({"rounds": []}, "that the checkpoint doesn't know of"),
        ({"tensors": {"popularity": None}}, "other numbers than those kept"),
        ({"tensors": {"vectors": None}}, "other numbers than those kept"),
    ],
)
def test_what_a_checkpoint_leaves_out_is_no_excuse(tmp_path, made, change, what):
    chain = made()
    change_checkpoint(tmp_path, **change)
    told = found(tmp_path, chain)["checkpoint"]
    assert (told.outcome, what in told.what) == ("fails", True), told


def test_a_statistic_without_an_entry_shows(tmp_path, made, forge):
    made()
    writer = forge.Writer().open()
    task, statistic = list(STATISTICS.items())[1]
    release = writer.reserve(task=task, round=None, model_before=None)
    writer.commit(release, model_after=hash_of_weights(statistic))
    for number in range(1, 4):
        before, after = (hash_of_weights(weights(n)) for n in (number - 1, number))
        release = writer.reserve(round=number, model_before=before)
        writer.commit(release, model_after=after)
    change_checkpoint(tmp_path, release=release)
    told = found(tmp_path, writer.chain()[0])["checkpoint"]
    assert (told.outcome, "a statistic had a cohort" in told.what) == ("fails", True), told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b"[" * 100_000),
        ("config.toml", b"a = " + b"[" * 20_000),
        ("model.safetensors", b"\x08" + bytes(7) + b"{}      "),
    ],
)
def test_files_that_are_nothing_end_in_a_finding(tmp_path, made, name, content):
    chain = made()
    (tmp_path / name).write_bytes(content)
    check = {"metrics.json": "metrics", "config.toml": "configuration"}.get(name, "model")
    assert found(tmp_path, chain)[check].outcome == "fails"


@pytest.mark.parametrize(
    "state",
    [
        {"release": []},
        {"round": [1]},
        {"averaged": 10**400},
        {"rounds": [{"round": 1, "sampled": "x"}]},
    ],
)
def test_a_state_that_is_none_ends_in_a_finding(tmp_path, made, state):
    chain = made()
    change_checkpoint(tmp_path, **state)
    assert found(tmp_path, chain)["checkpoint"].outcome == "fails"


@pytest.mark.parametrize(
    "change", [{"content_hash": None}, {"description": "{}"}, {"description": "[1]"}]
)
def test_a_table_that_is_none_ends_in_a_finding(tmp_path, made, change):
    chain = made()
    path = tmp_path / "items.safetensors"
    with safe_open(path, framework="np") as file:
        metadata = {k: v for k, v in {**file.metadata(), **change}.items() if v is not None}
        vectors = file.get_tensor("vectors")
    save_file({"vectors": vectors}, path, metadata=metadata)
    assert found(tmp_path, chain)["items"].outcome == "fails"


def metrics_of(chain, cost):
    """As an honest run writes them."""
    commits = {e.release: e for e in chain.entries if isinstance(e, Commit)}
    made = [e for e in chain.entries if isinstance(e, Reserve)]
    spent = epsilon_after_each([e.mechanism.event() for e in made], delta=1e-5)
    releases = [
        {
            "task": e.task,
            "round": e.round,
            "noise_multiplier": e.mechanism.noise_multiplier,
            "clip_norm": e.mechanism.clip_norm,
            "sampling_probability": e.mechanism.sampling_probability,
            "epsilon_after": figure,
            "cohort": commits[e.sequence].cohort_size,
            "replies": commits[e.sequence].replies_counted,
            "rejected": {},
        }
        for e, figure in zip(made, spent, strict=True)
    ]
    rounds = [r for r in releases if r["round"] is not None]
    return {
        "privacy": {
            "enabled": True,
            "epsilon": cost.pld,
            "epsilon_rdp": cost.rdp,
            "epsilon_prv": None,
            "delta": 1e-5,
            "population_size": 1_000,
            "unit": "user",
            "adjacency": "add-or-remove-one",
            "target_epsilon": 8.0,
            "randomness": "csprng",
            "sampler": "poisson",
            "releases": releases,
        },
        "run": {"rounds_done": 3, "stopped": None, "best_round": None},
        "curve": [
            {"round": r["round"], "sampled": 50, "epsilon": r["epsilon_after"]} for r in rounds
        ],
    }


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        ((), None, None),
        (("privacy", "epsilon"), float("nan"), "tells ε = nan"),
        (("privacy", "epsilon"), None, "tells ε = None"),
        (("privacy", "epsilon"), 0.4, "tells ε = 0.4"),
        (("privacy", "epsilon_rdp"), 0.4, "tells epsilon_rdp = 0.4"),
        (("privacy", "epsilon_prv"), 0.4, None),  # the audit has none to hold it against
        (("privacy", "delta"), 1e-9, "another delta"),
        (("privacy", "unit"), "event", "another unit"),
        (("privacy", "adjacency"), "replace-one", "another adjacency"),
        (("privacy", "target_epsilon"), 1.0, "another target_epsilon"),
        (("privacy", "randomness"), "seeded", "another randomness"),
        (("privacy", "sampler"), "fixed-size", "another sampler"),
        (("privacy", "enabled"), False, "whether there was noise"),
        (("privacy", "releases"), [], "tells 0 releases"),
        (
            ("privacy", "releases", 3, "task"),
            "other",
            "line 8 (entry 7): metrics.json tells another task",
        ),
        (("privacy", "releases", 3, "round"), 7, "another round"),
        (("privacy", "releases", 3, "noise_multiplier"), 9.0, "another noise_multiplier"),
        (("privacy", "releases", 3, "clip_norm"), 1e-9, "another clip_norm"),
        (("privacy", "releases", 3, "sampling_probability"), 1e-4, "another sampling_probability"),
        (("privacy", "releases", 3, "cohort"), 1, "another cohort"),
        (("privacy", "releases", 3, "replies"), 1, "another replies"),
        (("privacy", "releases", 3, "rejected"), {"late": 1}, "another rejected"),
        (("privacy", "releases", 1, "epsilon_after"), 1e-4, "tells ε = 0.0001 after the release"),
        (("run", "rounds_done"), 2, "tells 2 rounds"),
        (("run", "best_round"), 2, "tells of a best round"),
        (("run", "stopped"), "it was enough", None),  # a ledger that isn't stopped tells no reason
        (("curve", 1, "epsilon"), 1e-4, "in its curve, round 2"),
        (("curve", 1, "sampled"), 1, "in its curve, round 2"),
    ],
)
def test_metrics_that_tell_another_story_show(tmp_path, made, place, value, what):
    chain = made()
    events = [e.mechanism.event() for e in chain.entries if isinstance(e, Reserve)]
    cost = replace(NOTHING, pld=epsilon(events, delta=1e-5), rdp=9.0)
    metrics = metrics_of(chain, cost)
    within = metrics
    for key in place[:-1]:
        within = within[key]
    if place:
        within[place[-1]] = value
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    finding = next(f for f in check_run(tmp_path, chain, cost) if f.check == "metrics")
    assert finding.outcome == ("holds" if what is None else "fails"), finding
    assert (what or "tells the ledger's") in finding.what


@pytest.mark.parametrize(
    ("reason", "stopped", "holds"),
    [
        ("completed", None, True),
        ("completed", "completed", False),
        ("completed", "validation was best at round 1, 2 measurements ago", False),
        ("a release, round 4, would bring ε to 9", None, False),
        ("a release, round 4, would bring ε to 9", "a release, round 4, would bring ε to 8", False),
        ("a release, round 4, would bring ε to 9", "a release, round 4, would bring ε to 9", True),
    ],
)
def test_metrics_that_tell_another_end_than_the_ledger_show(
    tmp_path, made, forge, reason, stopped, holds
):
    chain = made(stop=reason)
    metrics = metrics_of(chain, NOTHING)
    metrics["privacy"]["epsilon"] = metrics["privacy"]["epsilon_rdp"] = None
    metrics["run"]["stopped"] = stopped
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    told = found(tmp_path, chain)["metrics"]
    assert told.outcome == ("holds" if holds else "fails"), told
    if not holds:
        assert told.line == len(chain.entries)
        assert "another reason why the run ended" in told.what


@pytest.mark.parametrize(
    ("patience", "best_round", "what"),
    [
        (1, 2, None),
        (1, 3, None),
        (1, None, "names no round of the ledger as the best"),
        (1, 4, "names no round of the ledger as the best"),
        (None, None, None),
        (None, 2, "tells of a best round"),
    ],
)
def test_metrics_name_a_best_round_where_validation_chooses_and_nowhere_else(
    tmp_path, made, patience, best_round, what
):
    chain = made(noise_multiplier=0.0)
    choosing(tmp_path, patience=patience)
    metrics = metrics_of(chain, NOTHING)
    metrics["privacy"] |= {"enabled": False, "epsilon": None, "epsilon_rdp": None}
    metrics["run"]["best_round"] = best_round
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    told = found(tmp_path, chain)["metrics"]
    assert told.outcome == ("holds" if what is None else "fails"), told
    assert (what or "tells the ledger's") in told.what


def test_a_private_run_has_no_best_round_whatever_its_configuration_says(tmp_path, made):
    chain = made()
    choosing(tmp_path)
    metrics = metrics_of(chain, NOTHING)
    metrics["privacy"] |= {"epsilon": None, "epsilon_rdp": None}
    metrics["run"]["best_round"] = 2
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    told = found(tmp_path, chain)["metrics"]
    assert (told.outcome, "tells of a best round" in told.what) == ("fails", True), told


def test_a_block_under_another_name_shows(tmp_path, made):
    chain = made()
    table = ItemTable.load(tmp_path / "items.safetensors")
    blocks = {"text": (0, 2), "sold-together": (2, 4)}
    replace(table, blocks=blocks).save(tmp_path / "items.safetensors")
    told = found(tmp_path, chain)["items"]
    assert (told.outcome, "lacks what was released" in told.what) == ("fails", True)


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
