"""Whole runs through the command, ordinary and extreme."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from fedprofile.common.accounting import epsilon
from fedprofile.common.items import ItemTable
from fedprofile.common.ledger_entries import Reserve, read_ledger

FOLDER = {
    "config.toml",
    "metrics.json",
    "ledger.jsonl",
    "anchor.json",
    "signing_key.pem",
    "model.safetensors",
    "progress.json",
    "items.safetensors",
    "checkpoints",
    "report.html",
}


def summary(result):
    assert result.code == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def same_weights(*runs):
    first, second = (load_file(Path(run) / "model.safetensors") for run in runs)
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def test_a_run_leaves_a_folder_that_explains_it(fedprofile, small, log):
    config = small().read_text().replace("baselines = false", "baselines = true")
    Path("with.toml").write_text(config)
    found = summary(fedprofile("simulate", "--config", "with.toml", "--data", log(), "--json"))

    folder = Path(found["paths"]["run"])
    assert folder.parent == Path("runs")
    assert {entry.name for entry in folder.iterdir()} == FOLDER
    assert all(Path(path).exists() for path in found["paths"].values())

    written = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert written["models"][0]["key"] == "federated"
    assert found["metrics"] == {model["key"]: model["test"] for model in written["models"]}
    assert {"federated", "federated-no-dp", "central", "popularity", "ease"} <= set(
        found["metrics"]
    )
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "https://" not in report


def test_epsilon_told_is_that_of_the_ledger(fedprofile, small, log):
    found = summary(fedprofile("simulate", "--config", small(), "--data", log(), "--json"))
    entries = read_ledger(Path(found["paths"]["ledger"]))
    events = [entry.mechanism.event() for entry in entries if isinstance(entry, Reserve)]
    assert len(events) == 3
    assert found["privacy"]["epsilon"] == epsilon(events, delta=found["privacy"]["delta"])
    releases = json.loads(Path(found["paths"]["metrics"]).read_text())["privacy"]["releases"]
    assert releases[-1]["epsilon_after"] == found["privacy"]["epsilon"]


def test_json_is_all_of_standard_output_and_a_table_fits_80_columns(fedprofile, small, log):
    machine = fedprofile("simulate", "--config", small(), "--data", log(), "--json")
    assert machine.out.count("\n") == 1
    human = fedprofile("simulate", "--config", small(), "--data", log(), "--out", "other")
    assert human.code == 0
    lines = human.out.splitlines()
    assert max(map(len, lines[:-2])) <= 80  # a path and a sentence may be longer
    assert "federated" in human.out
    assert lines[-1] == "Report: other/report.html"
    assert "Training 2/2" in human.err


def test_without_privacy_the_run_says_that_it_protects_nobody(fedprofile, small, log):
    result = fedprofile(
        "simulate", "--config", small(), "--data", log(), "--no-privacy", "--out", "a"
    )
    assert result.code == 0
    assert "protects nobody" in result.err
    metrics = json.loads(Path("a/metrics.json").read_text())
    assert metrics["privacy"]["enabled"] is False
    assert metrics["privacy"]["epsilon"] is None


@pytest.mark.parametrize("encoder", ["gru", "mean", "dense"])
def test_other_encoders(fedprofile, small, log, encoder):
    config = small().read_text().replace("[model]", f'[model]\nencoder = "{encoder}"')
    Path("other.toml").write_text(config)
    found = summary(fedprofile("simulate", "--config", "other.toml", "--data", log(), "--json"))
    assert found["run"]["encoder"] == encoder


def test_a_trainable_id_table_is_served_with_the_items(fedprofile, small, log):
    config = small().read_text().replace("[model]", "[model]\nitem_ids = true")
    Path("ids.toml").write_text(config)
    found = summary(
        fedprofile(
            "simulate", "--config", "ids.toml", "--data", log(), "--json", "--split", "none",
            "--recommendations", "lists.parquet",
        )
    )  # fmt: skip
    plain = summary(
        fedprofile("simulate", "--config", small(), "--data", log(), "--json", "--split", "none")
    )
    with_ids, without = (
        ItemTable.load(Path(run["paths"]["items"])).dimension for run in (found, plain)
    )
    assert with_ids == without + 32
    assert pl.read_parquet("lists.parquet").height


def test_leave_one_out(fedprofile, small, log):
    found = summary(
        fedprofile(
            "simulate", "--config", small(), "--data", log(), "--split", "leave-one-out", "--json"
        )
    )
    assert found["data"]["split"] == "leave-one-out"
    assert found["data"]["test_users"] == 12


def test_no_rounds_release_popularity_alone(fedprofile, small, log):
    run = ("simulate", "--config", small(), "--data", log(), "--rounds", 0, "--epsilon", 1)
    found = summary(fedprofile(*run, "--json"))
    entries = read_ledger(Path(found["paths"]["ledger"]))
    assert [e.task for e in entries if isinstance(e, Reserve)] == ["statistics/popularity"]
    assert math.isclose(found["privacy"]["epsilon"], 1, rel_tol=1e-3)


def test_without_rounds_the_same_statistics_without_noise_stand_beside(fedprofile, small, log):
    config = small().read_text().replace("baselines = false", "baselines = true")
    Path("with.toml").write_text(config.replace("rounds = 2", "rounds = 0"))
    found = summary(fedprofile("simulate", "--config", "with.toml", "--data", log(), "--json"))
    assert "federated-no-dp" in found["metrics"]
    assert "content-cosine" not in found["metrics"]  # bare ids
    written = json.loads(Path(found["paths"]["metrics"]).read_text(encoding="utf-8"))
    assert any("Content cosine is not among" in note for note in written["notes"])
    assert {m["key"] for m in written["models"] if m["aside"]} == {
        "personal-frequency",
        "local-only",
    }


def test_a_run_without_its_checkpoints_is_not_charged_again(fedprofile, small, log):
    path = log()
    run = ("simulate", "--config", small(), "--data", path, "--out", "a run")
    assert fedprofile(*run).code == 0
    ledger, anchor = Path("a run/ledger.jsonl"), Path("a run/anchor.json")
    before = ledger.read_bytes(), anchor.read_bytes()
    shutil.rmtree("a run/checkpoints")
    for model in ("use its model as it is, or start", "start"):
        resumed = fedprofile("simulate", "--resume", "--out", "a run")
        assert resumed.code == 2
        message = resumed.err.splitlines()[-1]
        assert message.startswith("error: a run/checkpoints: no checkpoint to go on from")
        assert "tells of 3 releases" in message
        assert f"or {model} another run with --earlier 'a run'" in message
        assert (ledger.read_bytes(), anchor.read_bytes()) == before
        Path("a run/model.safetensors").unlink(missing_ok=True)
    Path("a run/items.safetensors").unlink()
    for command in ("strategies", "replay"):
        refused = fedprofile(command, "a run")
        assert refused.code == 2
        assert "fedprofile simulate --resume --out 'a run'" in refused.err
        assert "(model.safetensors and items.safetensors missing)" in refused.err


def test_everything_may_train_and_everybody_gets_a_list(fedprofile, small):
    text = "user_id,item_id,timestamp\n"
    people = ['"Smith, Jane"', '"say ""hi"""', "佐藤", "Ünal"]
    for day in range(1, 5):
        for number, person in enumerate(people):
            text += f'{person},"商品,{(day + number) % 5}",2024-01-0{day}\n'
    text += "einmal,solo,2024-01-05\n"
    Path("日誌.csv").write_text(text, encoding="utf-8")
    one_event = "[data]\nminimum_user_events = 1\n"
    found = summary(
        fedprofile(
            "simulate", "--config", small(one_event), "--data", "日誌.csv", "--split", "none",
            "--recommendations", "to/lists.parquet", "--top-k", 3, "--json", "--out", "走る",
        )
    )  # fmt: skip
    assert found["metrics"] == {}
    assert found["data"]["train_events"] == found["data"]["events"] == 17
    assert found["paths"]["recommendations"] == "to/lists.parquet"

    lists = pl.read_parquet("to/lists.parquet")
    assert lists.columns == ["user_id", "rank", "item_id", "score"]
    assert set(lists["user_id"]) == {"Smith, Jane", 'say "hi"', "佐藤", "Ünal", "einmal"}
    assert set(lists["item_id"]) <= {"solo", *(f"商品,{n}" for n in range(5))}
    for _, one in lists.group_by("user_id"):
        assert one["rank"].to_list() == list(range(1, one.height + 1))
        assert one["score"].is_sorted(descending=True)
    seen = pl.read_csv("日誌.csv").select("user_id", "item_id")
    assert lists.join(seen, on=["user_id", "item_id"]).is_empty()


def test_lists_may_include_what_was_seen(fedprofile, small, log):
    result = fedprofile(
        "simulate", "--config", small(), "--data", log(), "--split", "none",
        "--recommendations", "lists.parquet", "--top-k", 100, "--include-seen",
    )  # fmt: skip
    assert result.code == 0, result.err
    lists = pl.read_parquet("lists.parquet")
    assert lists.height == 12 * 6  # everybody, the whole catalogue


def test_two_users_are_enough(fedprofile, small, log):
    found = summary(
        fedprofile(
            "simulate", "--config", small(), "--data", log(users=2), "--split", "none", "--json"
        )
    )
    assert found["privacy"]["population_size"] == 2


def test_a_seed_makes_a_run_repeatable_and_says_that_its_noise_is_known(fedprofile, small, log):
    first, again = (
        fedprofile("simulate", "--config", small(), "--data", log(), "--seed", 5, "--out", out)
        for out in ("a", "b")
    )
    assert (first.code, again.code) == (0, 0)
    assert "is repeatable" in first.err
    assert same_weights("a", "b")
    secret = fedprofile("simulate", "--config", small(), "--data", log(), "--out", "c")
    assert "is repeatable" not in secret.err
    assert not same_weights("a", "c")


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(fedprofile, small, log, monkeypatch):
    from fedprofile.simulations import simulate

    whole = fedprofile(
        "simulate", "--config", small(), "--data", log(), "--seed", 5, "--out", "whole"
    )
    assert whole.code == 0
    scorer, calls = simulate._scorer, []

    def interrupted(*arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "_scorer", interrupted)
    cut = fedprofile("simulate", "--config", small(), "--data", log(), "--seed", 5, "--out", "cut")
    assert cut.code == 130
    assert calls
    assert cut.err.splitlines()[-1] == "error: interrupted"
    assert "--resume --out cut" in cut.err
    assert not Path("cut/model.safetensors").exists()

    monkeypatch.setattr(simulate, "_scorer", scorer)
    resumed = fedprofile("simulate", "--resume", "--out", "cut")
    assert resumed.code == 0, resumed.err
    assert "Training 1/2" not in resumed.err
    assert same_weights("cut", "whole")


def test_a_budget_that_ends_early_keeps_the_result(fedprofile, small, log):
    config = small().read_text().replace("noise_multiplier = 4.0", "noise_multiplier = 3.0")
    Path("loud.toml").write_text(config.replace("rounds = 2", "rounds = 50"))
    found = summary(
        fedprofile("simulate", "--config", "loud.toml", "--data", log(), "--epsilon", 2, "--json")
    )
    assert 0 < found["run"]["rounds_done"] < 50
    assert "above the target of 2" in found["run"]["stopped"]
    assert found["privacy"]["epsilon"] <= 2
    again = fedprofile("simulate", "--resume", "--out", found["paths"]["run"], "--json")
    assert summary(again)["run"]["rounds_done"] == found["run"]["rounds_done"]


def test_the_installed_command_in_a_plain_environment(tmp_path):
    command = Path(sys.executable).with_name("fedprofile")
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    shown = subprocess.run(
        [command, "simulate", "--help"], env=environment, cwd=tmp_path, capture_output=True
    )
    assert shown.returncode == 0
    assert b"--recommendations FILE" in shown.stdout
    wrong = subprocess.run(
        [command, "simulate", "--config", "猫.toml"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
    )
    assert wrong.returncode == 2
    assert wrong.stdout == b""
    assert wrong.stderr.decode().startswith("error: 猫.toml: ")
    assert wrong.stderr.count(b"\n") == 1


def test_a_finished_run_is_replayed_with_its_own_model(fedprofile, small, log):
    path = log(users=100, items=12)
    run = summary(fedprofile("simulate", "--config", small(), "--data", path, "--json"))
    folder = run["paths"]["run"]
    found = summary(fedprofile("replay", folder, "--json"))
    whole = found["replay"]["all"][0]
    assert whole["moments"] >= run["data"]["test_users"] > 0
    metrics = json.loads(Path(run["paths"]["metrics"]).read_text(encoding="utf-8"))
    measured = metrics["models"][0]["test"]["new"]
    cold = found["cold_start"]
    assert cold["users"] == measured["users"] >= found["smallest_group"]
    # All events known: the run's own figure.
    assert cold["lists"][-1]["ndcg_at_k"]["mean"] == measured["ndcg_at_k"]["mean"]
    assert [row["known"] for row in cold["lists"]] == [None, 0, 1, 2, 5, None]
    assert 0 < found["latency"]["moments"] <= whole["moments"]
    shown = fedprofile("replay", folder).out
    assert shown.count("all moments") == 2
    assert max(map(len, shown.splitlines())) <= 80

    found = summary(fedprofile("strategies", folder, "--diversity", "0.4", "--json"))
    ways = {strategy["name"]: strategy for strategy in found["strategies"]}
    pooled, hybrid = ways["collaborative"], ways["hybrid"]
    diverse = found["strategies"][-1]
    metrics = json.loads(Path(run["paths"]["metrics"]).read_text(encoding="utf-8"))
    own = metrics["models"][0]["test"]["new"]
    assert (pooled["private"], hybrid["private"]) == (False, True)
    for measure in ("ndcg_at_k", "diversity_at_k", "novelty_at_k"):
        assert hybrid[measure]["mean"] == own[measure]["mean"]
    assert (diverse["name"], diverse["users"]) == ("+ diversity 0.4", hybrid["users"])
    lengths = [cut["mean_length"] for cut in found["thresholds"]]
    assert lengths == sorted(lengths)
    assert 0 < lengths[0] < lengths[-1] <= 12  # the catalogue
    assert found["thresholds"][0]["users"] == run["data"]["test_users"]
    typical = fedprofile("strategies", folder)
    assert "+ diversity 0.5" in typical.out
    lines = typical.out[typical.out.index("Lists cut at a threshold") :].splitlines()
    assert max(map(len, lines[: 2 + len(lengths)])) <= 80
    # What is printed is what lists are cut at.
    printed = [line.split()[0] for line in lines[2 : 2 + len(lengths)]]
    asked = [part for threshold in printed for part in ("--threshold", threshold)]
    again = summary(fedprofile("strategies", folder, *asked, "--json"))
    assert again["thresholds"] == found["thresholds"]
    nothing = summary(fedprofile("strategies", folder, "--threshold", "99", "--json"))
    assert (nothing["thresholds"][0]["precision"], nothing["thresholds"][0]["recall"]) == (None, 0)
    for wrong in ("nan", "inf"):
        refused = fedprofile("strategies", folder, "--threshold", wrong)
        assert refused.code == 2
        assert refused.err == f"error: --threshold must be a finite number, got {wrong}\n"
    assert "from 0 to 1" in fedprofile("strategies", folder, "--calibration", "2").err

    refused = fedprofile("replay", "nowhere")
    assert refused.code == 2
    assert "no run here" in refused.err
