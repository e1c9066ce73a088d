import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fedprofile.common import cli


@pytest.fixture
def audit(monkeypatch, capsys, inline_accountants):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedprofile", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        found = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=found.out, err=found.err)

    return run


@pytest.fixture
def path(tmp_path, forge):
    return forge.honest(rounds=10, target_epsilon=1.5).write(
        tmp_path / "夏.jsonl", tmp_path / "anchor.json"
    )


def test_a_ledger_that_holds(audit, path, forge):
    named = ("--anchor", path.parent / "anchor.json", "--public-key", forge.key.public_key)
    found = audit("verify", path, *named)
    assert (found.code, found.err) == (0, "")
    assert "The ledger holds." in found.out
    content = json.loads(audit("verify", path, *named, "--json").out.splitlines()[-1])
    assert content["holds"] is True
    assert content["cost"]["epsilon"] == pytest.approx(content["cost"]["epsilon_pld"])
    assert content["public_key"] == forge.key.public_key


def test_a_ledger_that_does_not_hold(audit, path):
    path.write_bytes(path.read_bytes().replace(b'"round":3', b'"round":9'))
    found = audit("verify", path)
    assert (found.code, found.err) == (1, "")
    assert "line 8 (entry 7)" in found.out
    assert "Does not hold: chain." in found.out
    found = audit("verify", path, "--json")
    assert found.code == 1
    [fault] = [f for f in json.loads(found.out)["findings"] if f["outcome"] == "fails"]
    assert (fault["check"], fault["line"]) == ("chain", 8)


def test_what_can_not_be_read_is_one_line(audit, path, tmp_path):
    (tmp_path / "folder").mkdir()
    for wrong in (
        ("verify", tmp_path / "none"),
        ("verify", tmp_path / "folder"),
        ("verify", path, "--public-key", "nonsense"),
        ("verify", path, "--device-ledger", tmp_path / "none"),
        ("verify",),
        ("compose",),
        ("compose", path, path),
        ("forecast", path, "--epsilon", "-1"),
        ("forecast", tmp_path / "none"),
        ("divine", path),
    ):
        found = audit(*wrong)
        assert (found.code, found.out) == (2, ""), wrong
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1


def test_compose_and_forecast_tell_people_and_machines(audit, path):
    assert "together" in audit("compose", path).out
    content = json.loads(audit("compose", path, "--json").out)
    assert content["epsilon"] == pytest.approx(content["sum"])
    assert "rounds are left of ε = 1.5" in audit("forecast", path).out
    found = json.loads(audit("forecast", path, "--epsilon", "1.2", "--rounds", "7", "--json").out)
    assert found["after"][0]["rounds"] == 7
    assert found["rounds_left"] > 0


@pytest.mark.parametrize("command", [[], ["verify"], ["compose"], ["forecast"]])
def test_help_has_examples_and_fits_80_columns(audit, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    found = audit(*command, "--help")
    assert found.code == 0
    assert "Examples:" in found.out
    assert max(map(len, found.out.splitlines())) <= 80


def test_an_audit_loads_neither_torch_nor_flower(path):
    program = """
import sys
from fedprofile.common.cli import main
sys.argv = ["fedprofile", "audit", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    print("code", exit.code)
print("loaded", {"torch", "flwr", "opacus", "numpy", "scipy"} & sys.modules.keys())
"""
    command = [sys.executable, "-c", program, "verify", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told, code, loaded = done.stdout.splitlines()
    assert (code, loaded) == ("code 0", "loaded set()")
    [prv] = [f for f in json.loads(told)["findings"] if f["check"] == "PRV"]
    assert prv["outcome"] == "holds"  # Opacus's accountant ran, in a process of its own
