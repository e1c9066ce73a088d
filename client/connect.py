"""A device to talk to: over the process that runs it where one does, else opened here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .device import Device
from .device_folder import DeviceFolder
from .service_lock import is_served

if TYPE_CHECKING:
    from .api_client import DeviceClient


def connect(path: Path) -> Device | DeviceClient:
    """The device in ``path``; both kinds take the same calls.

    Raises:
        DeviceError: there is no device.
        ConfigError: its configuration can't be used.
    """
    folder = DeviceFolder.open(path)
    if not is_served(folder):
        return Device(folder)
    from .api_client import DeviceClient  # gRPC costs a tenth of a second and 30 MB

    return DeviceClient(folder)
