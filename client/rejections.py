"""Items that the owner turned down last: no list names them until a later event speaks for them.

Nothing is learned from a rejection, so no profile tells of it. Which items they are is worked out from the
store where a list is asked for, and kept in step with every event from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.event_types import NEUTRAL, REJECTING
from .records import Recorded, last_type, newest_time, turned_down
from .store import Store


@dataclass(frozen=True)
class Signs:
    """What event types say of an item; one that isn't named here speaks for it.

    Attributes:
        rejecting: types that turn it down.
        neutral: types that say nothing.
    """

    rejecting: frozenset[str]
    neutral: frozenset[str]

    @classmethod
    def of(cls, weights: Mapping[str, float], *, learned: Collection[str]) -> Signs:
        """By the owner's weights; of types without one, by their public names.

        Args:
            weights: event type → weight, as the owner set them.
            learned: types that the model was trained on, which weighed something there.
        """
        unsaid = {*weights, *learned}
        return cls(
            rejecting=(REJECTING - unsaid) | {name for name, w in weights.items() if w < 0},
            neutral=(NEUTRAL - unsaid) | {name for name, w in weights.items() if w == 0},
        )


class Rejections:
    """The items of a model that were turned down last.

    Args:
        store: events.
        index: item id → item index of the model.
        signs: what event types say.
    """

    def __init__(self, store: Store, index: Mapping[str, int], signs: Signs) -> None:
        self._store, self._index, self._signs = store, index, signs
        self._held: frozenset[int] | None = None
        self._items: NDArray[np.int32] | None = None  # the same, to be left out of scores

    def items(self) -> NDArray[np.int32]:
        """Their indices, int32 [n], ascending; not to be changed."""
        if self._items is None:
            if self._held is None:
                self._held = self._read()
            self._items = np.array(sorted(self._held), dtype=np.int32)
        return self._items

    def learn(self, added: Iterable[Recorded]) -> None:
        """Take in what was stored, within its transaction; :meth:`clear` if that fails."""
        held = self._held
        if held is None:
            return
        latest: dict[str, Recorded] = {}
        doubtful: dict[str, int] = {}
        for one in added:
            name, event = one.interaction.item, one.interaction.event
            item = self._index.get(name)
            if item is None or event in self._signs.neutral:
                continue
            latest[name] = max(latest.get(name, one), one, key=_when)
            # Anything else leaves the item where it is, however late it comes.
            if (event in self._signs.rejecting) != (item in held):
                doubtful[name] = item
        if not doubtful:
            return
        newest = newest_time(self._store)
        out = {item for name, item in doubtful.items() if self._turned_down(latest[name], newest)}
        self._held, self._items = held - set(doubtful.values()) | out, None

    def clear(self) -> None:
        """Know nothing: they are read from the store when they are asked for."""
        self._held = self._items = None

    def _read(self) -> frozenset[int]:
        names = turned_down(self._store, self._signs.rejecting, self._signs.neutral)
        return frozenset(item for name in names if (item := self._index.get(name)) is not None)

    def _turned_down(self, one: Recorded, newest: int) -> bool:
        """Whether the item of an event that was just stored is, however late the event came."""
        event: str | None = one.interaction.event
        # Else no event is later, and there may be thousands of the item to look at.
        if one.interaction.time < newest:
            event = last_type(self._store, one.interaction.item, self._signs.neutral)
        return event in self._signs.rejecting


def _when(one: Recorded) -> tuple[int, int]:
    return one.interaction.time, one.seq
