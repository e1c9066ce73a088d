"""Taking part in a server's rounds while the device runs, where it has been enrolled."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from ..common.flower_switches import quieten_flower
from .device import Device
from .device_folder import DeviceFolder
from .owner import DeviceOwner

_LAST_WORDS = 15.0  # seconds for a call to the server to end


@contextlib.contextmanager
def taking_part(folder: DeviceFolder, device: Device) -> Iterator[None]:
    """Answer the server's rounds within this context; do nothing where there is no server."""
    if not (folder.server_facts.exists() and folder.node_key.exists()):
        yield
        return
    quieten_flower(folder.run / "flower")
    from .node import Node  # Flower, which a device without a server doesn't need

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("fedprofile").setLevel(logging.INFO)
    stop = threading.Event()
    node = Node(folder, DeviceOwner(device))
    thread = threading.Thread(target=node.run, args=(stop,), name="node", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LAST_WORDS)
