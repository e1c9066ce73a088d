"""Cells as typed values: ids, times, numbers and tags, whatever type the file gave them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ..common.errors import DataError
from .sources import LIST_SEPARATOR

MISSING = ("", "nan", "NaN", "null", "NULL", "None", "<NA>", "N/A", "#N/A")
"""What writers put into a cell that holds nothing."""

_LAST_SECOND = 253_402_300_799  # the end of the year 9999
_TIME_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y%m%d")


def as_text(column: pl.Series) -> pl.Series:
    """String, trimmed and in Unicode's composed form; null where the cell holds nothing.

    Where a column with gaps was kept as floats, its whole numbers lose their ``.0``, in text too.
    """
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        if (whole == column).fill_null(True).all():
            column = whole
    text = column.cast(pl.String).str.strip_chars().str.normalize("NFC")
    text = text.set(text.is_in(MISSING), None)
    if text.str.ends_with(".0").all() and text.str.contains(r"^\d+\.0$").all():
        text = text.str.strip_suffix(".0")
    return text


def as_number(column: pl.Series) -> pl.Series:
    """Float64; null where the cell holds nothing, NaN where it holds no number."""
    if column.dtype == pl.String:
        text = as_text(column)
        # An empty cell holds nothing, but a written NaN is a value gone wrong.
        broken = column.str.strip_chars().str.to_lowercase() == "nan"
        number = text.cast(pl.Float64, strict=False)
        return number.set(broken | (text.is_not_null() & number.is_null()), float("nan"))
    return column.cast(pl.Float64, strict=False)


def as_seconds(column: pl.Series) -> pl.Series:
    """Int64, seconds since 1970-01-01 UTC; null where the cell holds nothing or no time.

    Takes dates, datetimes (UTC unless they carry a zone), ISO 8601 text, 20240531, and epochs in
    seconds, milli-, micro- or nanoseconds, told by the median of the column.
    """
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.epoch("s")
    if column.dtype == pl.String:
        text = as_text(column)
        number = text.cast(pl.Float64, strict=False)
        if number.is_not_null().any():
            return _from_epoch(number)
        return _from_iso(text)
    if column.dtype.is_numeric():
        return _from_epoch(column.cast(pl.Float64))
    return pl.Series(column.name, [None] * len(column), dtype=pl.Int64)


def as_tags(column: pl.Series) -> pl.Series:
    """List[String]; split at the first of ``|``, ``;`` and ``,`` that the column uses."""
    text = as_text(column)
    separators = (LIST_SEPARATOR, "|", ";", ",")
    used = (s for s in separators if text.str.contains(s, literal=True).any())
    parts = text.str.split(next(used, "|")).list.eval(pl.element().str.strip_chars())
    return parts.list.eval(pl.element().filter(~pl.element().is_in(MISSING)))


def parse_description(rows: pl.DataFrame, roles: Mapping[str, str]) -> list[pl.Series]:
    """Columns text, category, price and tags, as far as ``roles`` (role → column) has them."""
    parsers = {"text": as_text, "category": as_text, "price": as_number, "tags": as_tags}
    columns = {role: parse(rows[roles[role]]) for role, parse in parsers.items() if role in roles}
    if "category" in roles and roles["category"] == roles.get("tags"):
        # Of a list of genres the first is the category: one-hot values need one.
        columns["category"] = columns["tags"].list.first()
    return [column.alias(role) for role, column in columns.items()]


def parse_times(column: pl.Series, rows: pl.Series, tables: pl.Series) -> pl.Series:
    """:func:`as_seconds`, with an error for cells that hold something else.

    Args:
        column: the cells.
        rows: row number of each cell in its table, from 1 below the header.
        tables: name of the table of each cell.

    Raises:
        DataError: names the column, the number of such cells and the first of them.
    """
    seconds = as_seconds(column)
    written = as_text(column) if column.dtype == pl.String else column
    if column.dtype.is_float():
        written = written.set(column.is_nan(), None)
    wrong = (written.is_not_null() & seconds.is_null()).arg_true()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{tables[first]}: column '{column.name}' has {len(wrong)} unreadable times, first "
            f"{column[first]!r} in row {rows[first]}; write ISO 8601 (2024-05-31 17:05:00) or "
            "epoch seconds"
        )
    return seconds


def _from_epoch(number: pl.Series) -> pl.Series:
    number = number.set(~number.is_finite(), None)
    typical = number.abs().quantile(0.5, "lower")
    if typical is None:
        return number.cast(pl.Int64)
    if 19000101 <= typical <= 21001231:  # 20240531, no epoch of 1970
        return _from_iso(number.cast(pl.Int64).cast(pl.String))
    # Seconds stay below 1e11 until the year 5138; each finer unit is a thousand times larger.
    scale = next((s for s in (1, 1e3, 1e6) if typical / s < 1e11), 1e9)
    seconds = (number / scale).floor()
    return seconds.set(seconds.abs() > _LAST_SECOND, None).cast(pl.Int64)


def _from_iso(text: pl.Series) -> pl.Series:
    plain = text.str.replace("T", " ", literal=True).str.replace(r"\s?UTC$|Z$", "+00:00")
    # An offset such as +02:00 is taken off the local time that it follows.
    offset = plain.str.extract_groups(r":\d\d(?:\.\d+)?\s?([+-])(\d\d):?(\d\d)$").struct.unnest()
    minutes = offset["2"].cast(pl.Int64) * 60 + offset["3"].cast(pl.Int64)
    shift = minutes * 60 * pl.select(sign=pl.when(offset["1"] == "-").then(-1).otherwise(1))["sign"]
    local = plain.str.replace(r"(:\d\d(?:\.\d+)?)\s?[+-]\d\d:?\d\d$", "$1")
    times = pl.select(
        pl.coalesce(local.str.to_datetime(f, strict=False, time_unit="us") for f in _TIME_FORMATS)
    ).to_series()
    return times.dt.epoch("s") - shift.fill_null(0)
