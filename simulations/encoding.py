"""Cleaned rows as an interaction log: catalogue, users, and histories in index form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..common.errors import DataError
from ..common.histories import Histories
from .dataset import InteractionLog, QualityReport, Rule
from .rejections import NOBODY

SMALLEST_WEIGHT = 1e-3
"""A value next to zero still is an event, and weights are positive."""

_ATTRIBUTE = "user:"


def build_catalogue(rows: pl.DataFrame, item_table: pl.DataFrame | None) -> pl.DataFrame:
    """The items and what is known of each, ascending by ``item_id``.

    An item table is the catalogue, unbought items included and nothing added from ``rows``: then no
    user decides on any of it. Without one, the items of ``rows``, each with its most frequent text,
    category and tags (the first in the alphabet of equals) and its median price.
    """
    known = ("item_id", "text", "category", "price", "tags")
    if item_table is not None:
        return item_table.select(n for n in known if n in item_table.columns).sort("item_id")
    catalogue = rows.select("item").unique().sort("item")
    for name in ("text", "category", "tags"):
        if name in rows.columns:
            catalogue = catalogue.join(most_frequent(rows, "item", name), on="item", how="left")
    if "price" in rows.columns:
        prices = rows.group_by("item").agg(pl.col("price").median())
        catalogue = catalogue.join(prices, on="item", how="left")
    catalogue = catalogue.rename({"item": "item_id"})
    return catalogue.select(name for name in known if name in catalogue.columns).sort("item_id")


def build_users(rows: pl.DataFrame, user_table: pl.DataFrame | None) -> pl.DataFrame:
    """``user_id``, ascending, and the most frequent value of each attribute."""
    users = rows.select("user").unique()
    for name in rows.columns:
        if name.startswith(_ATTRIBUTE):
            users = users.join(most_frequent(rows, "user", name), on="user", how="left")
    users = users.rename(lambda name: name.removeprefix(_ATTRIBUTE)).rename({"user": "user_id"})
    if user_table is not None:
        users = users.join(user_table, on="user_id", how="left")
    return users.sort("user_id")


def most_frequent(rows: pl.DataFrame, key: str, name: str) -> pl.DataFrame:
    """The value that each ``key`` has most often in column ``name``; the smallest of equals."""
    return (
        rows.filter(pl.col(name).is_not_null())
        .group_by(key, name)
        .len()
        .sort("len", name, descending=[True, False])
        .group_by(key, maintain_order=True)
        .agg(pl.col(name).first())
    )


def encode_events(
    events: pl.DataFrame,
    user_ids: pl.Series,
    item_ids: pl.Series,
    event_types: Sequence[str],
    weights: Mapping[str, float],
) -> tuple[Histories, Rule]:
    """Merged events as histories, and the rule that counts times moved to keep their order.

    An event weighs its event type's weight × log1p(value) / the user's own median of log1p(value)
    over that type: their median event weighs what its type weighs, a bulk order doesn't weigh
    hundreds, and nobody else's events have a say, which would void the bound on what a user changes.

    Args:
        events: user, item, event, time, value, basket, start; one row per event.
        user_ids: ascending; device index = position.
        item_ids: ascending; item index = position.
        event_types: names of the types, in index order.
        weights: event type → weight; 1 where absent.
    """
    if len(event_types) > np.iinfo(np.int16).max:
        raise DataError(
            f"{len(event_types)} event types: this column names no types; set data.columns.event"
        )
    strength = pl.col("value").log1p()
    codes = events.select(
        device=pl.col("user").replace_strict(
            user_ids, np.arange(len(user_ids)), return_dtype=pl.Int64
        ),
        item=pl.col("item").replace_strict(
            item_ids, np.arange(len(item_ids)), return_dtype=pl.Int32
        ),
        type=pl.col("event").replace_strict(
            list(event_types), list(range(len(event_types))), return_dtype=pl.Int16
        ),
        weight=(
            pl.col("event").replace_strict(
                list(event_types),
                [weights.get(event, 1.0) for event in event_types],
                return_dtype=pl.Float64,
            )
            * strength
            / strength.median().over("user", "event")
        ).clip(lower_bound=SMALLEST_WEIGHT),
        time="time",
        basket="basket",
    ).sort("basket", "time", "item", "type")
    # Sessions that overlap in time: each stays whole, so an event may move up to its predecessor.
    ordered = codes.with_columns(
        session=(pl.col("basket").rank("dense").over("device") - 1).cast(pl.Int32),
        ordered=pl.col("time").cum_max().over("device"),
    )
    moved = int((ordered["ordered"] != ordered["time"]).sum())
    histories = Histories(
        offsets=np.searchsorted(ordered["device"], np.arange(len(user_ids) + 1)).astype(np.int64),
        items=ordered["item"].to_numpy(writable=True),
        times=ordered["ordered"].to_numpy(writable=True),
        sessions=ordered["session"].to_numpy(writable=True),
        weights=ordered["weight"].cast(pl.Float32).to_numpy(writable=True),
        types=ordered["type"].to_numpy(writable=True),
    )
    rule = Rule(
        "overlapping sessions",
        "events moved to the time of the one before, so that sessions stay whole",
        changed=moved,
    )
    return histories, rule


def require_population(source: str, events: pl.DataFrame, rules: Sequence[Rule]) -> None:
    """Refuse what nothing can be learned from.

    Raises:
        DataError: no event is left, or fewer than two users or two items.
    """
    if events.is_empty():
        worst = max(rules, key=lambda rule: rule.removed)
        rare = worst.name.startswith("rare")
        remedy = "lower data.minimum_user_events and data.minimum_item_events, or add data"
        raise DataError(
            f"{source}: no events left; most rows were removed by '{worst.name}' ({worst.removed}: "
            f"{worst.explanation}); {remedy if rare else 'check data.preset and data.columns'}"
        )
    for role in ("user", "item"):
        ids = events[role].unique()
        if len(ids) < 2:
            raise DataError(
                f"{source}: only one {role} left ({ids[0]!r}); at least two are needed, so check "
                f"data.columns.{role} and data.minimum_{role}_events, or add data"
            )


def assemble(
    histories: Histories,
    catalogue: pl.DataFrame,
    users: pl.DataFrame,
    event_types: Sequence[str],
    *,
    source: str,
    preset: str,
    rows_per_file: Sequence[tuple[str, int]],
    rules: Sequence[Rule],
    rare_ids: Sequence[str] = (),
    rare: Histories | None = None,
    rejected: NDArray[np.int64] = NOBODY,
    rare_rejected: NDArray[np.int64] = NOBODY,
    named_types: Sequence[str] | None = None,
    unused_columns: Mapping[str, Sequence[str]] | None = None,
) -> InteractionLog:
    """The log with its quality report, whose figures are counted from the histories.

    ``named_types`` are ``event_types`` where no rows of others were removed.
    """
    last_events = histories.offsets[1:][histories.lengths > 0] - 1
    return InteractionLog(
        user_ids=tuple(users["user_id"]),
        catalogue=catalogue,
        histories=histories,
        event_types=tuple(event_types),
        users=users,
        quality=QualityReport(
            source=source,
            preset=preset,
            rows_per_file=tuple(rows_per_file),
            rules=tuple(rules),
            rows_kept=histories.n_events,
            users=histories.n_devices,
            items=catalogue.height,
            sessions=int((histories.sessions[last_events] + 1).sum()),
            first_time=int(histories.times.min()),
            last_time=int(histories.times.max()),
            named_types=tuple(event_types if named_types is None else named_types),
            unused_columns=tuple((t, tuple(names)) for t, names in (unused_columns or {}).items()),
        ),
        rare_ids=tuple(rare_ids),
        rare=histories.take(np.zeros(0, np.int64)) if rare is None else rare,
        rejected=rejected,
        rare_rejected=rare_rejected,
    )
