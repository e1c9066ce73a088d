"""The gate: calls of a node pass, within a size, and nothing else does."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from fedprofile.server.superlink import NODE_CALLS, NodeGate, _wipe_what_is_deleted


class Behind:
    """What is behind the gate: tells what reached it."""

    def __init__(self):
        self.bodies = []

    async def __call__(self, scope, receive, send):
        part = await receive()
        self.bodies.append(part["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def ask(
    path,
    *,
    method="POST",
    body=(b"",),
    kind="http",
    max_body=100,
    gone=False,
    key=b"KEY",
    pause=0.0,
):
    """Status of the answer, None where there is none, and what reached the application."""
    behind, sent = Behind(), []
    parts = [
        {"type": "http.request", "body": part, "more_body": place < len(body) - 1 or gone}
        for place, part in enumerate(body)
    ] + [{"type": "http.disconnect"}]

    async def receive():
        await asyncio.sleep(pause)
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    headers = [(b"flwr-public-key", key)] if key else []
    scope = {"type": kind, "method": method, "path": path, "headers": headers}
    gate = NodeGate(behind, admitted={b"KEY"}, max_body=max_body, max_call=50, body_time=0.2)
    asyncio.run(gate(scope, receive, send))
    return (sent[0]["status"] if sent else None), behind.bodies


def test_calls_of_a_node_pass_whole():
    for path in NODE_CALLS:
        assert ask(path, body=(b"ab", b"", b"c")) == (200, [b"abc"])


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/../control/start-run",
        "//v1/fleet/pull-messages",
        "/v1/FLEET/pull-messages",
        "/docs",
        "/openapi.json",
        "/",
        "",
    ],
)
def test_all_else_is_refused_unread(path):
    assert ask(path, body=(b"x" * 1000,)) == (404, [])


def test_other_methods_and_protocols_are_refused():
    path = "/v1/fleet/pull-messages"
    assert ask(path, method="GET") == (404, [])
    assert ask(path, kind="websocket") == (404, [])


def test_a_body_is_counted_as_it_comes():
    path = "/v1/fleet/push-object"
    assert ask(path, body=(b"x" * 100,)) == (200, [b"x" * 100])
    assert ask(path, body=(b"x" * 60, b"x" * 41)) == (413, [])
    assert ask(path, body=(b"x",) * 200) == (413, [])


def test_only_objects_may_be_large():
    for path in NODE_CALLS - {"/v1/fleet/push-object"}:
        assert ask(path, body=(b"x" * 50,)) == (200, [b"x" * 50])
        assert ask(path, body=(b"x" * 51,)) == (413, [])


@pytest.mark.parametrize("key", [None, b"", b"ANOTHER"])
def test_a_stranger_is_refused_unread(key):
    # The body would take longer than it may.
    assert ask("/v1/fleet/push-object", key=key, body=(b"x",) * 9, pause=9) == (401, [])


def test_a_body_that_drips_is_given_up():
    assert ask("/v1/fleet/push-object", body=(b"x",) * 90, pause=0.03) == (408, [])


def test_who_hangs_up_reaches_nothing():
    assert ask("/v1/fleet/push-object", body=(b"x",), gone=True) == (None, [])


def test_what_is_deleted_is_wiped_whatever_the_default():
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("PRAGMA secure_delete = OFF")
        _wipe_what_is_deleted(database, None)
        assert database.execute("PRAGMA secure_delete").fetchone() == (1,)
