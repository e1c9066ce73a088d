"""The wire format: tasks and releases to device hosts, and the only three things that come back.

A reply is the range of devices a node hosts, a :class:`ClippedUpdate`, or a refusal that says no more
than its kind. There is no other encoder, so nothing else of a device can get onto the wire. How arrays
travel is in ``wire_arrays.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from .errors import REFUSALS, BudgetError, MessageError, ReplyRejected, TaskRefused
from .signing import signature_holds
from .updates import ClippedUpdate
from .wire_arrays import (
    apart,
    array_record,
    digest,
    numbers,
    read_shapes,
    shapes_of,
    shapes_text,
    together,
)

HOSTING, TRAIN, RELEASE = "query.hosting", "train", "query.release"
POPULARITY, COOCCURRENCE = "query.popularity", "query.cooccurrence"


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a reply must repeat, so that it counts once and only for what it answers.

    Attributes:
        run: name of the federation.
        round: 0 for one-shot statistics.
        release: the ledger's number of the release. A round that a crash cut off is repeated as
            another release, and replies to the first attempt don't count in the second.
        items: hash of the item table.
        model: hash of the weights; empty for statistics, which need none.
    """

    run: str
    round: int
    release: int
    items: str
    model: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class PopularityTask:
    """Ask devices for their clipped part in item popularity.

    Attributes:
        binding: run, round and item table.
        devices: int64, the sampled devices of this host.
        clip_norm: bound on one device's whole contribution.
        noise_multiplier: σ of the noise that the server promises to add.
        half_lives_days: time scales besides "all time".
        now: the moment ages count back from, seconds since 1970 UTC; a public constant.
    """

    name: ClassVar = "statistics/popularity"  # as ledgers have it

    binding: Binding
    devices: NDArray[np.int64]
    clip_norm: float
    noise_multiplier: float
    half_lives_days: tuple[float, ...]
    now: int


@dataclass(frozen=True, kw_only=True, eq=False)
class CooccurrenceTask:
    """Ask devices for their clipped part in which items are taken together, in the way of the item table.

    Attributes:
        binding: run, round and item table.
        devices: int64, the sampled devices of this host.
        head: int64 [K], the items it is about, distinct.
        clip_norm: bound on one device's whole contribution.
        noise_multiplier: σ of the noise that the server promises to add.
    """

    name: ClassVar = "statistics/cooccurrence"
    most_numbers: ClassVar = 2_048 * 2_047
    """That a device sends, 17 MB."""

    binding: Binding
    devices: NDArray[np.int64]
    head: NDArray[np.int64]
    clip_norm: float
    noise_multiplier: float

    @staticmethod
    def pairs(head: int) -> int:
        """Pairs of so many items."""
        return head * (head - 1) // 2

    @classmethod
    def numbers(cls, head: int, *, whole: bool) -> int:
        """Numbers that a device sends of so many items: how often each pair, and in which order, or of
        ``whole`` histories, which pairs they hold."""
        return cls.pairs(head) if whole else 2 * cls.pairs(head)

    @classmethod
    def largest_head(cls, *, whole: bool, numbers: int = most_numbers) -> int:
        """Of how many items a device sends no more than so many numbers: two or more, at most 2,048, or
        2,896 of ``whole`` histories."""
        squared = min(numbers, cls.most_numbers) * (8 if whole else 4)
        return max(2, (1 + math.isqrt(squared + 1)) // 2)


StatisticsTask = PopularityTask | CooccurrenceTask


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainTask:
    """Ask devices to train the shared weights.

    Attributes:
        binding: run, round, item table and weights.
        devices: int64, the sampled devices of this host.
        weights: name → float32, the shared weights.
        prior: float32 [n_items], log popularity, released before.
        vectors: float32 [n_items, r], what was released of co-occurrence; r = 0 without.
        steps: local SGD steps.
        learning_rate: of the local SGD.
        negatives: random items a step.
        dropout: share of the numbers of each hidden layer that is left out in a step, 0 ≤ dropout < 1.
        new_targets_only: learn first encounters only.
        clip_norm: bound on one device's whole update; inf without privacy.
        noise_multiplier: σ of the noise that the server promises to add.
        seed: public seed of the round: negatives, what is left out, stretches of history.
    """

    name: ClassVar = "training"

    binding: Binding
    devices: NDArray[np.int64]
    weights: Mapping[str, NDArray[np.float32]]
    prior: NDArray[np.float32]
    vectors: NDArray[np.float32]
    steps: int
    learning_rate: float
    negatives: int
    dropout: float
    new_targets_only: bool
    clip_norm: float
    noise_multiplier: float
    seed: int


Sign = Callable[[bytes], str]
"""Signs what a task asks for, with the server's key."""


def hosting_query(node: int) -> Message:
    """Ask a node which devices it hosts."""
    return Message(RecordDict(), dst_node_id=node, message_type=HOSTING)


def hosting_reply(query: Message, *, first: int, count: int) -> Message:
    """Devices ``first`` … ``first + count − 1`` are here; who is enrolled is no secret."""
    record = ConfigRecord({"first": first, "count": count})
    return Message(RecordDict({"hosting": record}), reply_to=query)


def read_hosting(reply: Message) -> range:
    """The devices of a node.

    Raises:
        ReplyRejected: the reply is an error or malformed.
    """
    record = _records(reply).get("hosting")
    if not isinstance(record, ConfigRecord):
        raise ReplyRejected("malformed", "no 'hosting' record")
    first, count = record.get("first"), record.get("count")
    # Not isinstance: to Python, True is a number.
    if type(first) is not int or type(count) is not int or first < 0 or count < 0:
        raise ReplyRejected("malformed", "'first' and 'count' must be whole numbers of 0 or more")
    return range(first, first + count)


def refusal(instruction: Message, error: Exception) -> Message:
    """The reply of a device that fails: the kind of the error alone, for its text may hold data.

    Of a task that the device declines, the kind is the word for why.
    """
    code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    reason = error.reason if isinstance(error, TaskRefused) else type(error).__name__
    return Message(Error(code=code, reason=reason), reply_to=instruction)


def popularity_message(node: int, task: PopularityTask, *, sign: Sign | None = None) -> Message:
    """The task as a query to a node."""
    return _task_message(node, POPULARITY, task, arrays={"devices": task.devices}, sign=sign)


def cooccurrence_message(node: int, task: CooccurrenceTask, *, sign: Sign | None = None) -> Message:
    """The task as a query to a node."""
    arrays = {"devices": task.devices, "head": task.head}
    return _task_message(node, COOCCURRENCE, task, arrays=arrays, sign=sign)


def train_message(node: int, task: TrainTask, *, sign: Sign | None = None) -> Message:
    """The task as a training instruction to a node."""
    arrays: dict[str, NDArray[Any]] = {
        "devices": task.devices,
        "prior": task.prior,
        "vectors": task.vectors,
    }
    return _task_message(node, TRAIN, task, arrays=arrays, weights=task.weights, sign=sign)


def check_signature(message: Message, *, public_key: str) -> None:
    """Refuse a task that the holder of ``public_key`` (hex) didn't ask for.

    Signed are the settings: run, round, release, clip and noise, hashes of weights, items and arrays.

    Raises:
        TaskRefused: reason ``signature``.
    """
    record = message.content.get("task") if message.has_content() else None
    settings, signature = (
        (record.get("settings"), record.get("signature"))
        if isinstance(record, ConfigRecord)
        else (None, None)
    )
    if not isinstance(settings, str) or not isinstance(signature, str):
        raise TaskRefused("signature", "the task isn't signed")
    if not signature_holds(settings.encode(), signature=signature, public_key=public_key):
        raise TaskRefused("signature", "the task isn't signed with the server's key")


@dataclass(frozen=True)
class Release:
    """A released model on its way to devices.

    Attributes:
        manifest: signed, as text; see :mod:`.releases`.
        model: the model file.
        statistics: of the items, little-endian float32 [n_items, 1 + r]: log popularity, vectors.
    """

    manifest: str
    model: bytes
    statistics: bytes


def release_message(node: int, release: Release) -> Message:
    """A released model for a node to keep."""
    record = ConfigRecord(dict(vars(release)))
    return Message(RecordDict({"release": record}), dst_node_id=node, message_type=RELEASE)


def read_release(message: Message) -> Release:
    """Inverse of :func:`release_message`; nothing in it is checked.

    Raises:
        MessageError: the message is outside the format.
    """
    record = message.content.get("release") if message.has_content() else None
    if isinstance(record, ConfigRecord):
        manifest, *files = (record.get(name) for name in ("manifest", "model", "statistics"))
        model, statistics = files
        if isinstance(manifest, str) and isinstance(model, bytes) and isinstance(statistics, bytes):
            return Release(manifest, model, statistics)
    raise MessageError("release outside the wire format: needs manifest, model and statistics")


def read_popularity_task(message: Message) -> PopularityTask:
    """Inverse of :func:`popularity_message`.

    Raises:
        MessageError: the message is outside the format.
    """
    try:
        settings = _read_settings(message)
        settings["half_lives_days"] = tuple(settings["half_lives_days"])
        arrays = _read_arrays(message, "arrays")
        return PopularityTask(devices=arrays["devices"], **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"popularity task outside the wire format: {error}") from error


def read_cooccurrence_task(message: Message) -> CooccurrenceTask:
    """Inverse of :func:`cooccurrence_message`.

    Raises:
        MessageError: the message is outside the format.
    """
    try:
        arrays = _read_arrays(message, "arrays")
        if not 1 < len(arrays["head"]) <= CooccurrenceTask.largest_head(whole=True):
            raise ValueError(f"a head of {len(arrays['head'])} items")
        return CooccurrenceTask(
            devices=arrays["devices"], head=arrays["head"], **_read_settings(message)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"co-occurrence task outside the wire format: {error}") from error


def read_train_task(message: Message) -> TrainTask:
    """Inverse of :func:`train_message`.

    Raises:
        MessageError: the message is outside the format.
    """
    try:
        settings = _read_settings(message)
        arrays = _read_arrays(message, "arrays")
        shapes = read_shapes(settings.pop("weights"))
        weights = apart(_record(message, "weights"), shapes)
        # Of all left out nothing is learned, and what is kept would be divided by 0.
        if not 0 <= settings["dropout"] < 1:
            raise ValueError(f"a dropout of {settings['dropout']}")
        return TrainTask(
            devices=arrays["devices"],
            prior=arrays["prior"],
            vectors=arrays["vectors"],
            weights=weights,
            **settings,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"train task outside the wire format: {error}") from error


_READERS: dict[str, Callable[[Message], StatisticsTask | TrainTask]] = {
    POPULARITY: read_popularity_task,
    COOCCURRENCE: read_cooccurrence_task,
    TRAIN: read_train_task,
}
TASKS = frozenset(_READERS)
"""Types of the messages that carry a task."""


def read_task(message: Message) -> StatisticsTask | TrainTask:
    """The task of a message of one of the types in :data:`TASKS`.

    Raises:
        MessageError: the message is outside the format.
    """
    return _READERS[message.metadata.message_type](message)


def update_reply(instruction: Message, binding: Binding, update: ClippedUpdate) -> Message:
    """The one way for what a device learned to leave it.

    Raises:
        MessageError: ``update`` is anything but a :class:`ClippedUpdate`.
    """
    if not isinstance(update, ClippedUpdate):
        raise MessageError(f"only a ClippedUpdate may leave a device, not {type(update).__name__}")
    receipt = {
        **asdict(binding),
        "devices": update.devices,
        "clip_norm": update.clip_norm,
        "shapes": shapes_text(shapes_of(update.arrays)),
    }
    content: dict[str, Any] = {
        "update": together(update.arrays),
        "receipt": ConfigRecord(receipt),
    }
    return Message(RecordDict(content), reply_to=instruction)


def holds_update(reply: Message) -> bool:
    """Whether a reply has what a device learned; others say that it is there, or why it declines."""
    return reply.has_content() and "update" in reply.content


def read_update(
    reply: Message, *, binding: Binding, shapes: Mapping[str, tuple[int, ...]]
) -> ClippedUpdate:
    """The update of a reply, checked: names, types, shapes, what it answers, and its own bound.

    Raises:
        ReplyRejected: with the reason ``error``, ``declined``, ``malformed``, ``stale``,
            ``shape``, ``non-finite`` or ``norm``, or ``declined-`` and one of
            :data:`.errors.REFUSALS`.
    """
    records = _records(reply)
    receipt, record = records.get("receipt"), records.get("update")
    if not isinstance(receipt, ConfigRecord) or not isinstance(record, ArrayRecord):
        raise ReplyRejected("malformed", "needs the records 'receipt' and 'update'")
    for key, value in asdict(binding).items():
        answered = receipt.get(key)
        if type(answered) is not type(value) or answered != value:
            raise ReplyRejected("stale", f"answers another {key}")
    devices, clip_norm = receipt.get("devices"), receipt.get("clip_norm")
    if type(devices) is not int or devices < 0 or type(clip_norm) is not float:
        raise ReplyRejected("malformed", "receipt without devices and clip_norm")
    # Compared and not read: what is allocated follows from what was asked for.
    if receipt.get("shapes") != shapes_text(shapes):
        raise ReplyRejected("shape", "arrays missing, unknown or of another shape")
    try:
        arrays = apart(record, shapes)
    except ValueError as error:
        raise ReplyRejected("shape", str(error)) from error
    except MessageError as error:
        raise ReplyRejected("malformed", str(error)) from error
    return ClippedUpdate(arrays=arrays, devices=devices, clip_norm=clip_norm)


def _task_message(
    node: int,
    kind: str,
    task: StatisticsTask | TrainTask,
    *,
    arrays: Mapping[str, NDArray[Any]],
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    sign: Sign | None,
) -> Message:
    bulky = {*arrays, "weights"}
    settings = {key: value for key, value in vars(task).items() if key not in bulky}
    settings["binding"] = asdict(task.binding)
    records = array_record(arrays)
    settings["arrays"] = digest(records)
    if weights is not None:
        settings["weights"] = shapes_text(shapes_of(weights))
    text = json.dumps(settings)
    record = ConfigRecord({"settings": text})
    if sign is not None:
        record["signature"] = sign(text.encode())
    content: dict[str, Any] = {"task": record, "arrays": records}
    if weights is not None:
        content["weights"] = together(weights)
    group = str(task.binding.round)
    return Message(RecordDict(content), dst_node_id=node, message_type=kind, group_id=group)


def _read_settings(message: Message) -> dict[str, Any]:
    record = message.content["task"]
    if not isinstance(record, ConfigRecord):
        raise TypeError("'task' holds no settings")
    settings: dict[str, Any] = json.loads(str(record["settings"]))
    if not isinstance(settings, dict):
        raise TypeError("settings are no object")
    if settings.pop("arrays") != digest(_record(message, "arrays")):
        raise ValueError("the arrays aren't those that the settings are about")
    settings["binding"] = Binding(**settings["binding"])
    return settings


def _read_arrays(message: Message, name: str) -> dict[str, NDArray[Any]]:
    return {key: numbers(key, array) for key, array in _record(message, name).items()}


def _record(message: Message, name: str) -> ArrayRecord:
    record = message.content[name]
    if not isinstance(record, ArrayRecord):
        raise TypeError(f"'{name}' holds no arrays")
    return record


def _records(reply: Message) -> RecordDict:
    if reply.has_error():
        if reply.error.reason in REFUSALS:
            raise ReplyRejected(f"declined-{reply.error.reason}", "the device's own policy")
        # A device whose own budget is spent does nothing wrong.
        reason = "declined" if reply.error.reason == BudgetError.__name__ else "error"
        raise ReplyRejected(reason, f"code {reply.error.code}, {reply.error.reason!r:.200}")
    if not reply.has_content():
        raise ReplyRejected("malformed", "neither content nor error")
    return reply.content
