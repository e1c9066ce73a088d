"""What a device is asked and answers, the same over its local service and without.

Each dataclass has the fields of the message of its name in ``edge_v1.proto``; a test compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Candidates:
    """Items to choose from, by id."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class RecommendRequest:
    """A question for recommendations.

    Attributes:
        candidates: what to choose from; None: all items of the model.
        top_k: length of the list; exactly one of this and ``threshold`` is set.
        threshold: the least score.
        include_seen: rank items that the owner has met too, by the mixture with repeats.
        explain: give reasons.
        diversity: how much it counts that a list's items differ, 0 to 1; with ``top_k`` only.
        calibration: how much it counts that a list has the profile's shares of tags, 0 to 1; likewise.
        strategy: what ranks: a part of the score alone (content, collaborative, sequential, neural), or
            hybrid, all of it; empty: hybrid.
    """

    candidates: Candidates | None = None
    top_k: int | None = None
    threshold: float | None = None
    include_seen: bool = False
    explain: bool = False
    diversity: float = 0.0
    calibration: float = 0.0
    strategy: str = ""


@dataclass(frozen=True)
class RecordEventsResponse:
    """What became of events that were handed over.

    Attributes:
        recorded: stored now, durably.
        repeated: stored before, by their ids.
        unlearned: of those recorded, the ones that the model can't learn from: it doesn't know the
            item or the type, or the type's weight isn't positive. They are kept.
        profile_change: how the profile moved, where that was asked for and there is a model.
        list_change: how the list of the best new items changed, likewise.
    """

    recorded: int = 0
    repeated: int = 0
    unlearned: int = 0
    profile_change: ProfileChange | None = None
    list_change: ListChange | None = None


@dataclass(frozen=True)
class VectorShift:
    """How far a vector moved.

    Attributes:
        old_length: its Euclidean length before, new_length: after.
        distance: length of the difference.
        angle: between old and new, in degrees; None where either is zero.
    """

    old_length: float
    new_length: float
    distance: float
    angle: float | None = None


@dataclass(frozen=True)
class InterestShift:
    """How far a decayed interest sum moved, and how fast it decays."""

    clock: str
    half_life: float
    shift: VectorShift


@dataclass(frozen=True)
class WeightShift:
    """A tag or an item, and its decayed weight before and after; 0: the profile didn't have it."""

    name: str
    old: float
    new: float


@dataclass(frozen=True)
class ProfileChange:
    """What recording did to a profile: Δu.

    Attributes:
        old_events: events learned from before, new_events: after.
        old_repeat_rate: share of events that repeat an earlier item before, new_repeat_rate: after.
        vector: shift of the profile vector U.
        interests: shift of the decayed interest sum of each time scale.
        tags: interest tags whose weight moved, the largest change first; so many are told.
        other_tags: how many moved besides, by less.
        frequencies: items whose decayed number of events moved, likewise.
        other_frequencies: how many moved besides.
        entered: events that came into the window that the encoder reads; one too old for it doesn't.
        left: events that fell out of it.
    """

    old_events: int
    new_events: int
    old_repeat_rate: float
    new_repeat_rate: float
    vector: VectorShift
    interests: tuple[InterestShift, ...] = ()
    tags: tuple[WeightShift, ...] = ()
    other_tags: int = 0
    frequencies: tuple[WeightShift, ...] = ()
    other_frequencies: int = 0
    entered: tuple[RecentEvent, ...] = ()
    left: tuple[RecentEvent, ...] = ()


@dataclass(frozen=True)
class RankShift:
    """An item's place among all items that the owner hasn't met, and its score, before and after.

    Ranks count from 1, also beyond the list. Rank and score are None where the owner has met the item.
    """

    item: str
    old_rank: int | None = None
    new_rank: int | None = None
    old_score: float | None = None
    new_score: float | None = None


@dataclass(frozen=True)
class ListChange:
    """What recording did to the list of the best new items: Δr.

    Every item of the old list or the new one is in one group; all but ``left`` are the new list.

    Attributes:
        top_k: length of the list; it is shorter where there are fewer new items.
        entered: items that came into it, by new rank.
        left: items that left it, by old rank.
        rose: items with a better rank than before, by new rank.
        fell: items with a worse one, by new rank.
        stayed: items at the rank they had.
    """

    top_k: int
    entered: tuple[RankShift, ...] = ()
    left: tuple[RankShift, ...] = ()
    rose: tuple[RankShift, ...] = ()
    fell: tuple[RankShift, ...] = ()
    stayed: tuple[RankShift, ...] = ()


@dataclass(frozen=True)
class ReasonEvent:
    """A recent event that speaks for an item, and its part of the cosine with the interests."""

    item: str
    event: str
    time: int
    share: float


@dataclass(frozen=True)
class ReasonTag:
    """A tag of the item that the profile holds, and its share of all tag weight."""

    tag: str
    share: float


@dataclass(frozen=True)
class ReasonItem:
    """The item held that is most like another one, and the cosine between the two."""

    item: str
    likeness: float


@dataclass(frozen=True)
class ReasonPart:
    """An item held that another one goes with, and its part of the chance that this comes next."""

    item: str
    share: float


@dataclass(slots=True)
class Recommendation:
    """A ranked item; reasons where they were asked for, those that say most first.

    Not frozen: every list makes some fifty of them on either side of the socket, in a third of the time.
    """

    item: str
    score: float
    events: tuple[ReasonEvent, ...] = ()
    tags: tuple[ReasonTag, ...] = ()
    follows: tuple[ReasonEvent, ...] = ()  # share: of the chance that the item comes next
    nearest: tuple[ReasonItem, ...] = ()  # one, or none
    together: tuple[ReasonPart, ...] = ()


@dataclass(frozen=True)
class RecommendResponse:
    """A ranking, best first.

    Attributes:
        model: name of the bundle that ranked.
        items: the ranking.
        unknown_candidates: candidates that the model doesn't know; they are left out.
        rejected_candidates: candidates that the owner turned down last; likewise.
    """

    model: str
    items: tuple[Recommendation, ...] = ()
    unknown_candidates: int = 0
    rejected_candidates: int = 0


@dataclass(frozen=True)
class RecentEvent:
    """An event of the window that the encoder reads."""

    item: str
    event: str
    time: int
    weight: float


@dataclass(frozen=True)
class Interest:
    """A decayed interest sum, and how fast it decays."""

    clock: str
    half_life: float
    sum: tuple[float, ...]


@dataclass(frozen=True)
class GetProfileResponse:
    """The whole profile, for its owner's eyes.

    Attributes:
        model: name of the bundle it was made with.
        declared: basic data that the owner stated.
        events: events learned from.
        updated_at: time of the newest of them; None before the first.
        repeat_rate: share of events that repeat an earlier item.
        tags: interest tag → decayed weight.
        frequencies: item → decayed weight of its events.
        recent: the window, oldest first.
        interests: decayed sums of item vectors.
        vector: U.
    """

    model: str
    events: int
    repeat_rate: float
    updated_at: int | None = None
    declared: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, float] = field(default_factory=dict)
    frequencies: Mapping[str, float] = field(default_factory=dict)
    recent: tuple[RecentEvent, ...] = ()
    interests: tuple[Interest, ...] = ()
    vector: tuple[float, ...] = ()


@dataclass(frozen=True)
class EraseProfileRequest:
    """What to erase: exactly one of an item's events, those before a time, and everything."""

    item: str | None = None
    before: int | None = None
    everything: bool = False


@dataclass(frozen=True)
class EraseProfileResponse:
    """How many events were erased, and how many are left."""

    erased: int
    left: int


@dataclass(frozen=True)
class GetStatusResponse:
    """How a device is.

    Attributes:
        name: what its owner calls it.
        version: of the program.
        events: events stored.
        learned: of those, the ones that the profile is made of.
        oldest: time of the oldest event, newest: of the newest; None without events.
        consent: whether the owner agreed to take part in training.
        consent_since: when that was set; None: never, it is off.
        paused: whether taking part is suspended.
        paused_since: when that was set; None: never.
        store_bytes: size of the store with its log.
        set_aside: files of stores that were damaged.
        model: name of the bundle in use; None: no model yet.
        model_hash: of its weights, as ledgers name it.
        items: how many items it ranks.
        event_types: names of the event types it knows.
        service: whether the local service answers.
    """

    name: str
    version: str
    events: int
    learned: int
    consent: bool
    paused: bool
    store_bytes: int
    items: int = 0
    service: bool = False
    oldest: int | None = None
    newest: int | None = None
    consent_since: int | None = None
    paused_since: int | None = None
    model: str | None = None
    model_hash: str | None = None
    set_aside: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()
