"""Every mistake gets one clear line that says where it is and what to do; nothing is written."""

from pathlib import Path

import polars as pl
import pytest


def refused(result, *words, code=2):
    """Exit code, an empty standard output, and one line of error that holds all ``words``."""
    assert result.code == code, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    *progress, message = result.err.splitlines()
    assert message.startswith("error: ")
    assert not any(line.startswith("error") for line in progress)
    for word in words:
        assert str(word) in message
    return message


@pytest.fixture
def simulate(fedprofile, small, tmp_path):
    """Run on the named log and check that nothing is left behind."""

    def run(*arguments, more=""):
        config = small(more)
        before = sorted(tmp_path.rglob("*"))
        result = fedprofile("simulate", "--config", config, *arguments)
        assert sorted(tmp_path.rglob("*")) == before
        return result

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epsilon", "0"], ["privacy.epsilon", "greater than 0"]),
        (["--epsilon", "-1"], ["privacy.epsilon"]),
        (["--epsilon", "nan"], ["privacy.epsilon", "finite"]),
        (["--epsilon", "inf"], ["privacy.epsilon", "finite", "--no-privacy"]),
        (["--epsilon", "much"], ["--epsilon", "'much'"]),
        (["--epsilon", "1", "--no-privacy"], ["--epsilon", "--no-privacy"]),
        (["--delta", "0"], ["privacy.delta"]),
        (["--delta", "1"], ["privacy.delta"]),
        (["--delta", "nan"], ["privacy.delta"]),
        (["--rounds", "-1"], ["training.rounds"]),
        (["--rounds", "1.5"], ["--rounds"]),
        (["--seed", "-1"], ["seed"]),
        (["--split", "half"], ["--split", "leave-one-out"]),
        (["--engine", "gpu"], ["--engine", "ray"]),
        (["--preset", "shopping"], ["data.preset", "shop"]),
        (["--recommendations", "lists.parquet", "--top-k", "0"], ["--top-k"]),
        (["--top-k", "5"], ["--top-k", "--recommendations"]),
        (["--include-seen"], ["--include-seen", "--recommendations"]),
        (["--resume"], ["--resume", "--out"]),
        (["--resume", "--out", "nowhere"], ["nowhere", "config.toml"]),
        (["--colour"], ["--colour", "--help"]),
        (["stray"], ["stray"]),
    ],
)
def test_options(simulate, log, arguments, words):
    refused(simulate("--data", log(), *arguments), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[privacy]\nepsilom = 2.0\n", ["wrong.toml", "unknown key", "privacy.epsilom"]),
        ("[privat]\nepsilon = 2.0\n", ["unknown key 'privat', did you mean 'privacy'?"]),
        ("training = 3\n", ["must be a section", "[training]"]),
        ("[training]\nrounds = true\n", ["training.rounds", "true and false"]),
        ("[evaluation]\nvalidation_from = 2024-05-01T10:00:00\n", ["a date such as 2024-05-01"]),
        ("privacy = 3\n", ["privacy"]),
        ("[training]\nrounds = 'many'\n", ["training.rounds", "many"]),
        ("[privacy]\nepsilon = inf\n", ["privacy.epsilon", "finite", "enabled = false"]),
        ("[training]\nrounds = '3'\n", ["training.rounds: must be a number", "without quotes"]),
        ("[data.event_weights]\nview = '3'\n", ["event_weights: must be numbers"]),
        ("[statistics]\nhalf_lives_days = ['7']\n", ["half_lives_days: must be numbers"]),
        ("[evaluation]\nrefit = 'true'\n", ["evaluation.refit: must be true or false"]),
        ("seed = '3'\n", ["seed: must be a number", "without quotes"]),
        ("[model]\nwidth = 30\nheads = 4\n", ["width 30", "heads 4"]),
        ("[model]\nhalf_lives_days = [inf]\n", ["half_lives_days"]),
        ("rounds = \n", ["wrong.toml", "TOML"]),
        ("[evaluation]\nvalidation_from = 2024-03-01\n", ["validation_from", "test_from"]),
        (
            "[evaluation]\nvalidation_from = 2030-01-01\ntest_from = 2031-01-01\n",
            ["validation_from = 2030-01-01", "move the cuts"],
        ),
        (
            "[evaluation]\nvalidation_from = 1990-01-01\ntest_from = 1991-01-01\n",
            ["no training events"],
        ),
        ("[data.columns]\nitem = 'product'\n", ["data.columns.item", "'product'", "item_id"]),
    ],
)
def test_configuration(fedprofile, log, text, words):
    Path("wrong.toml").write_text(text)
    data = log()
    refused(fedprofile("simulate", "--config", "wrong.toml", "--data", data), *words)
    assert {path.name for path in Path().iterdir()} == {"wrong.toml", data.name}


HEADER = "user_id,item_id,timestamp\n"
ROWS = "a,x,2024-01-01\na,y,2024-01-02\nb,x,2024-01-03\nb,y,2024-01-04\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["log.csv", "empty"]),
        (HEADER, ["log.csv", "no rows"]),
        ("user_id,item_id\na,x\n", ["log.csv", "no time column", "timestamp"]),
        ("who,item_id,timestamp\na,x,1\n", ["no user column", "data.columns.user", "who"]),
        (HEADER + ROWS + "b,z,yesterday\n", ["log.csv", "'timestamp'", "'yesterday'", "row 5"]),
        ("user_id,item_id,timestamp,item_id\na,x,1,y\n", ["log.csv", "'item_id'", "more than once"]),
        (HEADER + "a,x,2024-01-01\na,y,2024-01-02\n", ["only one user", "'a'"]),
        (HEADER + ROWS.replace("y", "x"), ["only one item", "'x'"]),
        (HEADER + "a,x,2024-01-01\nb,y,2024-01-02\nc,z,2024-01-03\n", ["minimum_user_events"]),
        (HEADER + "a,x,nan\na,y,nan\n", ["no events left", "missing time"]),
        (HEADER + "a,x,2024-01-01,more\n", ["log.csv"]),
    ],
)  # fmt: skip
def test_logs(simulate, text, words):
    Path("log.csv").write_text(text, encoding="utf-8")
    refused(simulate("--data", "log.csv", "--split", "none"), *words)


def test_a_log_that_is_not_there(simulate):
    refused(simulate("--data", "gone.csv"), "gone.csv")


def test_a_folder_without_a_log(simulate):
    Path("bare").mkdir()
    refused(simulate("--data", "bare"), "bare")


def test_a_log_that_is_no_text(simulate):
    Path("log.csv").write_bytes("user_id,item_id,timestamp\nä,x,1\n".encode("utf-16"))
    refused(simulate("--data", "log.csv"), "log.csv", "UTF-8")


def test_a_truncated_parquet_file(simulate, log):
    pl.read_csv(log()).write_parquet("log.parquet")
    content = Path("log.parquet").read_bytes()
    Path("log.parquet").write_bytes(content[: len(content) // 2])
    refused(simulate("--data", "log.parquet"), "log.parquet", "Parquet")


def test_an_item_table_without_ids(simulate, log):
    Path("items.csv").write_text("name,text\ni1,tea\n")
    refused(simulate("--data", log(), "--items", "items.csv"), "items.csv", "item_id")


def test_an_item_table_of_another_shop(simulate, log):
    Path("items.csv").write_text("item_id,text\nj1,tea\n")
    refused(simulate("--data", log(), "--items", "items.csv"), "items.csv", "'j1'")


def test_too_little_to_hold_anything_out(simulate):
    Path("log.csv").write_text(HEADER + ROWS)
    refused(simulate("--data", "log.csv", "--split", "leave-one-out"), "leave-one-out", "'none'")


def test_a_budget_too_small_for_the_first_release(fedprofile, log):
    data = log()
    Path("tight.toml").write_text(
        "[privacy]\nnoise_multiplier = 0.5\nsplit.popularity = 0.0\n[training]\nrounds = 3\n"
    )
    result = fedprofile("simulate", "--config", "tight.toml", "--data", data, "--epsilon", "0.1")
    refused(result, "privacy.noise_multiplier", "first round", "0.1", code=3)
    assert {path.name for path in Path().iterdir()} == {"tight.toml", data.name}


def test_a_folder_in_the_way_is_left_alone(simulate, log):
    Path("taken").mkdir()
    Path("taken/thesis.txt").write_text("draft")
    refused(simulate("--data", log(), "--out", "taken"), "taken", "holds no run", "--out")
    refused(simulate("--data", log(), "--out", "taken/thesis.txt"), "thesis.txt", "is a file")
    assert Path("taken/thesis.txt").read_text() == "draft"


def test_nothing_could_be_written_there(simulate, log):
    Path("file").write_text("")
    refused(simulate("--data", log(), "--out", "file/run"), "file/run")
    refused(simulate("--data", log(), "--recommendations", "file/lists.parquet"), "file/lists")
    refused(simulate("--data", log(), "--recommendations", "."), "folder")
    refused(simulate("--data", log(), "--out", "x" * 300), "name too long")
    refused(simulate("--data", log(), "--out", b"\xff".decode("utf8", "surrogateescape")), "UTF-8")


def test_lists_in_the_way_are_left_alone(simulate, log):
    Path("lists.parquet").write_text("mine")
    refused(simulate("--data", log(), "--recommendations", "lists.parquet"), "exists already")


def test_a_run_goes_on_only_as_it_began(fedprofile, small, log):
    data = log()
    assert fedprofile("simulate", "--config", small(), "--data", data, "--out", "a").code == 0

    def resume(*options):
        return fedprofile("simulate", "--resume", "--out", "a", *options)

    written = Path("a/metrics.json").read_bytes()
    refused(resume("--rounds", "9"), "training.rounds", "--out")
    refused(resume("--seed", "9", "--no-privacy"), "seed", "privacy.enabled")
    other = small("[data]\nsession_gap_minutes = 5.0\n", name="other.toml")
    refused(resume("--config", other, "--data", data), "data.session_gap_minutes")

    log(users=13)  # writes the same file anew
    refused(resume(), "other data")
    kept = Path("a/progress.json").read_bytes()
    Path("a/progress.json").unlink()
    refused(resume(), "ledger.jsonl", "other data", "12 users then, 13 now")
    assert not Path("a/progress.json").exists()
    Path("a/progress.json").write_bytes(kept)
    log()
    Path("a/ledger.jsonl").write_bytes(Path("a/ledger.jsonl").read_bytes().replace(b"20", b"30", 1))
    refused(resume(), "ledger.jsonl", "line")
    assert Path("a/metrics.json").read_bytes() == written


def test_a_run_without_its_ledger_does_not_go_on(fedprofile, small, log):
    """Its rounds were paid for there; a new ledger would start from nothing."""
    assert fedprofile("simulate", "--config", small(), "--data", log(), "--out", "a").code == 0
    Path("a/ledger.jsonl").unlink()
    refused(fedprofile("simulate", "--resume", "--out", "a"), "ledger")


def test_a_checkpoint_of_another_run(fedprofile, small, log):
    data = log()
    assert fedprofile("simulate", "--config", small(), "--data", data, "--out", "a").code == 0
    other = small("[data]\nsession_gap_minutes = 5.0\n", name="other.toml")
    assert fedprofile("simulate", "--config", other, "--data", data, "--out", "b").code == 0
    for checkpoint in Path("b/checkpoints").iterdir():
        (Path("a/checkpoints") / checkpoint.name).write_bytes(checkpoint.read_bytes())
    refused(
        fedprofile("simulate", "--resume", "--out", "a"), "checkpoints", "another configuration"
    )


def test_a_damaged_checkpoint(fedprofile, small, log):
    assert fedprofile("simulate", "--config", small(), "--data", log(), "--out", "a").code == 0
    for checkpoint in Path("a/checkpoints").iterdir():
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    refused(fedprofile("simulate", "--resume", "--out", "a"), "checkpoints", "not a checkpoint")
