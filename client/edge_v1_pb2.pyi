from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Interaction(_message.Message):
    __slots__ = ("id", "item", "time", "event", "value", "session")
    ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    item: str
    time: int
    event: str
    value: float
    session: str
    def __init__(self, id: _Optional[str] = ..., item: _Optional[str] = ..., time: _Optional[int] = ..., event: _Optional[str] = ..., value: _Optional[float] = ..., session: _Optional[str] = ...) -> None: ...

class RecordEventsRequest(_message.Message):
    __slots__ = ("events", "change_top_k")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    CHANGE_TOP_K_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Interaction]
    change_top_k: int
    def __init__(self, events: _Optional[_Iterable[_Union[Interaction, _Mapping]]] = ..., change_top_k: _Optional[int] = ...) -> None: ...

class RecordEventsResponse(_message.Message):
    __slots__ = ("recorded", "repeated", "unlearned", "profile_change", "list_change")
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    UNLEARNED_FIELD_NUMBER: _ClassVar[int]
    PROFILE_CHANGE_FIELD_NUMBER: _ClassVar[int]
    LIST_CHANGE_FIELD_NUMBER: _ClassVar[int]
    recorded: int
    repeated: int
    unlearned: int
    profile_change: ProfileChange
    list_change: ListChange
    def __init__(self, recorded: _Optional[int] = ..., repeated: _Optional[int] = ..., unlearned: _Optional[int] = ..., profile_change: _Optional[_Union[ProfileChange, _Mapping]] = ..., list_change: _Optional[_Union[ListChange, _Mapping]] = ...) -> None: ...

class ProfileChange(_message.Message):
    __slots__ = ("old_events", "new_events", "old_repeat_rate", "new_repeat_rate", "vector", "interests", "tags", "other_tags", "frequencies", "other_frequencies", "entered", "left")
    OLD_EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEW_EVENTS_FIELD_NUMBER: _ClassVar[int]
    OLD_REPEAT_RATE_FIELD_NUMBER: _ClassVar[int]
    NEW_REPEAT_RATE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    INTERESTS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    OTHER_TAGS_FIELD_NUMBER: _ClassVar[int]
    FREQUENCIES_FIELD_NUMBER: _ClassVar[int]
    OTHER_FREQUENCIES_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    old_events: int
    new_events: int
    old_repeat_rate: float
    new_repeat_rate: float
    vector: VectorShift
    interests: _containers.RepeatedCompositeFieldContainer[InterestShift]
    tags: _containers.RepeatedCompositeFieldContainer[WeightShift]
    other_tags: int
    frequencies: _containers.RepeatedCompositeFieldContainer[WeightShift]
    other_frequencies: int
    entered: _containers.RepeatedCompositeFieldContainer[RecentEvent]
    left: _containers.RepeatedCompositeFieldContainer[RecentEvent]
    def __init__(self, old_events: _Optional[int] = ..., new_events: _Optional[int] = ..., old_repeat_rate: _Optional[float] = ..., new_repeat_rate: _Optional[float] = ..., vector: _Optional[_Union[VectorShift, _Mapping]] = ..., interests: _Optional[_Iterable[_Union[InterestShift, _Mapping]]] = ..., tags: _Optional[_Iterable[_Union[WeightShift, _Mapping]]] = ..., other_tags: _Optional[int] = ..., frequencies: _Optional[_Iterable[_Union[WeightShift, _Mapping]]] = ..., other_frequencies: _Optional[int] = ..., entered: _Optional[_Iterable[_Union[RecentEvent, _Mapping]]] = ..., left: _Optional[_Iterable[_Union[RecentEvent, _Mapping]]] = ...) -> None: ...

class VectorShift(_message.Message):
    __slots__ = ("old_length", "new_length", "distance", "angle")
    OLD_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NEW_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    ANGLE_FIELD_NUMBER: _ClassVar[int]
    old_length: float
    new_length: float
    distance: float
    angle: float
    def __init__(self, old_length: _Optional[float] = ..., new_length: _Optional[float] = ..., distance: _Optional[float] = ..., angle: _Optional[float] = ...) -> None: ...

class InterestShift(_message.Message):
    __slots__ = ("clock", "half_life", "shift")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    HALF_LIFE_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    clock: str
    half_life: float
    shift: VectorShift
    def __init__(self, clock: _Optional[str] = ..., half_life: _Optional[float] = ..., shift: _Optional[_Union[VectorShift, _Mapping]] = ...) -> None: ...

class WeightShift(_message.Message):
    __slots__ = ("name", "old", "new")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    name: str
    old: float
    new: float
    def __init__(self, name: _Optional[str] = ..., old: _Optional[float] = ..., new: _Optional[float] = ...) -> None: ...

class ListChange(_message.Message):
    __slots__ = ("top_k", "entered", "left", "rose", "fell", "stayed")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    ENTERED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    ROSE_FIELD_NUMBER: _ClassVar[int]
    FELL_FIELD_NUMBER: _ClassVar[int]
    STAYED_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    entered: _containers.RepeatedCompositeFieldContainer[RankShift]
    left: _containers.RepeatedCompositeFieldContainer[RankShift]
    rose: _containers.RepeatedCompositeFieldContainer[RankShift]
    fell: _containers.RepeatedCompositeFieldContainer[RankShift]
    stayed: _containers.RepeatedCompositeFieldContainer[RankShift]
    def __init__(self, top_k: _Optional[int] = ..., entered: _Optional[_Iterable[_Union[RankShift, _Mapping]]] = ..., left: _Optional[_Iterable[_Union[RankShift, _Mapping]]] = ..., rose: _Optional[_Iterable[_Union[RankShift, _Mapping]]] = ..., fell: _Optional[_Iterable[_Union[RankShift, _Mapping]]] = ..., stayed: _Optional[_Iterable[_Union[RankShift, _Mapping]]] = ...) -> None: ...

class RankShift(_message.Message):
    __slots__ = ("item", "old_rank", "new_rank", "old_score", "new_score")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    OLD_RANK_FIELD_NUMBER: _ClassVar[int]
    NEW_RANK_FIELD_NUMBER: _ClassVar[int]
    OLD_SCORE_FIELD_NUMBER: _ClassVar[int]
    NEW_SCORE_FIELD_NUMBER: _ClassVar[int]
    item: str
    old_rank: int
    new_rank: int
    old_score: float
    new_score: float
    def __init__(self, item: _Optional[str] = ..., old_rank: _Optional[int] = ..., new_rank: _Optional[int] = ..., old_score: _Optional[float] = ..., new_score: _Optional[float] = ...) -> None: ...

class Candidates(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, items: _Optional[_Iterable[str]] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("candidates", "top_k", "threshold", "include_seen", "explain", "diversity", "calibration", "strategy")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    candidates: Candidates
    top_k: int
    threshold: float
    include_seen: bool
    explain: bool
    diversity: float
    calibration: float
    strategy: str
    def __init__(self, candidates: _Optional[_Union[Candidates, _Mapping]] = ..., top_k: _Optional[int] = ..., threshold: _Optional[float] = ..., include_seen: _Optional[bool] = ..., explain: _Optional[bool] = ..., diversity: _Optional[float] = ..., calibration: _Optional[float] = ..., strategy: _Optional[str] = ...) -> None: ...

class ReasonEvent(_message.Message):
    __slots__ = ("item", "event", "time", "share")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    item: str
    event: str
    time: int
    share: float
    def __init__(self, item: _Optional[str] = ..., event: _Optional[str] = ..., time: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class ReasonTag(_message.Message):
    __slots__ = ("tag", "share")
    TAG_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    tag: str
    share: float
    def __init__(self, tag: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class ReasonItem(_message.Message):
    __slots__ = ("item", "likeness")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    LIKENESS_FIELD_NUMBER: _ClassVar[int]
    item: str
    likeness: float
    def __init__(self, item: _Optional[str] = ..., likeness: _Optional[float] = ...) -> None: ...

class ReasonPart(_message.Message):
    __slots__ = ("item", "share")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    item: str
    share: float
    def __init__(self, item: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class Recommendation(_message.Message):
    __slots__ = ("item", "score", "events", "tags", "follows", "nearest", "together")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    item: str
    score: float
    events: _containers.RepeatedCompositeFieldContainer[ReasonEvent]
    tags: _containers.RepeatedCompositeFieldContainer[ReasonTag]
    follows: _containers.RepeatedCompositeFieldContainer[ReasonEvent]
    nearest: _containers.RepeatedCompositeFieldContainer[ReasonItem]
    together: _containers.RepeatedCompositeFieldContainer[ReasonPart]
    def __init__(self, item: _Optional[str] = ..., score: _Optional[float] = ..., events: _Optional[_Iterable[_Union[ReasonEvent, _Mapping]]] = ..., tags: _Optional[_Iterable[_Union[ReasonTag, _Mapping]]] = ..., follows: _Optional[_Iterable[_Union[ReasonEvent, _Mapping]]] = ..., nearest: _Optional[_Iterable[_Union[ReasonItem, _Mapping]]] = ..., together: _Optional[_Iterable[_Union[ReasonPart, _Mapping]]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("model", "items", "unknown_candidates", "rejected_candidates")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    model: str
    items: _containers.RepeatedCompositeFieldContainer[Recommendation]
    unknown_candidates: int
    rejected_candidates: int
    def __init__(self, model: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Recommendation, _Mapping]]] = ..., unknown_candidates: _Optional[int] = ..., rejected_candidates: _Optional[int] = ...) -> None: ...

class GetProfileRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RecentEvent(_message.Message):
    __slots__ = ("item", "event", "time", "weight")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    item: str
    event: str
    time: int
    weight: float
    def __init__(self, item: _Optional[str] = ..., event: _Optional[str] = ..., time: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class Interest(_message.Message):
    __slots__ = ("clock", "half_life", "sum")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    HALF_LIFE_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    clock: str
    half_life: float
    sum: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, clock: _Optional[str] = ..., half_life: _Optional[float] = ..., sum: _Optional[_Iterable[float]] = ...) -> None: ...

class GetProfileResponse(_message.Message):
    __slots__ = ("model", "events", "repeat_rate", "updated_at", "declared", "tags", "frequencies", "recent", "interests", "vector")
    class DeclaredEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class FrequenciesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    REPEAT_RATE_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    FREQUENCIES_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    INTERESTS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    model: str
    events: int
    repeat_rate: float
    updated_at: int
    declared: _containers.ScalarMap[str, str]
    tags: _containers.ScalarMap[str, float]
    frequencies: _containers.ScalarMap[str, float]
    recent: _containers.RepeatedCompositeFieldContainer[RecentEvent]
    interests: _containers.RepeatedCompositeFieldContainer[Interest]
    vector: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, model: _Optional[str] = ..., events: _Optional[int] = ..., repeat_rate: _Optional[float] = ..., updated_at: _Optional[int] = ..., declared: _Optional[_Mapping[str, str]] = ..., tags: _Optional[_Mapping[str, float]] = ..., frequencies: _Optional[_Mapping[str, float]] = ..., recent: _Optional[_Iterable[_Union[RecentEvent, _Mapping]]] = ..., interests: _Optional[_Iterable[_Union[Interest, _Mapping]]] = ..., vector: _Optional[_Iterable[float]] = ...) -> None: ...

class DeclareDataRequest(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class DeclareDataResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportProfileRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportProfileResponse(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class EraseProfileRequest(_message.Message):
    __slots__ = ("item", "before", "everything")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    EVERYTHING_FIELD_NUMBER: _ClassVar[int]
    item: str
    before: int
    everything: bool
    def __init__(self, item: _Optional[str] = ..., before: _Optional[int] = ..., everything: _Optional[bool] = ...) -> None: ...

class EraseProfileResponse(_message.Message):
    __slots__ = ("erased", "left")
    ERASED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    erased: int
    left: int
    def __init__(self, erased: _Optional[int] = ..., left: _Optional[int] = ...) -> None: ...

class SetConsentRequest(_message.Message):
    __slots__ = ("on",)
    ON_FIELD_NUMBER: _ClassVar[int]
    on: bool
    def __init__(self, on: _Optional[bool] = ...) -> None: ...

class SetConsentResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetPausedRequest(_message.Message):
    __slots__ = ("on",)
    ON_FIELD_NUMBER: _ClassVar[int]
    on: bool
    def __init__(self, on: _Optional[bool] = ...) -> None: ...

class SetPausedResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("name", "version", "events", "learned", "consent", "paused", "store_bytes", "items", "service", "oldest", "newest", "consent_since", "paused_since", "model", "model_hash", "set_aside", "event_types")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    STORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    CONSENT_SINCE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_SINCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    events: int
    learned: int
    consent: bool
    paused: bool
    store_bytes: int
    items: int
    service: bool
    oldest: int
    newest: int
    consent_since: int
    paused_since: int
    model: str
    model_hash: str
    set_aside: _containers.RepeatedScalarFieldContainer[str]
    event_types: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., events: _Optional[int] = ..., learned: _Optional[int] = ..., consent: _Optional[bool] = ..., paused: _Optional[bool] = ..., store_bytes: _Optional[int] = ..., items: _Optional[int] = ..., service: _Optional[bool] = ..., oldest: _Optional[int] = ..., newest: _Optional[int] = ..., consent_since: _Optional[int] = ..., paused_since: _Optional[int] = ..., model: _Optional[str] = ..., model_hash: _Optional[str] = ..., set_aside: _Optional[_Iterable[str]] = ..., event_types: _Optional[_Iterable[str]] = ...) -> None: ...
