"""Devices that keep ledgers in a simulation, and the audit that holds them against the server's."""

import json

import pytest

from fedprofile.audit.device_checks import check_devices
from fedprofile.common.ledger_entries import Reserve, read_chain, read_ledger

DEVICES = """
[ledger]
devices = 4
"""


def run(fedprofile, *arguments):
    result = fedprofile("simulate", *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def reconciled(folder, devices=None):
    """What the audit says of the devices' ledgers; its other checks take seconds."""
    [found] = check_devices(read_chain(folder / "ledger.jsonl"), devices or folder / "devices")
    assert found.outcome == "holds"
    return found.what


def charges(folder):
    """Ledger → what each of its releases answers."""
    return {
        path.name: [
            (e.task, e.round, e.answers) for e in read_ledger(path) if isinstance(e, Reserve)
        ]
        for path in sorted((folder / "devices").glob("*.jsonl"))
    }


@pytest.fixture
def everyone(small):
    """All devices in every round, so that each ledger must have all of them."""
    return small(DEVICES).rename(small(DEVICES).with_name("devices.toml"))


def test_devices_and_server_tell_the_same(fedprofile, everyone, log, tmp_path):
    run(fedprofile, "--config", everyone, "--data", log(), "--out", "run")
    served = [
        (e.task, e.round, e.sequence)
        for e in read_ledger(tmp_path / "run" / "ledger.jsonl")
        if isinstance(e, Reserve)
    ]
    told = charges(tmp_path / "run")
    assert len(served) == 3
    assert list(told.values()) == [served] * 4
    verified = fedprofile("audit", "verify", "run", "--json")
    assert verified.code == 0, verified.out
    [found] = [f for f in json.loads(verified.out)["findings"] if "devices" in f["check"]]
    assert found["check"] == "devices, user-level"
    assert "4 ledgers, 12 releases are the server's" in found["what"]

    min((tmp_path / "run" / "devices").glob("*.jsonl")).unlink()
    verified = fedprofile("audit", "verify", "run", "--json")
    assert verified.code == 1
    [bad] = [f for f in json.loads(verified.out)["findings"] if f["outcome"] == "fails"]
    assert bad["check"] == "devices, complete"
    assert "3 user-level ledgers" in bad["what"]
    assert "4 devices" in bad["what"]


def test_devices_whose_lifetime_is_spent_decline_and_the_divisor_stays(
    fedprofile, small, log, tmp_path
):
    config = small(DEVICES + "device_epsilon = 2.0\n")
    run(fedprofile, "--config", config, "--data", log(), "--out", "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    popularity, *rounds = metrics["privacy"]["releases"]
    spent = [len(releases) for releases in charges(tmp_path / "run").values()]
    declined = [release["rejected"].get("declined", 0) for release in (popularity, *rounds)]
    assert sum(declined) == 4 * 3 - sum(spent) > 0
    for release, missing in zip((popularity, *rounds), declined, strict=True):
        assert release["replies"] == release["cohort"] - missing
    divisors = {
        e.divisor for e in read_ledger(tmp_path / "run" / "ledger.jsonl") if e.kind == "reserve"
    }
    assert divisors == {12.0}
    assert "4 ledgers" in reconciled(tmp_path / "run")


def test_a_run_that_is_cut_off_charges_its_devices_again_for_what_they_answer_again(
    fedprofile, everyone, log, tmp_path, monkeypatch
):
    from fedprofile.server import strategy

    def cut_off(*arguments, **named):
        raise KeyboardInterrupt  # the devices have answered, the server has added nothing up

    with monkeypatch.context() as patch:
        patch.setattr(strategy, "add_up", cut_off)
        result = fedprofile("simulate", "--config", everyone, "--data", log(), "--out", "run")
        assert result.code == 130, result.err
    cut = charges(tmp_path / "run")
    assert [task for task, *_ in next(iter(cut.values()))] == ["statistics/popularity", "training"]
    run(fedprofile, "--resume", "--out", "run")
    told = charges(tmp_path / "run")
    assert told.keys() == cut.keys()
    for releases in told.values():
        assert [number for _, number, _ in releases] == [None, 1, 1, 2]
        assert len({answers for *_, answers in releases}) == 4
    assert "4 ledgers" in reconciled(tmp_path / "run")


def test_lifetimes_go_on_over_runs_that_share_a_folder(fedprofile, small, log, tmp_path):
    """Runs of one name are two runs: neither's releases are missing from the other's ledger."""
    data = log()
    for name in ("first/run", "second/run"):
        config = small(DEVICES + 'device_folder = "kept"\npopulation = "town"\n')
        run(fedprofile, "--config", config, "--data", data, "--out", name)
    # An officer has a copy somewhere else.
    (tmp_path / "kept").rename(tmp_path / "copied")
    gone = fedprofile("audit", "verify", "second/run", "--json")
    assert gone.code == 1
    assert "--device-folder names where they are now" in gone.out
    assert fedprofile("audit", "verify", "second/run", "--device-folder", "copied").code == 0
    page = ("--device-folder", "copied", "--out", "page", "--json")
    report = fedprofile("audit", "report", "second/run", *page)
    assert report.code == 0
    assert "--device-folder copied" in report.out
    found = reconciled(tmp_path / "second" / "run", tmp_path / "copied")
    assert "12 releases are the server's" in found
    assert "12 are of other runs" in found
