"""Flower's SuperLink behind two doors: devices reach what they need over TLS, this host the rest.

Flower 1.41 serves its Fleet, Control and Runtime APIs on one port, and whoever reaches the Control API
can start runs. So the same application is served twice: on the public address a gate lets through the
eight calls of a node and nothing else; everything is served on a Unix socket in a folder of mode 0700.
No bundle of code is ever run: the ServerApp and the devices run what is installed on them.

``python -m fedprofile.server.superlink DIR`` runs it until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import sys
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from ..common.flower_switches import quieten_flower
from .folder import ServerFolder
from .supervisor import follow_parent

NODE_CALLS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What the public door lets through: neither registering nor fetching runs and bundles."""

_MAX_BODY = 32 * 2**20  # bytes of an object; Flower cuts arrays into chunks below it
_MAX_CALL = 2**20  # bytes of any other request
_BODY_TIME = 120.0  # seconds for a request to come whole
_HEAD_TIME = 10.0  # and for the first one of a connection to begin
_OBJECTS = "/v1/fleet/push-object"
_KEY_HEADER = b"flwr-public-key"
_CONNECTIONS = 1024  # beside those of the population
_CONNECTIONS_EACH = 4  # a device sends objects side by side


class NodeGate:
    """ASGI application in front of another: calls of a node pass, in size and time, all else is refused.

    The signature is checked behind it, where the whole request is known. So that nobody can have strangers'
    requests kept in memory, a call is read only where it names a key that is admitted.

    Args:
        app: what is behind it.
        admitted: keys as the header of a call names them.
        max_body: bytes that an object may have; counted as they come, whatever its header says.
        max_call: bytes that any other request may have.
        body_time: seconds in which a request must have come.
    """

    def __init__(
        self,
        app: Any,
        *,
        admitted: Container[bytes],
        max_body: int = _MAX_BODY,
        max_call: int = _MAX_CALL,
        body_time: float = _BODY_TIME,
    ) -> None:
        self._app = app
        self._admitted = admitted
        self._max_body = max_body
        self._max_call = max_call
        self._body_time = body_time

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in NODE_CALLS:
            await _refuse(send, 404, b"not served here")
            return
        if dict(scope["headers"]).get(_KEY_HEADER, b"") not in self._admitted:
            await _refuse(send, 401, b"not admitted")
            return
        most = self._max_body if scope["path"] == _OBJECTS else self._max_call
        try:
            async with asyncio.timeout(self._body_time):
                body = await _read(receive, most)
        except TimeoutError:
            await _refuse(send, 408, b"too slow")
            return
        if body is None:
            return
        if len(body) > most:
            await _refuse(send, 413, b"too large")
            return
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)


async def _read(receive: Any, most: int) -> bytes | None:
    """Body of a request, no further than just above ``most`` bytes; None where the caller hung up."""
    body = bytearray()
    while len(body) <= most:
        part = await receive()
        if part["type"] == "http.disconnect":
            return None
        body += part.get("body", b"")
        if not part.get("more_body"):
            break
    return bytes(body)


async def _refuse(send: Any, status: int, text: bytes) -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(text)).encode()),
        (b"connection", b"close"),  # a stranger keeps no place
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def _wipe_what_is_deleted(connection: Any, _: Any) -> None:
    """Updates pass through Flower's database without noise: deleting one must not leave its bytes."""
    connection.execute("PRAGMA secure_delete = ON")  # the default of some builds of SQLite only


def serve(folder: ServerFolder) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OSError: the public address is taken or not of this host.
    """
    quieten_flower(folder.flower)
    import uvicorn
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app
    from sqlalchemy import Engine, event
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from .admission import apply_enrolment
    from .enrolment import AdmittedKeys, Enrolment

    event.listen(Engine, "connect", _wipe_what_is_deleted)
    app = create_app(
        SuperLinkLifespanConfig(
            control_address="",
            health_server_address=None,
            host="",
            port=0,
            insecure=False,
            certificates=None,
            superexec_auth_secret=None,
            authn_plugin=load_control_authn_plugin(),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_event_log=False,
            artifact_provider=None,
            enable_supernode_auth=True,
            fleet_api_type="grpc-rere",
            fleet_api_address=None,
            simulation=False,
            ssl_ca_certfile=None,
            ssl_certfile=None,
            ssl_keyfile=None,
            database=str(folder.state),
            isolation="process",
            runtime_dependency_install=False,
        ),
        SuperLinkLifespan,
    )

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # two servers in one process: the loop below stops both

    class Door(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # one of two, whichever is installed
        """uvicorn waits for a first request for good; a silent connection would keep its place."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(_HEAD_TIME, self._give_up, transport)

        def _give_up(self, transport: Any) -> None:
            if self.cycle is None:  # no request has begun
                transport.close()

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    common: dict[str, Any] = {"log_config": None, "access_log": False, "workers": 1}
    private = Server(uvicorn.Config(app, uds=str(folder.socket), lifespan="on", **common))
    federation = folder.config.federation
    population = federation.population_size
    enrolment = Enrolment(folder.devices, population_size=population)
    public = Server(
        uvicorn.Config(
            NodeGate(app, admitted=AdmittedKeys(enrolment, folder.devices)),
            http=Door,
            host=federation.listen or federation.host,
            port=federation.port,
            ssl_certfile=str(folder.certificate),
            ssl_keyfile=str(folder.certificate_key),
            lifespan="off",
            limit_concurrency=_CONNECTIONS + _CONNECTIONS_EACH * population,
            server_header=False,
            timeout_graceful_shutdown=2,
            **common,
        )
    )

    async def both() -> None:
        loop = asyncio.get_running_loop()
        servers = (private, public)

        def stop() -> None:
            for server in servers:
                server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        folder.socket.unlink(missing_ok=True)
        opened = asyncio.create_task(private.serve())
        while not private.started and not opened.done():
            await asyncio.sleep(0.02)
        # Who is enrolled is known before the public door opens: no device is turned away in between.
        await asyncio.to_thread(apply_enrolment, folder)
        try:
            await public.serve()
        finally:
            private.should_exit = True
            await opened

    # As many connections as that need as many files.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(both())


if __name__ == "__main__":
    follow_parent()
    serve(ServerFolder.open(Path(sys.argv[1])))
