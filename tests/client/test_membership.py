"""What a device's status tells of its server and of its lifetime budget."""

import datetime as dt
import json
import subprocess
import sys

import pytest

from fedprofile.client.device_config import DeviceConfig
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.diary import Diary
from fedprofile.client.lifetime import LifetimeBudget, promised
from fedprofile.client.membership import read_lifetime, read_membership, terms_of
from fedprofile.common.accounting import epsilon
from fedprofile.common.cli import main
from fedprofile.common.errors import ConfigError
from fedprofile.common.messages import Binding
from fedprofile.common.server_bundle import ServerBundle
from fedprofile.server.status import read_standing
from fedprofile.simulations.loopback import Loopback

NOISE = promised(clip_norm=0.2, noise_multiplier=4.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Loopback(tmp_path_factory.mktemp("made"), devices=1)


@pytest.fixture
def device(made, tmp_path):
    import shutil

    shutil.copytree(made.folder / "0", tmp_path / "0")
    return DeviceFolder.open(tmp_path / "0")


def charge(device, *releases, commit=True):
    bundle = ServerBundle.load(device.server)
    with LifetimeBudget.open(device.ledger, terms=terms_of(device, bundle)) as budget:
        for release in releases:
            binding = Binding(
                run=bundle.facts.federation,
                round=release,
                release=release,
                items="i",
                model="0" * 64,
            )
            paid = budget.charge(task="training", binding=binding, mechanism=NOISE)
            if commit:
                budget.commit(paid)


@pytest.fixture
def status(device, monkeypatch, capsys):
    """The command, as text and as JSON."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*more):
        monkeypatch.setattr(
            sys, "argv", ["fedprofile", "device", "status", str(device.path), *more]
        )
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 0
        return capsys.readouterr()

    return run


def test_the_server_is_told_by_what_its_operator_sees(made, device):
    joined, standing = read_membership(device), read_standing(made.server)
    port = made.server.config.federation.port
    assert (joined.federation, joined.address) == ("federation", f"127.0.0.1:{port}")
    assert (joined.signing_key, joined.ca_sha256) == (standing.signing_key, standing.ca_sha256)
    command = ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", str(made.server.ca)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.strip().rpartition("=")[2].replace(":", "").lower() == joined.ca_sha256


def test_rounds_of_another_day_are_not_those_of_today(device):
    today = dt.datetime.now(dt.UTC).date()
    for day, rounds in ((today - dt.timedelta(days=1), 0), (today, 3)):
        Diary(day=day.isoformat(), rounds=3, broken=2).write(device.diary)
        joined = read_membership(device)
        assert (joined.rounds_today, joined.rounds_per_day, joined.broken_off) == (rounds, 1000, 2)


def test_what_is_charged_is_spent_answered_or_not(device):
    before = read_lifetime(device)
    assert (before.epsilon, before.allowed, before.releases, before.problem) == (0.0, 30.0, 0, None)
    charge(device, 1, 2)
    charge(device, 3, commit=False)
    after = read_lifetime(device)
    assert after.releases == 3
    assert after.epsilon == pytest.approx(epsilon([NOISE.event()] * 3, delta=1e-6))


def test_while_a_round_is_charged_the_budget_can_be_read(device):
    charge(device, 1)
    terms = terms_of(device, ServerBundle.load(device.server))
    with LifetimeBudget.open(device.ledger, terms=terms):
        assert read_lifetime(device).releases == 1


def test_the_status_is_a_table_of_eighty_columns_and_one_object(device, status):
    charge(device, 1, 2)
    Diary(day=dt.datetime.now(dt.UTC).date().isoformat(), rounds=2, broken=1).write(device.diary)
    text = status().out
    assert max(map(len, text.splitlines())) <= 80
    joined, lifetime = read_membership(device), read_lifetime(device)
    for shown in (joined.address, joined.signing_key, joined.ca_sha256, "2 of 1000, 1 replies"):
        assert shown in text
    assert f"{lifetime.epsilon:.3f} of 30 at δ = 1e-06, 2 releases" in text
    told = json.loads(status("--json").out.splitlines()[-1])
    assert told["server"] == vars(joined)
    assert told["lifetime"] == vars(lifetime)
    assert told["name"] == "device 0"


def test_a_ledger_that_can_not_be_charged_is_told_and_hides_nothing_else(device, status):
    charge(device, 1)
    text = device.config_file.read_text()
    device.config_file.write_text(
        text.replace("lifetime_epsilon = 30.0", "lifetime_epsilon = 40.0")
    )
    found = status()
    assert "unknown of 40" in found.out
    assert "lowered but not raised" in " ".join(found.err.split())
    device.config_file.write_text(text)
    device.ledger.write_bytes(device.ledger.read_bytes().replace(b"training", b"draining"))
    told = json.loads(status("--json").out.splitlines()[-1])
    assert told["lifetime"]["epsilon"] is None
    assert str(device.ledger) in told["lifetime"]["problem"]


def test_without_a_server_there_is_none_to_tell_of(tmp_path):
    alone = DeviceFolder.create(tmp_path / "alone", DeviceConfig(name="alone"))
    assert read_membership(alone) is None
    assert read_lifetime(alone) is None
    alone.server_facts.write_text("{")
    with pytest.raises(ConfigError, match="install the server bundle again"):
        read_membership(alone)


def test_before_the_first_round_nothing_that_accounts_is_loaded(device):
    program = (
        "import sys; from pathlib import Path\n"
        "from fedprofile.client.device_folder import DeviceFolder\n"
        "from fedprofile.client.membership import read_lifetime, read_membership\n"
        "folder = DeviceFolder.open(Path(sys.argv[1]))\n"
        "assert read_membership(folder).key and read_lifetime(folder).epsilon == 0.0\n"
        "assert not {'dp_accounting', 'scipy', 'torch', 'flwr'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(device.path)], check=True)
