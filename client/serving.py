"""The table that a device ranks with: ⟨U, v⟩ stays one inner product, whatever is in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..common.items import ItemTable

PRIOR_BLOCK, TRAINED_BLOCK = "popularity", "item_ids"


def serving_table(
    table: ItemTable, *, prior: NDArray[np.float32], ids: NDArray[np.float32] | None
) -> ItemTable:
    """The table to rank with: public vectors, trained vectors if any, and log popularity.

    ⟨U, v⟩ stays one inner product: U has a coordinate for each trained column and a 1 for popularity.
    """
    served = table if ids is None else table.with_block(TRAINED_BLOCK, ids)
    return served.with_block(PRIOR_BLOCK, prior[:, None])
