"""What the store holds, as SQL: events, declared data, settings, and the profile as of the last event.

Every function that writes must be called within ``store.transaction()``.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .interactions import Interaction
from .store import Store

_SMALLEST_STRENGTH = 1e-3
_PAGE = 1_000  # events read at a time
_OF_TYPE = "FROM events WHERE event = ? AND value IS NOT NULL"
_COLUMNS = "seq, id, item, event, time, value, strength, session"


@dataclass(frozen=True)
class Recorded:
    """A stored event.

    Attributes:
        seq: number in the order of recording.
        interaction: what was done.
        strength: log1p(value) over the median of that for the owner's values of this type so far,
            this one included; 1 without a value.
    """

    seq: int
    interaction: Interaction
    strength: float


@dataclass(frozen=True)
class Setting:
    """A switch.

    Attributes:
        on: its position.
        since: when it was set, seconds since 1970-01-01 UTC; None: never, it has its default.
    """

    on: bool
    since: int | None


class Values:
    """The values of each event type in order: no need to look for a median among all of them each time.

    They are read from the store the second time they are asked for. Commits of other processes are noticed;
    whoever deletes events, or has a transaction fail, clears them.
    """

    def __init__(self) -> None:
        self._version: int | None = None  # of the store
        self._asked: set[str] = set()
        self._ordered: dict[str, list[float]] = {}

    def follow(self, store: Store) -> None:
        """Let go of what another process has made old; called within a transaction."""
        version = store.version()
        if version != self._version:
            self._version = version
            self.clear()

    def clear(self) -> None:
        """Know nothing."""
        self._ordered.clear()

    def median(self, store: Store, event: str, added: float) -> float:
        """Median of log1p(value) over the stored values of a type, ``added`` the last of them."""
        if event not in self._asked:
            self._asked.add(event)
            return _median(store, event)
        if event in self._ordered:
            insort(self._ordered[event], added)
        else:
            rows = store.query(f"SELECT value {_OF_TYPE} ORDER BY value", (event,))
            self._ordered[event] = [value for (value,) in rows]
        values = self._ordered[event]
        middle = values[(len(values) - 1) // 2 : len(values) // 2 + 1]
        return sum(map(math.log1p, middle)) / len(middle)


def append(store: Store, interactions: Iterable[Interaction], values: Values) -> list[Recorded]:
    """Store those whose ids aren't stored yet; returns them, in the order given.

    Args:
        store: to be written to.
        interactions: what was done.
        values: of this store, kept from call to call or new; to be cleared if the transaction fails.
    """
    added = []
    values.follow(store)
    for one in interactions:
        row = (one.id, one.item, one.event, one.time, one.value, 1.0, one.session)
        columns = _COLUMNS.removeprefix("seq, ")
        if not store.execute(
            f"INSERT OR IGNORE INTO events ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row
        ):
            continue
        seq = int(store.query("SELECT last_insert_rowid()")[0][0])
        strength = 1.0
        if one.value is not None:
            median = values.median(store, one.event, one.value)
            strength = max(math.log1p(one.value) / median, _SMALLEST_STRENGTH)
            store.execute("UPDATE events SET strength = ? WHERE seq = ?", (strength, seq))
        added.append(Recorded(seq, one, strength))
    return added


def _median(store: Store, event: str) -> float:
    """Median of log1p(value) over the stored values of a type, at least one."""
    count = int(store.query(f"SELECT count(*) {_OF_TYPE}", (event,))[0][0])
    middle = store.query(
        f"SELECT value {_OF_TYPE} ORDER BY value LIMIT ? OFFSET ?",
        (event, 2 - count % 2, (count - 1) // 2),
    )
    return sum(math.log1p(value) for (value,) in middle) / len(middle)


def in_order_of_time(store: Store) -> list[Recorded]:
    """All events by time; those of one time in the order of recording."""
    rows = store.query(f"SELECT {_COLUMNS} FROM events ORDER BY time, seq")
    return [_recorded(row) for row in rows]


def turned_down(
    store: Store, rejecting: Collection[str], neutral: Collection[str]
) -> frozenset[str]:
    """Items whose last event of a type that isn't ``neutral`` is of one that is ``rejecting``."""
    rows = store.query(
        f"SELECT item, event FROM events WHERE event NOT IN ({_marks(neutral)}) AND item IN "
        f"(SELECT item FROM events WHERE event IN ({_marks(rejecting)})) ORDER BY time, seq",
        (*neutral, *rejecting),
    )
    last = dict(rows)  # a later row overwrites an earlier one
    return frozenset(item for item, event in last.items() if event in rejecting)


def newest_time(store: Store) -> int:
    """Time of the newest event, of at least one."""
    return int(store.query("SELECT max(time) FROM events")[0][0])


def last_type(store: Store, item: str, neutral: Collection[str]) -> str | None:
    """Type of the last event with ``item`` whose type isn't ``neutral``; None where there is none."""
    rows = store.query(
        f"SELECT event FROM events WHERE item = ? AND event NOT IN ({_marks(neutral)}) "
        "ORDER BY time DESC, seq DESC LIMIT 1",
        (item, *neutral),
    )
    return str(rows[0][0]) if rows else None


def _marks(values: Collection[str]) -> str:
    return ", ".join("?" * len(values))


def recorded_after(store: Store, seq: int) -> list[Recorded]:
    """The next thousand events in the order of recording; none at the end."""
    rows = store.query(
        f"SELECT {_COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (seq, _PAGE)
    )
    return [_recorded(row) for row in rows]


def _recorded(row: tuple[object, ...]) -> Recorded:
    seq, name, item, event, time, value, strength, session = row
    interaction = Interaction(name, item, time, event, value, session)  # type: ignore[arg-type]
    return Recorded(seq, interaction, strength)  # type: ignore[arg-type]


def count_events(store: Store) -> tuple[int, int | None, int | None]:
    """How many events there are, and the times of the oldest and the newest."""
    ((count, oldest, newest),) = store.query("SELECT count(*), min(time), max(time) FROM events")
    return int(count), oldest, newest


def delete_item(store: Store, item: str) -> int:
    """Delete the events with ``item``; returns how many."""
    return store.execute("DELETE FROM events WHERE item = ?", (item,))


def delete_before(store: Store, time: int) -> int:
    """Delete the events before ``time``; returns how many."""
    return store.execute("DELETE FROM events WHERE time < ?", (time,))


def delete_all_but_newest(store: Store, count: int) -> int:
    """Delete the oldest events, so that ``count`` are left; returns how many."""
    return store.execute(
        "DELETE FROM events WHERE seq IN "
        "(SELECT seq FROM events ORDER BY time DESC, seq DESC LIMIT -1 OFFSET ?)",
        (count,),
    )


def declared(store: Store) -> dict[str, str]:
    """Basic data that the owner stated, by name."""
    return dict(store.query("SELECT name, value FROM declared ORDER BY name"))


def declare(store: Store, name: str, value: str) -> None:
    """State ``value``; "" takes the statement back."""
    store.execute("DELETE FROM declared WHERE name = ?", (name,))
    if value:
        store.execute("INSERT INTO declared (name, value) VALUES (?, ?)", (name, value))


def setting(store: Store, name: str) -> Setting:
    """A switch; off where it was never set."""
    rows = store.query("SELECT value, since FROM settings WHERE name = ?", (name,))
    return Setting(bool(rows[0][0]), int(rows[0][1])) if rows else Setting(False, None)


def set_setting(store: Store, name: str, on: bool, *, now: int) -> None:
    """Set a switch."""
    store.execute(
        "INSERT OR REPLACE INTO settings (name, value, since) VALUES (?, ?, ?)",
        (name, int(on), now),
    )


def load_profile(store: Store, basis: str) -> bytes | None:
    """The state that was saved last, if it was made on this basis."""
    rows = store.query("SELECT state FROM profile WHERE basis = ?", (basis,))
    return bytes(rows[0][0]) if rows else None


def save_profile(store: Store, basis: str, state: bytes) -> None:
    """Keep the profile's state, and name what it was made with."""
    store.execute(
        "INSERT OR REPLACE INTO profile (one, basis, state) VALUES (1, ?, ?)", (basis, state)
    )


def drop_profile(store: Store) -> None:
    """Keep no state."""
    store.execute("DELETE FROM profile")
