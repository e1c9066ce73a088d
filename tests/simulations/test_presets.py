import re

import pytest

from fedprofile.common.config import ColumnMapping, StatisticsConfig
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.event_types import NEUTRAL, REJECTING
from fedprofile.simulations.presets import GENERIC, ONLINE_RETAIL, PRESETS, find_preset

RETAIL = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country"


def write(path, header):
    path.write_text(header + "\n" + ",".join("1" for _ in header.split(",")) + "\n")
    return path


@pytest.mark.parametrize(
    ("name", "header", "expected"),
    [
        ("sales.csv", RETAIL, "online-retail-ii"),
        ("ratings.csv", "userId,movieId,rating,timestamp", "movielens"),
        ("ratings.csv", "user_id,item_id,timestamp", "generic"),
        ("events.csv", "user_id,item_id,timestamp,event,value", "generic"),
        ("events.csv", "something,else", "generic"),
    ],
)
def test_auto_tells_the_layout_by_columns(tmp_path, name, header, expected):
    files = [write(tmp_path / name, header)]
    assert find_preset("auto", files, ColumnMapping()).name == expected


def test_auto_knows_ratings_without_a_header(tmp_path):
    path = tmp_path / "ratings.dat"
    path.write_text("1::2::5::978300760\n")
    assert find_preset("auto", [path], ColumnMapping()).name == "movielens"


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(ConfigError, match=r"no preset 'shopping'.*online-retail-ii.*health"):
        find_preset("shopping", [], ColumnMapping())


def test_missing_column_names_what_was_found_and_what_to_set():
    with pytest.raises(DataError) as raised:
        GENERIC.resolve(ColumnMapping(), ["user_id", "sku", "timestamp"], "log.csv")
    assert str(raised.value) == (
        "log.csv: no item column (looked for 'item_id'); set data.columns.item to one of: "
        "user_id, sku, timestamp"
    )


def test_mapping_goes_before_the_preset():
    found = ["user_id", "sku", "item_id", "timestamp", "value"]
    roles = GENERIC.resolve(ColumnMapping(item="sku", value=""), found, "log.csv")
    assert roles == {"user": "user_id", "item": "sku", "time": "timestamp"}


def test_a_mapped_column_must_be_there_unless_the_item_table_has_it():
    found = ["user_id", "item_id", "timestamp"]
    with pytest.raises(DataError, match=r"looked for 'title'.*data\.columns\.text"):
        GENERIC.resolve(ColumnMapping(text="title"), found, "log.csv")
    GENERIC.resolve(ColumnMapping(text="title"), found, "log.csv", has_item_table=True)


def test_item_table_needs_more_than_ids():
    with pytest.raises(DataError, match="one of text, category, price, tags"):
        GENERIC.resolve_items(ColumnMapping(), ["item_id", "colour"], "items.csv")


@pytest.mark.parametrize("code", ["85123", "85123A", "85123AB", "15056BL", "DCGS0058", "SP1002"])
def test_product_codes(code):
    assert re.search(ONLINE_RETAIL.product_code, code)


@pytest.mark.parametrize(
    "code",
    ["POST", "DOT", "M", "S", "C2", "ADJUST2", "AMAZONFEE", "PADS", "GIFT_0001_30", "TEST001"],
)
def test_codes_of_no_product(code):
    assert not re.search(ONLINE_RETAIL.product_code, code)


@pytest.mark.parametrize(
    "name", ["shop", "social", "video", "music", "search", "education", "health"]
)
def test_domains_know_interest_from_rejection(name):
    weights = PRESETS[name].event_weights
    assert min(weights.values()) < 0 < max(weights.values())
    assert PRESETS[name].columns == GENERIC.columns


def test_devices_know_what_turns_an_item_down_in_every_domain():
    """By public names, which say the same wherever they occur."""
    said = {(name, w) for preset in PRESETS.values() for name, w in preset.event_weights.items()}
    assert {name for name, weight in said if weight < 0} == REJECTING
    assert {name for name, weight in said if weight == 0} == NEUTRAL
    assert not {name for name, weight in said if weight > 0} & (REJECTING | NEUTRAL)


def test_goods_are_what_the_documentation_says():
    goods = sorted(name for name, preset in PRESETS.items() if preset.goods)
    described = StatisticsConfig.model_fields["cooccurrence"].description
    assert f"presets {' and '.join(goods)}" in described
    assert goods == ["online-retail-ii", "shop"]
