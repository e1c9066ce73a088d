"""What users turned down last, beside their histories: nothing is learned from it, and no list names it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

_PAIR = ("user", "item")

NOBODY: NDArray[np.int64] = np.zeros((0, 2), dtype=np.int64)
"""No pair at all."""


def rejecting_rows(rows: pl.DataFrame, weights: Mapping[str, float]) -> pl.DataFrame:
    """user, item and time of the rows whose event type weighs less than zero."""
    rejecting = [event for event, weight in weights.items() if weight < 0]
    return rows.filter(pl.col("event").is_in(rejecting)).select(*_PAIR, "time")


def turned_down(rejections: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """user and item of the pairs whose last event is a rejection.

    Lines of a log have no order, so that of events of one time a rejection counts as the last.

    Args:
        rejections: user, item, time.
        others: the same of events that speak for an item.
    """
    last = rejections.group_by(_PAIR).agg(pl.col("time").max())
    spoken = others.group_by(_PAIR).agg(pl.col("time").max().alias("spoken"))
    pairs = last.join(spoken, on=_PAIR, how="left")
    return pairs.filter((pl.col("time") >= pl.col("spoken")).fill_null(True)).select(_PAIR)


def encode_pairs(
    pairs: pl.DataFrame, user_ids: pl.Series, item_ids: pl.Series
) -> NDArray[np.int64]:
    """Pairs of known users and items by index: int64 [n, 2], ascending.

    Args:
        pairs: user, item.
        user_ids: of the users, in index order.
        item_ids: of the items, in index order.
    """
    known = pairs.filter(
        pl.col("user").is_in(user_ids.implode()) & pl.col("item").is_in(item_ids.implode())
    )
    codes = known.select(
        pl.col(role).replace_strict(ids, np.arange(len(ids)), return_dtype=pl.Int64)
        for role, ids in zip(_PAIR, (user_ids, item_ids), strict=True)
    )
    return codes.sort(_PAIR).to_numpy(writable=True).reshape(-1, 2)


def of_users(pairs: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Those of ``pairs`` of users ``start:stop``, who are counted from 0 then."""
    first, last = np.searchsorted(pairs[:, 0], (start, stop))
    return pairs[first:last] - (start, 0)
