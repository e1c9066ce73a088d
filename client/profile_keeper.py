"""Keeps the profile of a store in step with its events.

A profile is brought up to date event by event; one that arrives late, or many at once, has it built
anew from all events, which gives the same and is exact on every clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..common.histories import Histories
from .interactions import Interaction
from .model_bundle import ModelBundle
from .nearest import NearestHeld
from .profile import Event, Profile, build, empty_profile, update
from .profile_state import LAYOUT, profile_from_bytes, profile_to_bytes
from .records import (
    Recorded,
    Values,
    append,
    declared,
    in_order_of_time,
    load_profile,
    save_profile,
)
from .rejections import Rejections, Signs
from .scoring import score
from .store import Store

_MANY = 32  # events at once that are learned by building anew


class ProfileKeeper:
    """The profile that a model makes of a store's events.

    Args:
        store: events.
        bundle: the model.
        weights: event type → weight, 1 where absent.
        session_gap: seconds; a longer pause starts a new session where none is given.
    """

    def __init__(
        self,
        store: Store,
        bundle: ModelBundle,
        *,
        weights: Mapping[str, float],
        session_gap: float,
    ) -> None:
        self.bundle = bundle
        self._store = store
        self._weights = weights
        self._session_gap = session_gap
        basis = json.dumps([LAYOUT, bundle.name, sorted(weights.items())])
        self._basis = hashlib.sha256(basis.encode()).hexdigest()
        self._version: int | None = None  # of the store, when it was looked at last
        self._cached: Profile | None = None
        self._scores: NDArray[np.float32] | None = None
        self._nearest = NearestHeld(bundle.served)
        signs = Signs.of(weights, learned=bundle.event_types)
        self._rejections = Rejections(store, bundle.index, signs)

    def profile(self) -> Profile:
        """The profile as of the last event that was committed."""
        if self._cached is None:
            with self._store.transaction():
                profile = self._saved()
            self._cached = profile
        return self._cached

    def follow(self) -> None:
        """Let go of a profile that another process has made old."""
        version = self._store.version()
        if version != self._version:
            self._version = version
            self.keep(None)

    def keep(self, profile: Profile | None) -> None:
        """``profile`` is what was committed; None: read all from the store when it is asked for."""
        self._cached, self._scores = profile, None
        if profile is None:
            self._rejections.clear()

    def rejected(self) -> NDArray[np.int32]:
        """Items that the owner turned down last, which no list names: int32 [n], not to be changed."""
        return self._rejections.items()

    def scores(self) -> NDArray[np.float32]:
        """What the profile says of every item, float32 [n_items]; worked out once until it changes.

        Lists are asked for more often than anything happens, and a large table has left the processor's
        cache by then.
        """
        if self._scores is None:
            self._scores = self.scores_of(self.profile())
        return self._scores

    def scores_of(self, profile: Profile) -> NDArray[np.float32]:
        """What another profile of this owner says, such as the one before an event; not kept."""
        return score(profile, self.bundle.served, nearest=self._nearest)

    def record(
        self, interactions: Sequence[Interaction], values: Values
    ) -> tuple[list[Recorded], Profile, Profile]:
        """Store what isn't stored yet and learn from it, within a transaction; ``values`` as in `append`.

        The result holds once the transaction is committed: hand its last profile to :meth:`keep` then, or
        None if it failed.

        Returns:
            What was stored, and the profile before and after; one and the same where nothing was learned.
        """
        self.follow()  # others may have committed while this transaction waited for them to end
        before = self._cached or self._saved()
        added = append(self._store, interactions, values)
        self._rejections.learn(added)
        events = [event for one in added if (event := self.learned(one)) is not None]
        times = [before.updated_at or 0, *(event.time for event in events)]
        if not events:
            return added, before, before
        if len(events) > _MANY or any(later < earlier for earlier, later in pairwise(times)):
            return added, before, self.rebuild()
        after = before
        for event in events:
            after = update(after, event, table=self.bundle.public, encode=self.bundle.encode)
        save_profile(self._store, self._basis, profile_to_bytes(after))
        return added, before, after

    def rebuild(self) -> Profile:
        """The profile of all events, saved within a transaction."""
        profile = build(
            self.history(),
            table=self.bundle.public,
            scales=self.bundle.config.scales,
            window_size=self.bundle.config.window,
            declared=declared(self._store),
            encode=self.bundle.encode,
        )
        save_profile(self._store, self._basis, profile_to_bytes(profile))
        return profile

    def history(self) -> Histories:
        """All events that the model can learn from, as the history of one device.

        A session ends where another one is named, or where none is named after a pause.
        """
        learned = [
            (event, one.interaction.session)
            for one in in_order_of_time(self._store)
            if (event := self.learned(one)) is not None
        ]
        new = [
            name != before or (name is None and event.time - earlier.time > self._session_gap)
            for (earlier, before), (event, name) in pairwise(learned)
        ]
        events = [event for event, _ in learned]
        return Histories(
            offsets=np.array([0, len(events)], dtype=np.int64),
            items=np.array([event.item for event in events], dtype=np.int32),
            times=np.array([event.time for event in events], dtype=np.int64),
            sessions=np.cumsum([0, *new], dtype=np.int32)[: len(events)],
            weights=np.array([event.weight for event in events], dtype=np.float32),
            types=np.array([event.type for event in events], dtype=np.int16),
        )

    def _saved(self) -> Profile:
        """What the store holds, built anew where that was made by another model or by none."""
        state = load_profile(self._store, self._basis)
        return self.rebuild() if state is None else profile_from_bytes(state, self._empty())

    def learned(self, one: Recorded) -> Event | None:
        """The event as the model sees it; None where it can't learn from it."""
        item = self.bundle.index.get(one.interaction.item)
        known = self.bundle.event_types
        name = one.interaction.event or (known[0] if len(known) == 1 else "")
        weight = self._weights.get(one.interaction.event, 1.0) * one.strength
        if item is None or name not in known or weight <= 0:
            return None
        return Event(item=item, time=one.interaction.time, weight=weight, type=known.index(name))

    def _empty(self) -> Profile:
        return empty_profile(
            self.bundle.public,
            scales=self.bundle.config.scales,
            window_size=self.bundle.config.window,
            declared=declared(self._store),
            encode=self.bundle.encode,
        )
