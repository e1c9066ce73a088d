"""A taken port is told before anything is started; what a killed server left is waited for."""

import fcntl
import socket
import threading
import time

import pytest

from fedprofile.common.errors import ServerError
from fedprofile.server import ports
from fedprofile.server.folder import ServerFolder
from fedprofile.server.ports import await_predecessor, check_ports
from fedprofile.server.supervisor import supervise
from fedprofile.simulations.loopback import free_port


@pytest.fixture
def listener():
    """Takes a port, or a Unix socket, until the test ends."""
    opened = []

    def listen(address, family=socket.AF_INET):
        opened.append(socket.socket(family))
        opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened[-1].bind(address)
        opened[-1].listen()
        return opened[-1]

    yield listen
    for one in opened:
        one.close()


def settled(server, **federation):
    """The server with other settings."""
    config = server.config
    update = {"federation": config.federation.model_copy(update=federation)}
    server.write_config(config.model_copy(update=update))
    return ServerFolder.open(server.path)


def test_free_ports_are_let_go_of(server):
    server = settled(server, metrics_port=free_port())
    for _ in range(2):
        check_ports(server)


def test_a_taken_port_is_named_with_its_key(server, listener):
    port = server.config.federation.port
    listener(("127.0.0.1", port))
    with pytest.raises(ServerError) as error:
        check_ports(server)
    told = str(error.value)
    assert told.startswith(f"127.0.0.1:{port} (federation.port in {server.config_file}): in use;")
    assert "--port" in told
    assert "\n" not in told


def test_a_taken_port_for_metrics_is_named_with_its_key(server, listener):
    port = free_port()
    listener(("127.0.0.1", port))
    with pytest.raises(
        ServerError, match=rf"127.0.0.1:{port} \(federation.metrics_port in .*in use"
    ):
        check_ports(settled(server, metrics_port=port))


def test_a_connection_that_has_ended_takes_no_port(server, listener):
    port = server.config.federation.port
    door = listener(("127.0.0.1", port))
    with socket.create_connection(("127.0.0.1", port)) as caller:
        came, _ = door.accept()
        came.close()  # whoever closes first keeps the port in TIME_WAIT
        assert caller.recv(1) == b""
    door.close()
    check_ports(server)


@pytest.mark.parametrize(
    ("federation", "why"),
    [
        ({"listen": "192.0.2.1"}, "not an address of this host; set federation.listen"),
        ({"host": "nowhere.invalid"}, "no such address"),
    ],
)
def test_an_address_of_another_host_is_told(server, federation, why):
    with pytest.raises(ServerError, match=why):
        check_ports(settled(server, **federation))


def test_a_taken_port_starts_nothing(server, listener):
    listener(("127.0.0.1", server.config.federation.port))
    server.certificate.unlink()
    with pytest.raises(ServerError, match="in use"):
        supervise(server, threading.Event())
    assert not server.certificate.exists()
    assert not list(server.run.glob("*.log"))
    assert not server.log.exists() or not server.log.read_bytes()


def test_what_a_killed_server_left_is_waited_for(server, listener):
    left = listener(str(server.socket), socket.AF_UNIX)
    server.ledger.touch()
    with server.ledger.open("rb") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ended = []

        def end(name, close):
            ended.append(name)
            close()

        threading.Timer(0.3, end, ("superlink", left.close)).start()
        threading.Timer(0.7, end, ("service", lambda: fcntl.flock(ledger, fcntl.LOCK_UN))).start()
        await_predecessor(server)
        assert ended == ["superlink", "service"]


def test_what_does_not_end_is_not_waited_for_forever(server, listener, monkeypatch):
    monkeypatch.setattr(ports, "_PATIENCE", 0.3)
    listener(str(server.socket), socket.AF_UNIX)
    started = time.monotonic()
    await_predecessor(server)
    assert 0.3 < time.monotonic() - started < 30


def test_a_server_that_ended_leaves_nothing_to_wait_for(server, listener, monkeypatch):
    listener(str(server.socket), socket.AF_UNIX).close()
    server.ledger.touch()
    monkeypatch.setattr(ports.time, "sleep", lambda seconds: pytest.fail("it waits"))
    await_predecessor(server)
