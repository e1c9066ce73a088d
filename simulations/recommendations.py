"""Lists for every user of the data, from their whole history, as a Parquet file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..common.console import remark, stage
from ..common.errors import RunFolderError
from ..common.files import write_atomically
from ..common.histories import Histories
from .dataset import InteractionLog
from .evaluation import CHUNK, Scorer
from .rejections import of_users
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


class ListScorer(Scorer, Protocol):
    """A scorer that also says what devices rank new items by."""

    def unmixed(self, history: Histories) -> NDArray[np.float32]:
        """Scores without a mixture with repeats, float32 [m, n_items]; higher is better."""
        ...


def write_recommendations(
    path: Path, scorer: ListScorer, log: InteractionLog, *, k: int, include_seen: bool
) -> None:
    """Write ``user_id, rank, item_id, score``: rank from 1, original ids, best first.

    Each user is asked at the end of the log, those who did too little to learn from among them. A user
    has fewer than ``k`` rows where fewer items are left; what they turned down last is in no list.
    Scores are those of the user's device: with ``include_seen`` probabilities of the mixture with repeats,
    else what it ranks new items by.

    Raises:
        RunFolderError: the file can't be written.
    """
    now = int(log.histories.times.max()) + 1
    groups = [
        (log.user_ids, log.histories, log.rejected),
        (log.rare_ids, log.rare, log.rare_rejected),
    ]
    chunks = [
        (ids, histories, rejected, np.arange(start, min(start + CHUNK, len(ids)), dtype=np.int64))
        for ids, histories, rejected in groups
        for start in range(0, len(ids), CHUNK)
    ]
    item_ids = pl.Series("item_id", log.item_ids, dtype=pl.String)
    parts = []
    with stage("Recommending", len(chunks)) as progress:
        for ids, histories, rejected, users in chunks:
            history = histories.take(users)
            if include_seen:
                scores = scorer.scores(history, np.full(len(users), now, dtype=np.int64))
            else:
                scores = scorer.unmixed(history)
                scores[history.devices, history.items] = -np.inf
            out = of_users(rejected, int(users[0]), int(users[0]) + len(users))
            scores[out[:, 0], out[:, 1]] = -np.inf
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            values = np.take_along_axis(scores, best, axis=1)
            left = np.isfinite(values)
            row, places = np.nonzero(left)
            names = pl.Series("user_id", [ids[user] for user in users.tolist()], dtype=pl.String)
            parts.append(
                pl.DataFrame(
                    [
                        names.gather(row),
                        pl.Series("rank", places + 1, dtype=pl.Int32),
                        item_ids.gather(best[left]),
                        pl.Series("score", values[left], dtype=pl.Float64),
                    ]
                )
            )
            progress.advance()
    lists = pl.concat(parts)
    without = len(log.user_ids) + len(log.rare_ids) - lists["user_id"].n_unique()
    if without:
        remark(
            f"{without:,} users have no list: they had every item (--include-seen lists those, too)"
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
