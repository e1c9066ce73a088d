"""Refuse replies that could harm the model or the guarantee, before anything is added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from ..common.errors import ReplyRejected
from ..common.messages import Binding, read_update
from ..common.updates import ClippedUpdate

_SLACK = 1e-4  # rounding of a float32 sum of clipped updates


@dataclass(frozen=True)
class Tally:
    """What came back.

    Attributes:
        total: name → float64 sum of the accepted updates; zeros where none was.
        devices: devices in the sum.
        rejected: reason → devices whose host's reply was refused or never came, or that declined.
        ignored: replies that answer nothing asked, or answer twice.
    """

    total: dict[str, NDArray[np.float64]]
    devices: int
    rejected: dict[str, int] = field(default_factory=dict)
    ignored: int = 0


def add_up(
    replies: Iterable[Message],
    *,
    asked: Mapping[int, int],
    binding: Binding,
    shapes: Mapping[str, tuple[int, ...]],
    clip_norm: float,
) -> Tally:
    """Sum of the valid replies, each node counted once, in the order of the nodes.

    Args:
        replies: in any order, perhaps fewer or more than asked for.
        asked: node → number of devices it was asked for.
        binding: what a reply must answer.
        shapes: name → shape of the arrays.
        clip_norm: bound on one device's contribution.
    """
    accepted: dict[int, ClippedUpdate] = {}
    rejected: Counter[str] = Counter()
    missing = dict(asked)
    ignored = 0
    for reply in replies:
        node = reply.metadata.src_node_id
        if missing.pop(node, None) is None:
            ignored += 1
            continue
        try:
            update = read_update(reply, binding=binding, shapes=shapes)
            _check(update, asked=asked[node], clip_norm=clip_norm)
        except ReplyRejected as error:
            rejected[error.reason] += asked[node]
        else:
            accepted[node] = update
            rejected["declined"] += asked[node] - update.devices
    for devices in missing.values():
        rejected["no-reply"] += devices
    total = {name: np.zeros(shape, dtype=np.float64) for name, shape in shapes.items()}
    for node in asked:
        if node in accepted:
            for name, array in accepted[node].arrays.items():
                total[name] += array
    devices = sum(update.devices for update in accepted.values())
    return Tally(total=total, devices=devices, rejected=dict(+rejected), ignored=ignored)


def _check(update: ClippedUpdate, *, asked: int, clip_norm: float) -> None:
    if not 0 < update.devices <= asked:
        raise ReplyRejected("devices", f"{update.devices} devices for the {asked} asked for")
    if update.clip_norm != clip_norm:
        raise ReplyRejected("clip", f"clipped to {update.clip_norm}, not {clip_norm}")
    norm = update.norm
    if not np.isfinite(norm):
        raise ReplyRejected("non-finite", "holds NaN or infinity")
    if norm > update.devices * clip_norm * (1 + _SLACK):
        raise ReplyRejected("norm", f"{norm:.3g} for {update.devices} devices of {clip_norm}")
