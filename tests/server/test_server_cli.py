"""``fedprofile server`` as its operator runs it, on a server that doesn't run."""

import json
import sys
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from fedprofile.common.cli import main
from fedprofile.common.signing import SigningKey
from fedprofile.server import status
from fedprofile.server.folder import ServerFolder


@pytest.fixture
def fedprofile(monkeypatch, capsys):
    """Run the command: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedprofile", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        found = capsys.readouterr()
        return SimpleNamespace(code=exit_.value.code, out=found.out, err=found.err)

    return run


def test_init_takes_a_file_and_options_over_it(fedprofile, tmp_path):
    config = tmp_path / "shop.toml"
    config.write_text('[federation]\nname = "店"\nport = 1\n[items]\ndimension = 8\n')
    arguments = ("--config", config, "--port", 9999, "--population", 40)
    found = fedprofile("server", "init", tmp_path / "s", *arguments)
    assert found.code == 0, found.err
    settings = ServerFolder.open(tmp_path / "s").config
    assert (settings.federation.name, settings.federation.port) == ("店", 9999)
    assert settings.federation.population_size == 40
    assert settings.statistics.as_of is not None
    assert load_file(tmp_path / "s" / "model.safetensors")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[federation]\nprot = 1\n", "did you mean 'port'"),
        ("[federation]\nport = 0\n", "federation.port"),
        ('[federation]\nhost = "a b"\n', "neither a name nor an address"),
        ('[federation]\nhost = "http://shop/"\n', "neither a name nor an address"),
        ("[federation]\nquorum = 9\npopulation_size = 3\n", "quorum"),
        ("statistics = 3\n", "statistics"),
        ("[privacy]\nepsilon = 0.01\nnoise_multiplier = 0.1\n", "ε"),
    ],
)
def test_bad_settings_are_one_line_and_leave_nothing(fedprofile, tmp_path, text, why):
    config = tmp_path / "shop.toml"
    config.write_text(text)
    found = fedprofile("server", "init", tmp_path / "s", "--config", config)
    assert found.code in (2, 3)
    assert why in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_enroll_and_revoke(fedprofile, server, tmp_path, public_key):
    key = tmp_path / "node.pub"
    key.write_bytes(public_key())
    found = fedprofile("server", "enroll", server.path, "--name", "a", "--public-key", key)
    assert found.code == 0
    assert "a is device 0 of 3" in found.err
    again = fedprofile("server", "enroll", server.path, "--name", "b", "--public-key", key)
    assert again.code == 2
    assert "is the key of a" in again.err
    assert fedprofile("server", "revoke", server.path, "--name", "a").code == 0
    assert fedprofile("server", "revoke", server.path, "--name", "b").code == 2
    missing = fedprofile(
        "server", "enroll", server.path, "--name", "c", "--public-key", tmp_path / "none"
    )
    assert "can't read the key" in missing.err


def test_a_guarantee_that_says_little_is_told_before_anything_is_spent(fedprofile, tmp_path):
    few = fedprofile("server", "init", tmp_path / "few", "--population", "20")
    assert few.code == 0
    assert "δ is too large" in few.err
    many = fedprofile("server", "init", tmp_path / "many", "--population", "5000")
    assert many.code == 0
    assert "δ is too large" not in many.err


def test_status_before_the_first_run(fedprofile, server):
    told = fedprofile("server", "status", server.path)
    assert told.code == 0, told.err
    assert "0.000 of" in told.out
    found = json.loads(fedprofile("server", "status", server.path, "--json").out)
    assert 0 < found["delta"] < 1


@pytest.fixture
def begun(begin_ledger, mechanism, server):
    """The server after a round and in the next; what its ledger says was spent."""
    key = SigningKey.load(server.signing_key)
    with begin_ledger(server.ledger, key=key, anchor=server.anchor) as ledger:
        done = ledger.reserve(task="training", mechanism=mechanism, run="federation", round=1)
        ledger.commit(
            done, cohort_size=3, replies_counted=1, rejected={"declined-idle": 1, "no-reply": 1}
        )
        ledger.reserve(task="training", mechanism=mechanism, run="federation", round=2)
        return ledger.epsilon_spent()


def test_status_tells_what_the_ledger_holds(fedprofile, server, begun):
    found = fedprofile("server", "status", server.path, "--json")
    standing = json.loads(found.out)
    assert standing["running"] is False
    assert (standing["round"], standing["cohort"], standing["counted"]) == (1, 3, 1)
    assert standing["rejected"] == {"declined-idle": 1, "no-reply": 1}
    assert standing["lost"] == 1
    assert standing["epsilon"] == pytest.approx(begun)
    assert standing["left"] == pytest.approx(8.0 - begun)
    told = fedprofile("server", "status", server.path).out
    assert "declined-idle 1" in told
    assert "1, charged" in told


@pytest.mark.usefixtures("begun")
def test_a_release_under_way_is_not_lost(server, monkeypatch):
    monkeypatch.setattr(status, "_online", lambda _: 3)
    assert status.read_standing(server).lost == 0


@pytest.mark.usefixtures("begun")
def test_a_ledger_that_was_cut_short_tells_nothing(fedprofile, server):
    """It would tell of less than was spent."""
    *kept, _ = server.ledger.read_bytes().splitlines(keepends=True)
    server.ledger.write_bytes(b"".join(kept))
    found = fedprofile("server", "status", server.path, "--json")
    assert found.code == 2
    assert "ends 1 entries before its anchor" in found.err
    assert not found.out


@pytest.mark.usefixtures("begun")
def test_a_ledger_that_grows_while_it_is_read_is_read_again(server, monkeypatch):
    whole = server.ledger.read_bytes()
    *begun, _ = whole.splitlines(keepends=True)
    server.ledger.write_bytes(b"".join(begun))
    read = status.read_chain

    def slow(path):
        found = read(path)
        server.ledger.write_bytes(whole)
        return found

    monkeypatch.setattr(status, "read_chain", slow)
    assert status.read_standing(server).lost == 1


@pytest.mark.parametrize(
    ("as_of", "why"),
    [
        ("1900-01-01", "statistics.as_of = 1900-01-01: devices record nothing before 1970"),
        ("2100-01-01", "statistics.as_of = 2100-01-01: is "),
    ],
)
def test_statistics_of_a_senseless_day_are_refused(fedprofile, tmp_path, server, as_of, why):
    config = tmp_path / "shop.toml"
    config.write_text(f"[statistics]\nas_of = {as_of}\n")
    found = fedprofile("server", "init", tmp_path / "new", "--config", config)
    assert found.code == 2
    assert f"error: {config}: {why}" in found.err
    assert not (tmp_path / "new").exists()
    settings = server.config_file.read_text(encoding="utf-8")
    day = str(server.config.statistics.as_of)
    server.config_file.write_text(settings.replace(day, as_of), encoding="utf-8")
    found = fedprofile("server", "run", server.path)
    assert found.code == 2
    assert f"error: {server.config_file}: {why}" in found.err
    assert not server.begun


def test_statistics_of_a_day_long_past_are_warned_of(fedprofile, tmp_path):
    config = tmp_path / "shop.toml"
    config.write_text("[statistics]\nas_of = 2020-01-01\n")
    found = fedprofile("server", "init", tmp_path / "new", "--config", config)
    assert found.code == 0, found.err
    assert "statistics.as_of is 2," in found.err
    found = fedprofile("server", "init", tmp_path / "today", "--population", 40)
    assert "statistics.as_of" not in found.err


@pytest.mark.usefixtures("begun")
def test_a_budget_that_was_begun_is_not_changed(fedprofile, server):
    found = fedprofile("server", "run", server.path, "--rounds", 99)
    assert found.code == 2
    assert "has begun with 2 rounds" in found.err


@pytest.mark.usefixtures("begun")
def test_a_ledger_that_is_gone_refunds_nothing(fedprofile, server):
    kept, settings = server.ledger.read_bytes(), server.config_file.read_bytes()
    server.ledger.unlink()
    for command in (("status",), ("run", "--rounds", 99, "--epsilon", 3)):
        found = fedprofile("server", command[0], server.path, *command[1:])
        assert found.code == 2
        assert "is gone, but" in found.err
        assert server.config_file.read_bytes() == settings
    server.ledger.write_bytes(kept)
    assert fedprofile("server", "status", server.path).code == 0


@pytest.mark.usefixtures("begun")
def test_the_budget_is_the_one_the_ledger_was_opened_for(fedprofile, server):
    before = json.loads(fedprofile("server", "status", server.path, "--json").out)
    text = server.config_file.read_text(encoding="utf-8")
    server.config_file.write_text(
        text.replace(f"epsilon = {before['target']}\n", "epsilon = 80.0\n"), encoding="utf-8"
    )
    assert ServerFolder.open(server.path).config.privacy.epsilon == 80
    after = json.loads(fedprofile("server", "status", server.path, "--json").out)
    assert (after["target"], after["left"]) == (before["target"], before["left"])


@pytest.mark.parametrize("name", ["a\nb", " ", "店\x1b[2J"])
def test_a_name_is_one_line_of_text(fedprofile, tmp_path, name):
    found = fedprofile("server", "init", tmp_path / "new", "--name", name)
    assert found.code == 2
    assert "federation.name: must be printable characters on one line" in found.err
    assert not (tmp_path / "new").exists()


def test_without_a_server_every_command_says_so(fedprofile, tmp_path):
    for command in (("status",), ("run",), ("revoke", "--name", "a")):
        found = fedprofile("server", command[0], tmp_path, *command[1:])
        assert found.code == 2
        assert "fedprofile server init" in found.err


def test_help_has_examples(fedprofile):
    for command in ("init", "enroll", "revoke", "run", "status"):
        found = fedprofile("server", command, "--help")
        assert f"fedprofile server {command}" in found.out
