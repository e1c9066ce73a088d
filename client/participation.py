"""Taking part in a server's rounds while the device runs, where it has been enrolled."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from ..common.errors import FedprofileError
from ..common.flower_switches import quieten_flower
from .device import Device
from .device_folder import DeviceFolder
from .owner import DeviceOwner

_LAST_WORDS = 15.0  # seconds for a call to the server to end
_LOOK = 5.0  # seconds between looks for a server that the device is enrolled at
_MENDED = 60.0  # seconds for somebody to mend what is in the way
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def taking_part(folder: DeviceFolder, device: Device) -> Iterator[None]:
    """Answer the server's rounds within this context, as soon as there is a server.

    Whatever is wrong with taking part, recording and ranking go on without it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("fedprofile").setLevel(logging.INFO)
    stop = threading.Event()
    thread = threading.Thread(
        target=_take_part, args=(folder, device, stop), name="node", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_LAST_WORDS)


def _take_part(folder: DeviceFolder, device: Device, stop: threading.Event) -> None:
    told = False
    while not (folder.server_facts.exists() and folder.node_key.exists()):
        if not told:
            _log.info("takes part in no training until fedprofile device enroll %s", folder.path)
            told = True
        if stop.wait(_LOOK):
            return
    quieten_flower(folder.run / "flower")
    try:
        from .node import Node  # Flower, which a device without a server doesn't need
    except ImportError as error:
        _log.error("training needs pip install 'fedprofile[train]' (%s is missing)", error.name)
        return
    while not stop.is_set():
        try:
            node = Node(folder, DeviceOwner(device))
        except Exception as error:  # a key that others may read, a damaged bundle
            known = isinstance(error, FedprofileError | OSError)
            why = error if known else f"unexpected {type(error).__name__}"
            _log.error("takes part in no training: %s", why)
            stop.wait(_MENDED)
        else:
            node.run(stop)
