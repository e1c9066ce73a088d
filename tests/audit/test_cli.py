import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fedprofile.common import cli
from fedprofile.common.ledger_entries import read_chain
from fedprofile.common.signing import SigningKey


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


def test_a_ledger_that_holds_and_promises_nothing_says_so_last(audit, tmp_path, forge):
    exact = forge.mechanism(noise_multiplier=0.0, sampling_probability=1.0)
    writer = forge.Writer().open(target_epsilon=None)
    writer.commit(writer.reserve(exact), cohort_size=1_000, replies_counted=1_000).stop()
    found = audit("verify", writer.write(tmp_path / "ledger.jsonl"))
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines()[-1] == (
        "The ledger holds, and it promises no privacy: ε is infinite."
    )


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
    told = audit("compose", path).out
    assert "together" in told
    shown = float(told.split("together")[1].split()[0])
    content = json.loads(audit("compose", path, "--json").out)
    assert content["epsilon"] == pytest.approx(content["sum"])
    assert 0 <= shown - content["epsilon"] < 1e-3  # rounded up: it is a bound
    assert "rounds are left of ε = 1.5" in audit("forecast", path).out
    found = json.loads(audit("forecast", path, "--epsilon", "1.2", "--rounds", "7", "--json").out)
    assert found["after"][0]["rounds"] == 7
    assert found["rounds_left"] > 0


def cut(path, lines):
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:-lines]))


@pytest.mark.parametrize("command", ["forecast", "compose"])
def test_what_verify_rejects_has_no_future_and_no_sum(audit, tmp_path, forge, command):
    writer = forge.honest(rounds=10, target_epsilon=1.5)
    anchor, folder = tmp_path / "anchor.json", tmp_path
    path = writer.write(tmp_path / "ledger.jsonl", anchor)
    assert audit(command, folder).code == 0
    cut(path, 2)
    found = audit(command, folder)
    assert (found.code, found.err) == (1, "")
    assert "2 of 23 published entries were cut off" in " ".join(found.out.split())
    assert "rounds are left" not in found.out
    assert found.out.startswith(f"{path}:")
    found = audit(command, folder, "--json")
    content = json.loads(found.out)
    assert (found.code, content["holds"], content["cost"]) == (1, False, None)

    anchor.unlink()
    writer.write(path, key=SigningKey.generate())
    found = audit(command, path)
    assert (found.code, "Does not hold: signatures." in found.out) == (1, True)
    path.write_bytes(path.read_bytes().replace(b'"round":3', b'"round":9'))
    found = audit(command, path)
    assert (found.code, "Does not hold: chain." in found.out) == (1, True)

    gap = forge.honest(rounds=10)
    gap.values[3]["round"] = 2
    gap.write(path)
    found = audit(command, path)
    assert (found.code, "Does not hold: pairing." in found.out) == (1, True)
    forge.honest(rounds=10, sizes=[50] * 10).write(path)
    found = audit(command, path)
    assert (found.code, "Does not hold: sampler." in found.out) == (1, True)
    writer = forge.honest(rounds=0)
    for _ in range(9):
        writer.reserve()
    writer.write(path)
    found = audit(command, path)
    assert (found.code, "releases that claim amplification" in found.err) == (2, True)


def test_a_ledger_that_belies_another_one_at_hand_is_a_finding(audit, path, forge):
    chain = read_chain(path)
    lie = [{"ledger": chain.identity, "head": chain.head, "releases": []}]
    other = forge.honest(rounds=1, nonce="b" * 32, earlier=lie).write(path.with_name("b.jsonl"))
    found = audit("compose", path, other)
    assert (found.code, found.err) == (1, "")
    assert found.out.startswith(f"{other}:")
    assert "Does not hold: earlier." in found.out
    [finding] = json.loads(audit("compose", path, other, "--json").out)["findings"]
    assert (finding["check"], finding["line"]) == ("earlier", 1)


CLEARED = "\x1b[2J\x1b]0;holds\x07\u202e\x9b1m[red]"


def test_a_ledger_has_no_say_in_how_the_terminal_looks(audit, tmp_path, forge):
    """Neither in a finding, nor in a figure, nor in the message of an error."""
    gap = forge.honest(rounds=2, population=CLEARED)
    for values in gap.values:
        if values.get("task") == "training":
            values.update(task=CLEARED, round=values["round"] + 4)
    broken = gap.write(tmp_path / "broken.jsonl")
    whole = forge.honest(rounds=2, population=CLEARED).write(tmp_path / "whole.jsonl")
    other = forge.honest(rounds=2, nonce="1" * 32).write(tmp_path / "other.jsonl")
    devices = tmp_path / "[bold]\x1b[2J.jsonl"
    devices.write_bytes(other.read_bytes())
    for arguments, code in (
        (("verify", broken), 1),
        (("verify", whole, "--device-ledger", devices), 1),
        (("report", broken, "--out", tmp_path / "page"), 1),
        (("forecast", broken), 1),
        (("compose", whole), 0),
        (("compose", other, whole), 2),
    ):
        found = audit(*arguments)
        assert found.code == code, found
        shown = found.out + found.err
        assert "\ufffd" in shown
        assert not set("\x1b\x07\u202e\x9b") & set(shown), arguments


def test_a_forecast_heeds_an_anchor_that_lies_elsewhere(audit, path):
    anchor = path.parent / "anchor.json"
    assert audit("forecast", path, "--anchor", anchor).code == 0
    cut(path, 1)
    assert audit("forecast", path, "--anchor", anchor).code == 1


@pytest.mark.parametrize("command", ["verify", "forecast", "compose", "report"])
def test_what_is_no_ledger_is_one_line_in_plain_words(audit, tmp_path, command):
    path = tmp_path / "random"
    path.write_bytes(b"\x00\x93\xfe\n" * 3)
    more = ("--out", tmp_path / "page") if command == "report" else ()
    found = audit(command, path, *more)
    assert (found.code, found.out) == (2, "")
    assert found.err == f"error: {path}: is no ledger; name one, or the folder it is in\n"


def test_nobody_is_told_to_delete_what_is_no_ledger(audit, tmp_path):
    """An officer who names a wrong file keeps it."""
    path = tmp_path / "begun"
    path.write_bytes(b"\x00\x01")
    found = audit("verify", path)
    assert found.code == 2
    assert "is no ledger" in found.err
    assert "delete it" not in found.err


def test_compose_tells_which_target_all_together_are_above(audit, forge, tmp_path):
    paths = [
        forge.honest(rounds=20, nonce=name * 32, target_epsilon=0.9).write(tmp_path / name)
        for name in "ab"
    ]
    found = audit("compose", *paths)
    assert found.code == 0
    assert found.out.count("above the target of") == 2


def test_a_report_tells_people_and_machines_and_replaces_nothing(audit, path):
    out = path.parent / "報告"
    found = audit("report", path, "--anchor", path.parent / "anchor.json", "--out", out, "--json")
    assert (found.code, found.err) == (0, "")
    told = json.loads(found.out.splitlines()[-1])
    written = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert {key: told[key] for key in written} == written
    assert told["paths"]["page"] == str(out / "report.html")
    page = (out / "report.html").read_bytes()
    again = audit("report", path, "--out", out)
    assert (again.code, "exists already" in again.err) == (2, True)
    assert (out / "report.html").read_bytes() == page


def test_a_report_of_a_broken_ledger_is_written_and_fails(audit, path, tmp_path):
    path.write_bytes(path.read_bytes().replace(b'"round":3', b'"round":9'))
    found = audit("report", path, "--out", tmp_path / "page")
    assert (found.code, found.err) == (1, "")
    assert "Does not hold: chain." in found.out
    assert "line 8 (entry 7)" in found.out
    assert "No guarantee" in (tmp_path / "page" / "report.html").read_text(encoding="utf-8")


def test_a_report_of_nothing_is_one_line_and_leaves_nothing(audit, path, tmp_path):
    (tmp_path / "empty").touch()
    out = tmp_path / "page"
    for wrong in (
        (tmp_path / "none", "--out", out),
        (tmp_path / "empty", "--out", out),
        (path, "--out", path),
        (path,),
        (path, "--out", out, "--probe", tmp_path / "none"),
        (path, "--out", out, "--canaries", path),
        (path, "--out", out, "--device-ledger", tmp_path / "none"),
        (path, "--out", out, "--public-key", "nonsense"),
    ):
        found = audit("report", *wrong)
        assert (found.code, found.out) == (2, ""), wrong
        assert found.err.startswith("error: ")
        assert found.err.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize("command", [[], ["verify"], ["report"], ["compose"], ["forecast"]])
def test_help_has_examples_and_fits_80_columns(audit, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    found = audit(*command, "--help")
    assert found.code == 0
    assert "Examples:" in found.out
    assert max(map(len, found.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "light"),
    [("verify", {"numpy", "scipy", "matplotlib", "jinja2"}), ("report", set())],
)
def test_an_audit_loads_neither_torch_nor_flower(forge, tmp_path, command, light):
    path = forge.honest(rounds=3, target_epsilon=0.5).write(tmp_path / "ledger.jsonl")
    program = """
import sys
from fedprofile.common.cli import main
sys.argv = ["fedprofile", "audit", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    print("code", exit.code)
print("loaded", *sys.modules)
"""
    arguments = [command, str(path), "--json"]
    if command == "report":
        arguments += ["--out", str(path.parent / "page")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    told, code, loaded = done.stdout.splitlines()
    assert code == "code 0"
    assert not {"torch", "flwr", "opacus", *light} & set(loaded.split())
    findings = json.loads(told)["findings" if command == "verify" else "checks"]
    [prv] = [f for f in findings if f["check"] == "PRV"]
    assert prv["outcome"] == "holds"  # Opacus's accountant ran, in a process of its own


def test_a_mistyped_anchor_is_no_finding(audit, forge, tmp_path):
    path = forge.honest(rounds=2).write(tmp_path / "ledger.jsonl")
    found = audit("verify", path, "--anchor", tmp_path / "anchro.json")
    assert (found.code, found.out) == (2, "")
    assert "no such anchor" in found.err


def test_the_folder_of_a_device_has_no_anchor_to_miss(audit, forge, tmp_path):
    forge.honest(rounds=2).write(tmp_path / "ledger.jsonl")
    (tmp_path / "device.toml").write_text("")
    found = audit("verify", tmp_path)
    assert found.code == 0, found.out
