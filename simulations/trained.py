"""The model of a finished run, ready to rank with."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..client.serving import PRIOR_BLOCK
from ..common.config import RunConfig, load_config
from ..common.encoder import build_encoder
from ..common.errors import RunFolderError
from ..common.items import ItemTable
from .dataset import InteractionLog
from .models import EncoderScorer
from .population import Population
from .run_folder import RunFolder


def find_run(path: Path) -> tuple[RunFolder, RunConfig]:
    """The folder of a finished run and its configuration.

    Raises:
        RunFolderError: there is no run, or it hasn't ended.
        ConfigError: its configuration can't be read.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise RunFolderError(f"{path}: no run here (config.toml is missing); name a run folder")
    if not folder.model.is_file() or not folder.items.is_file():
        raise RunFolderError(
            f"{path}: the run hasn't ended; go on with it by fedprofile simulate --resume --out"
        )
    return folder, load_config(folder.config)


def load_scorer(
    folder: RunFolder, config: RunConfig, log: InteractionLog, population: Population
) -> EncoderScorer:
    """The run's encoder and popularity over the items of ``population``.

    Raises:
        RunFolderError: the model can't be read, or the data has other items than the run had.
        DataError: the item table can't be read.
    """
    served = ItemTable.load(folder.items)
    table = population.table
    start, stop = served.blocks[PRIOR_BLOCK]
    if served.ids != table.ids or not (served.vectors[:, : table.dimension] == table.vectors).all():
        raise RunFolderError(
            f"{folder.path}: its items aren't those of {config.data.path} any more; name the data "
            "that the run was made with"
        )
    try:
        weights = load_file(folder.model)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{folder.model}: not a readable model ({error})") from error
    encoder = build_encoder(
        config.model,
        blocks=table.blocks,
        n_items=table.n_items,
        n_types=len(log.event_types),
        seed=0,
    )
    prior = served.vectors[:, start:stop][:, 0]
    return EncoderScorer(encoder, weights, table, prior, config.model)
