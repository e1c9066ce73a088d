"""The public item table: frozen vectors that every device downloads whole.

A device that holds the whole table asks nobody about the items it looked at. The table is data for
encoder and scoring alike, so it is plain numpy and is named by the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import MALFORMED, DataError
from .files import write_atomically
from .successors import Successors

COOCCURRENCE_BLOCK = "cooccurrence"
"""Block for what is taken together: zeros in the public table, and filled by a release, see
:mod:`fedprofile.client.cooccurrence`."""
ID_BLOCK = "id"
"""Block that stands in for content where there is none: a random direction for each item."""


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Frozen item vectors and what can be said about an item.

    Attributes:
        vectors: float32 [n_items, dimension]; rows in blocks of columns, see ``blocks``.
        ids: original item ids, n_items of them.
        tags: interest tags of each item (category values and the like), perhaps none.
        blocks: name → (start, stop) column range of each feature block.
        successors: what is taken soon after what, or goes with it, as released; None in the public table.
        whole: whether pairs are released of whole histories: ``successors`` then tell what goes with what
            is held, and there are no vectors of it.
    """

    vectors: NDArray[np.float32]
    ids: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    blocks: dict[str, tuple[int, int]] = field(default_factory=dict)
    successors: Successors | None = None
    whole: bool = False

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """Length of an item vector."""
        return int(self.vectors.shape[1])

    @property
    def has_content(self) -> bool:
        """Whether anything is known of the items but their ids, and what a release fills in."""
        bare = ID_BLOCK in self.blocks and set(self.blocks) <= {ID_BLOCK, COOCCURRENCE_BLOCK}
        return not bare

    @property
    def content_blocks(self) -> tuple[tuple[int, int], ...]:
        """Column ranges of a public table that content fills; what stands in for it, and what a release
        fills in, left out."""
        other = (ID_BLOCK, COOCCURRENCE_BLOCK)
        return tuple(block for name, block in self.blocks.items() if name not in other)

    @property
    def content(self) -> NDArray[np.float32]:
        """Columns of a public table that content fills, float32 [n_items, k]."""
        told = [self.vectors[:, start:stop] for start, stop in self.content_blocks]
        return np.hstack([self.vectors[:, :0], *told])

    @property
    def tells_likeness(self) -> bool:
        """Whether vectors say which items are alike: random directions in place of content don't."""
        start, stop = self.blocks.get(COOCCURRENCE_BLOCK, (0, 0))
        return self.has_content or bool(self.vectors[:, start:stop].any())

    @property
    def compares(self) -> bool:
        """Whether there is a release of what is taken together, of either kind."""
        return self.whole or self.width_of(COOCCURRENCE_BLOCK) > 0

    def width_of(self, name: str) -> int:
        """Columns of a block; 0 where there is none of this name."""
        start, stop = self.blocks.get(name, (0, 0))
        return stop - start

    def with_block(self, name: str, columns: NDArray[np.float32]) -> ItemTable:
        """This table with one more feature block, such as a released statistic or image vectors.

        Args:
            name: a name that no block has yet.
            columns: [n_items, c], finite; taken as they are, neither normalised nor weighted.

        Raises:
            DataError: the name is taken, or the columns don't fit the table or aren't finite.
        """
        if name in self.blocks:
            raise DataError(f"item table: block {name!r} exists already; choose another name")
        if columns.ndim != 2 or len(columns) != self.n_items:
            raise DataError(
                f"item table: block {name!r} has shape {columns.shape}; "
                f"it needs one row for each of the {self.n_items} items"
            )
        if not np.isfinite(columns).all():
            row = int(np.flatnonzero(~np.isfinite(columns).all(axis=1))[0])
            raise DataError(
                f"item table: block {name!r} isn't finite for item {self.ids[row]!r}; "
                "put zeros where a value is unknown"
            )
        return replace(
            self,
            vectors=np.hstack([self.vectors, columns]).astype(np.float32),
            blocks={**self.blocks, name: (self.dimension, self.dimension + columns.shape[1])},
        )

    def with_values(self, name: str, columns: NDArray[np.float32]) -> ItemTable:
        """This table with other numbers in a block that it has.

        Args:
            name: of the block.
            columns: [n_items, columns of the block], finite.

        Raises:
            DataError: there is no such block, or the columns don't fit it or aren't finite.
        """
        start, stop = self.blocks.get(name, (0, 0))
        if name not in self.blocks or columns.shape != (self.n_items, stop - start):
            raise DataError(
                f"item table: {columns.shape} numbers for a block {name!r} of "
                f"{(self.n_items, stop - start)}; use the table they were made for"
            )
        if not np.isfinite(columns).all():
            raise DataError(f"item table: numbers for block {name!r} that aren't finite")
        vectors = self.vectors.copy()
        vectors[:, start:stop] = columns
        return replace(self, vectors=vectors)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over all that is in it; the same table has the same name anywhere."""
        digest = hashlib.sha256(np.ascontiguousarray(self.vectors, dtype="<f4").tobytes())
        digest.update(self._description().encode())
        if self.successors is not None:
            digest.update(self.successors.to_bytes())
        return digest.hexdigest()

    def _description(self) -> str:
        description: dict[str, Any] = {"ids": self.ids, "tags": self.tags, "blocks": self.blocks}
        if self.whole:
            description["whole"] = True
        return json.dumps(description, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

    def save(self, path: Path) -> None:
        """Write the table as safetensors, with its content hash in the header."""
        metadata = {"content_hash": self.content_hash, "description": self._description()}
        tensors: dict[str, NDArray[np.generic]] = {"vectors": np.ascontiguousarray(self.vectors)}
        if self.successors is not None:
            tensors |= {"pairs": self.successors.pairs, "chances": self.successors.chances}
        write_atomically(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> ItemTable:
        """Read a table written by :meth:`save`.

        Raises:
            DataError: the file is missing, damaged, or its content doesn't match its hash.
        """
        try:
            with safe_open(path, framework="np") as file:
                metadata = file.metadata()
                vectors = file.get_tensor("vectors")
                successors = None
                if {"pairs", "chances"} & set(file.keys()):
                    successors = Successors(file.get_tensor("pairs"), file.get_tensor("chances"))
            description = json.loads(metadata["description"])
            ranges = {name: (start, stop) for name, (start, stop) in description["blocks"].items()}
            table = cls(
                vectors=vectors,
                ids=tuple(description["ids"]),
                tags=tuple(tuple(tags) for tags in description["tags"]),
                # JSON has them by name, but an encoder reads them by place.
                blocks=dict(sorted(ranges.items(), key=lambda block: block[1])),
                successors=successors,
                whole=bool(description.get("whole", False)),
            )
            if table.whole and COOCCURRENCE_BLOCK in table.blocks:
                raise DataError("it has pairs of whole histories, and vectors of close ones")
            if successors is not None:
                successors.check(table.n_items)
            same = table.content_hash == metadata["content_hash"]
        except (OSError, SafetensorError, DataError, *MALFORMED) as error:
            raise DataError(f"{path}: not an item table ({error}); build it again") from error
        if not same:
            raise DataError(f"{path}: content doesn't match its hash; build it again")
        return table
