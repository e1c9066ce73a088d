"""Refuse replies that could harm the model or the guarantee, before anything is added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from ..common.errors import ReplyRejected
from ..common.messages import Binding, read_update
from ..common.updates import ClippedUpdate


@dataclass(frozen=True, eq=False)
class Tally:
    """What came back.

    Attributes:
        total: name → float64 sum of the accepted updates; zeros where none was.
        devices: devices in the sum.
        rejected: reason → devices whose host's reply was refused or never came, or that declined.
        ignored: reason → replies that answer nothing asked, or answer twice.
    """

    total: dict[str, NDArray[np.float64]]
    devices: int
    rejected: dict[str, int]
    ignored: dict[str, int]


def add_up(
    replies: Iterable[Message],
    *,
    asked: Mapping[int, int],
    binding: Binding,
    shapes: Mapping[str, tuple[int, ...]],
    clip_norm: float,
) -> Tally:
    """Sum of the valid replies, each node counted once.

    A refused reply costs utility and never ε: its devices are missing from the sum, and the divisor
    of the sum isn't the number of replies.

    Args:
        replies: in any order, perhaps fewer or more than asked for; read once, and none is kept.
        asked: node → number of devices it was asked for.
        binding: what a reply must answer.
        shapes: name → shape of the arrays.
        clip_norm: bound on one device's contribution.
    """
    total = {name: np.zeros(shape, dtype=np.float64) for name, shape in shapes.items()}
    devices = 0
    rejected, ignored = Counter[str](), Counter[str]()
    awaited = dict(asked)
    for reply in replies:
        node = reply.metadata.src_node_id
        if node not in awaited:
            ignored["duplicate" if node in asked else "unasked"] += 1
            continue
        expected = awaited.pop(node)
        try:
            update = read_update(reply, binding=binding, shapes=shapes)
            _check(update, asked=expected, clip_norm=clip_norm)
        except ReplyRejected as error:
            rejected[error.reason] += expected
            continue
        for name, array in update.arrays.items():
            total[name] += array
        devices += update.devices
        rejected["declined"] += expected - update.devices
    rejected["no-reply"] += sum(awaited.values())
    return Tally(total=total, devices=devices, rejected=dict(+rejected), ignored=dict(ignored))


def _check(update: ClippedUpdate, *, asked: int, clip_norm: float) -> None:
    if not 0 < update.devices <= asked:
        raise ReplyRejected("devices", f"{update.devices} devices for the {asked} asked for")
    if update.clip_norm != clip_norm:
        raise ReplyRejected("clip", f"clipped to {update.clip_norm}, not {clip_norm}")
