"""The one interaction schema that every source is brought to, and the account of the way there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..common.histories import Histories


@dataclass(frozen=True)
class Rule:
    """What one cleaning rule did.

    Attributes:
        name: short name, as in the report.
        explanation: one line: which rows, and why.
        removed: rows taken out by this rule, not by an earlier one.
        changed: rows kept with a value replaced.
    """

    name: str
    explanation: str
    removed: int = 0
    changed: int = 0


@dataclass(frozen=True)
class QualityReport:
    """Accounts for every row read: ``rows_read == rows_kept + rows_removed``.

    Attributes:
        source: where the rows came from, as the user named it.
        preset: layout that the columns were read by.
        rows_per_file: (file or sheet, rows) in reading order.
        rules: cleaning rules in the order they were applied, those that found nothing included.
        rows_kept: events of the log; a row kept is an event.
        users: users with at least one event.
        items: items of the catalogue.
        sessions: baskets or sessions over all users.
        first_time: seconds since 1970-01-01 UTC of the first event.
        last_time: seconds since 1970-01-01 UTC of the last event.
        named_types: event types that rows name, those of rows removed included.
        unused_columns: (interactions, items or users; columns of that table that nothing was read from).
    """

    source: str
    preset: str
    rows_per_file: tuple[tuple[str, int], ...]
    rules: tuple[Rule, ...]
    rows_kept: int
    users: int
    items: int
    sessions: int
    first_time: int
    last_time: int
    named_types: tuple[str, ...]
    unused_columns: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def rows_read(self) -> int:
        """Rows of all files."""
        return sum(rows for _, rows in self.rows_per_file)

    @property
    def rows_removed(self) -> int:
        """Rows taken out by all rules."""
        return sum(rule.removed for rule in self.rules)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            **asdict(self),
            "rows_per_file": dict(self.rows_per_file),
            "unused_columns": dict(self.unused_columns),
            "rules": [asdict(rule) for rule in self.rules],
            "rows_read": self.rows_read,
            "rows_removed": self.rows_removed,
            "events": self.rows_kept,
        }


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """Cleaned, encoded interactions of a population, with what is known of items and users.

    Attributes:
        user_ids: original id of user index u, ascending.
        catalogue: row i describes item index i, ascending by ``item_id`` (String); then, where
            known, ``text`` and ``category`` (String), ``price`` (Float64), ``tags`` (List[String]).
        histories: events of the users, device index = user index.
        event_types: names that ``histories.types`` counts into.
        users: row u describes user index u: ``user_id`` and attributes where the data has them.
        quality: how the rows read became these events.
        rare_ids: original ids of users who did too little to learn from, ascending; they get lists.
        rare: what they did with items of the catalogue.
        rejected: int64 [n, 2], ascending: user and item index where the user's last event with the item
            turns it down; lists that are written leave them out, and nothing else looks at them.
        rare_rejected: the same of users who did too little, by their place in ``rare_ids``.
    """

    user_ids: tuple[str, ...]
    catalogue: pl.DataFrame
    histories: Histories
    event_types: tuple[str, ...]
    users: pl.DataFrame
    quality: QualityReport
    rare_ids: tuple[str, ...]
    rare: Histories
    rejected: NDArray[np.int64]
    rare_rejected: NDArray[np.int64]

    @property
    def n_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Number of items."""
        return self.catalogue.height

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Original id of each item index."""
        return tuple(self.catalogue["item_id"])
