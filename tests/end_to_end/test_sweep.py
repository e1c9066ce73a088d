"""A sweep as a user runs it: every run an ordinary one, nothing twice, nothing lost."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from fedprofile.common.ledger_entries import read_ledger
from fedprofile.simulations import comparison, simulate

TOWN = """
[data]
synthetic_users = 90
synthetic_items = 40
"""
AXES = ("--sweep", "epsilon=8,inf", "--sweep", "users=0.6,1", "--seeds", "2", "--seed", "5")
RUNS = [
    f"epsilon-{epsilon}{users}-seed-{seed}"
    for seed in (5, 6)
    for epsilon in ("8", "inf")
    for users in ("-users-0.6", "")
]


@pytest.fixture
def town(small):
    """A configuration with baselines, for a population that is made on the spot."""
    text = small(TOWN).read_text().replace("baselines = false", "baselines = true")
    Path("town.toml").write_text(text)
    return "town.toml"


def state(folder):
    """Content of every file that a run or a reference leaves; pages tell when they were made."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.suffix in (".safetensors", ".jsonl", ".toml")
    }


@pytest.mark.slow
def test_a_sweep_is_measured_resumed_and_told_alike(fedprofile, town, monkeypatch):
    arguments = ("simulate", "--config", town, *AXES, "--group", "country", "--out", "s", "--json")
    # 1. Interrupted in the middle of its third run.
    ordinary, started = simulate._scorer, []

    def scorer(config, *rest):
        if config.privacy.enabled is False:
            started.append(config)
            raise KeyboardInterrupt
        return ordinary(config, *rest)

    monkeypatch.setattr(simulate, "_scorer", scorer)
    cut = fedprofile(*arguments)
    assert cut.code == 130
    assert started
    assert [line for line in cut.err.splitlines() if line][-2:] == [
        "Go on with the sweep: fedprofile simulate --resume --out s",
        "error: interrupted",
    ]
    assert "Run 3 of 8: epsilon-inf-users-0.6-seed-5, some " in cut.err
    before = state("s")
    assert not Path("s/sweep.json").exists()

    # 2. Resumed without a word about what it is.
    monkeypatch.setattr(simulate, "_scorer", ordinary)
    resumed = fedprofile("simulate", "--resume", "--out", "s", "--json")
    assert resumed.code == 0, resumed.err
    assert "Run 2 of 8: epsilon-8-seed-5 is finished" in resumed.err
    assert "Run 3 of 8: epsilon-inf-users-0.6-seed-5\n" in resumed.err
    assert sorted(p.name for p in Path("s").iterdir() if p.is_dir()) == sorted(RUNS)
    after = state("s")
    for run in RUNS[:2]:
        assert {p: after[p] for p in after if run in p.parts} == {
            p: before[p] for p in before if run in p.parts
        }

    # 3. What is told is what is written, and what the runs themselves measured.
    assert resumed.out.count("\n") == 1
    found = json.loads(resumed.out)
    paths = found.pop("paths")
    assert found == json.loads(Path(paths["results"]).read_text(encoding="utf-8"))
    assert paths["report"] == "s/sweep.html"
    assert [run["name"] for run in found["runs"]] == RUNS
    cells = {(p["epsilon"], p["share"]): p for p in found["points"]}
    assert set(cells) == {(8.0, 0.6), (8.0, 1.0), (None, 0.6), (None, 1.0)}
    for (epsilon, share), point in cells.items():
        for run in point["runs"]:
            own = json.loads(Path("s", run["name"], "metrics.json").read_text(encoding="utf-8"))
            test = own["models"][0]["test"]
            assert run["new"] == pytest.approx(test["new"]["ndcg_at_k"]["mean"], abs=1e-12)
            assert run["all"] == pytest.approx(test["all"]["ndcg_at_k"]["mean"], abs=1e-12)
            assert test["new"]["users"] == point["new"]["users"]
            assert own["privacy"]["population_size"] == point["population_size"]
            assert ("a share of 0.6 takes part" in " ".join(own["notes"])) == (share == 0.6)
        means = [run["new"] for run in point["runs"]]
        assert point["new"]["ndcg_at_k"]["mean"] == pytest.approx(sum(means) / 2)
        difference = point["new"]["difference"]
        if epsilon is None:
            assert difference is None
        else:
            without = cells[None, share]["new"]["ndcg_at_k"]["mean"]
            assert difference["mean"] == pytest.approx(sum(means) / 2 - without)
        for view, name in (("new", "groups"), ("all", "groups_all")):
            for groups in point[name].values():
                assert sum(group["users"] for group in groups) in (0, point[view]["users"])
                assert all(group["users"] >= 20 for group in groups)
    # The same people are asked at every share: those who take part at the smallest.
    few, all_ = cells[8.0, 0.6], cells[8.0, 1.0]
    assert few["common"]["users"] == few["new"]["users"]
    for measure in ("ndcg_at_k", "difference"):
        assert few["common"][measure] == pytest.approx(few["new"][measure])
    assert all_["common"]["users"] == few["new"]["users"] < all_["new"]["users"]
    assert set(all_["groups"]) == {"training events", "country"}

    # 4. Baselines once for each share, central training and devices alone at the largest.
    keys = {
        share: [m["key"] for m in found["references"] if m["share"] == share] for share in (0.6, 1)
    }
    assert len(set(keys[0.6])) == len(keys[0.6]) == 6
    assert set(keys[1]) - set(keys[0.6]) == {"central", "local-only"}

    # 5. The joint cost is more than one run's, and infinite with those that have no privacy.
    privacy = found["privacy"]
    assert privacy["epsilon"] is None
    assert privacy["private_runs"] == privacy["other_runs"] == 4
    assert privacy["epsilon_of_private_runs"] > max(run["epsilon"] or 0 for run in found["runs"])
    assert privacy["repeatable"]

    # 6. A finished sweep repeats nothing: no run, no reference.
    monkeypatch.setattr(simulate, "run_federation", None)
    monkeypatch.setattr(comparison, "tuned_baselines", None)
    again = fedprofile("simulate", "--resume", "--out", "s", *AXES[:4])
    assert again.code == 0, again.err
    assert state("s") == after
    assert max(map(len, again.out.splitlines()[:-2])) <= 80
    assert "The page" not in again.out
    assert again.out.splitlines()[-1] == "Report: s/sweep.html"
    told = json.loads(Path("s/sweep.json").read_text(encoding="utf-8"))
    assert (told["points"], told["references"]) == (found["points"], found["references"])

    # 7. Whoever asks for something else is told so.
    for more, words in (
        (["--sweep", "epsilon=4,inf"], "another sweep (epsilon was 8,inf)"),
        (["--seeds", "3"], "another sweep (seeds was 2)"),
        (["--rounds", "9"], "training.rounds differ"),
        (["--recommendations", "lists.parquet"], "--recommendations needs one run"),
    ):
        other = fedprofile("simulate", "--resume", "--out", "s", *more)
        assert other.code == 2
        assert words in other.err.splitlines()[-1]
    taken = fedprofile(*arguments)
    assert taken.code == 2
    assert "s: exists already; go on with it by --resume" in taken.err

    # 8. A figure that can't be read is named, not guessed.
    Path("s", RUNS[0], "metrics.json").write_text("{")
    broken = fedprofile("simulate", "--resume", "--out", "s")
    assert broken.code == 2
    assert f"s/{RUNS[0]}/metrics.json: can't be read" in broken.err.splitlines()[-1]


def test_one_axis_without_baselines(fedprofile, small):
    run = ("simulate", "--config", small(TOWN), "--sweep", "epsilon=8", "--seeds", "1")
    found = fedprofile(*run)
    assert found.code == 0, found.err
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("sweep-synthetic-2")
    assert sorted(path.name for path in folder.iterdir()) == [
        "base.toml",
        "epsilon-8-run-1",
        "sweep.html",
        "sweep.json",
        "sweep.toml",
    ]
    # It is repeated by the command on its page, from where it was begun.
    repeat = shlex.split(json.loads((folder / "sweep.json").read_text())["sweep"]["repeat"])
    assert repeat[:4] == ["fedprofile", "simulate", "--config", str(folder / "base.toml")]
    again = fedprofile(*repeat[1:], "--out", "again")
    assert again.code == 0, again.err
    opening = read_ledger(folder / "epsilon-8-run-1" / "ledger.jsonl")[0]
    assert opening.randomness == "csprng"
    assert "the private run costs" in found.out
    # What it is made of can be moved, audited and gone on with as any run.
    shutil.move(folder / "epsilon-8-run-1", "alone")
    assert fedprofile("simulate", "--resume", "--out", "alone").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sweep", "colour=1"], ["no axis 'colour'", "epsilon=1,2,4,8,inf"]),
        (["--sweep", "epsilon=0"], ["above 0", "'0'"]),
        (["--sweep", "epsilon=1,1"], ["twice", "--seeds"]),
        (["--sweep", "epsilon"], ["got ''"]),
        (["--sweep"], ["--sweep"]),
        (["--sweep", "epsilon=1", "--seeds", "0"], ["--seeds"]),
        (["--seeds", "3"], ["--seeds", "--sweep"]),
        (["--group", "country"], ["--group", "--sweep"]),
        (["--sweep", "epsilon=1", "--epsilon", "2"], ["--epsilon", "excludes"]),
        (["--sweep", "epsilon=1", "--no-privacy"], ["--no-privacy", "inf"]),
        (["--sweep", "epsilon=1", "--split", "none"], ["held-out", "--split"]),
        (["--sweep", "epsilon=1", "--anchor", "a.json"], ["--anchor"]),
        (["--sweep", "epsilon=1", "--group", "planet"], ["planet", "known: country"]),
        (["--sweep", "epsilon=1", "--recommendations", "a.parquet"], ["--recommendations"]),
        (["--sweep", "users=0.001,1"], ["data.user_share"]),
        (["--sweep", "epsilon=1", "--resume"], ["--out"]),
        (["--sweep", "epsilon=1", "--resume", "--out", "nowhere"], ["nowhere", "sweep.toml"]),
        (["--sweep", "epsilon=1", "--data", "nowhere.csv"], ["nowhere.csv"]),
    ],
)
def test_what_makes_no_sense_gets_one_line_and_leaves_nothing(
    fedprofile, small, tmp_path, arguments, words
):
    config = small(TOWN)
    result = fedprofile("simulate", "--config", config, *arguments)
    assert result.code == 2, result.err
    assert result.out == ""
    message = result.err.splitlines()[-1]
    assert message.startswith("error: ")
    assert "Traceback" not in result.err
    for word in words:
        assert word in message
    assert list(tmp_path.iterdir()) == [config]


def test_a_budget_that_allows_nothing_is_told_before_the_first_run(fedprofile, small, tmp_path):
    config = small(TOWN)
    result = fedprofile("simulate", "--config", config, "--sweep", "epsilon=0.01,8")
    assert result.code == 3, result.err
    assert list(tmp_path.iterdir()) == [config]


def test_a_run_is_no_sweep(fedprofile, small):
    config = small(TOWN)
    assert fedprofile("simulate", "--config", config, "--out", "a").code == 0
    result = fedprofile("simulate", "--resume", "--out", "a", "--sweep", "epsilon=1,2")
    assert result.code == 2
    assert "no sweep to resume here" in result.err
