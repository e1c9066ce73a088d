"""Released models: written beside a signed manifest, the newest one for devices to fetch.

releases/000012/manifest.json      what it is, what it cost, what it comes from; signed
releases/000012/model.safetensors  the encoder, as a simulation writes it
releases/000012/statistics.f32     of the items: log popularity, vectors; little-endian float32;
                                   then what follows or goes with what: pairs (int32) and chances (float32)
releases/latest                    name of the newest
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ..common.errors import ServerError
from ..common.files import write_atomically
from ..common.items import ItemTable
from ..common.ledger import Ledger
from ..common.messages import Release
from ..common.releases import Manifest
from ..common.server_config import ServerConfig
from ..common.signing import SigningKey
from ..common.weights import hash_of_weights
from .folder import ServerFolder
from .statistics import ItemStatistics

_KEPT = 3  # model files; manifests are kept for good
_MANIFEST, _MODEL, _STATISTICS = "manifest.json", "model.safetensors", "statistics.f32"


@dataclass(frozen=True)
class Releases:
    """The releases of a server.

    Attributes:
        folder: of the server.
        key: signs manifests.
    """

    folder: ServerFolder
    key: SigningKey

    def publish(
        self,
        *,
        round: int,  # noqa: A002
        release: int,
        weights: Mapping[str, NDArray[np.float32]],
        statistics: ItemStatistics,
        table: ItemTable,
        ledger: Ledger,
    ) -> Manifest:
        """Write a release and make it the latest; the same one again changes nothing.

        Args:
            round: rounds that led to it.
            release: the ledger's number of the last release in it.
            weights: name → float32.
            statistics: what was released of the items.
            table: the public item table.
            ledger: what was spent.
        """
        config = self.folder.config
        columns = np.column_stack([statistics.current, statistics.vectors])
        content = columns.astype("<f4").tobytes()
        if statistics.successors is not None:
            content += statistics.successors.to_bytes()
        named = (hash_of_weights(weights), hashlib.sha256(content).hexdigest())
        latest = self.latest()
        if latest is not None and (latest.weights, latest.statistics) == named:
            return latest
        model = model_file(weights, config, table)
        manifest = Manifest(
            federation=config.federation.name,
            round=round,
            release=release,
            model=hashlib.sha256(model).hexdigest(),
            statistics=named[1],
            weights=named[0],
            parent=latest.model if latest else None,
            items=table.content_hash,
            epsilon=ledger.epsilon_spent() if config.privacy.enabled else None,
            delta=ledger.opening.delta,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        ).signed(self.key)
        number = 1 + max((int(path.name) for path in self._all()), default=0)
        path = self.folder.releases / f"{number:06d}"
        path.mkdir(mode=0o700)
        write_atomically(path / _MODEL, model)
        write_atomically(path / _STATISTICS, content)
        write_atomically(path / _MANIFEST, manifest.to_json().encode())
        write_atomically(self.folder.releases / "latest", path.name.encode())
        self._drop_old()
        return manifest

    def latest(self) -> Manifest | None:
        """Manifest of the newest release.

        Raises:
            ServerError: it can't be read, or isn't signed with the server's key.
        """
        release = self.load()
        if release is None:
            return None
        return Manifest.read(release.manifest, public_key=self.key.public_key)

    def load(self) -> Release | None:
        """The newest release as devices get it; None before the first.

        Raises:
            ServerError: a file is missing.
        """
        try:
            path = self.folder.releases / (self.folder.releases / "latest").read_text().strip()
        except FileNotFoundError:
            return None
        try:
            return Release(
                manifest=(path / _MANIFEST).read_text(encoding="utf-8"),
                model=(path / _MODEL).read_bytes(),
                statistics=(path / _STATISTICS).read_bytes(),
            )
        except OSError as error:
            raise ServerError(f"{path}: can't read the release ({error.strerror})") from error

    def _all(self) -> list[Path]:
        """Folders of releases, oldest first; one without a manifest was cut short by a crash."""
        found = sorted(path for path in self.folder.releases.iterdir() if path.name.isdecimal())
        for path in found:
            if not (path / _MANIFEST).exists():
                shutil.rmtree(path)
        return [path for path in found if path.exists()]

    def _drop_old(self) -> None:
        for path in self._all()[:-_KEPT]:
            (path / _MODEL).unlink(missing_ok=True)
            (path / _STATISTICS).unlink(missing_ok=True)


def model_file(
    weights: Mapping[str, NDArray[np.float32]], config: ServerConfig, table: ItemTable
) -> bytes:
    """The file of a model, as a simulation writes it: weights, and what a reader needs for them."""
    content: bytes = save(
        {name: np.ascontiguousarray(value) for name, value in weights.items()},
        {
            "model": config.model.model_dump_json(),
            "blocks": json.dumps(table.blocks),
            "event_types": json.dumps(config.federation.event_types),
            "item_table": table.content_hash,
            "hash": hash_of_weights(weights),
        },
    )
    return content
