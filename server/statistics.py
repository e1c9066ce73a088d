"""What one-shot releases told of the items, denoised: what training, ranking and devices go by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..common.encoder import weigh_block
from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from ..common.successors import Successors


@dataclass(frozen=True, eq=False)
class ItemStatistics:
    """What was released of every item.

    Attributes:
        long_run: float32 [n_items], log popularity over all time, see :class:`.popularity.ItemPriors`.
        current: float32 [n_items], log popularity in recent weeks.
        vectors: float32 [n_items, r], see :func:`.cooccurrence.item_vectors`; r = 0 without.
        successors: see :class:`.relations.Relations`; None without.
        beyond_content: see :func:`.beyond_content.beyond_content`.
    """

    long_run: NDArray[np.float32]
    current: NDArray[np.float32]
    vectors: NDArray[np.float32]
    successors: Successors | None = None
    beyond_content: float = 1.0

    def fill(self, table: ItemTable) -> ItemTable:
        """The public table with what was released of co-occurrence, where there is such a release."""
        if not table.compares:
            return table
        if COOCCURRENCE_BLOCK in table.blocks:
            table = table.with_values(COOCCURRENCE_BLOCK, self.vectors)
        return replace(table, successors=self.successors)

    def begin(self, weights: Mapping[str, Tensor], table: ItemTable) -> dict[str, Tensor]:
        """An untrained encoder's weights as training begins with them: the gain of what is taken together
        is as much as that says beyond content."""
        if COOCCURRENCE_BLOCK not in table.blocks:
            return dict(weights)
        return weigh_block(weights, table.blocks, COOCCURRENCE_BLOCK, self.beyond_content)
