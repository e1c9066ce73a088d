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


def test_columns_that_nothing_is_read_from_are_named(tmp_path):
    path, items = tmp_path / "log.csv", tmp_path / "items.csv"
    path.write_text(
        "user_id,item_id,timestamp,[region],quantity\na,x,1,n,2\na,y,2,s,1\nb,x,1,n,4\nb,y,9,n,1\n"
    )
    items.write_text("item_id,text,maker\nx,Tea,甲\ny,Cup,b\n", encoding="utf-8")
    arguments = ["describe", str(path), "--items", str(items)]
    shown = " ".join(runner.invoke(app, arguments).stdout.replace("│", " ").split())
    assert "unused columns [region], quantity (interactions); maker (items)" in shown
    assert "data.columns" in shown
    report = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout)
    assert report["unused_columns"] == {
        "interactions": ["[region]", "quantity"],
        "items": ["maker"],
    }
    config = tmp_path / "run.toml"
    config.write_text("[data]\ngroup_column = '[region]'\n[data.columns]\nvalue = 'quantity'\n")
    used = runner.invoke(app, ["describe", str(path), "--config", str(config), "--json"])
    assert json.loads(used.stdout)["unused_columns"] == {}


def test_a_weight_of_no_type_in_the_data_is_remarked_on(log_path, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text("[data]\npreset = 'shop'\nevent_weights = { Buyy = 3.0, Refund = -1.0 }\n")
    result = runner.invoke(app, ["describe", str(log_path), "--config", str(config), "--json"])
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    # Refunds are there, though all of them are removed.
    assert "is of type 'buyy'; event types there: buy, refund, view" in line
    config.write_text("[data]\nevent_weights = { Buy = 3.0 }\n")
    result = runner.invoke(app, ["describe", str(log_path), "--config", str(config)])
    assert result.stderr == ""


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
