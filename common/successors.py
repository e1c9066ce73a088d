"""Which items are taken soon after which, or go with which: few pairs out of all, with their direction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

ORDER_SHARE = 0.3
"""κ, how much the order within a pair counts beside the pair in what devices send; .3 to .4 did best
where it was tuned on real logs, and more is lost to noise."""
MOST_PAIRS = 1 << 17
"""That are told, 1.5 MB."""
MOST_CERTAIN = 0.9
"""Chances of an item's successors together, at most: something else is always possible."""
_ROUNDING = 1e-3
_BYTES = 12
"""Of one pair: two little-endian int32 and a float32."""


@dataclass(frozen=True, eq=False)
class Successors:
    """For some pairs of items, the chance that the second comes next after the first, or where it is held.

    Attributes:
        pairs: int32 [m, 2], item and successor, ascending by both; each pair once.
        chances: float32 [m], in (0, 1); those of an item add up to 0.9 at most. The rest is up to
            everything else that is known.
    """

    pairs: NDArray[np.int32]
    chances: NDArray[np.float32]

    @classmethod
    def of(
        cls, items: NDArray[np.int64], then: NDArray[np.int64], chances: NDArray[np.float64]
    ) -> Successors:
        """Of pairs in any order, each once."""
        order = np.lexsort((then, items))
        pairs = np.column_stack([items[order], then[order]]).astype(np.int32)
        return cls(pairs, chances[order].astype(np.float32))

    @classmethod
    def none(cls) -> Successors:
        """Of a release that told of no pair."""
        return cls(np.zeros((0, 2), dtype=np.int32), np.zeros(0, dtype=np.float32))

    def weighted(self, share: float) -> Successors:
        """The same pairs with chances times ``share``, in (0, 1]."""
        return Successors(self.pairs, self.chances * np.float32(share))

    def __len__(self) -> int:
        return len(self.chances)

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Both by name, as ledgers name what a release led to."""
        return {"pairs": self.pairs.astype(np.float32), "chances": self.chances}

    def check(self, n_items: int) -> None:
        """Whether these are chances of pairs of so many items.

        Raises:
            DataError: they aren't.
        """
        pairs, chances = self.pairs, self.chances
        if pairs.dtype != np.int32 or chances.dtype != np.float32:
            raise DataError(f"successors: pairs of {pairs.dtype}, chances of {chances.dtype}")
        if chances.ndim != 1 or pairs.shape != (len(chances), 2):
            raise DataError(f"successors: {pairs.shape} pairs for {chances.shape} chances")
        if len(chances) > MOST_PAIRS:
            raise DataError(f"successors: {len(chances):,} pairs, {MOST_PAIRS:,} are the most")
        if not len(chances):
            return
        if pairs.min() < 0 or pairs.max() >= n_items or (pairs[:, 0] == pairs[:, 1]).any():
            raise DataError(f"successors: pairs that aren't of two of {n_items} items")
        order = pairs[:, 0].astype(np.int64) * n_items + pairs[:, 1]
        if (np.diff(order) <= 0).any():
            raise DataError("successors: pairs out of order, or one of them twice")
        totals = np.bincount(pairs[:, 0], weights=chances)
        # What is no number is neither.
        if not (chances > 0).all() or not totals.max() <= MOST_CERTAIN + _ROUNDING:
            raise DataError("successors: numbers that aren't chances of one thing or another")

    def after(
        self,
        items: NDArray[np.int32],
        weights: NDArray[np.float64],
        *,
        n_items: int,
        rows: NDArray[np.int64] | None = None,
        n_rows: int = 1,
    ) -> NDArray[np.float32]:
        """Σ_e w_e·P(j | i_e) of every item j.

        Args:
            items: int32 [n], what was taken.
            weights: float64 [n], of each.
            n_items: of the table.
            rows: int64 [n], whose event each is; None: all of the first.
            n_rows: users.

        Returns:
            float32 [n_rows, n_items].
        """
        starts, counts = self._places(items)
        event = np.repeat(np.arange(len(items)), counts)
        within = np.arange(len(event)) - np.repeat(np.cumsum(counts) - counts, counts)
        pair = starts[event] + within
        places = self.pairs[pair, 1].astype(np.int64)
        if rows is not None:
            places += rows[event] * n_items
        told = np.bincount(places, self.chances[pair] * weights[event], n_rows * n_items)
        return told.reshape(n_rows, n_items).astype(np.float32)

    def chances_of(self, items: NDArray[np.int32], then: int) -> NDArray[np.float32]:
        """P(then | i) of each of ``items``, float32 [n]; 0 where nothing is told."""
        found = np.zeros(len(items), dtype=np.float32)
        starts, counts = self._places(items)
        for event, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            own = slice(start, start + count)
            found[event] = self.chances[own][self.pairs[own, 1] == then].sum()
        return found

    def _places(self, items: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the pairs of each of ``items`` start, and how many there are."""
        starts = np.searchsorted(self._items, items)
        return starts, np.searchsorted(self._items, items, side="right") - starts

    @cached_property
    def _items(self) -> NDArray[np.int32]:
        return np.ascontiguousarray(self.pairs[:, 0])

    def to_bytes(self) -> bytes:
        """Little-endian: all pairs, then all chances."""
        return self.pairs.astype("<i4").tobytes() + self.chances.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> Successors:
        """Inverse of :meth:`to_bytes`; unchecked.

        Raises:
            DataError: not a whole number of pairs.
        """
        count, rest = divmod(len(content), _BYTES)
        if rest:
            raise DataError(f"successors: {len(content)} bytes are no whole number of pairs")
        pairs = np.frombuffer(content, dtype="<i4", count=2 * count).reshape(count, 2)
        chances = np.frombuffer(content, dtype="<f4", offset=8 * count)
        return cls(pairs.astype(np.int32), chances.astype(np.float32))
