"""The operator's side of a running SuperLink: nodes, runs, and the grid that a ServerApp talks through.

Flower starts a ServerApp by shipping a bundle of code to a SuperExec, which fetches, installs and runs it.
Here the process that has the code already claims the run itself, over the SuperLink's Unix socket: one
process fewer, and nothing that came over a network is ever run. The bundle that Flower wants to see names
nothing but itself.

Uses parts outside Flower's public API; ``tests/server/test_link.py`` is the contract.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Self, TypeVar

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from ..common.errors import ServerError

_log = logging.getLogger(__name__)
_TIMEOUT = 30.0  # seconds a call
_POLL = 0.25
_LOOK = 1.0  # seconds between two looks for a SuperLink that is away, at most
_GRACE = 10.0  # seconds for replies on their way, once the server is to stop
_AWAY = 60.0  # seconds that a node may be away beyond its heartbeat: killed, it is back by then
_NEARLY_AWAY = 3.0
"""Seconds left of a heartbeat that are too few to ask about the node; one that lives has 13."""
_PUSHED_AT_ONCE = 64
_POLL_PER_NODE = 1e-3
"""Seconds: to say who is online the SuperLink reads all nodes, which takes a tenth of this for each."""
_NO_REPLY = {
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
}  # said by the SuperLink in place of a node that went, or of a message that did
_SERVER_APP = "flwr-serverapp"
_BUNDLE = """\
[project]
name = "fedprofile"
version = "1.0.0"
[tool.flwr.app]
publisher = "fedprofile"
[tool.flwr.app.components]
serverapp = "fedprofile.server.service:installed"
clientapp = "fedprofile.client.app:installed"
"""


@dataclass(frozen=True)
class Node:
    """A node that the SuperLink knows.

    Attributes:
        number: Flower's id of it.
        public_key: PEM.
        online: whether it was heard of lately.
    """

    number: int
    public_key: str
    online: bool


@dataclass(frozen=True)
class ReplySize:
    """What a reply may have at most; one with more is malformed.

    Attributes:
        objects: parts that it is sent in.
        bytes: of all of them.
    """

    objects: int
    bytes: int

    @classmethod
    def of(cls, arrays: Iterable[int]) -> ReplySize:
        """Room for float32 arrays of so many numbers each, and for what is said beside them."""
        sizes = [4 * numbers for numbers in arrays]
        # Flower makes an object of each array and of every 5 MiB in it.
        return cls(16 + sum(2 + size // 2**22 for size in sizes), 2**18 + 2 * sum(sizes))


@dataclass(frozen=True)
class _Arriving:
    """A reply that a node has announced; its parts come one by one, or never."""

    number: str
    parts: tuple[str, ...]
    contents: dict[str, bytes] = field(default_factory=dict)


class LinkLost(ServerError):
    """The SuperLink doesn't answer, or has given up the run; trying again may help."""


class Link:
    """Calls to the SuperLink behind ``socket``; a context manager that closes the connection."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._control = _connected(ControlHttpClient, socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._control.close()

    def answers(self) -> bool:
        """Whether a SuperLink is there."""
        try:
            self._control.ListNodes(ListNodesRequest())
        except httpx.HTTPError:
            return False
        return True

    def wait(self, timeout: float) -> None:
        """Until the SuperLink answers.

        Raises:
            LinkLost: it doesn't within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while not self.answers():
            if time.monotonic() > deadline:
                raise LinkLost(f"{self._socket}: no SuperLink answers; start the server first")
            time.sleep(_POLL)

    def nodes(self) -> list[Node]:
        """All registered nodes."""
        found = self._control.ListNodes(ListNodesRequest()).nodes_info
        return [
            Node(node.node_id, node.public_key.decode(), node.status == "online")
            for node in found
            if node.status != "unregistered"
        ]

    def register(self, public_key: str) -> None:
        """Let the node with that key in; one that is in already stays."""
        with contextlib.suppress(httpx.HTTPStatusError):  # another process was faster
            self._control.RegisterNode(RegisterNodeRequest(public_key=public_key.encode()))

    def unregister(self, number: int) -> None:
        """Shut a node out, at once; one that is out already stays out."""
        with contextlib.suppress(httpx.HTTPStatusError):
            self._control.UnregisterNode(UnregisterNodeRequest(node_id=number))

    def begin(self, *, stop: Event, largest: ReplySize) -> LinkGrid:
        """End whatever runs, start a new run and claim it.

        Args:
            stop: when it is set, a wait for replies ends within a few seconds.
            largest: that a reply may be.
        """
        for number, run in self._control.ListRuns(ListRunsRequest()).run_dict.items():
            if not run.status.status.startswith("finished"):
                self._control.StopRun(StopRunRequest(run_id=number))
        content = _bundle()
        run = self._control.StartRun(StartRunRequest(fab=Fab(content=content))).run_id
        with _connected(RuntimeHttpClient, self._socket) as runtime:
            claimed = runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[_SERVER_APP]))
        if not claimed.token or claimed.task.run_id != run:
            raise LinkLost("another ServerApp has claimed the run; let one server run at a time")
        return LinkGrid(self._socket, claimed.token, stop=stop, largest=largest)


class LinkGrid(HttpGrid):
    """Flower's grid over the Unix socket, for messages to the nodes of a run.

    It asks only nodes that are online, polls at the pace of small models, and takes a reply that can't
    be decoded for what it is: malformed, and its sender's alone.
    """

    def __init__(self, socket: Path, token: str, *, stop: Event, largest: ReplySize) -> None:
        super().__init__(token=token)
        self._stop = stop
        self._largest = largest
        self._client = _connected(
            RuntimeHttpClient,
            socket,
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            RuntimeTokenHttpInterceptor(token=token),
        )
        self._client._retry_invoker = _until(stop)
        self._heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(self._client))
        self._heartbeat.start()
        task = self._client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = task.task_id
        TaskIdentity.run_id = task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        self.set_run(run_from_proto(task.run))

    def finish(self, *, details: str = "") -> None:
        """End the run: replies that come later are refused."""
        if self._client is None:
            return
        status = "failed" if details else "completed"
        self._client._retry_invoker = None  # a SuperLink that is away ends the run by itself
        with contextlib.suppress(httpx.HTTPError):
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        self._heartbeat.stop()
        self.close()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies of the nodes that are online, until all are there or ``timeout`` seconds are over.

        Each is handed on when it has arrived, and nothing is kept of it, nor of the messages: of many
        devices all of them together would be larger than memory. The time counts from the first look.

        Raises:
            LinkLost: the SuperLink doesn't keep what is to be sent, on a full disk, say.
        """
        return self._replies(self._push(messages, timeout), timeout)

    def _replies(self, waiting: dict[str, Message], timeout: float | None) -> Iterator[Message]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        patience = math.inf if timeout is None else timeout / 4
        arriving: dict[str, _Arriving] = {}
        away: dict[int, float] = {}
        stopping = False
        while waiting and time.monotonic() < deadline:
            if self._stop.is_set() and not stopping:
                stopping, deadline = True, min(deadline, time.monotonic() + _GRACE)
            pause = self._note_absent(waiting, away)
            self._announced(waiting, arriving, away, patience=min(_AWAY, patience))
            for number, answer in list(arriving.items()):
                if time.monotonic() > deadline:
                    break
                reply = self._whole(answer, waiting[number])
                if reply is None:
                    continue
                del arriving[number], waiting[number]
                self._confirm(answer)
                if not (reply.has_error() and reply.error.code in _NO_REPLY):
                    yield reply
            if waiting:
                time.sleep(pause)
        # What is still arriving is no reply. It isn't confirmed: its sender may be slow, not hostile, and
        # what it goes on to send is taken as any reply after the deadline.

    def _push(self, messages: Iterable[Message], timeout: float | None) -> dict[str, Message]:
        """Send what is for nodes that are online, some at a time: number → message, without its content."""
        online = set(self.get_node_ids())
        asked = (message for message in messages if message.metadata.dst_node_id in online)
        sent: dict[str, Message] = {}
        while group := list(islice(asked, _PUSHED_AT_ONCE)):
            for message in group:
                if timeout is not None:
                    message.metadata.ttl = timeout + _GRACE
            try:
                numbers = self.push_messages(group)
            except ObjectPushError as error:
                raise LinkLost("the SuperLink keeps no messages; see run/superlink.log") from error
            for number, message in zip(numbers, group, strict=True):
                message.content = RecordDict()
                if number:  # there is none where the node went meanwhile
                    sent[number] = message
        return sent

    def _note_absent(self, waiting: dict[str, Message], away: dict[int, float]) -> float:
        """Keep in ``away`` since when each node has been gone; seconds until the next look."""
        nodes, soon = list(self.get_nodes()), time.time() + _NEARLY_AWAY
        online = {node.node_id for node in nodes if node.online_until > soon}
        for number in {message.metadata.dst_node_id for message in waiting.values()}:
            if number in online:
                away.pop(number, None)
            else:
                away.setdefault(number, time.monotonic())
        return max(_POLL, _POLL_PER_NODE * len(nodes))

    def _announced(
        self,
        waiting: dict[str, Message],
        arriving: dict[str, _Arriving],
        away: dict[int, float],
        *,
        patience: float,
    ) -> None:
        """Take note of replies that are announced by now; each is told of once.

        Asked about a node that is away, the SuperLink gives up its message for good. So nobody asks until
        the node had ``patience`` seconds to come back with the answer.
        """
        gone_before = time.monotonic() - patience
        asked = [
            number
            for number, message in waiting.items()
            if number not in arriving
            and away.get(message.metadata.dst_node_id, -math.inf) <= gone_before
        ]
        if not asked:
            return
        found = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            answered = proto.metadata.reply_to_message_id
            if answered in waiting:
                parts = _parts(tree, most=self._largest.objects)
                arriving[answered] = _Arriving(proto.metadata.message_id, parts)

    def _whole(self, answer: _Arriving, asked: Message) -> Message | None:
        """The reply where all of it is there, None where it isn't; never waits for a node.

        What a hostile node sends must not cost another's reply: it becomes an empty one, malformed.
        """
        pull = make_pull_object_fn_protobuf(
            self._runtime_client.PullObject, self.node, self.run.run_id
        )

        def pull_now(part: str) -> bytes:
            try:
                return pull(part)
            except ObjectUnavailableError:
                return b""  # no object is empty

        try:
            if len(answer.parts) > self._largest.objects:
                raise ValueError("more parts than a reply has")
            missing = [part for part in answer.parts if part not in answer.contents]
            # One call tells that nothing came since; all the others are made at once.
            if missing and not pull_now(missing[0]):
                return None
            came = pull_objects(missing, pull_now)
            answer.contents.update({part: content for part, content in came.items() if content})
            if sum(map(len, answer.contents.values())) > self._largest.bytes:
                raise ValueError("larger than a reply is")
            if len(answer.contents) < len(answer.parts):
                return None
            reply = inflate_object_from_contents(answer.number, answer.contents)
            if not isinstance(reply, Message):
                raise TypeError("not a message")
        except (httpx.HTTPError, RunNotRunningException):
            raise
        except Exception as error:  # whatever the decoders meet in a crafted reply
            _log.warning("a reply can't be decoded: %s", type(error).__name__)
            return Message(RecordDict(), reply_to=asked)
        return reply

    def _confirm(self, answer: _Arriving) -> None:
        """Let the SuperLink delete the reply."""
        done = ConfirmMessageReceivedRequest(
            node=self.node, run_id=self.run.run_id, message_object_id=answer.number
        )
        self._runtime_client.ConfirmMessageReceived(done)


def _parts(tree: ObjectTree, *, most: int) -> tuple[str, ...]:
    """Objects of a reply, each once; no more than one too many, whatever a node announces."""
    return tuple(dict.fromkeys(p.object_id for p in islice(iterate_object_tree(tree), most + 1)))


C = TypeVar("C", bound=ProtobufClient)


def _connected(kind: type[C], socket: Path, *interceptors: ProtobufClientInterceptor) -> C:
    client = kind("http://superlink", interceptors=interceptors)
    client._client.close()
    transport = httpx.HTTPTransport(uds=str(socket))
    # A proxy in the environment isn't asked: the socket is on this host.
    client._client = httpx.Client(transport=transport, timeout=_TIMEOUT, trust_env=False)
    return client


def _until(stop: Event) -> RetryInvoker:
    """A SuperLink that restarts is waited for, and calls go on where it comes back; until ``stop`` is set.

    Flower's own would wait for ever: killed together with its SuperLink's supervisor, a server would
    hold the ledger against the next one.
    """
    invoker = make_simple_http_retry_invoker()
    hopeless = invoker.should_giveup
    assert hopeless is not None, "Flower tells what no retry helps"
    invoker.should_giveup = lambda error: stop.is_set() or hopeless(error)

    def wait(seconds: float) -> None:
        stop.wait(min(seconds, _LOOK))  # it is on this host: a look a second costs nothing

    invoker.wait_function = wait
    return invoker


def _bundle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), _BUNDLE)
    return buffer.getvalue()
