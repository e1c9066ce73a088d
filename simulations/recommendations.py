"""Lists for every user of the data, from their whole history, as a Parquet file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ..common.console import stage
from ..common.errors import RunFolderError
from ..common.files import sync_folder
from .dataset import InteractionLog
from .evaluation import CHUNK
from .models import EncoderScorer


def write_recommendations(
    path: Path, scorer: EncoderScorer, log: InteractionLog, *, k: int, include_seen: bool
) -> None:
    """Write ``user_id, rank, item_id, score``: rank from 1, original ids, best first.

    Each user is asked at the end of the log. A user has fewer than ``k`` rows where fewer items are
    left.

    Raises:
        RunFolderError: the file can't be written.
    """
    users, items = np.array(log.user_ids, dtype=object), np.array(log.item_ids, dtype=object)
    now = int(log.histories.times.max()) + 1
    frames = []
    starts = range(0, log.n_users, CHUNK)
    with stage("Recommending", len(starts)) as progress:
        for start in starts:
            rows = np.arange(start, min(start + CHUNK, log.n_users), dtype=np.int64)
            history = log.histories.take(rows)
            scores = scorer.scores(history, np.full(len(rows), now, dtype=np.int64))
            if not include_seen:
                scores[history.devices, history.items] = -np.inf
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            values = np.take_along_axis(scores, best, axis=1)
            kept = np.isfinite(values)
            ranks = np.broadcast_to(np.arange(1, best.shape[1] + 1), best.shape)
            frames.append(
                pl.DataFrame(
                    {
                        "user_id": np.repeat(users[rows], kept.sum(axis=1)).tolist(),
                        "rank": ranks[kept].astype(np.int32),
                        "item_id": items[best[kept]].tolist(),
                        "score": values[kept].astype(np.float64),
                    },
                    schema_overrides={"user_id": pl.String, "item_id": pl.String},
                )
            )
            progress.advance()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.concat(frames).write_parquet(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path}: can't write recommendations ({error})") from error
