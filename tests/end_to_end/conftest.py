"""The command as a user runs it, in this process; and logs small enough to run it on in a second."""

import sys
from types import SimpleNamespace

import pytest

from fedprofile.common.cli import main

# Fixed noise, for calibration takes seconds.
SMALL = """
[items]
dimension = 8
[model]
width = 8
window = 8
[training]
rounds = 2
negatives = 8
cohort = 20
[privacy]
noise_multiplier = 4.0
[evaluation]
bootstrap_samples = 20
baselines = false
"""


@pytest.fixture
def fedprofile(monkeypatch, capsys, tmp_path):
    """Run the command in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedprofile", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        found = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=found.out, err=found.err)

    return run


@pytest.fixture
def small(tmp_path):
    """A configuration file for runs of a second; sections of one's own come after it."""

    def write(more="", name="small.toml"):
        path = tmp_path / name
        path.write_text(SMALL + more, encoding="utf-8")
        return path

    return write


@pytest.fixture
def log(tmp_path):
    """A CSV log: ``users`` users meet some of ``items`` items, each on ``days`` days."""

    def write(name="log.csv", *, users=12, items=6, days=6, header="user_id,item_id,timestamp"):
        rows = [
            f"u{user},i{(user * day + day) % items},2024-{1 + day:02d}-{1 + user % 28:02d} 10:00"
            for user in range(users)
            for day in range(days)
        ]
        path = tmp_path / name
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return write
