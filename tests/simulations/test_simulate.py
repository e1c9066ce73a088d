import json
from pathlib import Path

import pytest

from fedprofile.common.config import RunConfig
from fedprofile.common.errors import DataError, RunFolderError
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
