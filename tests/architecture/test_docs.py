"""Documents name what there is, and link to what is there."""

import re
import tomllib
from pathlib import Path

import pytest
import typer

from fedprofile.audit.report_cli import app as report_app
from fedprofile.client import edge_v1_pb2
from fedprofile.client.device_config import DeviceConfig
from fedprofile.common import cli
from fedprofile.common.config import DataConfig, RunConfig
from fedprofile.common.errors import REFUSALS
from fedprofile.simulations.cli import app
from fedprofile.simulations.loading import load_log
from fedprofile.simulations.presets import PRESETS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def read(*names):
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, part = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{path.name} → {target}"
        if part:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert part in map(anchor, headings), f"{path.name} → {target}"


def test_every_option_is_documented():
    text = read("docs/simulate.md")
    for parameter in typer.main.get_command(app).params:
        for option in parameter.opts:
            if option.startswith("--") and "completion" not in option:
                assert f"`{option}" in text, option


def test_every_option_of_the_audit_report_is_documented():
    text = read("docs/audit.md")
    for parameter in typer.main.get_command(report_app).params:
        for option in parameter.opts:
            if option.startswith("--") and "completion" not in option:
                assert f"`{option}" in text, option


def test_every_command_of_a_device_is_documented():
    text = read("docs/device.md")
    for name in cli.device.list_commands(None):
        assert re.search(rf"device {name}\b", text) or f"`{name}`" in text, name
    for call in edge_v1_pb2.DESCRIPTOR.services_by_name["ProfileService"].methods_by_name:
        assert f"`{call}`" in text, call


def test_every_preset_and_event_type_is_documented():
    rows = {
        line.split("`")[1]: line for line in read("docs/data.md").splitlines() if "| `" in line[:3]
    }
    for name, preset in PRESETS.items():
        assert name in rows
        weights = {
            event: float(weight.replace("−", "-"))
            for weight, events in re.findall(r"([−\d]+): ([\w, ]+)", rows[name])
            for event in events.strip().split(", ")
        }
        assert weights == preset.event_weights


def test_every_rule_is_documented(tmp_path):
    text = read("docs/data.md")
    retail = tmp_path / "retail.csv"
    retail.write_text(
        "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
        + "".join(
            f"{u}{i},1000{i},Cup,1,2010-01-0{i} 10:00,1.5,{u},UK\n" for u in "12" for i in (1, 2)
        )
    )
    events = tmp_path / "events.csv"
    events.write_text(
        "user_id,item_id,timestamp,event\na,x,1,view\na,y,2,buy\nb,x,1,view\nb,y,9,buy\n"
    )
    logs = [
        load_log(DataConfig(path=str(retail))),
        load_log(DataConfig(path=str(events), preset="shop")),
    ]
    rules = {rule.name for log in logs for rule in log.quality.rules}
    assert len(rules) >= 15
    for rule in rules:
        assert rule in text


def test_every_example_of_configuration_is_valid():
    for path in DOCUMENTS:
        for block in re.findall(r"```toml\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            of_device = path.name.startswith("device") or "device.toml" in block
            kind = DeviceConfig if of_device else RunConfig
            kind.model_validate(tomllib.loads(block))


def test_the_example_of_the_readme_is_a_log(tmp_path):
    log, items = re.findall(r"```csv\n(.*?)```", read("README.md"), re.DOTALL)
    (tmp_path / "log.csv").write_text(log, encoding="utf-8")
    (tmp_path / "items.csv").write_text(items, encoding="utf-8")
    found = load_log(
        DataConfig(path=str(tmp_path / "log.csv"), items=str(tmp_path / "items.csv"), preset="shop")
    )
    assert found.quality.rows_removed == 0
    assert found.user_ids == ("anna", "佐藤")
    assert found.catalogue["text"].null_count() == 0


def test_every_refusal_is_documented():
    text = read("docs/deploy.md")
    for word in REFUSALS:
        assert f"`{word}`" in text, word


def test_nothing_is_left_to_be_filled_in():
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        left = re.findall(
            r"^(?:[A-Z]{4,}|.*\b(?:TODO|TBD|FIXME)\b.*)$", path.read_text("utf-8"), re.M
        )
        assert not left, path
