"""Where the evidence lies: a ledger by itself, or a run folder with all that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import LedgerError

LEDGER = "ledger.jsonl"
DEVICE = "device.toml"
"""What only the folder of a device holds, which publishes no head and keeps no run."""


@dataclass(frozen=True)
class Evidence:
    """What an audit is pointed at.

    Attributes:
        ledger: the file.
        run: the run folder, None where a ledger was named.
        anchor: where the head was published; None where nobody says.
        devices: folder of devices' ledgers; None where nobody says.
        kept: how many user-level ledgers the configuration says are in there.
    """

    ledger: Path
    run: Path | None
    anchor: Path | None
    devices: Path | None = None
    kept: int = 0


def find_evidence(path: Path, *, anchor: Path | None = None) -> Evidence:
    """What ``path``, a ledger or a run folder, leads to.

    Args:
        path: LEDGER or RUN.
        anchor: named by the officer; None: where the run's configuration has it.

    Raises:
        LedgerError: there is no ledger.
        ConfigError: the configuration of the run can't be read.
    """
    if anchor is not None and not anchor.is_file():
        raise LedgerError(f"{anchor}: no such anchor; name the file that the head was published in")
    if not path.is_dir():
        if not path.is_file():
            raise LedgerError(f"{path}: no such ledger or run folder")
        return Evidence(path, None, anchor)
    ledger = path / LEDGER
    if not ledger.is_file():
        raise LedgerError(f"{path}: holds no {LEDGER}; name a run folder or a ledger")
    if (path / DEVICE).is_file():
        return Evidence(ledger, None, anchor)
    from ..common.config import (  # loads numpy, which a ledger doesn't need
        LedgerConfig,
        load_config,
    )

    config = path / "config.toml"
    named = load_config(config).ledger if config.is_file() else LedgerConfig()
    return Evidence(
        ledger,
        path,
        anchor or Path(named.anchor or path / "anchor.json"),
        Path(named.device_folder or path / "devices"),
        named.devices,
    )
