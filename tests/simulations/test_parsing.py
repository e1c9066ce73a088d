import datetime as dt

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.errors import DataError
from fedprofile.common.times import read_time
from fedprofile.simulations.parsing import as_number, as_seconds, as_tags, as_text, parse_times

NOON = 1_717_156_800  # 2024-05-31 12:00 UTC


@pytest.mark.parametrize(
    "cell",
    [
        "2024-05-31 12:00:00",
        "2024-05-31T12:00:00",
        "2024-05-31T12:00:00Z",
        "2024-05-31 12:00",
        "2024-05-31T14:00:00+02:00",
        "2024-05-31T06:30:00.000-0530",
        "1717156800",
        NOON,
        NOON * 1_000,
        NOON * 1_000_000,
        NOON * 1_000_000_000,
        float(NOON),
        dt.datetime(2024, 5, 31, 12),
        dt.datetime(2024, 5, 31, 12, tzinfo=dt.UTC),
    ],
)
def test_times_of_any_kind(cell):
    assert as_seconds(pl.Series("t", [cell])).to_list() == [NOON]


@pytest.mark.parametrize("cell", ["2024-05-31", dt.date(2024, 5, 31), "20240531", 20240531])
def test_dates_are_midnight(cell):
    assert as_seconds(pl.Series("t", [cell])).to_list() == [NOON - 12 * 3600]


@pytest.mark.parametrize("cell", ["31/05/2024", "yesterday", "2024-13-01", "1e300"])
def test_unreadable_time_names_column_count_and_row(cell):
    column = pl.Series("when", [str(NOON), cell] if "e" in cell else ["2024-05-31", cell])
    with pytest.raises(DataError, match=r"log\.csv: column 'when' has 1 unreadable times.*row 7"):
        parse_times(column, pl.Series([1, 7]), pl.Series(["log.csv", "log.csv"]))


ISO = ["2024-05-31T14:00:00+02:00", "2024-05-31 14:00:00+02", "2024-05-31 12:00"]


@pytest.mark.parametrize(
    ("good", "odd"),
    [
        (ISO, "inf"),
        (ISO, "0"),
        (ISO, "2024"),
        (ISO, "yesterday"),
        ([str(NOON)] * 3, "inf"),
        ([str(NOON)] * 3, str(NOON * 1_000)),
        ([str(NOON)] * 3, "31/05/2024"),
        (["5"] * 3, "soon"),
        (["20240531"] * 3, "20240532"),
        (["20240531"] * 3, "99999999"),
        (["20240531"] * 3, "0"),
    ],
)
def test_an_odd_time_is_blamed_alone_and_with_its_row(good, odd):
    column = pl.Series("t", [*good, odd])
    assert as_seconds(column).is_null().to_list() == [False, False, False, True]
    with pytest.raises(DataError, match=rf"has 1 unreadable times, first '{odd}' in row 4"):
        parse_times(column, pl.Series([1, 2, 3, 4]), pl.Series(["log.csv"] * 4))


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        ([*ISO, str(NOON)], [NOON] * 4),
        ([*ISO, str(NOON * 1_000)], [NOON] * 4),
        ([*ISO, "20240531"], [NOON] * 3 + [NOON - 43_200]),
        ([*ISO, "20240531", str(NOON)], [NOON] * 3 + [NOON - 43_200, NOON]),
        ([str(NOON), str(NOON), "2024-05-31T14+02"], [NOON] * 3),
        ([NOON, NOON, 20240531], [NOON, NOON, NOON - 43_200]),
        (["20240531", "20240531", str(NOON)], [NOON - 43_200] * 2 + [NOON]),
        ([1, 5, 20240531], [1, 5, 20240531]),  # a clock that begins at 0
    ],
)
def test_a_column_may_mix_formats(cells, seconds):
    assert as_seconds(pl.Series("t", cells)).to_list() == seconds


_PIECES = [*"0123456789:-+.,TZ "]
_PIECES += ["2024-05-31", "2024-2-29", "20240531", "20241399", "0000"]
_PIECES += ["12:00", ":30", "1205", "+02", "UTC"]


@given(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=6).map("".join))
def test_a_device_and_a_file_accept_the_same_times(text):
    alone = as_seconds(pl.Series("t", [text], dtype=pl.String))[0]
    assert alone == read_time(text)


def test_infinite_time_is_unreadable_and_nan_is_missing():
    rows, tables = pl.Series([1, 2]), pl.Series(["t", "t"])
    with pytest.raises(DataError, match="unreadable"):
        parse_times(pl.Series("t", [1.0, float("inf")]), rows, tables)
    assert parse_times(pl.Series("t", [1.0, float("nan")]), rows, tables).to_list() == [1, None]


def test_ids_lose_what_a_float_column_added():
    assert as_text(pl.Series([13085.0, None, float("nan")])).to_list() == ["13085", None, None]
    assert as_text(pl.Series(["13085.0", "", "2.0"])).to_list() == ["13085", None, "2"]
    assert as_text(pl.Series(["1.0", "1.5"])).to_list() == ["1.0", "1.5"]
    assert as_text(pl.Series([" 00123 ", "nan", "", "客户,甲"])).to_list() == [
        "00123",
        None,
        None,
        "客户,甲",
    ]


def test_composed_and_decomposed_letters_are_one_id():
    assert as_text(pl.Series(["e\u0301"]))[0] == "\u00e9"


def test_numbers():
    found = as_number(pl.Series(["2.5", "", None, "NaN", "many", "inf"])).to_list()
    assert found[:3] == [2.5, None, None]
    assert [value != value for value in found[3:5]] == [True, True]
    assert found[5] == float("inf")


@pytest.mark.parametrize("cell", ["red|cotton", "red;cotton", "red, cotton", "red||cotton|"])
def test_tags_are_split_at_what_separates_them(cell):
    assert as_tags(pl.Series([cell, None])).to_list() == [["red", "cotton"], None]
