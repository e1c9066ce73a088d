"""The ledger of a run: made or opened again, with its key, its anchor and what was spent before."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..common.code_version import code_version
from ..common.config import RunConfig
from ..common.earlier import find_earlier
from ..common.errors import RunFolderError
from ..common.ledger import Ledger
from ..common.ledger_entries import Commit, Earlier, Reserve, read_chain
from ..common.signing import SigningKey
from ..server.budget import BudgetPlan
from .run_folder import RunFolder, check_writable


def population_name(config: RunConfig) -> str:
    """What the ledger calls the population: the configured name, or that of the data."""
    return config.ledger.population or Path(config.data.path).stem or "population"


def earlier_releases(
    config: RunConfig, folder: RunFolder, *, population_size: int
) -> tuple[Earlier, ...]:
    """What was spent on the population before the run: a run that goes on has it in its ledger.

    Raises:
        LedgerError: a ledger can't be read, doesn't hold together, or is of another population.
    """
    if folder.ledger.exists():
        return read_chain(folder.ledger).opening.earlier
    return find_earlier(
        [Path(path) for path in config.ledger.earlier],
        population=population_name(config),
        population_size=population_size,
    )


def check_checkpoints(folder: RunFolder) -> None:
    """Refuse to go on where the ledger tells of releases and no checkpoint does what they led to.

    A release is confirmed once its checkpoint is on disk, so a crash alone never leaves one without the
    other. Made again, it would be charged again. The ledger is only read.

    Raises:
        LedgerError: the ledger can't be read or doesn't hold together.
        RunFolderError: the checkpoints are gone.
    """
    if not folder.ledger.exists() or any(folder.checkpoints.glob("round-*.safetensors")):
        return
    made = sum(isinstance(entry, Commit) for entry in read_chain(folder.ledger).entries)
    if not made:
        return
    instead = "use its model as it is, or start" if folder.model.is_file() else "start"
    raise RunFolderError(
        f"{folder.checkpoints}: no checkpoint to go on from, but {folder.ledger.name} tells of {made:,} "
        "releases, which would be charged a second time; put the run's checkpoints back, or "
        f"{instead} another run with --earlier {shlex.quote(str(folder.path))} and another --out"
    )


def has_rounds(ledger: Ledger) -> bool:
    """Whether a round was made, and confirmed."""
    pending = ledger.pending()
    return any(isinstance(e, Reserve) and e.round and e not in pending for e in ledger.entries)


def check_keys(config: RunConfig) -> None:
    """Refuse a configured key or anchor that is no good, before hours of work depend on it.

    Raises:
        LedgerError: the key can't be read, is no Ed25519 key, or others may read it.
        RunFolderError: key or anchor lie where nothing can be written.
    """
    key, anchor = config.ledger.signing_key, config.ledger.anchor
    for path in (key, anchor):
        if path is not None:
            check_writable(Path(path))
    if key is not None and Path(key).exists():
        SigningKey.load(Path(key))


def open_ledger(
    folder: RunFolder,
    config: RunConfig,
    *,
    plan: BudgetPlan,
    population_size: int,
    earlier: tuple[Earlier, ...],
) -> Ledger:
    """A new ledger, or that of the run that goes on.

    Raises:
        LedgerError: the ledger, its key or its anchor can't be used.
        RunFolderError: the ledger is of another configuration, or the data has changed.
    """
    key_file = Path(config.ledger.signing_key or folder.signing_key)
    anchor = Path(config.ledger.anchor or folder.anchor)
    if not folder.ledger.exists():
        # A run may have died after it made its key.
        known = key_file.exists()
        return Ledger.create(
            folder.ledger,
            signing_key=SigningKey.load(key_file) if known else SigningKey.create(key_file),
            anchor=anchor,
            population=population_name(config),
            population_size=population_size,
            delta=plan.delta,
            target_epsilon=plan.target_epsilon,
            randomness="csprng" if config.seed is None else "seeded",
            code_version=code_version(),
            config_digest=config.digest(),
            earlier=earlier,
        )
    ledger = Ledger.open(
        folder.ledger,
        signing_key=SigningKey.load(key_file),
        anchor=anchor,
        code_version=code_version(),
    )
    opening = ledger.opening
    if opening.config_digest == config.digest() and opening.population_size == population_size:
        return ledger
    ledger.close()
    raise RunFolderError(
        f"{folder.ledger}: is of a run with another configuration or other data "
        f"({opening.population_size:,} users then, {population_size:,} now); put back what the run "
        "started with, or choose another --out"
    )
