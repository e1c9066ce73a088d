"""Where the evidence lies: a ledger by itself, or the folder of a run or a server that it is part of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import LedgerError

LEDGER = "ledger.jsonl"
_ANCHOR = "anchor.json"
_BESIDE = "it lies beside the ledger"
DEVICE = "device.toml"
"""What only the folder of a device holds, which publishes no head and keeps no run."""
SERVER = "server.toml"
"""What only the folder of a server holds."""


@dataclass(frozen=True)
class Evidence:
    """What an audit is pointed at.

    Attributes:
        ledger: the file.
        run: the run folder, None where none was named.
        anchor: where the head was published; None where nobody says.
        devices: folder of devices' ledgers; None where nobody says.
        kept: how many user-level ledgers the configuration says are in there.
        server: the folder of a server, None where none was named.
        trusting: what named the anchor's place, where the officer didn't; whoever has it can change it.
    """

    ledger: Path
    run: Path | None
    anchor: Path | None
    devices: Path | None = None
    kept: int = 0
    server: Path | None = None
    trusting: str | None = None

    @property
    def folder(self) -> Path | None:
        """Where all that belongs to the ledger lies, as far as that is known."""
        return self.run or self.server


def find_evidence(
    path: Path, *, anchor: Path | None = None, devices: Path | None = None
) -> Evidence:
    """What ``path``, a ledger or the folder of a run or a server, leads to.

    Args:
        path: of either.
        anchor: named by the officer; None: where the run's configuration has it.
        devices: folder of devices' ledgers, named by the officer; None: as the anchor.

    Raises:
        LedgerError: there is no ledger.
        ConfigError: the configuration of the run can't be read.
    """
    if anchor is not None and not anchor.is_file():
        raise LedgerError(f"{anchor}: no such anchor; name the file that the head was published in")
    if devices is not None and not devices.is_dir():
        raise LedgerError(f"{devices}: no such folder of devices' ledgers")
    if not path.is_dir():
        if not path.is_file():
            raise LedgerError(f"{path}: no such ledger or folder of one")
        return Evidence(path, None, anchor, devices)
    ledger = path / LEDGER
    if (path / SERVER).is_file():
        if not ledger.is_file():
            raise LedgerError(
                f"{path}: a server that has released nothing yet; its ledger begins with the first "
                f"fedprofile server run {path}"
            )
        trusting = None if anchor else _BESIDE
        return Evidence(
            ledger, None, anchor or path / _ANCHOR, devices, server=path, trusting=trusting
        )
    if not ledger.is_file():
        raise LedgerError(
            f"{path}: holds no {LEDGER}; name a ledger, or the folder of a run or server"
        )
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
        anchor or Path(named.anchor or path / _ANCHOR),
        devices or Path(named.device_folder or path / "devices"),
        named.devices,
        trusting=None if anchor else f"{config} names its place" if named.anchor else _BESIDE,
    )
