"""What a run that goes on must know of itself: which data it is of, and how it did on validation so far."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import MALFORMED, RunFolderError
from ..common.files import write_atomically
from .dataset import InteractionLog


@dataclass(frozen=True)
class Progress:
    """Kept in a file of the run folder; as its metrics, for the researcher's eyes.

    Attributes:
        path: of the file.
        data: fingerprint of the log.
        validation: round → mean NDCG@k on validation.
    """

    path: Path
    data: str
    validation: dict[int, float | None]

    @classmethod
    def open(cls, path: Path, log: InteractionLog) -> Progress:
        """What was kept, or the beginning.

        Raises:
            RunFolderError: the run is of other data, or the file can't be read.
        """
        progress = cls(path, _fingerprint(log), {})
        if not path.exists():
            progress._write()
            return progress
        try:
            kept = json.loads(path.read_bytes())
            data = kept["data"]
            progress.validation.update({int(r): value for r, value in kept["validation"].items()})
        except (*MALFORMED, OSError) as error:
            raise RunFolderError(
                f"{path}: can't be read ({error}); remove it to go on without it"
            ) from error
        if data != progress.data:
            raise RunFolderError(
                f"{path.parent}: {log.quality.source} holds other data than the run began with; go on "
                "with the data it began with, or start a new run"
            )
        return progress

    def add(self, round_number: int, quality: float | None) -> None:
        """Keep a figure."""
        self.validation[round_number] = quality
        self._write()

    def _write(self) -> None:
        content = {"data": self.data, "validation": self.validation}
        write_atomically(self.path, json.dumps(content).encode())


def _fingerprint(log: InteractionLog) -> str:
    """SHA-256 of who did what when; of weights, machines disagree in the last digit."""
    digest = hashlib.sha256()
    for ids in (log.user_ids, log.item_ids, log.event_types):
        digest.update(json.dumps(ids).encode())
    for column in ("offsets", "items", "times", "types"):
        digest.update(getattr(log.histories, column).tobytes())
    return digest.hexdigest()
