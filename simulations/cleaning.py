"""Cleaning rules in a fixed order, each counting what it took, so that every row is accounted for.

A row that breaks several rules is counted by the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from ..common.config import DataConfig
from ..common.errors import DataError
from .dataset import Rule
from .parsing import as_number, as_text, parse_description, parse_times
from .presets import Preset
from .rejections import rejecting_rows
from .sources import Table

TABLE, ROW = "_table", "_row"
"""Columns that name a row's origin: index of its table, number of the row in it from 1."""


class Cleaner:
    """Rows on their way to events, with the rules applied so far.

    Attributes:
        rows: what is left.
        rules: the account, in the order of application.
    """

    def __init__(self, rows: pl.DataFrame) -> None:
        self.rows = rows
        self.rules: list[Rule] = []

    def remove(self, name: str, explanation: str, broken: pl.Expr) -> None:
        """Take out the rows where ``broken`` is true (null counts as false)."""
        kept = self.rows.filter(~broken.fill_null(False))
        self.rules.append(Rule(name, explanation, removed=self.rows.height - kept.height))
        self.rows = kept

    def change(self, name: str, explanation: str, column: str, value: pl.Expr) -> None:
        """Replace ``column`` by ``value``, counting the rows where it differs."""
        new = self.rows.select(value.alias(column))[column]
        changed = self.rows[column].ne_missing(new).sum()
        self.rules.append(Rule(name, explanation, changed=int(changed)))
        self.rows = self.rows.with_columns(new)


def stack(tables: Sequence[Table]) -> pl.DataFrame:
    """All rows below each other, columns by name, with :data:`TABLE` and :data:`ROW` added.

    A column that is a number here and text there becomes text.
    """
    kinds: dict[str, set[pl.DataType]] = {}
    for table in tables:
        for name, kind in table.frame.schema.items():
            kinds.setdefault(name, set()).add(kind)
    mixed = {
        name
        for name, found in kinds.items()
        if len(found) > 1
        and not all(kind.is_numeric() for kind in found)
        and not all(kind.is_temporal() for kind in found)
    }
    frames = [
        table.frame.with_columns(
            as_text(column) for column in table.frame.iter_columns() if column.name in mixed
        )
        .with_row_index(ROW, offset=1)
        .with_columns(pl.lit(index, dtype=pl.Int32).alias(TABLE))
        for index, table in enumerate(tables)
    ]
    return pl.concat(frames, how="diagonal_relaxed")


def remove_repeats(cleaner: Cleaner) -> None:
    """Whole lines that occurred before, in the same table or in an earlier one."""
    line = [name for name in cleaner.rows.columns if name not in (TABLE, ROW)]
    cleaner.remove(
        "exact duplicates",
        "the same line a second time in one file",
        ~pl.struct(*line, TABLE).is_first_distinct(),
    )
    cleaner.remove(
        "overlapping files",
        "a line that an earlier file or sheet holds already",
        ~pl.struct(*line).is_first_distinct(),
    )


def interpret(
    cleaner: Cleaner,
    roles: Mapping[str, str],
    attributes: Mapping[str, str],
    event: str,
    names: Sequence[str],
) -> None:
    """Bring the rows to typed columns named by role; no row is added or lost.

    Columns: user, item, event, session, text, category, user:<attribute> (String), time (Int64,
    seconds), value, price (Float64), tags (List[String]); columns without a role are dropped.

    Args:
        cleaner: the rows.
        roles: role → column.
        attributes: user attribute → column.
        event: event type of rows that name none.
        names: table names, for messages.

    Raises:
        DataError: a time can't be read.
    """
    rows = cleaner.rows
    tables = pl.Series(names).gather(rows[TABLE])
    columns = [
        as_text(rows[roles["user"]]).alias("user"),
        as_text(rows[roles["item"]]).alias("item"),
        parse_times(rows[roles["time"]], rows[ROW], tables).alias("time"),
        *parse_description(rows, roles),
    ]
    if "value" in roles:
        columns.append(as_number(rows[roles["value"]]).alias("value"))
    if "session" in roles:
        columns.append(as_text(rows[roles["session"]]).alias("session"))
    if "event" in roles:
        events = event_names(as_text(rows[roles["event"]]))
        columns.append(events.fill_null(event).alias("event"))
    else:
        columns.append(pl.repeat(event, rows.height, eager=True).alias("event"))
    columns += [as_text(rows[name]).alias(f"user:{key}") for key, name in attributes.items()]
    cleaner.rows = pl.DataFrame(columns)


def remove_unusable(cleaner: Cleaner, preset: Preset, config: DataConfig) -> pl.DataFrame:
    """Rows that are no positive event of a known user with an item at a known time.

    Returns:
        user, item and time of those removed that turn an item down.
    """
    for role in ("user", "item", "time"):
        cleaner.remove(f"missing {role}", f"the {role} column is empty", pl.col(role).is_null())
    if preset.product_code:
        cleaner.change(
            "item codes",
            "letters of item codes brought to upper case",
            "item",
            pl.col("item").str.to_uppercase(),
        )
    if preset.cancelled_session and "session" in cleaner.rows.columns:
        cleaner.remove(
            "cancelled sessions",
            f"the session takes an earlier one back ({preset.cancelled_session})",
            pl.col("session").str.contains(preset.cancelled_session),
        )
    weights = event_weights(preset, config)
    rejections = rejecting_rows(cleaner.rows, weights)
    negative = [event for event, weight in weights.items() if weight <= 0]
    if negative:
        cleaner.remove(
            "negative events",
            "the event type has a weight of zero or less",
            pl.col("event").is_in(negative),
        )
    if "value" in cleaner.rows.columns:
        finite = pl.col("value").is_finite()
        cleaner.remove(
            "negative values", "the value is zero or less", finite & (pl.col("value") <= 0)
        )
    if preset.zero_price_is_no_sale and "price" in cleaner.rows.columns:
        cleaner.remove(
            "zero price",
            "nothing was paid: a gift, a loss or a correction of stock",
            pl.col("price") <= 0,
        )
    if preset.product_code:
        cleaner.remove(
            "non-items",
            "the code is no product's: postage, fees, vouchers, corrections, tests",
            ~pl.col("item").str.contains(preset.product_code),
        )
    if "value" in cleaner.rows.columns:
        cleaner.remove(
            "broken values", "the value is NaN, infinite or no number", ~pl.col("value").is_finite()
        )
    if "price" in cleaner.rows.columns:
        cleaner.change(
            "broken prices",
            "a price that is NaN, infinite or negative counts as unknown",
            "price",
            usable_price(),
        )
    return rejections


def remove_unknown_items(cleaner: Cleaner, item_ids: pl.Series, source: str) -> None:
    """Rows about an item that the item table doesn't list: the catalogue is that table alone.

    Raises:
        DataError: no row is left, so table and rows write their ids differently; names ``source``.
    """
    item, rows = pl.col("item"), cleaner.rows
    cleaner.remove(
        "unknown items", "the item table doesn't list the item", ~item.is_in(item_ids.implode())
    )
    if cleaner.rows.is_empty() and not rows.is_empty():
        raise DataError(
            f"{source}: none of its item ids ({item_ids.first()!r}, …) occurs in the interactions "
            f"({rows['item'].first()!r}, …); check data.columns.item"
        )


def usable_price() -> pl.Expr:
    """Column ``price``, null where it can't be one."""
    price = pl.col("price")
    return pl.when(price.is_finite() & (price >= 0)).then(price).alias("price")


def add_sessions(cleaner: Cleaner, gap_minutes: float) -> None:
    """Add ``basket`` and ``start``: the session's number over all users, and its first time.

    A session is what the session column says, per user; rows without one are cut where a user
    pauses for longer than ``gap_minutes``. Baskets are numbered by user, start and session name, so
    their numbers follow time within a user.
    """
    rows = cleaner.rows.sort("user", "time", "item", maintain_order=True)
    pause = (pl.col("time").diff().over("user") > gap_minutes * 60).fill_null(False)
    rows = rows.with_columns(pause.cum_sum().over("user").alias("visit"))
    if "session" in rows.columns:
        key = pl.struct(
            "session", pl.when(pl.col("session").is_null()).then(pl.col("visit")).alias("visit")
        )
    else:
        key = pl.struct("visit")
    rows = rows.with_columns(key.alias("key"))
    rows = rows.with_columns(pl.col("time").min().over("user", "key").alias("start"))
    cleaner.rows = rows.with_columns(
        pl.struct("user", "start", "key").rank("dense").alias("basket")
    ).drop("key", "visit")


def merge_baskets(cleaner: Cleaner) -> None:
    """One event per item, event type and basket: values add up, the first time stands.

    A value that is missing counts as the user's own median for the event type, or 1 where they have
    none: what others did must not decide on it.
    """
    rows = cleaner.rows
    if "value" not in rows.columns:
        rows = rows.with_columns(pl.lit(1.0).alias("value"))
    rows = rows.with_columns(
        pl.col("value").fill_null(pl.col("value").median().over("user", "event")).fill_null(1.0)
    )
    merged = (
        rows.sort("basket", "item", "event", "time", maintain_order=True)
        .group_by("basket", "item", "event", maintain_order=True)
        .agg(pl.col("user", "start", "time").first(), pl.col("value").sum())
    )
    cleaner.rules.append(
        Rule(
            "merged lines",
            "further lines of an item in one basket, added to its first",
            removed=rows.height - merged.height,
        )
    )
    cleaner.rows = merged


def remove_rare(cleaner: Cleaner, minimum_user_events: int, minimum_item_events: int) -> None:
    """Users and items with too few events, over and over until all that is left has enough."""
    rows = cleaner.rows
    removed = {"user": 0, "item": 0}
    while True:
        before = rows.height
        for role, minimum in (("user", minimum_user_events), ("item", minimum_item_events)):
            kept = rows.filter(pl.len().over(role) >= minimum)
            removed[role] += rows.height - kept.height
            rows = kept
        if rows.height == before:
            break
    for role, minimum in (("user", minimum_user_events), ("item", minimum_item_events)):
        cleaner.rules.append(
            Rule(f"rare {role}s", f"{role}s with fewer than {minimum} events", removed[role])
        )
    cleaner.rows = rows


def event_weights(preset: Preset, config: DataConfig) -> dict[str, float]:
    """Event type → weight, names as :func:`event_names` writes them."""
    return {**preset.event_weights, **own_weights(config)}


def own_weights(config: DataConfig) -> dict[str, float]:
    """What ``data.event_weights`` says, names as :func:`event_names` writes them."""
    own = event_names(as_text(pl.Series(list(config.event_weights), dtype=pl.String)))
    return dict(zip(own, config.event_weights.values(), strict=True))


def event_names(column: pl.Series) -> pl.Series:
    """``Add to-Cart`` and ``add_to_cart`` are one event type."""
    return column.str.to_lowercase().str.replace_all(r"[ -]", "_")
