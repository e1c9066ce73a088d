"""Cells as typed values: ids, times, numbers and tags, whatever type the file gave them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from ..common.errors import DataError
from ..common.times import FIRST_DAY, ISO_8601, LAST_DAY, LAST_SECOND, epoch_unit
from .sources import LIST_SEPARATOR

MISSING = ("", "nan", "NaN", "null", "NULL", "None", "<NA>", "N/A", "#N/A")
"""What writers put into a cell that holds nothing."""

_CLOCK_SINCE_1970 = 1e8  # of 1973: a smaller number may be a day, or of a clock begun elsewhere


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
    seconds, milli-, micro- or nanoseconds, whose unit is told by the median of the column's epochs. A
    column may mix them: each cell is read by itself, so that one that is odd spoils no other.
    """
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        return column.cast(pl.Datetime("us")).dt.epoch("s")
    if column.dtype == pl.String:
        text = as_text(column)
        number = _finite(text.cast(pl.Float64, strict=False))
        if number.null_count() == text.null_count():  # numbers alone, as most large logs have
            return _from_number(number)
        iso = _from_iso(text.set(number.is_not_null(), None))
        seconds = _from_number(number, beside=iso.count())
        return pl.select(pl.coalesce(seconds, iso)).to_series()
    if column.dtype.is_numeric():
        return _from_number(_finite(column.cast(pl.Float64)))
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


def _finite(number: pl.Series) -> pl.Series:
    return number.set(~number.is_finite(), None)


def _from_number(number: pl.Series, *, beside: int = 0) -> pl.Series:
    """Days such as 20240531, and epochs.

    What a column mostly holds decides on numbers that could be either: among days, or among more
    times written as text (``beside`` of them), a small number is no epoch; among epochs of 1973 or
    later, one that reads as a day is one.
    """
    size = number.abs()
    typical = size.quantile(0.5, "lower")
    if typical is None:
        return number.cast(pl.Int64)
    among_days = FIRST_DAY <= typical <= LAST_DAY or beside > number.count()
    whole = (number == number.floor()) & number.is_between(FIRST_DAY, LAST_DAY)
    if not among_days and (typical < _CLOCK_SINCE_1970 or not whole.any()):
        return _from_epoch(number)
    day = _from_iso(number.set(~whole, None).cast(pl.Int64).cast(pl.String))
    epoch = number.set(day.is_not_null(), None)
    if among_days:
        epoch = epoch.set(size < _CLOCK_SINCE_1970, None)
    return pl.select(pl.coalesce(day, _from_epoch(epoch))).to_series()


def _from_epoch(number: pl.Series) -> pl.Series:
    typical = number.abs().quantile(0.5, "lower")
    if typical is None:
        return number.cast(pl.Int64)
    seconds = (number / epoch_unit(float(typical))).floor()
    return seconds.set(seconds.abs() > LAST_SECOND, None).cast(pl.Int64)


def _from_iso(text: pl.Series) -> pl.Series:
    parts = text.str.strip_chars().str.extract_groups(ISO_8601).struct.unnest()
    digits, clock = pl.col("digits"), pl.col("clock")
    written = pl.concat_str(
        digits.str.slice(0, 4), digits.str.slice(4, 2), digits.str.slice(6), separator="-"
    )
    day = pl.coalesce("date", written).str.to_date("%Y-%m-%d", strict=False)
    hour, minute, second, zone_hours, zone_minutes = (
        # What the clock doesn't say is 0, and so is an empty rest of it.
        part.replace("", None).cast(pl.Int64).fill_null(0)
        for part in (
            pl.coalesce("hour", clock.str.slice(0, 2)),
            pl.coalesce("minute", clock.str.slice(2, 2)),
            pl.coalesce("second", clock.str.slice(4)),
            pl.col("zone_hours"),
            pl.col("zone_minutes"),
        )
    )
    sign = pl.when(pl.col("sign") == "-").then(-60).otherwise(60)
    shift = (zone_hours * 60 + zone_minutes) * sign
    seconds = day.dt.epoch("s") + hour * 3_600 + minute * 60 + second - shift
    return parts.select(seconds.cast(pl.Int64)).to_series()
