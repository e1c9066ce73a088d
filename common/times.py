"""Times as people and databases write them, read alike on a device and in a simulation's files."""

from __future__ import annotations

import datetime as dt
import math
import re

ISO_8601 = (
    r"^(?:(?P<date>[1-9][0-9]{3}-[0-9]{1,2}-[0-9]{1,2})|(?P<digits>[1-9][0-9]{7}))"
    r"(?:(?:T|\s+)(?:"
    r"(?P<hour>[01]?[0-9]|2[0-3])(?::(?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9])(?:[.,][0-9]+)?)?)?"
    r"|(?P<clock>(?:[01][0-9]|2[0-3])[0-5][0-9](?:[0-5][0-9])?)"
    r")(?:\s?(?:Z|UTC|(?P<sign>[+-])(?P<zone_hours>0[0-9]|1[0-4])(?::?(?P<zone_minutes>[0-5][0-9]))?))?"
    r")?$"
)
"""A date, alone or with a time of day, UTC unless an offset (``+02``, ``+0200``, ``+02:00``) follows.

Digits may stand without separators (``20240531T170500``). It is plain enough to mean the same to
Python and to the engine that reads columns.
"""

FIRST_DAY, LAST_DAY = 19000101, 21001231
"""Numbers between these are days, such as 20240531, where nothing speaks against it."""

EPOCH_UNITS = (1, 1_000, 1_000_000, 1_000_000_000)
"""Parts of a second that epochs are counted in."""

BELOW = 1e11
"""Seconds stay below it until the year 5138; each finer unit is a thousand times larger."""

LAST_SECOND = 253_402_300_799
"""The end of the year 9999."""

_WRITTEN = re.compile(ISO_8601)


def read_time(text: str) -> int | None:
    """Seconds since 1970-01-01 UTC, rounded down; None where ``text`` holds no time.

    Takes ISO 8601, 20240531, and epochs in seconds, milli-, micro- or nanoseconds, told by their size.
    """
    number = _number(text)
    if number is None:
        return _read_iso(text)
    if FIRST_DAY <= abs(number) <= LAST_DAY:  # a day that isn't there is no second of 1970 either
        return _read_iso(str(int(number))) if number.is_integer() else None
    seconds = math.floor(number / epoch_unit(abs(number)))
    return seconds if abs(seconds) <= LAST_SECOND else None


def epoch_unit(size: float) -> int:
    """Parts of a second that an epoch of this absolute size counts."""
    return next((unit for unit in EPOCH_UNITS if size / unit < BELOW), EPOCH_UNITS[-1])


def _number(text: str) -> float | None:
    # float() takes more than a file may: 1_000, digits of other scripts, and inf.
    if "_" in text or not text.isascii():
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_iso(text: str) -> int | None:
    found = _WRITTEN.match(text.strip())
    if found is None:
        return None
    digits = found["digits"]
    parts = [digits[:4], digits[4:6], digits[6:]] if digits else found["date"].split("-")
    try:
        days = dt.date(*map(int, parts)).toordinal() - dt.date(1970, 1, 1).toordinal()
    except ValueError:  # no such day
        return None
    clock = found["clock"] or ""
    hour = int(found["hour"] or clock[:2] or 0)
    minute = int(found["minute"] or clock[2:4] or 0)
    second = int(found["second"] or clock[4:] or 0)
    zone = int(found["zone_hours"] or 0) * 60 + int(found["zone_minutes"] or 0)
    shift = zone * (-60 if found["sign"] == "-" else 60)
    return days * 86_400 + hour * 3_600 + minute * 60 + second - shift
