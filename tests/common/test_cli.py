import subprocess
import sys
from types import SimpleNamespace

import pytest

from fedprofile.common import cli
from fedprofile.common.errors import BudgetError, DataError


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedprofile", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        found = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=found.out, err=found.err)

    return run


@pytest.mark.parametrize("command", [[], ["simulate"], ["data"], ["data", "describe"]])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_of_every_command(run, command, option):
    found = run(*command, option)
    assert found.code == 0
    assert "Usage: " in found.out
    assert found.err == ""


def test_help_shows_brackets_as_they_are(run):
    shown = run("device", "record", "--help").out
    assert "[required]" in shown
    assert "\\" not in shown


def test_help_of_simulate_has_every_option_and_fits_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = run("simulate", "--help").out
    options = """--config --data --preset --items --split --epsilon --no-privacy --delta --rounds
        --seed --engine --earlier --signing-key --anchor --out --resume --recommendations
        --top-k --include-seen --json"""
    for option in options.split():
        assert f"  {option} " in text
    assert max(map(len, text.splitlines())) <= 80
    assert "Examples:" in text


def test_version(run):
    found = run("--version")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("fedprofile, version ")


def test_without_arguments_the_help_is_shown_as_an_error(run):
    found = run()
    assert (found.code, found.out) == (2, "")
    assert "simulate" in found.err


@pytest.mark.parametrize("wrong", [["sing"], ["--loud"], ["data", "describe"], ["data", "sing"]])
def test_wrong_usage_is_one_line(run, wrong):
    found = run(*wrong)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert "--help" in found.err


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (DataError("log.csv: empty"), 2, "log.csv: empty"),
        (BudgetError("too much", epsilon_reached=9.0), 3, "too much"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "runs/a"), 2, "runs/a: No space left on device"),
    ],
)
def test_outcomes_become_exit_codes(run, monkeypatch, error, code, shown):
    def fail(**_):
        raise error

    monkeypatch.setattr(cli.root, "main", fail)
    found = run()
    assert (found.code, found.out) == (code, "")
    assert found.err.strip() == f"error: {shown}"


def test_a_mistake_of_ours_is_no_bad_input(monkeypatch):
    def fail(**_):
        raise ZeroDivisionError

    monkeypatch.setattr(cli.root, "main", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_help_and_mistakes_do_not_wait_for_torch():
    script = """
import sys
from fedprofile.common.cli import main
sys.argv = ["fedprofile", "simulate", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "flwr", "opacus", "ray"} & sys.modules.keys()
sys.exit(f"loaded: {heavy}" if heavy else 0)
"""
    for argument in ("--help", "--epsilon=0"):
        done = subprocess.run([sys.executable, "-c", script, argument], capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
