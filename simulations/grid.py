"""Flower's Grid in process: the same ServerApp, ClientApp and messages as in a deployment, no network.

Every node is a device host in this process. Messages are serialised and read back on the way in both
directions, so nothing is shared by accident that a network would have copied.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from itertools import count

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_SERVER_NODE = 1


class InProcessGrid(Grid):
    """Runs a ClientApp for ``nodes`` nodes, one message after the other.

    Training inside a host uses all cores; a second level of parallelism would only compete with it.

    Args:
        client_app: built over a function that finds the host by ``context.node_config``.
        nodes: number of hosts; their partition ids are 0 … nodes − 1.

    Attributes:
        server_context: what a ServerApp is called with.
    """

    def __init__(self, client_app: ClientApp, *, nodes: int) -> None:
        self._client_app = client_app
        self._run = Run.create_empty(run_id=secrets.randbits(63))
        # Flower's own messages ask this class who sends them; a deployment's processes set it too.
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = self._run.run_id
        TaskIdentity.node_id = _SERVER_NODE
        self.server_context = self._context(_SERVER_NODE, UserConfig())
        self._contexts = {
            _SERVER_NODE + 1 + partition: self._context(
                _SERVER_NODE + 1 + partition,
                {"partition-id": partition, "num-partitions": nodes},
            )
            for partition in range(nodes)
        }
        self._numbers = count()
        self._replies: dict[str, Message] = {}

    def _context(self, node: int, config: UserConfig) -> Context:
        return Context(
            run_id=self._run.run_id,
            node_id=node,
            node_config=config,
            state=RecordDict(),
            run_config={},
        )

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run
        TaskIdentity.run_id = run.run_id

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message of this run."""
        return Message(
            content, dst_node_id=dst_node_id, message_type=message_type, ttl=ttl, group_id=group_id
        )

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; none ever leaves."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the ClientApp on each message; the replies wait to be pulled."""
        ids = []
        for message in messages:
            number = f"{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = number
            self._replies[number] = self._answer(message)
            ids.append(number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to those messages, each handed out once."""
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull; nothing here takes time beyond the work itself."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node not in self._contexts:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, f"no node {node}"), reply_to=message)
        return _copied(self._client_app(_copied(message), self._contexts[node]))


def _copied(message: Message) -> Message:
    return message_from_proto(message_to_proto(message))
