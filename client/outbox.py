"""Replies, on disk before they are sent, so that a crash sends the same one again and never a new one.

A second draw of noise for the same release would be a second release, paid once. So what was made for a
release is kept under its name: after a crash it goes out as it was made, and to an instruction that comes
again before it was sent, the answer is the old one. Once the server has it, nothing of its content stays.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import astuple
from pathlib import Path

from flwr.app import Message

from ..common.errors import MessageError, TaskRefused
from ..common.files import sync_folder, write_atomically
from ..common.messages import Binding, refusal
from .fleet import decode, encode

_log = logging.getLogger(__name__)
_KEPT = 8  # replies that were sent


def name_of(binding: Binding) -> str:
    """Names what answers a release: run, round, release and hashes decide."""
    return hashlib.sha256(repr(astuple(binding)).encode()).hexdigest()[:32]


class Outbox:
    """Replies in a folder: ``NAME.reply`` waits to be sent, ``NAME.sent`` was: a refusal, or empty.

    Args:
        folder: its own, on the disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def store(self, name: str, reply: Message) -> None:
        """Keep ``reply``, durably, under the name of what it answers.

        Raises:
            OSError: the disk is full; nothing may be sent then.
        """
        write_atomically(self._path(name), encode(reply), mode=0o600)

    def answer(self, name: str, instruction: Message) -> Message | None:
        """What was made under ``name`` before, as a reply to ``instruction``; ``stale`` if it was sent."""
        waiting = self._path(name)
        sent = waiting.with_suffix(".sent")
        for path in (waiting, sent):
            if path == sent and sent.exists() and not sent.stat().st_size:
                return refusal(instruction, TaskRefused("stale", "answered before"))
            if (made := self._read(path)) is not None:
                if made.has_error():
                    return Message(made.error, reply_to=instruction)
                return Message(made.content, reply_to=instruction)
        return None

    def waiting(self) -> list[tuple[Path, Message]]:
        """Replies that weren't handed over yet, oldest first."""
        paths = sorted(self._folder.glob("*.reply"), key=lambda path: path.stat().st_mtime_ns)
        return [(path, reply) for path in paths if (reply := self._read(path)) is not None]

    def sent(self, path: Path) -> None:
        """Note that the server has the reply, or wants it no more: what was made of events is deleted."""
        made, sent = self._read(path), path.with_suffix(".sent")
        if made is not None and made.has_error():
            path.replace(sent)
        else:
            sent.touch(mode=0o600)
            path.unlink(missing_ok=True)
        sync_folder(self._folder)
        kept = sorted(self._folder.glob("*.sent"), key=lambda path: path.stat().st_mtime_ns)
        for old in kept[:-_KEPT]:
            old.unlink()

    def withdraw(self, path: Path) -> None:
        """Never send it."""
        path.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.reply"

    def _read(self, path: Path) -> Message | None:
        try:
            return decode(path.read_bytes())
        except FileNotFoundError:  # also where it was withdrawn just now
            return None
        except MessageError as error:
            _log.error("%s: %s; set aside", path.name, error)
            path.replace(path.with_suffix(".damaged"))
            return None
