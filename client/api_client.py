"""The same calls as :class:`Device`, over the local service of the process that runs the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

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
from .answers import (
    EraseProfileRequest,
    EraseProfileResponse,
    GetProfileResponse,
    GetStatusResponse,
    RecommendRequest,
    RecommendResponse,
    RecordEventsResponse,
)
from .api_limits import MOST_BYTES, MOST_EVENTS, check_change
from .device_folder import DeviceFolder
from .edge_messages import from_message, to_message
from .interactions import Interaction

_SLOW = 120.0
"""Deadline in seconds of what goes through the whole store."""
_ERRORS: dict[grpc.StatusCode, type[FedprofileError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: DataError,
    grpc.StatusCode.FAILED_PRECONDITION: DeviceError,
    grpc.StatusCode.DATA_LOSS: StoreDamaged,
    grpc.StatusCode.ABORTED: StoreError,
}
T = TypeVar("T")


class DeviceClient:
    """A device that another process runs.

    Args:
        folder: of the device.
        patience: deadline in seconds of what takes milliseconds.
    """

    def __init__(self, folder: DeviceFolder, *, patience: float = 15.0) -> None:
        self.folder = folder
        self._patience = patience
        limits = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
        self._channel = grpc.insecure_channel(
            f"unix:{folder.socket}", options=[(name, MOST_BYTES) for name in limits]
        )
        make_stub: Any = rpc.ProfileServiceStub  # generated, and untyped
        self._stub = make_stub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def record(
        self, interactions: Sequence[Interaction], *, change_top_k: int | None = None
    ) -> RecordEventsResponse:
        """As :meth:`Device.record`, but thousands go in parts, each of them whole."""
        check_change(change_top_k, len(interactions))
        total = RecordEventsResponse()
        for start in range(0, len(interactions) or 1, MOST_EVENTS):
            request = pb.RecordEventsRequest(change_top_k=change_top_k)
            for one in interactions[start : start + MOST_EVENTS]:
                to_message(one, request.events.add())
            part = self._ask("RecordEvents", request, RecordEventsResponse, _SLOW)
            total = RecordEventsResponse(
                recorded=total.recorded + part.recorded,
                repeated=total.repeated + part.repeated,
                unlearned=total.unlearned + part.unlearned,
                # Asked for of one part at most.
                profile_change=part.profile_change,
                list_change=part.list_change,
            )
        return total

    def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """As :meth:`Device.recommend`."""
        return self._ask("Recommend", to_message(request, pb.RecommendRequest()), RecommendResponse)

    def profile(self) -> GetProfileResponse:
        """As :meth:`Device.profile`."""
        return self._ask("GetProfile", pb.GetProfileRequest(), GetProfileResponse)

    def declare(self, name: str, value: str) -> None:
        """As :meth:`Device.declare`."""
        self._call("DeclareData", _message(pb.DeclareDataRequest, name=name, value=value))

    def export(self) -> Iterator[str]:
        """As :meth:`Device.export`."""
        pieces = self._stub.ExportProfile(
            pb.ExportProfileRequest(), timeout=_SLOW, wait_for_ready=True
        )
        try:
            for piece in pieces:
                yield piece.json
        except grpc.RpcError as error:
            raise _told(error) from error

    def erase(self, request: EraseProfileRequest) -> EraseProfileResponse:
        """As :meth:`Device.erase`."""
        message = to_message(request, pb.EraseProfileRequest())
        return self._ask("EraseProfile", message, EraseProfileResponse, _SLOW)

    def set_consent(self, on: bool) -> None:
        """As :meth:`Device.set_consent`."""
        self._call("SetConsent", pb.SetConsentRequest(on=on))

    def set_paused(self, on: bool) -> None:
        """As :meth:`Device.set_paused`."""
        self._call("SetPaused", pb.SetPausedRequest(on=on))

    def status(self) -> GetStatusResponse:
        """As :meth:`Device.status`."""
        return self._ask("GetStatus", pb.GetStatusRequest(), GetStatusResponse)

    def _ask(self, method: str, request: Any, kind: type[T], seconds: float | None = None) -> T:
        return from_message(kind, self._call(method, request, seconds))

    def _call(self, method: str, request: Any, seconds: float | None = None) -> Any:
        seconds = self._patience if seconds is None else seconds
        try:
            # A process that has just started may not listen yet.
            return getattr(self._stub, method)(request, timeout=seconds, wait_for_ready=True)
        except grpc.RpcError as error:
            raise _told(error) from error


def _message(kind: Any, **fields: str) -> Any:
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def _told(error: Any) -> FedprofileError:
    """The error that the other process raised, or that it can't be reached."""
    code, detail = error.code(), error.details()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "disk" in detail:
        return StoreFull(detail)
    if code in _ERRORS:
        return _ERRORS[code](detail)
    return DeviceError(
        f"the process that runs this device doesn't answer ({code.name.lower()}: {detail}); "
        "do it again, or stop that process"
    )
