"""The wire format: tasks to device hosts, and the only two things that come back.

A reply is either the range of devices a node hosts, or a :class:`ClippedUpdate`. There is no other
encoder, so nothing else of a device can get onto the wire. Arrays are checked against what was asked
for by header and size before any memory is allocated for them; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from .errors import MessageError, ReplyRejected
from .updates import ClippedUpdate

HOSTING, POPULARITY, TRAIN = "query.hosting", "query.popularity", "train"
_HEADER_BYTES = 4096  # more than any .npy header of ours


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What a reply must repeat, so that it counts once and only for what it answers.

    Attributes:
        run: name of the federation.
        round: 0 for one-shot statistics.
        model: hash of the weights, or of the item table for statistics.
    """

    run: str
    round: int
    model: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PopularityTask:
    """Ask devices for their clipped part in item popularity.

    Attributes:
        binding: run, round and item table.
        devices: int64, the sampled devices of this host.
        clip_norm: bound on one device's whole contribution.
        half_lives_days: time scales besides "all time".
        now: the moment ages count back from, seconds since 1970 UTC; a public constant.
        n_items: size of the item table.
    """

    binding: Binding
    devices: NDArray[np.int64]
    clip_norm: float
    half_lives_days: tuple[float, ...]
    now: int
    n_items: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainTask:
    """Ask devices to train the shared weights.

    Attributes:
        binding: run, round and weights.
        devices: int64, the sampled devices of this host.
        weights: name → float32, the shared weights.
        prior: float32 [n_items], log popularity, released before.
        steps: local SGD steps.
        learning_rate: of the local SGD.
        negatives: random items a step.
        new_targets_only: learn first encounters only.
        clip_norm: bound on one device's whole update; inf without privacy.
        seed: public seed of the round: negatives, stretches of history.
    """

    binding: Binding
    devices: NDArray[np.int64]
    weights: Mapping[str, NDArray[np.float32]]
    prior: NDArray[np.float32]
    steps: int
    learning_rate: float
    negatives: int
    new_targets_only: bool
    clip_norm: float
    seed: int


def hash_of_weights(weights: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 over names, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}{weights[name].shape}".encode())
        digest.update(np.ascontiguousarray(weights[name], dtype="<f4").tobytes())
    return digest.hexdigest()


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
    if not isinstance(first, int) or not isinstance(count, int) or first < 0 or count < 0:
        raise ReplyRejected("malformed", "'first' and 'count' must be numbers of 0 or more")
    return range(first, first + count)


def popularity_message(node: int, task: PopularityTask) -> Message:
    """The task as a query to a node."""
    return _task_message(node, POPULARITY, task, arrays={"devices": task.devices})


def train_message(node: int, task: TrainTask) -> Message:
    """The task as a training instruction to a node."""
    arrays: dict[str, NDArray[Any]] = {"devices": task.devices, "prior": task.prior}
    return _task_message(node, TRAIN, task, arrays=arrays, weights=task.weights)


def read_popularity_task(message: Message) -> PopularityTask:
    """Inverse of :func:`popularity_message`.

    Raises:
        MessageError: the message is outside the format.
    """
    settings, arrays = _read_task(message)
    try:
        settings["half_lives_days"] = tuple(settings["half_lives_days"])
        return PopularityTask(devices=arrays["devices"], **settings)
    except (KeyError, TypeError) as error:
        raise MessageError(f"popularity task: {error}") from error


def read_train_task(message: Message) -> TrainTask:
    """Inverse of :func:`train_message`.

    Raises:
        MessageError: the message is outside the format.
    """
    settings, arrays = _read_task(message)
    try:
        weights = _read_arrays(message, "weights")
        return TrainTask(
            devices=arrays["devices"], prior=arrays["prior"], weights=weights, **settings
        )
    except (KeyError, TypeError) as error:
        raise MessageError(f"train task: {error}") from error


def update_reply(instruction: Message, binding: Binding, update: ClippedUpdate) -> Message:
    """The one way for what a device learned to leave it.

    Raises:
        MessageError: ``update`` is anything but a :class:`ClippedUpdate`.
    """
    if not isinstance(update, ClippedUpdate):
        raise MessageError(f"only a ClippedUpdate may leave a device, not {type(update).__name__}")
    receipt = {**asdict(binding), "devices": update.devices, "clip_norm": update.clip_norm}
    content = RecordDict()
    content["update"] = _array_record(update.arrays)
    content["receipt"] = ConfigRecord(receipt)
    return Message(content, reply_to=instruction)


def read_update(
    reply: Message, *, binding: Binding, shapes: Mapping[str, tuple[int, ...]]
) -> ClippedUpdate:
    """The update of a reply, checked for format: names, types, shapes, sizes and what it answers.

    Raises:
        ReplyRejected: with the reason ``error``, ``malformed``, ``stale`` or ``shape``.
    """
    records = _records(reply)
    receipt, record = records.get("receipt"), records.get("update")
    if not isinstance(receipt, ConfigRecord) or not isinstance(record, ArrayRecord):
        raise ReplyRejected("malformed", "needs the records 'receipt' and 'update'")
    for key, value in asdict(binding).items():
        if receipt.get(key) != value:
            raise ReplyRejected("stale", f"answers another {key}")
    devices, clip_norm = receipt.get("devices"), receipt.get("clip_norm")
    if not isinstance(devices, int) or not isinstance(clip_norm, float):
        raise ReplyRejected("malformed", "receipt without devices and clip_norm")
    if set(record) != set(shapes):
        raise ReplyRejected("shape", "arrays missing or unknown")
    arrays = {name: _checked_array(name, record[name], shapes[name]) for name in shapes}
    return ClippedUpdate(arrays=arrays, devices=devices, clip_norm=clip_norm)


def _task_message(
    node: int,
    kind: str,
    task: PopularityTask | TrainTask,
    *,
    arrays: Mapping[str, NDArray[Any]],
    weights: Mapping[str, NDArray[np.float32]] | None = None,
) -> Message:
    bulky = {*arrays, "weights"}
    settings = {key: value for key, value in vars(task).items() if key not in bulky}
    settings["binding"] = asdict(task.binding)
    content: dict[str, Any] = {
        "task": ConfigRecord({"settings": json.dumps(settings)}),
        "arrays": _array_record(arrays),
    }
    if weights is not None:
        content["weights"] = _array_record(weights)
    group = str(task.binding.round)
    return Message(RecordDict(content), dst_node_id=node, message_type=kind, group_id=group)


def _read_task(message: Message) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    try:
        task = message.content["task"]
        if not isinstance(task, ConfigRecord):
            raise MessageError("task outside the wire format: no settings")
        settings: dict[str, Any] = json.loads(str(task["settings"]))
        settings["binding"] = Binding(**settings["binding"])
        arrays = _read_arrays(message, "arrays")
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"task outside the wire format: {error}") from error
    return settings, arrays


def _read_arrays(message: Message, name: str) -> dict[str, NDArray[Any]]:
    record = message.content[name]
    if not isinstance(record, ArrayRecord):
        raise MessageError(f"task outside the wire format: '{name}' holds no arrays")
    return {key: array.numpy() for key, array in record.items()}


def _array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in arrays.items()})


def _records(reply: Message) -> RecordDict:
    if reply.has_error():
        raise ReplyRejected("error", reply.error.reason or f"code {reply.error.code}")
    return reply.content


def _checked_array(name: str, array: Array, shape: tuple[int, ...]) -> NDArray[np.float32]:
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if len(array.data) > size + _HEADER_BYTES:
        raise ReplyRejected("shape", f"'{name}' has {len(array.data)} bytes for {size}")
    # The header decides what np.load allocates, so it is read first, without the data.
    stream = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        header = read(stream) if read is not None else None
    except ValueError as error:
        raise ReplyRejected("malformed", f"'{name}': {error}") from error
    if header is None or header[1] or header[0] != shape or header[2] != np.dtype("<f4"):
        raise ReplyRejected("shape", f"'{name}' is not float32 {shape}")
    if len(array.data) - stream.tell() != size:
        raise ReplyRejected("malformed", f"'{name}' is cut short")
    return np.frombuffer(array.data, dtype="<f4", offset=stream.tell()).reshape(shape)
