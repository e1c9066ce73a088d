"""An in-process grid that keeps what passes, and can meddle with what the server gets to see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.clientapp import ClientApp

from ..common.errors import MessageError, ReplyRejected
from ..common.messages import (
    TASKS,
    CooccurrenceTask,
    PopularityTask,
    StatisticsTask,
    TrainTask,
    cooccurrence_message,
    popularity_message,
    read_task,
    read_update,
    refusal,
    train_message,
    update_reply,
)
from ..common.updates import ClippedUpdate
from ..common.wire_arrays import read_shapes
from .grid import InProcessGrid

Task = StatisticsTask | TrainTask


@dataclass(frozen=True, eq=False)
class Exchange:
    """What one host was asked, and what it answered.

    Attributes:
        message: to the host.
        task: what the message says.
        reply: of the host.
        delivered: whether the server got this reply, and got it unchanged.
    """

    message: Message
    task: Task
    reply: Message
    delivered: bool = True

    @property
    def node(self) -> int:
        """The host's node."""
        return self.message.metadata.dst_node_id

    def update(self) -> ClippedUpdate:
        """What the host contributed.

        Raises:
            ReplyRejected: the reply is a refusal, or outside the wire format or its own bound.
        """
        receipt = self.reply.content.get("receipt") if self.reply.has_content() else None
        shapes = read_shapes(receipt["shapes"]) if isinstance(receipt, ConfigRecord) else {}
        return read_update(self.reply, binding=self.task.binding, shapes=shapes)


Meddling = Callable[[Sequence[Exchange]], list[Message]]
"""Exchanges of a release → the replies that the server gets."""


def untouched(exchanges: Sequence[Exchange]) -> list[Message]:
    """All replies, once."""
    return [exchange.reply for exchange in exchanges]


def twice(exchanges: Sequence[Exchange]) -> list[Message]:
    """Every reply two times."""
    return untouched(exchanges) * 2


def absent(exchanges: Sequence[Exchange]) -> list[Message]:
    """One host in three doesn't answer, another one fails."""
    return [
        refusal(exchange.message, MessageError("gone")) if place % 3 == 1 else exchange.reply
        for place, exchange in enumerate(exchanges)
        if place % 3
    ]


def unclipped(exchanges: Sequence[Exchange]) -> list[Message]:
    """One host in three sends far more than its devices may, under a receipt that says otherwise."""
    return [
        exchange.reply if place % 3 else _inflated(exchange)
        for place, exchange in enumerate(exchanges)
    ]


def _inflated(exchange: Exchange) -> Message:
    task = exchange.task
    try:
        sent = exchange.update().arrays
    except ReplyRejected:
        return exchange.reply  # a refusal stays one
    devices, clip = len(task.devices), task.clip_norm
    arrays = {name: np.full_like(array, 3 * clip * devices) for name, array in sent.items()}
    forged = ClippedUpdate(arrays=arrays, devices=devices, clip_norm=math.inf)
    reply = update_reply(exchange.message, task.binding, forged)
    receipt = reply.content["receipt"]
    assert isinstance(receipt, ConfigRecord), "an update comes with its receipt"
    receipt["clip_norm"] = clip
    return reply


class WatchedGrid(InProcessGrid):
    """Keeps every release that passes.

    Args:
        client_app: as of :class:`InProcessGrid`.
        nodes: number of hosts.
        before: called with the tasks of a release before any of them is sent.
        meddle: number of the release, from 0 → what becomes of its replies.

    Attributes:
        releases: the exchanges of each release, in the order they were asked for.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        nodes: int,
        before: Callable[[list[Task]], None],
        meddle: Callable[[int], Meddling],
    ) -> None:
        super().__init__(client_app, nodes=nodes)
        self.releases: list[list[Exchange]] = []
        self._before = before
        self._meddle = meddle

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the grid does, unless told to meddle; an empty cohort is a release too."""
        messages = list(messages)
        tasks = [task for message in messages if (task := _task(message)) is not None]
        if len(tasks) < len(messages):
            return super().send_and_receive(messages, timeout=timeout)
        self._before(tasks)
        replies = super().send_and_receive(messages, timeout=timeout)
        exchanges = [Exchange(*parts) for parts in zip(messages, tasks, replies, strict=True)]
        received = self._meddle(len(self.releases))(exchanges)
        arrived = {id(reply) for reply in received}
        self.releases.append([replace(e, delivered=id(e.reply) in arrived) for e in exchanges])
        return received

    def ask(self, node: int, task: Task) -> Exchange:
        """Ask one host aside, without telling the server."""
        message = _message(node, task)
        [reply] = super().send_and_receive([message])
        return Exchange(message, task, reply)


def _task(message: Message) -> Task | None:
    return read_task(message) if message.metadata.message_type in TASKS else None


def _message(node: int, task: Task) -> Message:
    match task:
        case PopularityTask():
            return popularity_message(node, task)
        case CooccurrenceTask():
            return cooccurrence_message(node, task)
        case TrainTask():
            return train_message(node, task)
