"""A node's calls to its server: Flower's Fleet API over TLS, in the device's own process.

Flower's SuperNode starts a process per message, exits where it isn't let in, and forgets replies when it is
killed. This connection makes the same calls through the same client, and leaves it to the node what to do
about a failure.

Uses parts outside Flower's public API; their contract is ``tests/client/test_fleet.py`` and
``tests/end_to_end/test_hostile.py``.
"""

from __future__ import annotations

import contextlib
import ssl
from base64 import b64encode
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from ..common.errors import DeviceError, MessageError, NotAdmitted, NotTaken, RunOver, Unreachable
from .node_keys import NodeKey, public_pem

HEARTBEAT = 10.0  # seconds; Flower allows no less, and takes a node for gone after two
_TIMEOUT = 15.0  # seconds without a sign of life from a line that isn't known to be cut
_SKEW = 5.0  # seconds that Flower allows a node's clock to be ahead; behind, minutes
T = TypeVar("T")


class _Signature:
    """Says who calls, as Flower's own interceptor does; that one loads a web framework besides."""

    def __init__(self, key: NodeKey) -> None:
        self._key = key
        self._name = b64encode(public_pem(key)).decode()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign the moment of a call and send it."""
        timestamp = now().isoformat()
        signature = sign_message(self._key, timestamp.encode())
        context.request.headers.update(
            {
                FLEET_HTTP_PUBLIC_KEY_HEADER: self._name,
                TIMESTAMP_HEADER: timestamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode(),
            }
        )
        return call_next(context)


class Fleet:
    """A connection to one server.

    Args:
        address: host:port.
        ca: the authority to trust, and no other.
        key: the device's node key.
    """

    def __init__(self, address: str, *, ca: Path, key: NodeKey) -> None:
        try:
            trusted = ssl.create_default_context(cafile=str(ca))
        except (OSError, ssl.SSLError) as error:
            raise DeviceError(
                f"{ca}: no certificate ({error}); install the bundle again"
            ) from error
        trusted.minimum_version = ssl.TLSVersion.TLSv1_3
        self._address = address
        self._public_key = public_pem(key)
        self._client = FleetHttpClient(
            f"https://{address}",
            verify=trusted,
            interceptors=[_Signature(key)],
            timeout=_TIMEOUT,
        )
        self._node = Node()
        self._lost = False

    @property
    def number(self) -> int:
        """Flower's id of this node; 0 before :meth:`activate`."""
        return int(self._node.node_id)

    def activate(self, known_as: int = 0) -> None:
        """Come online.

        Args:
            known_as: the node's id from before, for a node that was killed and that the server still
                takes for online; 0: none.

        Raises:
            Unreachable: no answer.
            NotAdmitted: the server doesn't know this key, or refuses it.
        """
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT)
        try:
            answer = self._call(lambda: self._client.ActivateNode(request))
            self._node = Node(node_id=answer.node_id)
        except NotAdmitted:
            self._node = Node(node_id=known_as)
            if not known_as or not self.beat():
                raise

    def beat(self) -> bool:
        """Say that the node is alive; whether the server knows it.

        Raises:
            Unreachable: no answer.
            NotAdmitted: the server refuses this node.
        """
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT)
        return bool(self._call(lambda: self._client.SendNodeHeartbeat(request)).success)

    def pull(self) -> Message | None:
        """The next message for this node, if any, whole.

        Raises:
            Unreachable: no answer, or a part of the message never came.
            NotAdmitted: the server refuses this node.
            RunOver: the message was of a run that has ended meanwhile.
            MessageError: it can't be decoded.
        """
        answer = self._call(lambda: self._client.PullMessages(PullMessagesRequest(node=self._node)))
        if not answer.messages_list:
            return None
        run = answer.messages_list[0].metadata.run_id
        number = answer.messages_list[0].metadata.message_id
        tree = answer.message_object_trees[0]
        pull_one = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run)
        confirm = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run, message_object_id=number
        )
        try:
            contents = self._call(
                lambda: pull_objects(
                    [part.object_id for part in iterate_object_tree(tree)], pull_object_fn=pull_one
                )
            )
            message = inflate_object_from_contents(number, contents)
        except ObjectPullError as error:
            raise Unreachable(f"{self._address}: a message never came whole") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MessageError(f"a message can't be decoded ({type(error).__name__})") from error
        self._call(lambda: self._client.ConfirmMessageReceived(confirm))
        if not isinstance(message, Message):
            raise MessageError("the server sent something that is no message")
        message.metadata.__dict__["_message_id"] = number
        return message

    def push(self, reply: Message) -> None:
        """Hand over a reply; handing over the same one again changes nothing.

        Raises:
            Unreachable: no answer.
            NotAdmitted: the server refuses this node.
            RunOver: nobody waits for the reply any more.
            NotTaken: the server let the reply come and then took no more of it: it was done with the
                round, its disk is full, or it all took too long.
        """
        reply.metadata.__dict__["_message_id"] = ""  # the id is the hash of a message without one
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree = get_object_tree(reply)
            objects = get_all_nested_objects(reply)
            bare = remove_content_from_message(reply) if reply.has_content() else reply
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],  # how long training took is the device's own affair
            )
            answer = self._call(lambda: self._client.PushMessages(request))
            push_one = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, reply.metadata.run_id, answer.session_id
            )
            wanted = [
                (number, objects[number].deflate())
                for number in dict.fromkeys(answer.objects_to_push)
                if number in objects
            ]
            try:
                self._call(
                    lambda: push_object_contents_from_iterable(wanted, push_object_fn=push_one)
                )
            except ObjectPushError as error:
                raise NotTaken(f"{self._address}: broke off a reply") from error

    def close(self) -> None:
        """Go offline, if the server can be told; over a lost line that would be waited for in vain."""
        if self.number and not self._lost:
            request = DeactivateNodeRequest(node_id=self.number)
            with contextlib.suppress(Unreachable, NotAdmitted):
                self._call(lambda: self._client.DeactivateNode(request))
            self._node = Node()
        self._client.close()

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            response = error.response
            if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                raise Unreachable(f"{self._address}: answers {response.status_code}") from error
            if response.status_code == httpx.codes.FORBIDDEN:
                raise RunOver(f"{self._address}: the run is over") from error
            raise NotAdmitted(f"{self._address}: {_why(response)}") from error
        except httpx.TransportError as error:
            self._lost = True
            raise Unreachable(f"{self._address}: {error or type(error).__name__}") from error


def _why(response: httpx.Response) -> str:
    """What a refusal means to the owner; a clock that is off looks like a key that is."""
    if response.status_code == httpx.codes.UNAUTHORIZED and "date" in response.headers:
        ahead = now().timestamp() - parsedate_to_datetime(response.headers["date"]).timestamp()
        if abs(ahead) > _SKEW:
            return (
                f"refuses this device; its clock is {abs(ahead):.0f} s "
                f"{'ahead of' if ahead > 0 else 'behind'} the server's: set it"
            )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return "refuses this device; ask the operator whether it is enrolled or revoked"
    return f"refuses the call ({response.status_code}, {response.text!r:.200})"


def encode(message: Message) -> bytes:
    """The message with all its content, to be kept."""
    return bytes(message_to_proto(message).SerializeToString(deterministic=True))


def decode(content: bytes) -> Message:
    """Inverse of :func:`encode`.

    Raises:
        MessageError: ``content`` is no message.
    """
    try:
        return message_from_proto(ProtoMessage.FromString(content))
    except Exception as error:  # protobuf, and whatever Flower's decoders meet
        raise MessageError(f"no message ({type(error).__name__})") from error
