"""The folder of a run: everything that explains it, and nothing overwritten."""

from __future__ import annotations

import datetime as dt
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from ..common.config import RunConfig, load_config
from ..common.errors import RunFolderError
from ..common.files import write_atomically
from .sweep_axes import SWEEP


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The complete configuration."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """All figures, for machines."""
        return self.path / "metrics.json"

    @property
    def ledger(self) -> Path:
        """What was released, and what it cost."""
        return self.path / "ledger.jsonl"

    @property
    def signing_key(self) -> Path:
        """The key that signs the ledger, where the configuration names no other."""
        return self.path / "signing_key.pem"

    @property
    def anchor(self) -> Path:
        """The head of the ledger, where the configuration names no other place."""
        return self.path / "anchor.json"

    @property
    def devices(self) -> Path:
        """Ledgers of devices, where the configuration names no other place."""
        return self.path / "devices"

    @property
    def model(self) -> Path:
        """The released weights."""
        return self.path / "model.safetensors"

    @property
    def items(self) -> Path:
        """The item table to rank with."""
        return self.path / "items.safetensors"

    @property
    def checkpoints(self) -> Path:
        """State after the last rounds."""
        return self.path / "checkpoints"

    @property
    def progress(self) -> Path:
        """What a run that goes on must know of itself."""
        return self.path / "progress.json"

    @property
    def report(self) -> Path:
        """The page that explains the run."""
        return self.path / "report.html"

    @classmethod
    def new(cls, path: Path) -> RunFolder:
        """A folder for a new run; nothing is written yet.

        Raises:
            RunFolderError: it exists and isn't empty, or can't be made.
        """
        check_writable(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunFolderError(f"{path}: {_way_on(path)}")
        return cls(path)

    @classmethod
    def stamped(cls, name: str) -> RunFolder:
        """A new folder in ``runs``, named by what it is of and the time; the same second counts on.

        Raises:
            RunFolderError: it can't be made.
        """
        stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%d-%H%M%S")
        first = Path("runs") / f"{name}-{stamp}"
        others = (first.with_name(f"{first.name}-{number}") for number in count(2))
        return cls.new(next(path for path in chain([first], others) if not path.exists()))

    def create(self, config: RunConfig) -> None:
        """Make the folder, with its configuration.

        Raises:
            RunFolderError: it has been taken meanwhile, or can't be made.
        """
        RunFolder.new(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config, config.placed().to_toml().encode())
        except OSError as error:
            raise RunFolderError(
                f"{self.path}: can't write a run folder ({error.strerror}); choose another --out"
            ) from error

    @classmethod
    def reopen(cls, path: Path, config: RunConfig) -> RunFolder:
        """The folder of a run that goes on.

        Raises:
            RunFolderError: there is no run, or it has another configuration.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise RunFolderError(
                f"{path}: no run to resume here (config.toml is missing); leave --resume out to "
                "start one"
            )
        check_writable(path)
        check_same(path, load_config(folder.config), config)
        return folder

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``; NaN and infinity must have become None before."""
        text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False)
        # A command line may hold bytes that are no text; \udcff is an escape in JSON too.
        write_atomically(self.metrics, text.encode("utf-8", "backslashreplace"))

    def write_model(self, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write the released weights with what a reader needs to load them."""
        tensors = {name: weight.contiguous() for name, weight in weights.items()}
        write_atomically(self.model, save(tensors, dict(metadata)))


def check_same(path: Path, recorded: RunConfig, config: RunConfig) -> None:
    """Refuse to go on in ``path`` with what would give another result.

    Raises:
        RunFolderError: names what differs.
    """
    if recorded.digest() != config.digest():
        names = ", ".join(_differences(recorded.deciding(), config.deciding()))
        raise RunFolderError(
            f"{path}: was run with another configuration ({names} differ); resume without those "
            "options, or choose another --out"
        )


def check_writable(path: Path) -> None:
    """Refuse a path that nothing could be written to, before hours of work depend on it.

    Raises:
        RunFolderError: its name is no text, or the folder it would lie in can't be written to.
    """
    try:
        str(path).encode()
        folder = path
        while not folder.is_dir() and (folder == path or not folder.exists()):
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except UnicodeEncodeError as error:
        raise RunFolderError(f"{str(path)!r}: not a UTF-8 name; choose another") from error
    except OSError as error:
        raise RunFolderError(
            f"{path}: can't be written ({error.strerror}); choose another place"
        ) from error


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in ours.items():
        if isinstance(value, Mapping) and isinstance(theirs.get(key), Mapping):
            found += _differences(value, theirs[key], f"{prefix}{key}.")
        elif value != theirs.get(key):
            found.append(f"{prefix}{key}")
    return found


def _way_on(path: Path) -> str:
    if not path.is_dir():
        return "is a file; choose another --out"
    if any((path / name).is_file() for name in ("config.toml", SWEEP)):
        return "exists already; go on with it by --resume, or choose another --out"
    return "exists already and holds no run; choose another --out, or empty it"
