"""Lists cut at a threshold: how long they get, how many stay empty, and what of them was taken.

A device that is asked with ``--threshold`` lists the new items that score at least so much. Here that is
counted for a run's test users, by the scores that their devices would give
(:meth:`~.models.EncoderScorer.unmixed`). What a user turned down is known of the end of the log alone, and
stays in, as in all that is measured on test users. It's the researcher's own measurement: nothing is
released.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..client.api_limits import LONGEST_LIST
from ..common.histories import Histories
from .evaluation import CHUNK
from .recommendations import ListScorer
from .splits import Targets

MEAN_LENGTHS = (1, 5, 10, 50)
"""Items on a list, on average, at the thresholds that are looked at where none is given."""
_TOLERANCE = 0.01  # a threshold of few digits may move so much of the lists
_HIGHEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Cut:
    """All users' lists of new items that score at least so much.

    Attributes:
        threshold: the least score of a list.
        users: whose lists were counted.
        mean_length: items of a list, on average.
        empty: share of users with nothing on their list.
        precision: share of all listed items that were taken in the target session, all lists taken
            together; None where nothing is listed.
        recall: mean over users with new items to find of the share of these that are listed; None where
            nobody has any.
    """

    threshold: float
    users: int
    mean_length: float
    empty: float
    precision: float | None
    recall: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return asdict(self)


def typical_thresholds(scorer: ListScorer, targets: Targets) -> list[float]:
    """Thresholds at which lists have about :data:`MEAN_LENGTHS` items on average, or all there are.

    They are order statistics of the scores of one chunk of users, drawn with a fixed seed: memory doesn't
    grow with the number of users, and up to a chunk of them it is everybody. What users took next isn't
    looked at, only what their devices knew when they were asked. So nothing leaks: quality at these
    thresholds is as honest as at any that were fixed beforehand.

    Returns:
        Highest first, rounded: lists are cut at the number as it is told. None where nothing can be listed.
    """
    size = min(CHUNK, targets.n_users)
    users = np.random.default_rng(0).choice(targets.n_users, size, replace=False)
    scores = _of_new_items(scorer, targets.history.take(np.sort(users)))
    known = scores[np.isfinite(scores)]
    if not len(known):
        return []
    places = [len(known) - min(length * size, len(known)) for length in MEAN_LENGTHS]
    found = np.partition(known, places)[places]
    return list(dict.fromkeys(_rounded(value, known) for value in found))


def cut_lists(scorer: ListScorer, targets: Targets, thresholds: Sequence[float]) -> list[Cut]:
    """Count what is listed at each threshold, a chunk of users at a time.

    Args:
        scorer: what devices rank new items by.
        targets: users, and what they took next; none without users.
        thresholds: finite.
    """
    if not targets.n_users:
        return []
    # As devices compare: in float32, and no score that counts is below what is finite.
    leasts = [np.float32(np.clip(value, -_HIGHEST, _HIGHEST)) for value in thresholds]
    listed, empty, taken = np.zeros((3, len(leasts)), dtype=np.int64)
    shares, seekers = np.zeros(len(leasts)), 0
    for start in range(0, targets.n_users, CHUNK):
        chunk = targets.chunk(start, start + CHUNK)
        scores = _of_new_items(scorer, chunk.history)
        _shorten(scores, min(leasts, default=np.float32(_HIGHEST)))
        rows, items = _new_targets(chunk, scores.shape[1])
        wanted = np.bincount(rows, minlength=chunk.n_users)
        seekers += int((wanted > 0).sum())
        for place, least in enumerate(leasts):
            lengths = np.count_nonzero(scores >= least, axis=1)
            hits = np.bincount(rows[scores[rows, items] >= least], minlength=chunk.n_users)
            listed[place] += lengths.sum()
            empty[place] += (lengths == 0).sum()
            taken[place] += hits.sum()
            shares[place] += (hits / np.maximum(wanted, 1)).sum()
    return [
        Cut(
            threshold=threshold,
            users=targets.n_users,
            mean_length=int(listed[place]) / targets.n_users,
            empty=int(empty[place]) / targets.n_users,
            precision=int(taken[place]) / int(listed[place]) if listed[place] else None,
            recall=float(shares[place]) / seekers if seekers else None,
        )
        for place, threshold in enumerate(thresholds)
    ]


def _of_new_items(scorer: ListScorer, history: Histories) -> NDArray[np.float32]:
    """What devices rank new items by, float32 [m, n_items]; −∞ of what is held."""
    scores = scorer.unmixed(history)
    scores[history.devices, history.items] = -np.inf
    return scores


def _shorten(scores: NDArray[np.float32], least: np.float32) -> None:
    """Leave what a device still lists of rows that have more than :data:`LONGEST_LIST` items, in place."""
    for row in np.flatnonzero(np.count_nonzero(scores >= least, axis=1) > LONGEST_LIST):
        scores[row, np.argsort(-scores[row], kind="stable")[LONGEST_LIST:]] = -np.inf


def _new_targets(targets: Targets, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Row and item of each target that its user didn't have before."""
    history = targets.history
    had = history.devices * n_items + history.items
    new = ~np.isin(targets.rows * n_items + targets.items, had)
    return targets.rows[new], targets.items[new]


def _rounded(value: np.float32, known: NDArray[np.float32]) -> float:
    """A number of few digits that leaves about as much of ``known`` as ``value`` does."""
    reached = np.count_nonzero(known >= value)
    for digits in range(1, 9):
        short = round(float(value), digits) + 0.0  # never −0
        if abs(np.count_nonzero(known >= np.float32(short)) - reached) <= _TOLERANCE * reached:
            return short
    return float(str(value))  # of all numbers that are the same float32, the shortest
