"""What a run that goes on must know of itself: its data, its figures on validation, and its best model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


class _Best(NamedTuple):
    round: int
    figure: float


@dataclass
class Progress:
    """Kept in a file of the run folder; as its metrics, for the researcher's eyes.

    With patience the weights of the best round lie beside it, in a file of that name that ends in
    ``.safetensors``, with the figure they were chosen by. That file is written first and says which
    round is best: whenever a run is killed, and whatever a round comes to that is measured again, it
    holds weights of a figure that no other has passed.

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
    _best: _Best | None = None

    @classmethod
    def open(
        cls, path: Path, log: InteractionLog, *, patience: int | None = None, begun: bool = False
    ) -> Progress:
        """What was kept, or the beginning.

        Args:
            path: of the file.
            log: the data.
            patience: see above.
            begun: whether rounds were made already, which validation may have chosen among.

        Raises:
            RunFolderError: the run is of other data, or what was kept is lost or can't be read.
        """
        progress = cls(path, _fingerprint(log), patience, {})
        if not path.exists():
            if begun and patience is not None:
                raise RunFolderError(
                    f"{path}: is missing, and with it which round was best on validation so far; put it "
                    "back, or start a new run"
                )
            progress._write()
            return progress
        try:
            kept = json.loads(path.read_bytes())
            data = kept["data"]
            for number, value in kept["validation"].items():
                progress.validation[int(number)] = None if value is None else float(value)
        except (*MALFORMED, OSError) as error:
            way_on = "remove it to go on without it"
            if patience is not None:
                way_on = "put it back, or start a new run"
            raise RunFolderError(f"{path}: can't be read ({error}); {way_on}") from error
        if data != progress.data:
            raise RunFolderError(
                f"{path.parent}: {log.quality.source} holds other data than the run began with; go on "
                "with the data it began with, or start a new run"
            )
        if patience is not None and (progress._weights.exists() or progress._top() is not None):
            best, _ = progress._load()
            progress._best = best
            # Where a kill came between the two files.
            progress.validation.setdefault(best.round, best.figure)
        return progress

    def add(self, round_number: int, quality: float | None, weights: Mapping[str, Tensor]) -> None:
        """Keep the figure of a round, and with patience the weights it was measured of, if they are
        the best so far."""
        passed = self._best is None or (known(quality) and quality > self._best.figure)
        if self.patience is not None and known(quality) and passed:
            tensors = {name: weight.contiguous() for name, weight in weights.items()}
            told = {"round": str(round_number), "figure": repr(quality)}
            write_atomically(self._weights, save(tensors, told))
            self._best = _Best(round_number, quality)
        self.validation[round_number] = quality
        self._write()

    @property
    def best(self) -> int | None:
        """The round that did best so far, the first of equals; None without patience, or figures."""
        return None if self._best is None else self._best.round

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
            RunFolderError: the file can't be read, or is of a round that wasn't best.
        """
        _, weights = self._load()
        return weights

    def _load(self) -> tuple[_Best, dict[str, Tensor]]:
        try:
            with safe_open(self._weights, framework="pt") as file:
                told, top = file.metadata(), self._top()
                best = _Best(int(told["round"]), float(told["figure"]))
                if top is not None and top.figure > best.figure:
                    raise ValueError(
                        f"it is of round {best.round}, and round {top.round} was better"
                    )
                return best, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (*MALFORMED, OSError, SafetensorError) as error:
            raise RunFolderError(
                f"{self._weights}: not the weights of the round that was best on validation ({error}); "
                "put the file back, or start a new run"
            ) from error

    def _top(self) -> _Best | None:
        """The best of the figures that were written down."""
        found = (_Best(number, v) for number, v in sorted(self.validation.items()) if known(v))
        return max(found, key=lambda best: best.figure, default=None)

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
