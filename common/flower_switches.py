"""What Flower does by itself unless told not to: look hosts up, install what a bundle asks for."""

from __future__ import annotations

import os
from pathlib import Path

SWITCHES = {
    "FLWR_LOG_LEVEL": "ERROR",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def quieten_flower(home: Path | None = None) -> None:
    """Set the switches for this process and those it starts; before Flower is imported, which reads them.

    Args:
        home: where Flower may keep files; None: where it does anyway.
    """
    os.environ.update(SWITCHES)
    if home is not None:
        os.environ["FLWR_HOME"] = str(home)
