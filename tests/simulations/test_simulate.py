import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fedprofile.common.config import RunConfig
from fedprofile.common.errors import BudgetError, ConfigError, DataError, RunFolderError
from fedprofile.common.ledger import Ledger
from fedprofile.common.ledger_entries import Commit, Reserve, Stop, read_ledger
from fedprofile.common.weights import hash_of_weights
from fedprofile.server.app import Federation
from fedprofile.server.checkpoint import Checkpoint
from fedprofile.simulations.progress import Progress
from fedprofile.simulations.run_folder import RunFolder
from fedprofile.simulations.simulate import SimulateOptions, simulate

SMALL = {
    "seed": 1,
    "data": {"synthetic_users": 60, "synthetic_items": 30},
    "items": {"dimension": 8},
    "model": {"width": 8, "window": 8},
    "training": {"rounds": 3, "negatives": 8, "cohort": 20},
    "privacy": {"noise_multiplier": 4.0},
    "evaluation": {"bootstrap_samples": 20, "baselines": False},
}


def config(**sections):
    merged = {name: {**SMALL.get(name, {}), **values} for name, values in sections.items()}
    return RunConfig.model_validate({**SMALL, **merged})


def test_what_is_returned_is_what_is_written(tmp_path):
    found = simulate(config(), SimulateOptions(out=tmp_path / "a"))
    paths = found.pop("paths")
    assert found == json.loads(Path(paths["metrics"]).read_text(encoding="utf-8"))
    assert [point["round"] for point in found["curve"]] == [1, 2, 3]
    assert all(point["validation_ndcg"] is not None for point in found["curve"])
    assert [model["key"] for model in found["models"]] == ["federated"]


def test_a_refitted_run_trains_on_more_and_tells_nothing_of_validation(tmp_path):
    usual = simulate(config(), SimulateOptions(out=tmp_path / "a"))
    refit = config(evaluation={"refit": True, "baselines": True, "bootstrap_samples": 0})
    found = simulate(refit, SimulateOptions(out=tmp_path / "b"))
    assert found["data"]["refitted"]
    assert not usual["data"]["refitted"]
    assert found["data"]["train_events"] > usual["data"]["train_events"]
    assert found["data"]["test_users"] == usual["data"]["test_users"]
    assert [point["validation_ndcg"] for point in found["curve"]] == [None] * 3
    assert {model["validation_ndcg"] for model in found["models"]} == {None}
    assert len(found["models"]) > 5
    assert "trained on the validation part, too" in (tmp_path / "b/report.html").read_text("utf-8")


def test_a_run_without_a_folder_gets_a_new_one_named_by_its_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = simulate(config(evaluation={"split": "none"}), SimulateOptions())
    folder = Path(found["paths"]["run"])
    assert folder.parent == Path("runs")
    assert folder.name.startswith("synthetic-2")
    assert found["models"] == []
    assert [point["validation_ndcg"] for point in found["curve"]] == [None] * 3


def test_bad_data_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.csv"):
        simulate(
            config(data={"path": str(tmp_path / "nothing.csv")}),
            SimulateOptions(out=tmp_path / "a", recommendations=tmp_path / "lists" / "a.parquet"),
        )
    assert list(tmp_path.iterdir()) == []


def test_lists_that_could_not_be_written_stop_the_run_before_it_starts(tmp_path):
    (tmp_path / "lists").write_text("")
    options = SimulateOptions(out=tmp_path / "a", recommendations=tmp_path / "lists" / "a.parquet")
    with pytest.raises(RunFolderError, match=r"a.parquet: can't be written"):
        simulate(config(), options)
    assert not (tmp_path / "a").exists()


def test_a_federation_needs_two_devices(tmp_path):
    rows = ["a,x,2024-01-01", "a,y,2024-01-02", "a,x,2024-02-01", "b,y,2024-03-01"]
    rows += ["b,x,2024-03-02", "b,z,2024-06-01", "a,z,2024-06-02"]
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    cuts = {"validation_from": "2024-02-15", "test_from": "2024-05-15"}
    with pytest.raises(Exception, match=r"two or more|target"):
        simulate(
            config(data={"path": str(log)}, evaluation={**cuts, "split": "global-time"}),
            SimulateOptions(out=tmp_path / "a"),
        )


def test_a_finished_run_can_be_resumed_and_says_the_same(tmp_path):
    first = simulate(config(), SimulateOptions(out=tmp_path / "a"))
    ledger = (tmp_path / "a" / "ledger.jsonl").read_bytes()
    again = simulate(config(), SimulateOptions(out=tmp_path / "a", resume=True))
    assert (tmp_path / "a" / "ledger.jsonl").read_bytes() == ledger
    assert again["privacy"] == first["privacy"]
    assert again["models"] == first["models"]
    figures = [[point["validation_ndcg"] for point in run["curve"]] for run in (first, again)]
    assert figures[0] == figures[1]
    assert None not in figures[0]


def test_a_run_goes_on_with_the_data_it_began_with_only(tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"u{u},i{(u * n) % 9},{n * 90_000}" for u in range(40) for n in range(1, 12)]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    of_file = config(data={"path": str(log)})
    simulate(of_file, SimulateOptions(out=tmp_path / "a"))
    log.write_text("\n".join(["user_id,item_id,timestamp", *reversed(rows)]))
    simulate(
        of_file, SimulateOptions(out=tmp_path / "a", resume=True)
    )  # the same, in another order
    kept = (tmp_path / "a/metrics.json").read_bytes()
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows[1:], "u0,i8,90000"]))
    with pytest.raises(RunFolderError, match="other data than the run began with"):
        simulate(of_file, SimulateOptions(out=tmp_path / "a", resume=True))
    assert (tmp_path / "a/metrics.json").read_bytes() == kept
    (tmp_path / "a/progress.json").write_text("[]")
    with pytest.raises(RunFolderError, match=r"progress\.json"):
        simulate(of_file, SimulateOptions(out=tmp_path / "a", resume=True))


def test_a_resumed_run_tells_why_it_ended_as_its_ledger_does(tmp_path, monkeypatch):
    """What was refused before the first round isn't asked for again, where rounds follow."""

    both = config(
        privacy={"enabled": False}
    )  # of so few users co-occurrence isn't asked under noise

    def refuse(*_):
        raise BudgetError("co-occurrence would bring ε to 9", epsilon_reached=9.0)

    with monkeypatch.context() as patched:
        patched.setattr(Federation, "_cooccurrence", refuse)
        first = simulate(both, SimulateOptions(out=tmp_path / "a"))
    assert first["run"]["stopped"] == "co-occurrence would bring ε to 9"
    again = simulate(both, SimulateOptions(out=tmp_path / "a", resume=True))
    assert again["run"]["stopped"] == first["run"]["stopped"]
    assert [stop.reason for stop in entries(tmp_path / "a", Stop)] == [first["run"]["stopped"]]


# --- stopping early ------------------------------------------------------------------------------

# Steps so long that training gets past its best after some rounds.
ASTRAY = {"rounds": 20, "negatives": 8, "cohort": 60, "server_learning_rate": 0.1}


def astray(**training):
    return config(
        model={"encoder": "mean"},
        statistics={"cooccurrence": 0},
        training={**ASTRAY, **training},
        privacy={"enabled": False},
    )


def measured(found):
    """Round → validation NDCG, of those that were measured."""
    curve = {point["round"]: point["validation_ndcg"] for point in found["curve"]}
    return {number: value for number, value in curve.items() if value is not None}


def entries(folder, kind):
    return [entry for entry in read_ledger(folder / "ledger.jsonl") if isinstance(entry, kind)]


def led_to(folder):
    """Round → hash of the weights it led to, as the ledger has it."""
    rounds = {entry.sequence: entry.round for entry in entries(folder, Reserve)}
    return {rounds[entry.release]: entry.model_after for entry in entries(folder, Commit)}


def test_training_stops_where_validation_gets_worse_and_keeps_the_best_model(tmp_path, capfd):
    through = simulate(astray(), SimulateOptions(out=tmp_path / "through"))
    assert (through["run"]["best_round"], through["run"]["stopped"]) == (None, None)
    assert not (tmp_path / "through/progress.safetensors").exists()
    figures = measured(through)
    best = max(figures, key=figures.get)
    assert 2 < best < 16, "steps of another length, or the test shows nothing"

    found = simulate(astray(patience=2), SimulateOptions(out=tmp_path / "a"))
    run, [own] = found["run"], found["models"]
    assert (run["best_round"], run["rounds_done"], run["rounds_planned"]) == (best, best + 4, 20)
    reason = f"validation was best at round {best}, 2 measurements ago"
    assert run["stopped"] == reason
    assert measured(found) == {n: value for n, value in figures.items() if n <= best + 4}
    assert [stop.reason for stop in entries(tmp_path / "a", Stop)] == [reason]
    # What is saved and measured is what was measured on the way.
    assert (
        hash_of_weights(load_file(tmp_path / "a/model.safetensors")) == led_to(tmp_path / "a")[best]
    )
    assert own["validation_ndcg"] == figures[best] != through["models"][0]["validation_ndcg"]
    assert own["settings"] == f"round {best}"
    told = capfd.readouterr().err
    assert f"Stopped before its last round: {reason}" in told
    assert f"that of round {best} was best: it is the result" in told
    page = (tmp_path / "a/report.html").read_text("utf-8")
    assert f"The result is the model of round {best}" in page
    # So many rounds and no average are the same model.
    simulate(astray(rounds=best, averaging=0), SimulateOptions(out=tmp_path / "again"))
    chosen, again = (load_file(tmp_path / f"{run}/model.safetensors") for run in ("a", "again"))
    assert hash_of_weights(chosen) == hash_of_weights(again)


def test_the_best_model_is_kept_where_training_is_not_stopped(tmp_path):
    found = simulate(astray(patience=10), SimulateOptions(out=tmp_path / "a"))
    best = found["run"]["best_round"]
    assert (found["run"]["rounds_done"], found["run"]["stopped"]) == (20, None)
    assert [stop.reason for stop in entries(tmp_path / "a", Stop)] == ["completed"]
    assert best < 20
    assert (
        hash_of_weights(load_file(tmp_path / "a/model.safetensors")) == led_to(tmp_path / "a")[best]
    )


# Where a run dies: owner and name of a function, before or after its n-th call.
DEATHS = [
    (Progress, "_write", "after", 1),  # nothing is known but the data
    (Checkpoint, "save", "after", 3),  # round 2 is kept, not committed and not measured
    (Progress, "add", "before", 1),
    (Progress, "_write", "before", 1),  # its weights are kept, with its figure
    (Ledger, "reserve", "after", 1),  # round 3
    (Ledger, "commit", "after", 2),  # round 4, before it is measured
    (Ledger, "reserve", "after", 1),  # round 5
    (Progress, "_write", "before", 1),
    (Progress, "_write", "after", 1),  # round 8, which is no better
    (Ledger, "reserve", "after", 2),
    (Progress, "add", "before", 1),
    (Progress, "add", "after", 1),
    (Ledger, "stop", "before", 1),
    (Ledger, "stop", "after", 1),
    (RunFolder, "write_model", "before", 1),
    (RunFolder, "write_metrics", "before", 1),
]


@pytest.mark.parametrize("patience", [2, 10])
def test_a_run_that_dies_anywhere_keeps_its_best_model(tmp_path, monkeypatch, patience):
    through = simulate(astray(patience=patience), SimulateOptions(out=tmp_path / "through"))

    class Killed(BaseException):
        pass

    def die(owner, name, moment, count):
        called, calls = getattr(owner, name), []

        def deadly(*arguments, **named):
            calls.append(name)
            if len(calls) == count and moment == "before":
                raise Killed
            result = called(*arguments, **named)
            if len(calls) == count:
                raise Killed
            return result

        return deadly

    out, begun = tmp_path / "cut", False
    for death in DEATHS:
        owner, name, *_ = death
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, die(*death))
            with pytest.raises(Killed):
                simulate(astray(patience=patience), SimulateOptions(out=out, resume=begun))
        begun = True
    found = simulate(astray(patience=patience), SimulateOptions(out=out, resume=True))
    assert found["run"]["best_round"] == through["run"]["best_round"]
    assert found["run"]["rounds_done"] == through["run"]["rounds_done"]
    assert found["run"]["stopped"] == through["run"]["stopped"]
    assert measured(found) == measured(through)
    assert found["models"] == through["models"]
    kept, expected = (
        load_file(tmp_path / f"{run}/model.safetensors") for run in ("cut", "through")
    )
    assert hash_of_weights(kept) == hash_of_weights(expected)
    assert len(entries(out, Stop)) == 1


@pytest.mark.parametrize("rounds", [19, 25])
def test_the_last_round_is_measured_whatever_their_number(tmp_path, rounds):
    found = simulate(astray(rounds=rounds), SimulateOptions(out=tmp_path / "a"))
    assert len(measured(found)) == 10
    assert rounds in measured(found)


@pytest.mark.parametrize("name", ["progress.json", "progress.safetensors"])
def test_what_a_best_model_is_known_by_is_asked_for_where_it_is_lost(tmp_path, monkeypatch, name):
    """Before another round is made, and nothing is changed."""

    def die(self, round_number, *_):
        if round_number == 8:
            raise KeyboardInterrupt
        return add(self, round_number, *_)

    add = Progress.add
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "add", die)
        with pytest.raises(KeyboardInterrupt):
            simulate(astray(patience=10), SimulateOptions(out=tmp_path / "a"))
    (tmp_path / "a" / name).unlink()
    ledger = (tmp_path / "a/ledger.jsonl").read_bytes()
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match=rf"{name}: .* back, or start a new run"):
        simulate(astray(patience=10), SimulateOptions(out=tmp_path / "a", resume=True))
    assert (tmp_path / "a/ledger.jsonl").read_bytes() == ledger
    assert sorted(tmp_path.rglob("*")) == files


def test_a_validation_part_without_new_items_is_refused_before_anything_is_written(tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"u{user},i{(user + n) % 2},{n * 90_000}" for user in range(20) for n in range(1, 21)]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    patient = astray(patience=2).model_copy(update={"data": config(data={"path": str(log)}).data})
    with pytest.raises(ConfigError, match=r"^training\.patience: .*log\.csv they had before"):
        simulate(patient, SimulateOptions(out=tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_validation_part_of_nobody_is_refused_before_anything_is_written(tmp_path):
    empty = {"validation_from": "2100-01-01", "test_from": "2100-01-02"}
    nobody = RunConfig.model_validate(
        {**astray(patience=2).model_dump(), "evaluation": {**SMALL["evaluation"], **empty}}
    )
    with pytest.raises(ConfigError, match="leaves no user with history and a validation target"):
        simulate(nobody, SimulateOptions(out=tmp_path / "a"))
    assert not (tmp_path / "a").exists()
