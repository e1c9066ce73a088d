"""The local service: ``edge.v1.ProfileService`` over a Unix socket that the owner alone can open."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ..common.errors import (
    ConfigError,
    DataError,
    DeviceError,
    FedprofileError,
    StoreDamaged,
    StoreError,
    StoreFull,
)
from . import edge_v1_pb2 as pb
from . import edge_v1_pb2_grpc as rpc
from .answers import EraseProfileRequest, RecommendRequest
from .api_limits import MOST_BYTES, MOST_EVENTS, check_size
from .device import Device
from .edge_messages import from_message, to_message
from .interactions import Interaction
from .service_lock import service_lock

SERVICE = pb.DESCRIPTOR.services_by_name["ProfileService"].full_name
_THREADS, _AT_ONCE = 4, 32
_EXPORTS = 2  # at once: one that nobody reads holds its thread, and the others go on
_PIECE = 64 << 10  # characters of an exported piece
_OTHERS = 0o077  # permission bits of everybody but the owner
_CODES: tuple[tuple[type[FedprofileError], grpc.StatusCode], ...] = (
    (DataError, grpc.StatusCode.INVALID_ARGUMENT),
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
    (StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (StoreDamaged, grpc.StatusCode.DATA_LOSS),
    (StoreError, grpc.StatusCode.ABORTED),
    (DeviceError, grpc.StatusCode.FAILED_PRECONDITION),
)
_log = logging.getLogger(__name__)


class ProfileServer:
    """Serves one device; what hosts it starts and stops it.

    Args:
        device: whose store and profile; closed by :meth:`stop`.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._folder = device.folder
        self._server: grpc.Server | None = None
        self._health = health.HealthServicer()
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; the device is opened, and its store checked, before.

        Raises:
            DeviceError: another process serves this device, or others may open the socket.
            StoreError: the store can't be opened.
        """
        socket = self._folder.socket
        self._folder.run.mkdir(mode=0o700, exist_ok=True)  # a cleaner may have taken it away
        _check_private(socket.parent)
        self._lock.enter_context(service_lock(self._folder))
        try:
            self.device.status()
            socket.unlink(missing_ok=True)  # of a process that was killed
            server = grpc.server(
                ThreadPoolExecutor(_THREADS, thread_name_prefix="profile"),
                maximum_concurrent_rpcs=_AT_ONCE,
                options=_limits(),
            )
            add_service: Any = rpc.add_ProfileServiceServicer_to_server  # generated, and untyped
            add_service(_Service(self.device), server)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            for name in ("", SERVICE):
                self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
            if not server.add_insecure_port(f"unix:{socket}"):
                raise DeviceError(f"{socket}: can't listen there")
            server.start()
            socket.chmod(0o600)
            self._server = server
        except BaseException:
            self._lock.close()
            raise

    def stop(self, grace: float = 5.0) -> None:
        """Refuse new calls, let those under way end within ``grace`` seconds, and close the device."""
        if self._server is not None:
            self._health.enter_graceful_shutdown()
            self._server.stop(grace).wait()
            self._server = None
        self._folder.socket.unlink(missing_ok=True)
        self.device.close()
        self._lock.close()


class _Service(rpc.ProfileServiceServicer):
    """Checks the size of what is asked, asks the device, and answers."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._exports = threading.BoundedSemaphore(_EXPORTS)

    def RecordEvents(self, request: Any, context: Any) -> Any:
        def answer() -> Any:
            check_size(len(request.events), MOST_EVENTS, "events")
            events = [from_message(Interaction, event) for event in request.events]
            top_k = request.change_top_k if request.HasField("change_top_k") else None
            found = self._device.record(events, change_top_k=top_k)
            return to_message(found, pb.RecordEventsResponse())

        return self._answered(context, answer)

    def Recommend(self, request: Any, context: Any) -> Any:
        def answer() -> Any:
            found = self._device.recommend(from_message(RecommendRequest, request))
            return to_message(found, pb.RecommendResponse())

        return self._answered(context, answer)

    def GetProfile(self, request: Any, context: Any) -> Any:
        return self._answered(
            context, lambda: to_message(self._device.profile(), pb.GetProfileResponse())
        )

    def DeclareData(self, request: Any, context: Any) -> Any:
        def answer() -> Any:
            self._device.declare(request.name, request.value)
            return pb.DeclareDataResponse()

        return self._answered(context, answer)

    def ExportProfile(self, request: Any, context: Any) -> Iterator[Any]:
        if not self._exports.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "other exports are under way; read them first"
            )
        try:
            for piece in self._device.export():
                for start in range(0, len(piece), _PIECE):
                    yield pb.ExportProfileResponse(json=piece[start : start + _PIECE])
        except FedprofileError as error:
            _refuse(context, error)
        finally:
            self._exports.release()

    def EraseProfile(self, request: Any, context: Any) -> Any:
        def answer() -> Any:
            what = from_message(EraseProfileRequest, request)
            return to_message(self._device.erase(what), pb.EraseProfileResponse())

        return self._answered(context, answer)

    def SetConsent(self, request: Any, context: Any) -> Any:
        def answer() -> Any:
            self._device.set_consent(request.on)
            return pb.SetConsentResponse()

        return self._answered(context, answer)

    def SetPaused(self, request: Any, context: Any) -> Any:
        def answer() -> Any:
            self._device.set_paused(request.on)
            return pb.SetPausedResponse()

        return self._answered(context, answer)

    def GetStatus(self, request: Any, context: Any) -> Any:
        def answer() -> Any:
            status = replace(self._device.status(), service=True)
            return to_message(status, pb.GetStatusResponse())

        return self._answered(context, answer)

    def _answered(self, context: Any, answer: Callable[[], Any]) -> Any:
        try:
            with self._device.turn():
                # Whoever asked has gone, or waited too long: do nothing they don't know of.
                if context.is_active():
                    return answer()
        except FedprofileError as error:
            return _refuse(context, error)
        return context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed")


def _refuse(context: Any, error: FedprofileError) -> Any:
    code = next((c for kind, c in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
    if not isinstance(error, DataError | ConfigError):
        _log.error("%s", error)
    return context.abort(code, str(error))


def _limits() -> list[tuple[str, int]]:
    names = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
    return [(name, MOST_BYTES) for name in names]


def _check_private(folder: Path) -> None:
    """Whoever can reach the socket is the owner, as far as the service knows."""
    try:
        found = folder.stat()
    except OSError as error:
        raise DeviceError(f"{folder}: no folder for the socket ({error.strerror})") from error
    if found.st_mode & _OTHERS or found.st_uid != os.geteuid():
        raise DeviceError(
            f"{folder}: others may reach the socket in there; chmod 700 it, and own it"
        )
