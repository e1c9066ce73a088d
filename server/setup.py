"""Making a server: keys, certificate, item table, and the bundle that devices are given."""

from __future__ import annotations

import secrets
import shutil
from collections import Counter
from pathlib import Path

from ..common.encoder import Encoder, build_encoder
from ..common.errors import FedprofileError, ServerError
from ..common.files import write_atomically
from ..common.items import ItemTable
from ..common.server_bundle import ServerFacts, write_bundle
from ..common.server_config import ServerConfig
from ..common.signing import SigningKey
from .catalogue import read_catalogue
from .folder import ServerFolder
from .item_vectors import build_item_table, with_room
from .lifetimes import plan_federation
from .pki import create_authority, ensure_certificate
from .releases import model_file
from .spent_before import spent_before
from .split import Sizes


def create_server(path: Path, config: ServerConfig, *, items: Path | None) -> ServerFolder:
    """Make the folder of a server; nothing is left where it fails.

    Args:
        path: the new folder.
        config: of the federation.
        items: catalogue; None for the built-in one.

    Raises:
        FedprofileError: the folder exists, the catalogue can't be used, or no budget fits.
    """
    # What may fail for a reason that has nothing to do with the disk comes first.
    table = build_item_table(read_catalogue(items), config.items)
    population = config.federation.population_size
    table = with_room(
        table,
        config.statistics,
        config.privacy,
        population_size=population,
        trained=config.model.item_ids,
    )
    encoder = _untrained(config, table)
    earlier = spent_before(path, path / "ledger.jsonl", config.federation)
    plan_federation(
        config,
        sizes=Sizes.of(encoder, config.statistics, table),
        earlier=sum((other.events() for other in earlier), Counter()),
    )
    weights = {name: weight.detach().numpy() for name, weight in encoder.named_parameters()}
    fresh = not path.exists()
    folder = ServerFolder.create(path, config)
    try:
        create_authority(folder)
        ensure_certificate(folder)
        key = SigningKey.create(folder.signing_key)
        table.save(folder.items)
        write_atomically(folder.model, model_file(weights, config, table))
        federation = config.federation
        address = f"[{federation.host}]" if ":" in federation.host else federation.host
        facts = ServerFacts(
            federation=federation.name,
            address=f"{address}:{federation.port}",
            signing_key=key.public_key,
            population_size=federation.population_size,
            event_types=federation.event_types,
            model=config.model,
            items=table.content_hash,
        )
        write_bundle(
            folder.bundle,
            facts=facts,
            ca=folder.ca.read_bytes(),
            items=folder.items.read_bytes(),
            model=folder.model.read_bytes(),
        )
    except OSError as error:
        _undo(path, fresh)
        raise ServerError(f"{path}: can't make the server ({error.strerror})") from error
    except FedprofileError:
        _undo(path, fresh)
        raise
    return folder


def _untrained(config: ServerConfig, table: ItemTable) -> Encoder:
    return build_encoder(
        config.model,
        blocks=table.blocks,
        n_items=table.n_items,
        n_types=len(config.federation.event_types),
        seed=secrets.randbits(62),
    )


def _undo(path: Path, fresh: bool) -> None:
    for inner in path.iterdir():
        shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
    if fresh:
        path.rmdir()
