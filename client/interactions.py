"""Interactions as an owner or an application hands them over: checked one by one, or read from a file."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import DataError
from ..common.formatting import printable
from ..common.times import read_time
from .device_config import event_name

LONGEST_TEXT = 256
"""Characters of an id or a name."""
_AHEAD = 86_400  # seconds that an event may lie in the future: clocks differ
_FIELDS = {  # field → accepted names, as in the generic layout of a simulation
    "item": ("item_id", "item"),
    "time": ("timestamp", "time"),
    "event": ("event",),
    "value": ("value",),
    "session": ("session_id", "session"),
    "id": ("event_id", "id"),
}
_OWNER = ("user_id", "user")
"""Columns that say whose row it is. A device has one owner, so nothing else is read from them."""
_MISSING = ("", "nan", "NaN", "null", "NULL", "None", "<NA>", "N/A", "#N/A")


@dataclass(frozen=True)
class Interaction:
    """One thing the owner did.

    Attributes:
        id: names this interaction; one that comes again isn't recorded twice.
        item: id of the item.
        time: seconds since 1970-01-01 UTC.
        event: type of the event; "" where nothing says it.
        value: quantity, rating or duration, > 0; None where there is none.
        session: name of the basket or visit; None where nothing says it.
    """

    id: str
    item: str
    time: int
    event: str = ""
    value: float | None = None
    session: str | None = None


def check_interaction(raw: Interaction, *, now: int, where: str) -> Interaction:
    """``raw`` with its texts trimmed and composed (NFC), if it is one that can be stored.

    Args:
        raw: as it was handed over.
        now: seconds since 1970-01-01 UTC; the future can't be recorded.
        where: what a message begins with.

    Raises:
        DataError: an id is missing or too long, the time lies outside 1970 … tomorrow, or the
            value isn't positive and finite.
    """
    texts = {
        "id": check_text(raw.id, "id", where),
        "item": check_text(raw.item, "item", where),
        "event": event_name(check_text(raw.event, "event", where)),
        "session": None
        if raw.session is None
        else check_text(raw.session, "session", where) or None,
    }
    if not texts["item"] or not texts["id"]:
        raise DataError(f"{where}: no {'id' if texts['item'] else 'item'}; every event needs one")
    if not 0 <= raw.time <= now + _AHEAD:
        raise DataError(
            f"{where}: time {raw.time} is not between 1970 and tomorrow; give seconds since "
            "1970-01-01 UTC, and check the clock"
        )
    if raw.value is not None and not (math.isfinite(raw.value) and raw.value > 0):
        raise DataError(f"{where}: value {raw.value} must be positive and finite, or left out")
    return Interaction(time=int(raw.time), value=raw.value, **texts)  # type: ignore[arg-type]


def composed(text: str) -> str:
    """``text`` as it is stored and compared: trimmed, in Unicode's composed form."""
    return unicodedata.normalize("NFC", text).strip()


def check_text(value: str, name: str, where: str) -> str:
    """``value`` composed, if it can be stored.

    Args:
        value: an id or the like; may be empty.
        name: what it is.
        where: what a message begins with.

    Raises:
        DataError: it is too long, or isn't text.
    """
    text = composed(value)
    if len(text) > LONGEST_TEXT:
        raise DataError(f"{where}: {name} of {len(text)} characters; at most {LONGEST_TEXT}")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{where}: {name} {text!r} holds characters that are no text")
    return text


def parse_time(text: str, where: str) -> int:
    """Seconds since 1970-01-01 UTC of whatever :func:`read_time` takes.

    Raises:
        DataError: it holds no time.
    """
    seconds = read_time(text)
    if seconds is None:
        raise DataError(
            f"{where}: no time in {text!r}; write ISO 8601 (2024-05-31 17:05:00) or epoch seconds"
        )
    return seconds


def read_interactions(path: Path, *, now: int) -> list[Interaction]:
    """All interactions of a CSV file with a header, or of JSON lines.

    Without a column of ids an interaction is named by what it says and how often the file said so
    before: the same file read again names the same interactions.

    Raises:
        DataError: the file can't be read, is of several users, or a line of it can't be used; nothing is
            returned then.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_json_rows(file, path) if _is_json(path) else _csv_rows(file, path))
    except OSError as error:
        raise DataError(f"{path}: can't read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); convert it") from error
    _check_owner([row for _, row in rows], path)
    seen: Counter[str] = Counter()
    return [
        check_interaction(_interaction(row, where, seen), now=now, where=where)
        for where, row in rows
    ]


def _check_owner(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Refuse a log of several people: one of them would get everybody's interests."""
    for column in _OWNER:
        named = dict.fromkeys(composed(row[column]) for row in rows if column in row)
        users = [user for user in named if user not in _MISSING]
        if len(users) > 1:
            first, second = (printable(user, 40) for user in users[:2])
            raise DataError(
                f"{path}: column {column!r} names {len(users):,} users ({first}, {second}"
                f"{', …' * (len(users) > 2)}), and a device has one owner: keep the rows of one user "
                "in the file, and import that"
            )


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".ndjson", ".json")


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.reader(file, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for role in ("item", "time"):
            if not set(_FIELDS[role]) & set(header):
                raise DataError(
                    f"{path}: no column {_FIELDS[role][0]!r}; found: {', '.join(header) or 'none'}"
                )
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} cells under {len(header)} headings")
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: no CSV ({error})") from error


def _json_rows(file: Iterable[str], path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(file, start=1):
        where = f"{path}: line {number}"
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: no JSON ({error})") from error
        if not isinstance(content, dict):
            raise DataError(f"{where}: not an object; write one interaction a line")
        yield where, {key: _cell(value, key, where) for key, value in content.items()}


def _cell(value: Any, key: str, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}: {key!r} must be text or a number")
    return str(value)


def _interaction(row: Mapping[str, str], where: str, seen: Counter[str]) -> Interaction:
    cells = {}
    for role, names in _FIELDS.items():
        written = next((row[name].strip() for name in names if name in row), "")
        cells[role] = "" if written in _MISSING else written
    if not cells["time"]:
        raise DataError(f"{where}: no time; every event needs one")
    value = None
    if cells["value"]:
        try:
            value = float(cells["value"])
        except ValueError:
            raise DataError(f"{where}: value {cells['value']!r} is no number") from None
    said = json.dumps(cells, sort_keys=True)
    seen[said] += 1
    return Interaction(
        id=cells["id"] or hashlib.sha256(f"{seen[said]} {said}".encode()).hexdigest()[:32],
        item=cells["item"],
        time=parse_time(cells["time"], where),
        event=cells["event"],
        value=value,
        session=cells["session"] or None,
    )
