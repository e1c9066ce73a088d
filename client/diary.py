"""What a node must remember of the rounds it took part in, across crashes: how many, and how far."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from ..common.errors import TaskRefused
from ..common.files import write_atomically


@dataclass(frozen=True)
class Diary:
    """Rounds taken part in.

    Attributes:
        day: UTC date that ``rounds`` counts for.
        rounds: begun on that day.
        releases: signing key of a server → the last of its releases that was answered or begun.
        node: Flower's id of this node, as the server gave it last; 0: none.
        broken: times that a server broke off a reply; the reply was offered again.
    """

    day: str = ""
    rounds: NonNegativeInt = 0
    releases: dict[str, int] | None = None
    node: NonNegativeInt = 0
    broken: NonNegativeInt = 0

    @classmethod
    def read(cls, path: Path) -> Diary:
        """The diary in ``path``; an empty one where there is none or it was damaged."""
        try:
            return _DIARY.validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return cls()

    def write(self, path: Path) -> None:
        """Keep it, durably."""
        write_atomically(path, json.dumps(asdict(self)).encode(), mode=0o600)

    def begun(self, server: str, release: int, *, today: dt.date, rounds_per_day: int) -> Diary:
        """This diary with one more round begun.

        Raises:
            TaskRefused: ``stale``: a release as new was begun before; ``quota``: enough for today.
        """
        known = self.releases or {}
        if release <= known.get(server, -1):
            raise TaskRefused("stale", f"release {release} isn't new")
        done = self.rounds if self.day == today.isoformat() else 0
        if done >= rounds_per_day:
            raise TaskRefused("quota", f"{done} rounds today")
        return replace(
            self, day=today.isoformat(), rounds=done + 1, releases={**known, server: release}
        )

    def broken_off(self) -> Diary:
        """This diary with one more reply that a server broke off."""
        return replace(self, broken=self.broken + 1)


_DIARY = TypeAdapter(Diary)
