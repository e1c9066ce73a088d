"""The device as its owner uses it: from a run's folder to recommendations, and back to nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fedprofile.simulations.simulate import read
from fedprofile.simulations.strategies import ByContent, EncoderAlone, Following
from fedprofile.simulations.trained import find_run, load_scorer

HISTORY = "item_id,timestamp\ni1,2024-01-05 10:00\ni2,2024-02-05 10:00\ni3,2024-03-05 10:00\n"


@pytest.fixture
def run(fedprofile, small, log):
    """Folder of a run that was really made."""
    found = fedprofile(
        "simulate", "--config", small(), "--data", log(), "--split", "none", "--out", "run"
    )
    assert found.code == 0, found.err
    return "run"


def last_line(found):
    assert found.code == 0, found.err
    return json.loads(found.out.splitlines()[-1])


def test_from_a_run_to_recommendations_and_back_to_nothing(fedprofile, run, tmp_path):
    assert fedprofile("device", "init", "phone", "--name", "fön", "--model", run).code == 0
    (tmp_path / "history.csv").write_text(HISTORY)
    answer = last_line(fedprofile("device", "import", "phone", "history.csv", "--json"))
    assert answer == {"recorded": 3, "repeated": 0, "unlearned": 0}
    assert (
        last_line(fedprofile("device", "import", "phone", "history.csv", "--json"))["repeated"] == 3
    )
    once = ("device", "record", "phone", "--item", "i0", "--id", "a", "--json")
    assert last_line(fedprofile(*once))["recorded"] == 1
    assert last_line(fedprofile(*once))["repeated"] == 1

    found = fedprofile("device", "recommend", "phone", "--top-k", "2", "--explain")
    assert found.code == 0
    assert "because" in found.out
    ranking = last_line(fedprofile("device", "recommend", "phone", "--json", "--explain"))
    assert {one["item"] for one in ranking["items"]} == {"i4", "i5"}
    assert all(one["events"] for one in ranking["items"])
    (tmp_path / "some.txt").write_text("i5\n\nnothing\n")
    chosen = fedprofile("device", "recommend", "phone", "--candidates", "some.txt", "--json")
    assert [one["item"] for one in last_line(chosen)["items"]] == ["i5"]
    assert last_line(chosen)["unknown_candidates"] == 1

    shown = fedprofile(
        "device", "profile", "phone", "--declare", "[b]=x", "--declare", "language=fr"
    )
    assert shown.code == 0
    assert "[b]" in shown.out
    assert last_line(fedprofile("device", "profile", "phone", "--json"))["declared"] == {
        "[b]": "x",
        "language": "fr",
    }
    for command in ("pause", "resume"):
        assert fedprofile("device", command, "phone").code == 0
    assert fedprofile("device", "consent", "phone", "on").code == 0
    status = last_line(fedprofile("device", "status", "phone", "--json"))
    assert (status["name"], status["events"], status["consent"]) == ("fön", 4, True)
    assert "fön" in fedprofile("device", "status", "phone").out

    assert fedprofile("device", "export", "phone", "mine.json").code == 0
    mine = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))
    assert [event["item"] for event in mine["events"]] == ["i1", "i2", "i3", "i0"]
    assert (tmp_path / "mine.json").stat().st_mode & 0o077 == 0
    assert fedprofile("device", "export", "phone", "mine.json").code == 2
    assert fedprofile("device", "export", "phone", "no/mine.json").err.startswith(
        "error: no: no such folder"
    )

    (tmp_path / "phone" / "store.db.damaged-20200101T000000").write_bytes(b"old")
    forgotten = fedprofile("device", "forget", "phone", "--item", "i0")
    assert forgotten.code == 0
    assert "store.db.damaged-20200101T000000" in forgotten.err
    before = fedprofile("device", "forget", "phone", "--before", "2024-02-01", "--json")
    assert last_line(before) == {"erased": 1, "left": 2}
    assert fedprofile("device", "forget", "phone", "--all").code == 0
    assert last_line(fedprofile("device", "status", "phone", "--json"))["events"] == 0
    assert fedprofile("device", "model", "phone", run).code == 0


def test_a_device_ranks_as_the_run_did(fedprofile, small, log, tmp_path):
    data = log(items=14, days=7)
    found = fedprofile(
        *("simulate", "--config", small(), "--data", data, "--split", "none", "--out", "run"),
        *("--recommendations", "lists.parquet", "--top-k", "5"),
    )
    assert found.code == 0, found.err
    seen = ("--recommendations", "every.parquet", "--top-k", "5", "--include-seen")
    assert fedprofile("simulate", "--resume", "--out", "run", *seen).code == 0
    new, every = pl.read_parquet("lists.parquet"), pl.read_parquet("every.parquet")
    events = pl.read_csv(data)
    for user in ("u0", "u5", "u11"):
        mine = events.filter(pl.col("user_id") == user).drop("user_id")
        mine.write_csv(f"{user}.csv")
        assert fedprofile("device", "init", user, "--model", "run").code == 0
        answer = last_line(fedprofile("device", "import", user, f"{user}.csv", "--json"))
        assert answer == {"recorded": 7, "repeated": 0, "unlearned": 0}
        for asked, lists in ((), new), (("--include-seen",), every):
            recommend = ("device", "recommend", user, "--top-k", "5", "--json", *asked)
            ranking = last_line(fedprofile(*recommend))["items"]
            theirs = lists.filter(pl.col("user_id") == user).sort("rank")
            assert [one["item"] for one in ranking] == theirs["item_id"].to_list()
            assert theirs.height == 5
            # The same numbers, so that a threshold means the same here and there.
            assert [one["score"] for one in ranking] == pytest.approx(
                theirs["score"].to_list(), rel=1e-3, abs=1e-4
            )


def test_a_device_ranks_by_each_strategy_as_the_run_is_measured(fedprofile, small, monkeypatch):
    """Of every user the same list and scores, from what was really released to what is shown."""
    kinds = ("green tea", "black tea", "blue mug", "red mug")
    rows = [
        f"u{user},i{(5 * user + day * (1 + (user % 5 == 4))) % 16},"
        f"2024-{1 + day:02d}-{1 + user % 28:02d}"
        for user in range(40)
        for day in range(7)
    ]
    # No two items alike, so that nothing is tied.
    names = [f"{kinds[item % 4]} {'abcdefghijklmnop'[item] * 3}" for item in range(16)]
    texts = [f"{row},{names[int(row.split(',')[1][1:])]}" for row in rows]
    Path("log.csv").write_text("\n".join(["user_id,item_id,timestamp,text", *texts]) + "\n")
    config = small("[statistics]\ncooccurrence = 4\n")
    simulate = ("simulate", "--config", config, "--data", "log.csv", "--split", "none")
    assert fedprofile(*simulate, "--out", "run", "--no-privacy").code == 0
    folder, settings = find_run(Path("run"))
    data, _, population = read(settings)
    scorer = load_scorer(folder, settings, data, population)
    assert scorer.table.successors
    histories = data.histories
    now = np.full(histories.n_devices, 2**40)
    found = {
        "content": ByContent(scorer).scores(histories, now),
        "sequential": Following(scorer).scores(histories, now),
        "neural": EncoderAlone(scorer).scores(histories, now),
        "hybrid": scorer.unmixed(histories),
    }
    for user in ("u0", "u7", "u22"):
        mine = [row.removeprefix(f"{user},") for row in rows if row.startswith(f"{user},")]
        Path(f"{user}.csv").write_text("\n".join(["item_id,timestamp", *mine]) + "\n")
        assert fedprofile("device", "init", user, "--model", "run").code == 0
        assert fedprofile("device", "import", user, f"{user}.csv").code == 0
        row = data.user_ids.index(user)
        start, stop = histories.offsets[row : row + 2]
        for name, scores in found.items():
            new = scores[row].copy()
            new[histories.items[start:stop]] = -np.inf
            best = np.argsort(-new, kind="stable")[:5]
            recommend = ("device", "recommend", user, "--strategy", name, "--top-k", "5")
            ranking = last_line(fedprofile(*recommend, "--json"))["items"]
            assert [one["item"] for one in ranking] == [data.item_ids[item] for item in best]
            assert [one["score"] for one in ranking] == pytest.approx(
                new[best].tolist(), rel=1e-3, abs=1e-4
            )
    asked, hybrid = ("device", "recommend", "u7", "--json"), ("--strategy", "hybrid")
    assert last_line(fedprofile(*asked)) == last_line(fedprofile(*asked, *hybrid))

    monkeypatch.setenv("COLUMNS", "300")
    assert fedprofile("device", "init", "newcomer", "--model", "run").code == 0
    for name in found:
        explain = ("--strategy", name, "--explain")
        told = fedprofile("device", "recommend", "u7", *explain).out
        assert ("often comes after" in told) == (name in ("sequential", "hybrid"))
        assert ("of your interests" in told) == (name != "sequential")
        silent = fedprofile("device", "recommend", "newcomer", *explain).out
        popular = name in ("sequential", "hybrid")
        assert silent.count("popular" if popular else "nothing in particular") == 10


def test_a_device_and_the_run_leave_out_the_same(fedprofile, small, log, tmp_path):
    """What was skipped last is in no list, what was played after it is, and impressions say nothing."""
    data = log(items=14, days=7)
    liked = [f"{row},like" for row in data.read_text().splitlines()[1:]]
    # Each of them skips what they never met, and something that they did.
    more = [
        f"u{user},i{item},2024-09-{1 + day:02d} 10:00,{event}"
        for user in (0, 5, 11)
        for day, (item, event) in enumerate(
            [(user % 14, "skip")]
            + [(item, "skip") for item in range(4, 14, 2)]
            + [(4, "play"), (6, "impression"), (5, "impression")]
        )
    ]
    data.write_text("\n".join(["user_id,item_id,timestamp,event", *liked, *more]) + "\n")
    simulate = ("simulate", "--config", small(), "--data", data, "--preset", "music")
    lists = ("--recommendations", "new.parquet", "--top-k", "14")
    found = fedprofile(*simulate, "--split", "none", "--out", "run", *lists)
    assert found.code == 0, found.err
    seen = ("--recommendations", "every.parquet", "--top-k", "14", "--include-seen")
    assert fedprofile("simulate", "--resume", "--out", "run", *seen).code == 0
    weights = "[events.weights]\nlike = 3\nplay = 1\n"
    for user in ("u0", "u5", "u11"):
        mine = pl.read_csv(data).filter(pl.col("user_id") == user).drop("user_id")
        mine.write_csv(f"{user}.csv")
        assert fedprofile("device", "init", user, "--model", "run").code == 0
        settings = tmp_path / user / "device.toml"
        assert settings.read_text().count("[events.weights]\n") == 1
        settings.write_text(settings.read_text().replace("[events.weights]\n", weights))
        assert fedprofile("device", "import", user, f"{user}.csv").code == 0
        for asked, file in ((), "new.parquet"), (("--include-seen",), "every.parquet"):
            answer = fedprofile("device", "recommend", user, "--top-k", "14", "--json", *asked)
            ranking = last_line(answer)["items"]
            theirs = pl.read_parquet(file).filter(pl.col("user_id") == user).sort("rank")
            assert [one["item"] for one in ranking] == theirs["item_id"].to_list()
            assert [one["score"] for one in ranking] == pytest.approx(
                theirs["score"].to_list(), rel=1e-3, abs=1e-4
            )
            left_out = {f"i{item}" for item in range(6, 14, 2)}
            assert not left_out & {one["item"] for one in ranking}
            assert ("i4" in {one["item"] for one in ranking}) == bool(asked)


def test_what_cant_be_learned_and_what_was_turned_down_is_said(fedprofile, run, tmp_path):
    fedprofile("device", "init", "bare")
    assert "no model yet that learns" in fedprofile("device", "record", "bare", "--item", "i1").err
    fedprofile("device", "init", "phone", "--model", run)
    told = fedprofile("device", "record", "phone", "--item", "i1", "--event", "dislike").err
    assert "turn down is left out of lists" in told
    (tmp_path / "some.txt").write_text("i1\ni2\n")
    listed = fedprofile("device", "recommend", "phone", "--candidates", "some.txt")
    assert "1 candidates were turned down before; left out." in listed.err
    assert "i2" in listed.out
    assert "i1" not in listed.out


def test_commands_use_the_process_that_runs_the_device(fedprofile, run, tmp_path):
    fedprofile("device", "init", "phone", "--model", run)
    program = "from fedprofile.common.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "device", "run", "phone"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert "Serving" in process.stderr.readline()
        assert last_line(fedprofile("device", "status", "phone", "--json"))["service"]
        assert fedprofile("device", "record", "phone", "--item", "i1").code == 0
        assert last_line(fedprofile("device", "recommend", "phone", "--json"))["items"]
        assert "another process" in fedprofile("device", "run", "phone").err
        process.kill()  # what was acknowledged is there for the next one
        process.wait(60)
        status = last_line(fedprofile("device", "status", "phone", "--json"))
        assert (status["service"], status["events"]) == (False, 1)
    finally:
        process.kill()
        process.wait(60)
    again = subprocess.Popen(
        [sys.executable, "-c", program, "device", "run", "phone"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert "Serving" in again.stderr.readline()
    time.sleep(0.1)
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 0


def test_the_owner_sees_what_an_event_changed_whether_the_device_runs_or_not(
    fedprofile, run, tmp_path
):
    events = [("i1", "a"), ("i2", "b"), ("i2", "b"), ("nothing", "c")]

    def show(phone):
        """What is told of each event, as data, and of the last ones in words."""
        told = []
        for day, (item, name) in enumerate(events, start=1):
            event = ("record", phone, "--item", item, "--id", name, "--time", f"2024-05-0{day}")
            told.append(last_line(fedprofile("device", *event, "--show-change", "--json")))
            ranked = last_line(fedprofile("device", "recommend", phone, "--json"))["items"]
            change = told[-1]["list_change"]
            groups = (change[name] for name in ("entered", "rose", "fell", "stayed"))
            listed = sorted((one for group in groups for one in group), key=rank_of)
            assert [one["item"] for one in listed] == [one["item"] for one in ranked]
        assert "Nothing changed" in fedprofile("device", *event, "--show-change").out
        more = ("record", phone, "--item", "i3", "--time", "2024-05-09", "--show-change")
        return told, fedprofile("device", *more, "--top-k", "2").out

    def rank_of(one):
        return one["new_rank"]

    for phone in ("alone", "served"):
        fedprofile("device", "init", phone, "--model", run)
    told, words = show("alone")
    program = "from fedprofile.common.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "device", "run", "served"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert "Serving" in process.stderr.readline()
        told_there, words_there = show("served")
    finally:
        process.kill()
        process.wait(60)
    assert words_there == words
    assert [one["profile_change"] for one in told_there] == [one["profile_change"] for one in told]
    assert "Your profile turned by" in words
    assert "The list of the 2 best items that you haven't met" in words
    first, second, again, unlearned = told
    assert first["profile_change"]["new_events"] == 1
    assert second["profile_change"]["vector"]["angle"] > 0
    assert (again["recorded"], again["repeated"], unlearned["unlearned"]) == (0, 1, 1)
    for nothing in (again, unlearned):
        assert nothing["profile_change"]["vector"]["distance"] == 0
        assert not nothing["list_change"]["left"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "nothing"), "no device; make one with"),
        (("init", "phone"), "exists and isn't empty"),
        (("init", "other", "--model", "phone"), "no model of a run"),
        (("record", "phone", "--item", " "), "no item"),
        (("record", "phone", "--item", "a", "--time", "soon"), "no time in 'soon'"),
        (("record", "phone", "--item", "a", "--value", "-1"), "must be positive"),
        (("record", "phone", "--item", "a", "--time", "2999-01-01"), "between 1970 and tomorrow"),
        (("record", "phone", "--item", "a", "--top-k", "3"), "that --show-change tells of"),
        (("record", "phone", "--item", "a", "--show-change", "--top-k", "1001"), "at most 1,000"),
        (("import", "phone", "nothing.csv"), "can't read it"),
        (("profile", "phone"), "no model yet"),
        (("profile", "phone", "--declare", "x"), "write NAME=VALUE"),
        (("recommend", "phone"), "no model yet"),
        (("recommend", "phone", "--top-k", "3", "--threshold", "1"), "exclude each other"),
        (("recommend", "phone", "--diversity", "1.5"), "from 0 to 1"),
        (("recommend", "phone", "--threshold", "1", "--calibration", "0.5"), "not a threshold"),
        (("recommend", "phone", "--top-k", "0"), "not in the range"),
        (("recommend", "phone", "--strategy", "popular"), "is not one of"),
        (("recommend", "phone", "--candidates", "nothing.txt"), "can't read it"),
        (("consent", "phone", "perhaps"), "is not one of"),
        (("forget", "phone"), "exactly one of --item"),
        (("forget", "phone", "--all", "--item", "a"), "exactly one of --item"),
        (("model", "phone", "phone"), "no model of a run"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_says_why(fedprofile, arguments, message):
    assert fedprofile("device", "init", "phone").code == 0
    found = fedprofile("device", *arguments)
    assert found.code == 2
    assert found.err.startswith("error: ")
    assert message in found.err
    assert "Traceback" not in found.err


def test_a_light_install_names_what_is_missing(fedprofile, monkeypatch):
    for command, package, extra in (
        (("simulate",), "torch", "train"),
        (("data", "describe", "synthetic"), "polars", "train"),
        (("device", "status", "x"), "sqlcipher3", "score"),
    ):
        with monkeypatch.context() as patch:
            for name in [
                n for n in sys.modules if n.startswith(("fedprofile.client", "fedprofile.sim"))
            ]:
                patch.delitem(sys.modules, name)
            patch.setitem(sys.modules, package, None)
            found = fedprofile(*command)
        assert found.code == 2
        assert f"needs {package}" in found.err
        assert f"pip install 'fedprofile[{extra}]'" in found.err


def test_an_init_that_fails_is_not_in_the_way_of_the_next(fedprofile):
    Path("bundle.zip").write_bytes(b"no archive")
    failed = fedprofile("device", "init", "phone", "--server-bundle", "bundle.zip")
    assert failed.code == 2
    assert not Path("phone").exists()
    assert fedprofile("device", "init", "phone").code == 0
