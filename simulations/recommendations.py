"""Lists for every user of the data, from their whole history, as a Parquet file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from ..common.console import stage
from ..common.errors import RunFolderError
from ..common.files import write_atomically
from .dataset import InteractionLog
from .evaluation import CHUNK, Scorer
from .run_folder import check_writable


def check_recommendations(path: Path) -> None:
    """Refuse a file that :func:`write_recommendations` couldn't write, before the run.

    Raises:
        RunFolderError: it is a folder, holds something already, or can't be written.
    """
    check_writable(path)
    if path.is_dir():
        raise RunFolderError(f"{path}: is a folder; name a file for --recommendations")
    if path.exists() and path.stat().st_size:
        raise RunFolderError(f"{path}: exists already; remove it or name another file")


def write_recommendations(
    path: Path, scorer: Scorer, log: InteractionLog, *, k: int, include_seen: bool
) -> None:
    """Write ``user_id, rank, item_id, score``: rank from 1, original ids, best first.

    Each user is asked at the end of the log. A user has fewer than ``k`` rows where fewer items are
    left.

    Raises:
        RunFolderError: the file can't be written.
    """
    now = int(log.histories.times.max()) + 1
    parts = []
    starts = range(0, log.n_users, CHUNK)
    with stage("Recommending", len(starts)) as progress:
        for start in starts:
            users = np.arange(start, min(start + CHUNK, log.n_users), dtype=np.int64)
            history = log.histories.take(users)
            scores = scorer.scores(history, np.full(len(users), now, dtype=np.int64))
            if not include_seen:
                scores[history.devices, history.items] = -np.inf
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            values = np.take_along_axis(scores, best, axis=1)
            left = np.isfinite(values)
            row, places = np.nonzero(left)
            parts.append(
                pl.DataFrame(
                    {
                        "user": users[row],
                        "rank": (places + 1).astype(np.int32),
                        "item": best[left],
                        "score": values[left].astype(np.float64),
                    }
                )
            )
            progress.advance()
    rows = pl.concat(parts)
    lists = rows.select(
        pl.Series("user_id", log.user_ids, dtype=pl.String).gather(rows["user"]),
        "rank",
        pl.Series("item_id", log.item_ids, dtype=pl.String).gather(rows["item"]),
        "score",
    )
    content = io.BytesIO()
    lists.write_parquet(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise RunFolderError(
            f"{path}: can't write recommendations ({error.strerror}); the run itself is whole"
        ) from error
