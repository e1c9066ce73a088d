"""What a server did, a JSON line each: no item ids, no names of devices, no figures from a device."""

from __future__ import annotations

import json
import logging
import logging.handlers
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_FIELDS = "fields"
_logger = logging.getLogger("fedprofile.journal")


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        values = {"time": time, "event": record.getMessage(), **getattr(record, _FIELDS, {})}
        return json.dumps(values, ensure_ascii=False)


class _Journal(logging.handlers.WatchedFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Go on without: a full disk is told by what can't do without it, and once."""


def keep_journal(path: Path) -> None:
    """Append to ``path`` from now on; a file that was rotated away is opened anew."""
    handler = _Journal(path, encoding="utf-8")
    handler.setFormatter(_Line())
    _logger.handlers[:] = [handler]
    _logger.propagate = False
    _logger.setLevel(logging.INFO)


def note(event: str, **fields: Any) -> None:
    """Write down that ``event`` happened."""
    _logger.info(event, extra={_FIELDS: fields})


class JournalReader:
    """What is noted from now on, by whichever process.

    Args:
        path: of the journal; it may come into being later.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0

    def news(self) -> list[dict[str, Any]]:
        """Whole lines since the last call; what a full disk cut short is left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            self._read = 0  # rotated away
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return [entry for line in whole.splitlines() if (entry := _entry(line)) is not None]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None
