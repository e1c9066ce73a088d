"""One device: its store, its profile and its model behind a few calls.

The local service and the command line both end here, so that there is one way to do a thing. Every
call sees the model and the store as they are now: another process may have changed either.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..common.errors import ConfigError, DataError, DeviceError, StoreError, StoreFull
from ..common.files import sync_folder
from ..common.histories import Histories
from . import records
from .answers import (
    EraseProfileRequest,
    EraseProfileResponse,
    GetProfileResponse,
    GetStatusResponse,
    Interest,
    ReasonEvent,
    ReasonItem,
    ReasonPart,
    ReasonTag,
    RecentEvent,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    RecordEventsResponse,
)
from .api_limits import LONGEST_LIST, MOST_CANDIDATES, check_change, check_size
from .device_folder import DeviceFolder
from .erasing import Eraser
from .interactions import Interaction, check_interaction, check_text, composed
from .model_bundle import ModelBundle, current_bundle, current_name
from .profile import Event
from .profile_keeper import ProfileKeeper
from .reasons import why
from .reranking import Aims, pool_size, rerank
from .scoring import Ranking, above_threshold, top_k
from .store import Store, store_files, stores_aside
from .store_key import find_key
from .store_lock import StoreLock
from .succession import tells_next
from .withdrawal import withdraw_answers

if TYPE_CHECKING:
    from .strategies import Strategy

_DAY, _SOON = 86_400, 60  # seconds between two looks at retention, and before a second attempt
_CONSENT, _PAUSED = "consent", "paused"
_WHOLE_SCORE = ("", "hybrid")  # strategies that are none of its parts
_WAIT = 10.0  # seconds for another call to end


class Device:
    """An opened device. Threads may share it: calls wait for one another.

    Args:
        folder: of the device.
        clock: seconds since 1970-01-01 UTC.
    """

    def __init__(self, folder: DeviceFolder, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._lock = threading.RLock()
        self._files = StoreLock(folder.path)
        self._values = records.Values()
        self._store: Store | None = None
        self._keeper: ProfileKeeper | None = None
        self._model: str | None = None  # name of the bundle that was loaded, or failed to
        self._tidied = -math.inf  # when retention was last enforced

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store; a call opens it again."""
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._store = self._keeper = None

    def record(
        self, interactions: Sequence[Interaction], *, change_top_k: int | None = None
    ) -> RecordEventsResponse:
        """Store interactions durably and bring the profile up to date: all of them, or none.

        Args:
            interactions: what was done.
            change_top_k: tell how the profile moved, and the list of so many new items; None: don't,
                which is faster.

        Raises:
            ConfigError: a change can't be told of so many items or interactions; nothing was stored.
            DataError: one of them can't be stored; the message tells its place.
            StoreError: nothing was stored.
        """
        check_change(change_top_k, len(interactions))
        now = int(self._clock())
        checked = [
            check_interaction(one, now=now, where=f"event {place}")
            for place, one in enumerate(interactions, start=1)
        ]
        with self._opened() as store:
            keeper, before, profile = self._keeper, None, None
            rejected = np.zeros(0, dtype=np.int32)
            try:
                with store.transaction():
                    if keeper is None:
                        added = records.append(store, checked, self._values)
                        records.drop_profile(store)
                    else:
                        if change_top_k is not None:
                            keeper.follow()  # the list before is what others left
                            rejected = keeper.rejected()
                        added, before, profile = keeper.record(checked, self._values)
            except BaseException:
                self._values.clear()
                if keeper is not None:
                    keeper.keep(None)
                raise
            if keeper is None:
                learned = 0
            else:
                keeper.keep(profile)
                learned = sum(keeper.learned(one) is not None for one in added)
            answer = RecordEventsResponse(
                recorded=len(added),
                repeated=len(checked) - len(added),
                unlearned=len(added) - learned,
            )
            # Only now: what is told of is on the disk.
            if change_top_k is None or keeper is None or before is None:
                return answer
            from .changes import with_change  # a device that ranks alone needn't hold it

            return with_change(answer, keeper, before, rejected, top_k=change_top_k)

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Rank items for the owner.

        A threshold that lets more than :data:`LONGEST_LIST` items through yields the best of them. What the
        owner turned down last is in no list.

        Raises:
            ConfigError: not exactly one of top k and threshold is given, k < 1, too much is
                asked for, diversity and calibration are no shares, or go with a threshold, or there is
                no such strategy.
            DeviceError: there is no model, or it has nothing for the strategy.
        """
        check_size(request.top_k or 0, LONGEST_LIST, "items of a list")
        if request.candidates is not None:
            check_size(len(request.candidates.items), MOST_CANDIDATES, "candidates")
        aims = Aims(request.diversity, request.calibration)
        if aims.active and request.top_k is None:
            raise ConfigError("recommend: diversity and calibration go with top k, not a threshold")
        strategy = _part_of_the_score(request.strategy)
        with self._opened():
            keeper = self._need_model()
            bundle, profile = keeper.bundle, keeper.profile()
            candidates, unknown, turned_down = None, 0, 0
            rejected = keeper.rejected()
            if request.candidates is not None:
                names = map(composed, request.candidates.items)
                found = [bundle.index.get(name) for name in names]
                known = [index for index in found if index is not None]
                candidates, unknown = np.array(known, dtype=np.int32), len(found) - len(known)
                turned_down = int(np.isin(candidates, rejected).sum())
            scores = None
            if strategy is not None:
                scores = strategy.scores(profile, bundle.public, bundle.served)
            # Of a few candidates, they are sooner worked out than those of all items, if they don't
            # depend on them.
            elif candidates is None or tells_next(bundle.served):
                scores = keeper.scores()
            options: dict[str, Any] = {
                "candidates": candidates,
                "include_seen": request.include_seen,
                "left_out": rejected,
                "scores": scores,
            }
            length, threshold = request.top_k, request.threshold
            if length is not None and threshold is None:
                pool = pool_size(length) if aims.active and length > 0 else length
                ranking = top_k(profile, bundle.served, pool, **options)
                ranking = rerank(ranking, bundle.public, length, aims=aims, tags=profile.tags)
            elif length is None and threshold is not None and math.isfinite(threshold):
                ranking = above_threshold(profile, bundle.served, threshold, **options)
            else:
                raise ConfigError("recommend: give either top_k or a finite threshold")
            ranking = ranking.first(LONGEST_LIST)
            items = self._explained(keeper, ranking, strategy, explain=request.explain)
            return RecommendResponse(bundle.name, items, unknown, turned_down)

    def profile(self) -> GetProfileResponse:
        """The whole profile, for its owner's eyes.

        Raises:
            DeviceError: there is no model.
        """
        with self._opened() as store:
            keeper = self._need_model()
            bundle, profile = keeper.bundle, keeper.profile()
            ids = bundle.served.ids
            return GetProfileResponse(
                model=bundle.name,
                events=profile.n_events,
                repeat_rate=profile.repeat_rate,
                updated_at=profile.updated_at,
                declared=records.declared(store),
                tags=dict(sorted(profile.tags.items(), key=lambda tag: (-tag[1], tag[0]))),
                frequencies={
                    ids[item]: float(weight)
                    for item, weight in zip(profile.items, profile.frequencies, strict=True)
                },
                recent=tuple(
                    RecentEvent(ids[e.item], bundle.event_types[e.type], e.time, e.weight)
                    for e in profile.window
                ),
                interests=tuple(
                    Interest(scale.clock, scale.half_life, tuple(total.tolist()))
                    for scale, total in zip(profile.scales, profile.sums, strict=True)
                ),
                vector=tuple(profile.vector.tolist()),
            )

    def declare(self, name: str, value: str) -> None:
        """State basic data, such as a language; an empty ``value`` takes the statement back.

        Raises:
            DataError: the name is empty, or either is too long or no text.
        """
        name = check_text(name, "name", "declared data")
        value = check_text(value, "value", "declared data")
        if not name:
            raise DataError("declared data: no name; say what is stated")
        with self._opened() as store:
            with store.transaction():
                records.declare(store, name, value)
            if self._keeper is not None:
                self._keeper.keep(None)

    def export(self) -> Iterator[str]:
        """Everything that is stored, as the pieces of one JSON document.

        Raises:
            StoreError: the store can't be read.
        """
        head: dict[str, Any] = {
            "format": "fedprofile device export",
            "version": 1,
            "exported_at": int(self._clock()),
            "configuration": self.folder.config.model_dump(mode="json"),
        }
        with self._opened() as store:
            head["declared"] = records.declared(store)
            for name in (_CONSENT, _PAUSED):
                head[name] = asdict(records.setting(store, name))
            head["profile"] = None if self._keeper is None else asdict(self.profile())
        yield json.dumps(head, ensure_ascii=False)[:-1] + ', "events": [\n'
        last, separator = 0, ""
        while True:
            with self._opened() as store:  # others may go on between two pages
                page = records.recorded_after(store, last)
            if not page:
                break
            rows = ({**asdict(one.interaction), "strength": one.strength} for one in page)
            yield separator + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            last, separator = page[-1].seq, ",\n"
        yield "\n]}\n"

    def erase(self, request: EraseProfileRequest) -> EraseProfileResponse:
        """Erase so that the bytes are gone, and build the profile anew from what is left.

        Raises:
            ConfigError: not exactly one of item, time and everything is given.
            StoreFull: even so little can't be written; nothing was erased.
        """
        chosen = (request.item is not None, request.before is not None, request.everything)
        if sum(chosen) != 1:
            raise ConfigError("erase: give exactly one of an item, a time, and everything")
        if request.everything:
            return self._start_anew()
        with self._opened() as store:
            if request.item is not None:
                item = composed(request.item)
                erased = self._eraser(store).erase(lambda: records.delete_item(store, item))
            else:
                before = int(request.before or 0)
                erased = self._eraser(store).erase(lambda: records.delete_before(store, before))
            return EraseProfileResponse(erased, records.count_events(store)[0])

    def set_consent(self, on: bool) -> None:
        """Agree to take part in training, or no longer; off until it is set."""
        self._switch(_CONSENT, on)

    def set_paused(self, on: bool) -> None:
        """Suspend taking part in training, or go on."""
        self._switch(_PAUSED, on)

    def status(self) -> GetStatusResponse:
        """How the device is."""
        with self._opened() as store:
            count, oldest, newest = records.count_events(store)
            consent, paused = records.setting(store, _CONSENT), records.setting(store, _PAUSED)
            bundle = None if self._keeper is None else self._keeper.bundle
            return GetStatusResponse(
                name=self.folder.config.name,
                version=importlib.metadata.version("fedprofile"),
                events=count,
                learned=0 if self._keeper is None else self._keeper.profile().n_events,
                oldest=oldest,
                newest=newest,
                consent=consent.on,
                consent_since=consent.since,
                paused=paused.on,
                paused_since=paused.since,
                store_bytes=sum(file.stat().st_size for file in store_files(store.path)),
                set_aside=tuple(file.name for file in stores_aside(store.path)),
                model=None if bundle is None else bundle.name,
                model_hash=None if bundle is None else bundle.hash,
                items=0 if bundle is None else bundle.served.n_items,
                event_types=() if bundle is None else bundle.event_types,
            )

    def history(self) -> tuple[Histories, ModelBundle]:
        """All events that the model can learn from, for local training, and the model.

        Raises:
            DeviceError: there is no model.
        """
        with self._opened():
            keeper = self._need_model()
            return keeper.history(), keeper.bundle

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the calls of other threads to end; those within don't wait any more.

        Raises:
            StoreError: it takes too long.
        """
        if not self._lock.acquire(timeout=_WAIT):
            raise StoreError(f"{self.folder.store}: busy for {_WAIT:g} s; do it again")
        try:
            yield
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Store]:
        """The store, open, in step with the folder, and for this thread alone."""
        with self.turn(), self._in_step() as store:
            yield store

    @contextlib.contextmanager
    def _in_step(self) -> Iterator[Store]:
        try:
            if self._store is not None and self._store.replaced():
                self.close()  # another process found it damaged, or started anew
            if self._store is None:
                self._store = self._open()
            store = self._store
            if current_name(self.folder) != self._model:
                self._load_model(store)
            if self._keeper is not None:
                self._keeper.follow()
            if self._clock() - self._tidied >= _DAY:
                done = self._eraser(store).tidy(self.folder.config.store)
                self._tidied = self._clock() - (0 if done else _DAY - _SOON)
            yield store
        except StoreError:
            # Opened anew by the next call, whatever it was; one that is damaged is set aside by now.
            self.close()
            raise

    def _open(self) -> Store:
        place, path = find_key(self.folder), self.folder.store
        # Whoever starts anew changes key and file together, and one process alone makes new ones.
        with (
            self._files.shared(),
            contextlib.nullcontext() if path.exists() else self._files.alone(),
        ):
            key = place.load()
            if key is None and path.exists():
                raise DeviceError(
                    f"{self.folder.path}: the key of the store is missing; put it back, or start anew "
                    "with fedprofile device forget --all"
                )
            key = place.create() if key is None else key
            try:
                store = Store.open(path, key, lock=self._files)
            except StoreFull:  # even reading takes a page of shared memory
                self.folder.ballast.unlink(missing_ok=True)
                store = Store.open(path, key, lock=self._files)
        self._model, self._tidied = None, -math.inf
        self._values = records.Values()
        return store

    def _load_model(self, store: Store) -> None:
        """What can't be used must not keep the owner from recording and erasing: say so when asked."""
        self._model, self._keeper = current_name(self.folder), None
        with contextlib.suppress(DataError):
            bundle = current_bundle(self.folder)
            if bundle is not None:
                events = self.folder.config.events
                self._keeper = ProfileKeeper(
                    store,
                    bundle,
                    weights=events.weights,
                    session_gap=60 * events.session_gap_minutes,
                )

    def _eraser(self, store: Store) -> Eraser:
        self._values.clear()  # some may be erased
        return Eraser(
            store,
            self._keeper,
            self.folder.ballast,
            withdraw=lambda: withdraw_answers(self.folder),
            now=int(self._clock()),
        )

    def _need_model(self) -> ProfileKeeper:
        if self._keeper is None:
            current_bundle(self.folder)  # tells what is wrong with it, if there is one
            raise DeviceError(
                f"{self.folder.path}: no model yet; install one with "
                f"fedprofile device model {self.folder.path} RUN"
            )
        return self._keeper

    def _explained(
        self, keeper: ProfileKeeper, ranking: Ranking, strategy: Strategy | None, *, explain: bool
    ) -> tuple[Recommendation, ...]:
        if not explain:
            return tuple(map(Recommendation, ranking.ids, ranking.scores.tolist()))
        bundle, profile = keeper.bundle, keeper.profile()
        ids, types = bundle.served.ids, bundle.event_types

        def told(events: tuple[tuple[Event, float], ...]) -> tuple[ReasonEvent, ...]:
            return tuple(ReasonEvent(ids[e.item], types[e.type], e.time, s) for e, s in events)

        found = []
        for index, name, score in zip(ranking.items, ranking.ids, ranking.scores, strict=True):
            if strategy is None:
                reasons = why(profile, bundle.public, int(index), served=bundle.served)
            else:
                reasons = strategy.why(profile, int(index), bundle.public, bundle.served)
            nearest = () if reasons.nearest is None else (reasons.nearest,)
            found.append(
                Recommendation(
                    name,
                    float(score),
                    events=told(reasons.events),
                    tags=tuple(ReasonTag(tag, share) for tag, share in reasons.tags),
                    follows=told(reasons.follows),
                    together=tuple(ReasonPart(ids[held], part) for held, part in reasons.together),
                    nearest=tuple(ReasonItem(ids[held], cosine) for held, cosine in nearest),
                )
            )
        return tuple(found)

    def _switch(self, name: str, on: bool) -> None:
        with self._opened() as store:

            def switch() -> None:
                with store.transaction():
                    records.set_setting(store, name, on, now=int(self._clock()))

            self._eraser(store).with_room(switch)

    def _start_anew(self) -> EraseProfileResponse:
        """Key and files are destroyed; whatever the disk keeps of them can't be read."""
        with self._lock:
            erased = 0
            with contextlib.suppress(DeviceError), self._opened() as store:
                erased = records.count_events(store)[0]
            self.close()
            path = self.folder.store
            try:
                with self._files.alone():
                    find_key(self.folder).destroy()  # first: nobody can read the rest then
                    for file in (*store_files(path), *stores_aside(path)):
                        file.unlink(missing_ok=True)
                    sync_folder(path.parent)
            finally:
                withdraw_answers(self.folder)
            with self._opened():
                return EraseProfileResponse(erased, 0)


def _part_of_the_score(strategy: str) -> Strategy | None:
    """What ranks in place of the whole score; None: that ranks."""
    if strategy in _WHOLE_SCORE:
        return None
    from .strategies import strategy_of  # a device that ranks as usual needn't hold it

    return strategy_of(strategy)
