"""What a run that goes on must know of itself: its data, its figures on validation, and its best model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..common.errors import MALFORMED, RunFolderError
from ..common.files import write_atomically
from ..common.formatting import known
from .dataset import InteractionLog

_POINTS = 10


def measured_rounds(rounds: int) -> set[int]:
    """Those after which a run is measured: ten, evenly spread, the last among them; all where there are
    no more."""
    return {-(-rounds * point // _POINTS) for point in range(1, _POINTS + 1)} - {0}


@dataclass(frozen=True)
class Progress:
    """Kept in a file of the run folder; as its metrics, for the researcher's eyes.

    With patience the weights of the best round lie beside it, in a file of that name that ends in
    ``.safetensors``. They are written before the figure: a run that is killed in between measures the
    round again.

    Attributes:
        path: of the file.
        data: fingerprint of the log.
        patience: measurements without a better one after which training stops; None: the result isn't
            chosen by validation.
        validation: round → mean NDCG@k on validation.
    """

    path: Path
    data: str
    patience: int | None
    validation: dict[int, float | None]

    @classmethod
    def open(cls, path: Path, log: InteractionLog, *, patience: int | None = None) -> Progress:
        """What was kept, or the beginning.

        Raises:
            RunFolderError: the run is of other data, or the file can't be read.
        """
        progress = cls(path, _fingerprint(log), patience, {})
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

    def add(self, round_number: int, quality: float | None, weights: Mapping[str, Tensor]) -> None:
        """Keep the figure of a round, and with patience the weights it was measured of, if they are
        the best so far."""
        self.validation[round_number] = quality
        if self.best == round_number:
            tensors = {name: weight.contiguous() for name, weight in weights.items()}
            write_atomically(self._weights, save(tensors, {"round": str(round_number)}))
        self._write()

    @property
    def best(self) -> int | None:
        """The round that did best so far, the first of equals; None without patience, or figures."""
        found = {r: value for r, value in sorted(self.validation.items()) if known(value)}
        return None if self.patience is None else max(found, key=found.__getitem__, default=None)

    def enough(self) -> str | None:
        """Why no further round is worth making, None where one may be."""
        best = self.best
        if best is None or self.patience is None:
            return None
        since = sum(number > best for number in self.validation)
        if since < self.patience:
            return None
        return f"validation was best at round {best}, {since} measurement{'s' if since > 1 else ''} ago"

    def weights(self) -> dict[str, Tensor]:
        """Those of the best round.

        Raises:
            RunFolderError: the file can't be read, or is of another round.
        """
        try:
            with safe_open(self._weights, framework="pt") as file:
                number = int(file.metadata()["round"])
                if number != self.best:
                    raise ValueError(f"it is of round {number}")
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (*MALFORMED, OSError, SafetensorError) as error:
            raise RunFolderError(
                f"{self._weights}: not the weights of round {self.best}, which was best on validation "
                f"({error}); put the file back, or start a new run"
            ) from error

    @property
    def _weights(self) -> Path:
        return self.path.with_suffix(".safetensors")

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
