import threading
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.run import Run

from fedprofile.simulations.grid import InProcessGrid
from fedprofile.simulations.ray_engine import _server_app


def echo(message, context):
    context.state["calls"] = ArrayRecord({"n": Array(np.zeros(1))})
    return Message(message.content, reply_to=message)


def query(node, content=None):
    return Message(content or RecordDict(), dst_node_id=node, message_type="query.echo")


def test_every_node_answers_for_itself():
    seen = []

    def app(message, context):
        seen.append((context.node_id, dict(context.node_config)))
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, nodes=3)
    nodes = list(grid.get_node_ids())
    messages = [query(node) for node in reversed(nodes)]
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == nodes[::-1]
    assert seen == [
        (node, {"partition-id": partition, "num-partitions": 3})
        for partition, node in reversed(list(enumerate(nodes)))
    ]
    sent = {message.metadata.message_id for message in messages}
    assert {reply.metadata.reply_to_message_id for reply in replies} == sent
    assert len(sent) == 3
    assert all(reply.metadata.run_id == grid.run.run_id for reply in replies)


def test_nothing_is_shared_that_a_network_would_copy():
    kept = []

    def app(message, context):
        kept.append(message)
        message.content["array"]["x"].data = b""
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app, nodes=1)
    [node] = grid.get_node_ids()
    content = RecordDict({"array": ArrayRecord({"x": Array(np.ones(3))})})
    [reply] = grid.send_and_receive([query(node, content)])
    np.testing.assert_array_equal(content["array"]["x"].numpy(), np.ones(3))
    assert kept[0].content is not reply.content


def test_replies_are_handed_out_once():
    grid = InProcessGrid(echo, nodes=1)
    [node] = grid.get_node_ids()
    ids = list(grid.push_messages([query(node), query(node)]))
    assert len(list(grid.pull_messages(ids[:1]))) == 1
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.send_and_receive([])) == []


def test_a_node_keeps_its_state_between_messages():
    grid = InProcessGrid(echo, nodes=2)
    first, second = grid.get_node_ids()
    grid.send_and_receive([query(first)])
    assert "calls" in grid._contexts[first].state
    assert "calls" not in grid._contexts[second].state


def test_a_node_that_is_not_there_is_an_error_reply():
    grid = InProcessGrid(echo, nodes=1)
    [reply] = grid.send_and_receive([query(4711)])
    assert reply.has_error()
    assert "4711" in reply.error.reason


def test_messages_belong_to_the_run_that_is_set():
    grid = InProcessGrid(echo, nodes=1)
    grid.set_run(Run.create_empty(run_id=77))
    [node] = grid.get_node_ids()
    message = grid.create_message(RecordDict(), "query.echo", node, "group")
    assert (message.metadata.run_id, message.metadata.group_id) == (77, "group")


def test_an_app_that_raises_is_not_silenced():
    def broken(message, context):
        raise ZeroDivisionError

    grid = InProcessGrid(broken, nodes=1)
    with pytest.raises(ZeroDivisionError):
        grid.send_and_receive([query(node) for node in grid.get_node_ids()])


def test_on_ray_replies_are_in_the_order_of_asking():
    """Sums of floats depend on it, and a seeded run must not depend on which actor was faster."""

    class Quickest(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return list(super().send_and_receive(messages, timeout=timeout))[::-1]

    grid, stopped = Quickest(echo, nodes=5), threading.Event()
    nodes = [4, 2, 6, 3, 5]
    seen = []

    def run(grid):
        messages = (query(node) for node in nodes)
        seen.extend(reply.metadata.src_node_id for reply in grid.send_and_receive(messages))

    app = _server_app(SimpleNamespace(run=run), stopped)
    app(grid, grid.server_context)
    assert seen == nodes
    stopped.set()
    with pytest.raises(RuntimeError, match="stopped"):
        app(grid, grid.server_context)
