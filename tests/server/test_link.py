"""A real SuperLink with TLS: what the operator's side and a node's side can do, and nobody else.

This is the contract with the parts of Flower that are outside its public API: where a release of Flower
changes them, it fails here.
"""

import contextlib
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedprofile.client import fleet as fleet_module
from fedprofile.client.fleet import Fleet, decode, encode
from fedprofile.client.node_keys import NodeKey, public_pem
from fedprofile.common.errors import NotAdmitted, NotTaken, ReplyRejected, RunOver, Unreachable
from fedprofile.common.messages import (
    Binding,
    TrainTask,
    hosting_reply,
    read_train_task,
    read_update,
    train_message,
    update_reply,
)
from fedprofile.common.signing import SigningKey
from fedprofile.common.updates import ClippedUpdate
from fedprofile.server import link as link_module
from fedprofile.server.admission import admit, apply_enrolment
from fedprofile.server.enrolment import Enrolment
from fedprofile.server.folder import ServerFolder
from fedprofile.server.link import Link, LinkGrid, LinkLost, ReplySize

# What runs is started once, for one of the processes that test.
pytestmark = pytest.mark.xdist_group("link")

BINDING = Binding(run="r", round=1, release=3, items="i", model="m")
SHAPES = {"w": (300, 40)}
LARGEST = ReplySize.of([300 * 40])


# Some builds of SQLite overwrite what is deleted by themselves, and would hide a server that doesn't ask.
PROGRAM = """
import runpy
from sqlalchemy import Engine, event
event.listen(Engine, "connect", lambda made, _: made.execute("PRAGMA secure_delete = OFF"))
runpy.run_module("fedprofile.server.superlink", run_name="__main__")
"""


@pytest.fixture(scope="module")
def running(made_server, tmp_path_factory):
    """A folder whose SuperLink runs."""
    import shutil

    path = tmp_path_factory.mktemp("running") / "server"
    shutil.copytree(made_server.path, path)
    folder = ServerFolder.open(path)
    with (path / "out.log").open("wb") as log:
        command = [sys.executable, "-c", PROGRAM, str(path)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with Link(folder.socket) as link:
            link.wait(60)
        wait_for_port(folder)
        yield folder
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def wait_for_port(folder):
    deadline = time.monotonic() + 60
    while True:
        try:
            return status_of(folder, "/")
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def status_of(folder, path, body=b""):
    """HTTP status of a call from outside."""
    port = folder.config.federation.port
    trusting = ssl.create_default_context(cafile=str(folder.ca))
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", data=body, method="POST")
    request.add_header("content-type", PROTOBUF_MEDIA_TYPE)
    request.add_header("accept", PROTOBUF_MEDIA_TYPE)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting)
    )
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.fixture
def link(running):
    with Link(running.socket) as found:
        yield found


@pytest.fixture
def connect():
    """Makes connections of nodes, and closes them."""
    made = []

    def make(folder, key, *, ca=None, port=None):
        address = f"127.0.0.1:{port or folder.config.federation.port}"
        made.append(Fleet(address, ca=ca or folder.ca, key=key))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


def let_in(folder, link, key):
    """Enrol the owner of a key, and leave all others alone."""
    enrolment = Enrolment(folder.devices, population_size=99)
    enrolment.enrol(f"device {len(enrolment.devices())}", public_pem(key), source="its key")
    link.register(public_pem(key).decode())


@pytest.fixture
def node(running, link, connect):
    """A node that is online."""
    key = ec.generate_private_key(ec.SECP384R1())
    let_in(running, link, key)
    found = connect(running, key)
    found.activate()
    return found


def instruction(node, seed=1):
    return train_message(
        node.number,
        TrainTask(
            binding=BINDING,
            devices=np.array([0]),
            weights={"w": np.ones(SHAPES["w"], dtype=np.float32)},
            prior=np.zeros(7, dtype=np.float32),
            vectors=np.zeros((7, 0), dtype=np.float32),
            steps=1,
            learning_rate=0.1,
            negatives=2,
            dropout=0.0,
            new_targets_only=True,
            clip_norm=1.0,
            noise_multiplier=1.0,
            seed=seed,
        ),
        sign=SigningKey.generate().sign,
    )


def pulled(node, timeout=60):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (message := node.pull()) is not None:
            return message
        time.sleep(0.05)
    raise AssertionError("no message came")


def exchange(grid, messages, answer, timeout=60):
    """Replies that the grid returns while ``answer`` runs beside it."""
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(grid.send_and_receive(messages, timeout=timeout))
    )
    thread.start()
    answer()
    thread.join(min(timeout, 60) + 10)
    assert not thread.is_alive()
    return found


@pytest.fixture
def grid(link):
    found = link.begin(stop=threading.Event(), largest=LARGEST)
    yield found
    found.finish()


def small_update(message):
    arrays = {"w": np.full(SHAPES["w"], 1e-3, dtype=np.float32)}
    return update_reply(message, BINDING, ClippedUpdate(arrays, devices=1, clip_norm=1.0))


def test_only_calls_of_a_node_are_served_outside(running):
    for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task"):
        assert status_of(running, path) == 404
    for path in ("/v1/fleet/register-node", "/v1/fleet/get-fab", "/docs", "/openapi.json"):
        assert status_of(running, path) == 404
    # What is served asks for a signature.
    assert status_of(running, "/v1/fleet/pull-messages") == 401
    assert status_of(running, "/v1/fleet/push-messages", b"\xff" * 100) in (400, 401, 422)


def test_silent_connections_are_closed(running):
    trusting = ssl.create_default_context(cafile=str(running.ca))
    address = ("127.0.0.1", running.config.federation.port)
    with (
        socket.create_connection(address, timeout=60) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as silent,
    ):
        silent.send(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n")  # and no more
        assert silent.recv(1) == b""


def test_the_private_door_is_for_its_owner(running):
    assert running.run.stat().st_mode & 0o077 == 0
    assert running.socket.is_socket()


def test_a_proxy_in_the_environment_is_not_asked(running, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Link(running.socket) as found:
        assert found.answers()


def test_a_message_goes_out_and_the_reply_comes_back_as_it_was(grid, node):
    sent = {}

    def answer():
        message = pulled(node)
        sent["task"] = read_train_task(message)
        reply = small_update(message)
        kept = encode(reply)
        again = decode(kept)
        assert encode(again) == kept
        assert again.object_id == reply.object_id
        node.push(again)
        node.push(decode(kept))  # a crash in between: the same one again

    (reply,) = exchange(grid, [instruction(node)], answer)
    assert sent["task"].binding == BINDING
    update = read_update(reply, binding=BINDING, shapes=SHAPES)
    np.testing.assert_array_equal(update.arrays["w"], np.full(SHAPES["w"], 1e-3, np.float32))
    assert reply.metadata.src_node_id == node.number


def test_replies_are_handed_on_as_they_come_and_messages_are_not_kept(
    running, link, grid, node, connect, monkeypatch
):
    monkeypatch.setattr(link_module, "_PUSHED_AT_ONCE", 1)
    key = ec.generate_private_key(ec.SECP384R1())
    let_in(running, link, key)
    other = connect(running, key)
    other.activate()
    messages = [instruction(node), instruction(other)]
    replies = grid.send_and_receive(iter(messages), timeout=60)
    assert not any(message.content for message in messages)
    node.push(small_update(pulled(node)))
    assert next(replies).metadata.src_node_id == node.number  # while the other has yet to answer
    other.push(small_update(pulled(other)))
    (last,) = replies
    assert last.metadata.src_node_id == other.number
    read_update(last, binding=BINDING, shapes=SHAPES)


def test_an_update_that_was_taken_leaves_nothing_in_the_database(running, grid, node):
    numbers = np.random.default_rng(1).normal(0, 1e-3, SHAPES["w"]).astype(np.float32)
    traces = [numbers.tobytes()[place : place + 32] for place in range(0, numbers.nbytes - 32, 512)]

    def found():
        with contextlib.closing(sqlite3.connect(running.state)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        content = running.state.read_bytes()
        return sum(trace in content for trace in traces)

    seen = []

    def answer():
        message = pulled(node)
        update = ClippedUpdate({"w": numbers}, devices=1, clip_norm=1.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LinkGrid, "_announced", lambda *_, **__: None)
            time.sleep(0.5)  # the server isn't asking now
            node.push(update_reply(message, BINDING, update))
            seen.append(found())

    assert len(exchange(grid, [instruction(node)], answer)) == 1
    assert seen[0] > 0.9 * len(traces)
    assert found() == 0


def test_who_is_offline_is_not_asked(grid, node):
    node.close()
    started = time.monotonic()
    assert exchange(grid, [instruction(node)], lambda: None) == []
    assert time.monotonic() - started < 30  # of the minute it would wait


@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_a_node_that_goes_with_its_answer_has_time_to_come_back(
    running, link, grid, connect, monkeypatch, patience
):
    monkeypatch.setattr(link_module, "_AWAY", patience)
    key = ec.generate_private_key(ec.SECP384R1())
    let_in(running, link, key)
    node = connect(running, key)
    node.activate()
    number = node.number

    def answer():
        reply = small_update(pulled(node))
        node.close()
        time.sleep(1)  # the server looks a few times meanwhile
        again = connect(running, key)
        again.activate(known_as=number)
        assert again.number == number
        again.push(reply)

    replies = exchange(grid, [instruction(node)], answer)
    assert len(replies) == (1 if patience else 0)


def test_whose_heartbeat_is_about_to_run_out_is_away(monkeypatch):
    """Between two calls it would be gone, and asking about it then loses its answer."""
    left = {1: 13.0, 2: 1.0, 3: 13.0}
    grid = LinkGrid.__new__(LinkGrid)
    monkeypatch.setattr(
        grid,
        "get_nodes",
        lambda: [SimpleNamespace(node_id=n, online_until=time.time() + s) for n, s in left.items()],
    )
    waiting = {
        str(number): SimpleNamespace(metadata=SimpleNamespace(dst_node_id=number))
        for number in (1, 2, 4)
    }
    away = {1: 5.0}
    pause = grid._note_absent(waiting, away)
    assert set(away) == {2, 4}
    since = dict(away)
    left.update(dict.fromkeys(range(5, 2_000), 13.0))
    assert grid._note_absent(waiting, away) > 5 * pause  # many nodes are asked after less often
    assert away == since


def test_a_reply_that_cannot_be_decoded_is_malformed_and_costs_nobody_else(
    running, link, grid, node, connect, monkeypatch
):
    key = ec.generate_private_key(ec.SECP384R1())
    let_in(running, link, key)
    honest = connect(running, key)
    honest.activate()

    def answer():
        message, task = pulled(node), pulled(honest)
        original = ConfigRecord.deflate
        # Objects whose bytes say something else than their header.
        monkeypatch.setattr(ConfigRecord, "deflate", lambda self: original(self)[:-4] + b"\xff" * 4)
        node.push(hosting_reply(message, first=0, count=1))
        monkeypatch.undo()
        honest.push(small_update(task))

    asked = [instruction(node), instruction(honest)]
    replies = {r.metadata.src_node_id: r for r in exchange(grid, asked, answer)}
    with pytest.raises(ReplyRejected) as refused:
        read_update(replies[asked[0].metadata.dst_node_id], binding=BINDING, shapes=SHAPES)
    assert refused.value.reason == "malformed"
    good = replies[asked[1].metadata.dst_node_id]
    assert read_update(good, binding=BINDING, shapes=SHAPES).devices == 1


def test_a_reply_whose_parts_never_come_holds_up_nobody(running, link, node, connect, monkeypatch):
    key = ec.generate_private_key(ec.SECP384R1())
    let_in(running, link, key)
    honest = connect(running, key)
    honest.activate()
    stop, taken = threading.Event(), threading.Event()
    grid = link.begin(stop=stop, largest=LARGEST)
    confirm = LinkGrid._confirm

    def confirmed(self, answer):
        confirm(self, answer)
        taken.set()

    monkeypatch.setattr(LinkGrid, "_confirm", confirmed)

    def announce(message):
        with monkeypatch.context() as patch:
            patch.setattr(fleet_module, "push_object_contents_from_iterable", lambda *_, **__: None)
            node.push(small_update(message))

    # Nor after the time is over, which ends for the server alone: on a busy machine all may take long.
    now = time.monotonic
    late = threading.Event()
    clock = SimpleNamespace(
        monotonic=lambda: now() + 3600 * late.is_set(), sleep=time.sleep, time=time.time
    )
    monkeypatch.setattr(link_module, "time", clock)

    def answer():
        announce(pulled(node))
        honest.push(small_update(pulled(honest)))
        assert taken.wait(60)
        late.set()

    asked = [instruction(node), instruction(honest)]
    (reply,) = exchange(grid, asked, answer, timeout=1800)
    assert reply.metadata.src_node_id == honest.number
    assert read_update(reply, binding=BINDING, shapes=SHAPES).devices == 1

    def announce_and_stop():
        announce(pulled(node))
        stop.set()

    monkeypatch.setattr(link_module, "_GRACE", 1.0)
    assert exchange(grid, [instruction(node)], announce_and_stop, timeout=1800) == []
    grid.finish()


def test_parts_that_come_late_make_a_reply(grid, node, monkeypatch):
    def answer():
        message = pulled(node)
        original = fleet_module.push_object_contents_from_iterable

        def slowly(contents, *, push_object_fn):
            for content in contents:
                time.sleep(0.4)  # the server asks in between
                original([content], push_object_fn=push_object_fn)

        monkeypatch.setattr(fleet_module, "push_object_contents_from_iterable", slowly)
        node.push(small_update(message))

    (reply,) = exchange(grid, [instruction(node)], answer)
    assert read_update(reply, binding=BINDING, shapes=SHAPES).devices == 1


@pytest.mark.parametrize("largest", [ReplySize(3, 2**30), ReplySize(100, 1000)])
def test_a_reply_that_is_too_large_is_malformed(link, node, largest):
    grid = link.begin(stop=threading.Event(), largest=largest)

    def answer():
        with contextlib.suppress(NotTaken):  # refused at the announcement
            node.push(small_update(pulled(node)))

    (reply,) = exchange(grid, [instruction(node)], answer)
    with pytest.raises(ReplyRejected) as refused:
        read_update(reply, binding=BINDING, shapes=SHAPES)
    assert refused.value.reason == "malformed"
    grid.finish()


def test_a_reply_that_is_broken_off_is_wanted_no_more_when_it_is_offered_again(
    link, node, monkeypatch
):
    grid = link.begin(stop=threading.Event(), largest=ReplySize(3, 2**30))
    refused = threading.Event()
    confirm = LinkGrid._confirm
    push = fleet_module.push_object_contents_from_iterable
    wanted = []

    def confirmed(self, answer):
        confirm(self, answer)
        refused.set()

    def once_refused(contents, *, push_object_fn):
        wanted.append(len(contents))
        assert refused.wait(60)
        push(contents, push_object_fn=push_object_fn)

    monkeypatch.setattr(LinkGrid, "_confirm", confirmed)
    monkeypatch.setattr(fleet_module, "push_object_contents_from_iterable", once_refused)

    def answer():
        reply = small_update(pulled(node))
        with pytest.raises(NotTaken):
            node.push(reply)
        node.push(reply)

    exchange(grid, [instruction(node)], answer)
    assert wanted[0] > 3
    assert wanted[1:] == [0]
    grid.finish()


def test_a_reply_that_is_broken_off_halfway_is_taken_when_it_is_offered_again(
    grid, node, monkeypatch
):
    # The server looks after both offers: once it has noted a reply, Flower takes no second announcement.
    monkeypatch.setattr(link_module, "_POLL", 3.0)
    push = fleet_module.push_object_contents_from_iterable

    def halfway(contents, *, push_object_fn):
        push(contents[::2], push_object_fn=push_object_fn)
        raise ObjectPushError("0" * 64, 1, "expired")

    def answer():
        reply = small_update(pulled(node))
        with monkeypatch.context() as patch:
            patch.setattr(fleet_module, "push_object_contents_from_iterable", halfway)
            with pytest.raises(NotTaken):
                node.push(reply)
        node.push(reply)

    (reply,) = exchange(grid, [instruction(node)], answer)
    assert read_update(reply, binding=BINDING, shapes=SHAPES).devices == 1


def test_a_reply_to_a_run_that_is_over_is_refused(link, node):
    grid = link.begin(stop=threading.Event(), largest=LARGEST)
    kept = []

    def answer():
        kept.append(pulled(node))

    assert exchange(grid, [instruction(node)], answer, timeout=1) == []
    following = link.begin(
        stop=threading.Event(), largest=LARGEST
    )  # what a ServerApp does that was killed
    with pytest.raises(RunOver):
        node.push(small_update(kept[0]))
    following.finish()
    grid.finish()


def test_messages_that_are_not_kept_are_told(grid, node, monkeypatch):
    """As on a full disk, where Flower's server says so, and its client raises an error of its own."""

    def refused(self, messages):
        raise ObjectPushError("0" * 64, 1, "s")

    monkeypatch.setattr(link_module.HttpGrid, "push_messages", refused)
    with pytest.raises(LinkLost, match="keeps no messages"):
        grid.send_and_receive([instruction(node)], timeout=1)


def test_a_stop_ends_a_wait(link, node, monkeypatch):
    monkeypatch.setattr(link_module, "_GRACE", 0.5)
    stop = threading.Event()
    grid = link.begin(stop=stop, largest=LARGEST)
    started = time.monotonic()
    exchange(grid, [instruction(node)], stop.set, timeout=60)
    assert time.monotonic() - started < 30
    grid.finish()


def test_a_superlink_that_is_gone_is_waited_for_until_the_stop(link, tmp_path, monkeypatch):
    """Killed with all that was around it, it never comes back, and the ledger must be let go of."""
    stop = threading.Event()
    grid = link.begin(stop=stop, largest=LARGEST)
    gone = httpx.Client(transport=httpx.HTTPTransport(uds=str(tmp_path / "no.sock")))
    monkeypatch.setattr(grid._client, "_client", gone)
    waiting = threading.Timer(2.5, stop.set)
    waiting.start()
    started = time.monotonic()
    with pytest.raises(httpx.ConnectError):
        list(grid.get_nodes())
    assert 2 < time.monotonic() - started < 30
    grid.finish(details="gone")


def test_who_is_not_enrolled_is_not_let_in(running, connect):
    stranger = connect(running, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(NotAdmitted):
        stranger.activate()
    with pytest.raises(NotAdmitted, match="enrolled or revoked"):
        stranger.pull()


def test_who_is_revoked_is_out_at_once(running, connect):
    enrolment = Enrolment(running.devices, population_size=99)
    key: NodeKey = ec.generate_private_key(ec.SECP384R1())
    enrolment.enrol("a", public_pem(key), source="a.pub")
    apply_enrolment(running)
    node = connect(running, key)
    node.activate()
    assert node.beat()
    enrolment.revoke("a")
    apply_enrolment(running)
    with pytest.raises(NotAdmitted, match="enrolled or revoked"):
        node.pull()
    with Link(running.socket) as link:
        assert "a" not in [device.name for device, _ in admit(enrolment, link)]


def test_a_clock_that_is_off_is_called_so(running, node, monkeypatch):
    from datetime import timedelta

    true_now = fleet_module.now
    for ahead, word in ((600, "ahead of"), (-1200, "behind")):
        monkeypatch.setattr(
            fleet_module, "now", lambda ahead=ahead: true_now() + timedelta(seconds=ahead)
        )
        with pytest.raises(NotAdmitted, match=f"clock is .* s {word} the server's"):
            node.pull()
    monkeypatch.undo()
    assert node.pull() is None


def test_a_node_that_was_killed_comes_back_under_its_number(running, link, connect):
    key = ec.generate_private_key(ec.SECP384R1())
    let_in(running, link, key)
    killed = connect(running, key)
    killed.activate()
    again = connect(running, key)
    again.activate(known_as=killed.number)
    assert again.number == killed.number
    assert again.pull() is None


def test_another_authority_is_not_trusted(running, made_server, connect, tmp_path):
    from fedprofile.server.setup import create_server

    other = create_server(tmp_path / "other", made_server.config, items=None)
    wrong = connect(running, ec.generate_private_key(ec.SECP384R1()), ca=other.ca)
    with pytest.raises(Unreachable, match="certificate"):
        wrong.activate()


def test_a_server_that_is_away_is_unreachable(made_server, connect):
    away = connect(made_server, ec.generate_private_key(ec.SECP384R1()), port=1)
    with pytest.raises(Unreachable):
        away.activate()


def test_reading_content_that_is_no_message():
    from fedprofile.common.errors import MessageError

    for junk in (b"", b"\xff" * 64, b"{}"):
        with pytest.raises(MessageError):
            decode(junk).content["x"]


def test_an_empty_record_is_a_message(grid, node):
    (reply,) = exchange(
        grid,
        [Message(RecordDict(), dst_node_id=node.number, message_type="query.hosting")],
        lambda: node.push(hosting_reply(pulled(node), first=0, count=1)),
    )
    assert reply.has_content()
