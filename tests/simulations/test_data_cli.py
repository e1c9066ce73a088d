import json

import pytest
from typer.testing import CliRunner

from fedprofile.simulations.data_cli import app

runner = CliRunner()


@pytest.fixture
def log_path(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id,item_id,timestamp,event\n"
        "甲,x,1,view\n甲,y,2,buy\nb,x,1,view\nb,y,5000,refund\nb,y,1,buy\n,x,1,view\n",
        encoding="utf-8",
    )
    return path


def test_tables_account_for_the_rows(log_path):
    result = runner.invoke(app, ["describe", str(log_path), "--preset", "shop"])
    assert result.exit_code == 0
    assert "missing user" in result.stdout
    assert "of 6 read" in result.stdout


def test_json_is_the_last_line(log_path):
    result = runner.invoke(app, ["describe", str(log_path), "--preset", "shop", "--json"])
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["rows_read"] == 6 == report["rows_kept"] + report["rows_removed"]
    removed = {rule["name"]: rule["removed"] for rule in report["rules"] if rule["removed"]}
    assert removed == {"missing user": 1, "negative events": 1}
    assert report["preset"] == "shop"


def test_configuration_file_and_item_table(log_path, tmp_path):
    items = tmp_path / "items.csv"
    items.write_text("item_id,text\nx,Tea\ny,Cup\n")
    config = tmp_path / "run.toml"
    config.write_text("[data]\nevent_weights = { refund = 0 }\nminimum_user_events = 1\n")
    result = runner.invoke(
        app, ["describe", str(log_path), "--items", str(items), "--config", str(config)]
    )
    assert result.exit_code == 0
    assert "2 (text)" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.csv"], ["LOG", "--preset", "nonsense"], ["LOG", "--config", "nowhere.toml"]],
)
def test_errors_are_one_line_and_exit_code_2(log_path, arguments):
    arguments = [str(log_path) if a == "LOG" else a for a in arguments]
    result = runner.invoke(app, ["describe", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
