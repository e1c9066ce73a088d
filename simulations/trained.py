"""The model of a finished run, ready to rank with."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..client.serving import PRIOR_BLOCK, TRAINED_BLOCK
from ..common.config import RunConfig, load_config
from ..common.encoder import build_encoder
from ..common.errors import RunFolderError
from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from .dataset import InteractionLog
from .models import EncoderScorer
from .population import Population
from .run_folder import RunFolder

_COMPARED = 500
"""Items whose vectors are compared with those the run kept."""


def find_run(path: Path) -> tuple[RunFolder, RunConfig]:
    """The folder of a finished run and its configuration.

    Raises:
        RunFolderError: there is no run, or it hasn't ended.
        ConfigError: its configuration can't be read.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise RunFolderError(f"{path}: no run here (config.toml is missing); name a run folder")
    missing = [file.name for file in (folder.model, folder.items) if not file.is_file()]
    if missing:
        raise RunFolderError(
            f"{path}: the run hasn't ended ({' and '.join(missing)} missing); go on with it by "
            f"fedprofile simulate --resume --out {shlex.quote(str(path))}"
        )
    return folder, load_config(folder.config)


def _same(served: ItemTable, table: ItemTable) -> bool:
    """Whether the public vectors have the same blocks, and are alike as far as items resemble one another.

    How items are spread over the columns depends on the machine in the last digits, and where values are
    level in more than that; what the cosines between items are doesn't.
    """
    # What a release fills in comes after them, and is the run's own.
    public = {name: block for name, block in table.blocks.items() if name != COOCCURRENCE_BLOCK}
    if any(served.blocks.get(name) != block for name, block in public.items()):
        return False
    some = np.random.default_rng(0).integers(table.n_items, size=_COMPARED)
    columns = max(stop for _, stop in public.values())
    kept, made = (t.vectors[some, :columns] for t in (served, table))
    return bool(np.allclose(kept @ kept.T, made @ made.T, atol=1e-2))


def load_scorer(
    folder: RunFolder, config: RunConfig, log: InteractionLog, population: Population
) -> EncoderScorer:
    """The run's encoder, item vectors and popularity.

    The vectors are those the run kept: made again, they may differ in their last digits.

    Raises:
        RunFolderError: the model can't be read, or the data has other items than the run had.
        DataError: the item table can't be read.
    """
    served = ItemTable.load(folder.items)
    table = population.table
    start, stop = served.blocks[PRIOR_BLOCK]
    if (served.ids, served.tags) != (table.ids, table.tags) or not _same(served, table):
        raise RunFolderError(
            f"{folder.path}: its items aren't those of {config.data.path} any more; name the data "
            "that the run was made with"
        )
    try:
        weights = load_file(folder.model)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"{folder.model}: not a readable model ({error})") from error
    blocks = {n: b for n, b in served.blocks.items() if n not in (PRIOR_BLOCK, TRAINED_BLOCK)}
    width = max(stop for _, stop in blocks.values())
    table = replace(served, vectors=served.vectors[:, :width], blocks=blocks)
    encoder = build_encoder(
        config.model,
        blocks=table.blocks,
        n_items=table.n_items,
        n_types=len(log.event_types),
        seed=0,
    )
    prior = served.vectors[:, start:stop][:, 0]
    return EncoderScorer(encoder, weights, table, prior, config.model)
