"""What the owner decided about taking part, as the device's store has it."""

from __future__ import annotations

from .device import Device


class DeviceOwner:
    """The owner behind a device.

    Args:
        device: whose settings are asked, each time.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    def consents(self) -> bool:
        """Whether the device may take part at all; off until the owner says otherwise."""
        return self._device.status().consent

    def paused(self) -> bool:
        """Whether it shall not for now."""
        return self._device.status().paused
