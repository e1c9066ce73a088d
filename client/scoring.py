"""Candidates scored against the profile, on the device and with numpy alone.

The score s of an item is four fifths ⟨U, v⟩, one inner product in the space of the item vectors, and one
fifth how like the item is to the nearest one held (:mod:`.nearest`). Where it was released what follows
what, that is mixed in (:mod:`.succession`). Where items are taken again and again (groceries, songs),
scores become the probabilities of a mixture:

    p(j) = ρ · q_j  +  (1 − ρ) · softmax(0.8·s_j + log κ_j)_j

with ρ the user's own repeat rate and q what of all they hold they take again (:mod:`.habits`), which are
fitted on the device and never leave it. The softmax is flattened, for popularity and content say the
same thing in part, and an item held before is in both terms. But nothing is more like what somebody held
than what they held, also where nobody takes a thing twice: κ of held items, 1 for the others, is 1 or
smaller, so that the softmax's odds of a repeat are at most twice those of ρ. All of it is free of ε.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.decay import Scale, decay, event_ages
from ..common.errors import ConfigError, DataError
from ..common.histories import Histories
from ..common.items import ItemTable
from .habits import repeat_weights
from .nearest import (
    NearestHeld,
    log_popularity,
    nearest_matrix,
    nearest_of,
    pooled,
    tells_nearest,
)
from .profile import HABITS, Profile, repeat_rate
from .succession import mixed, next_chances, next_matrix, tells_next

_LEFT_OUT = np.float32(-np.inf)
"""Score of what isn't to be recommended."""
_LEAST = np.finfo(np.float32).min
"""No score that counts is below."""
_BLOCK = 64
"""Scores whose maximum is looked at in place of them all."""
_FLATTENED = 0.8
"""Factor of the scores: level or better on validation of two logs that are unlike (a shop's and the
built-in one)."""
_LENIENCE = 2.0
"""Times the odds of a repeat: a rate told by a whole history lags behind, for there is ever more to repeat.
Level on those two logs, and lists twice as good where nobody repeats."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Items, best first; equal scores by ascending item index.

    Attributes:
        items: int32 [n], indices into the item table.
        scores: float32 [n].
        ids: original item ids.
    """

    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    ids: tuple[str, ...]

    def first(self, n: int) -> Ranking:
        """The n best, or all where there are fewer."""
        return Ranking(self.items[:n], self.scores[:n], self.ids[:n])


def score(
    profile: Profile,
    table: ItemTable,
    candidates: NDArray[np.int32] | None = None,
    *,
    nearest: NearestHeld | None = None,
) -> NDArray[np.float32]:
    """s of every candidate, in the order given; of all items where ``candidates`` is None.

    Args:
        profile: the user.
        table: item table that the profile was built with.
        candidates: item indices.
        nearest: this user's, of this table, where it is kept; used where all items are scored.

    Returns:
        float32 [n_candidates].

    Raises:
        DataError: a candidate is not in the table, or profile and table differ in dimension.
    """
    if len(profile.vector) != table.dimension:
        raise DataError(
            f"profile vector has {len(profile.vector)} numbers, item vectors {table.dimension}; "
            "use the item table that the profile was built with"
        )
    if candidates is not None:
        check_candidates(candidates, table)
        if tells_next(table):  # a mixture is over all items, whichever of them are asked for
            return score(profile, table, nearest=nearest)[candidates]
        return _alone(profile, table, candidates)
    logits = table.vectors @ profile.vector
    nearest = nearest or NearestHeld(table)
    if nearest.asked:
        logits = pooled(logits, nearest.to(profile.items), nearest.prior)
    return mixed(logits, next_chances(profile, table)) if tells_next(table) else logits


def _alone(
    profile: Profile, table: ItemTable, candidates: NDArray[np.int32]
) -> NDArray[np.float32]:
    """s of some items, where it doesn't depend on the others."""
    logits = table.vectors[candidates] @ profile.vector
    if not tells_nearest(table):
        return logits
    cosines = nearest_of(table, profile.items, candidates)
    return pooled(logits, cosines, log_popularity(table, candidates))


def check_candidates(candidates: NDArray[np.int32], table: ItemTable) -> None:
    """Whether they are items of the table.

    Raises:
        DataError: one isn't.
    """
    outside = (candidates < 0) | (candidates >= table.n_items)
    if outside.any():
        raise DataError(
            f"candidate {int(candidates[outside][0])} is not in the table of "
            f"{table.n_items} items; fetch the current item table"
        )


def top_k(
    profile: Profile,
    table: ItemTable,
    k: int,
    *,
    candidates: NDArray[np.int32] | None = None,
    include_seen: bool = False,
    left_out: NDArray[np.int32] | None = None,
    scores: NDArray[np.float32] | None = None,
) -> Ranking:
    """The k best candidates, fewer where there are fewer.

    Args:
        profile: the user.
        table: item table that the profile was built with.
        k: length of the list, ≥ 1.
        candidates: item indices; None: all items.
        include_seen: rank seen items too, by the mixture over the candidates; else leave them out
            and rank by s.
        left_out: item indices that aren't ranked whatever else is asked; the scores of the others stay as
            they are, shares of the mixture too.
        scores: what :func:`score` says of all items, where that is known; it is not changed.

    Raises:
        ConfigError: k < 1.
        DataError: as in :func:`score`.
    """
    if k < 1:
        raise ConfigError(f"top-k: k = {k}; ask for at least one item")
    items, chosen = _choices(profile, table, candidates, include_seen, left_out, scores)
    # Everything that ties with the k-th stays in until the index decides.
    return _ranking(items, chosen, table, least=_kth_largest(chosen, k)).first(k)


def _kth_largest(scores: NDArray[np.float32], k: int) -> np.float32:
    """The k-th largest score; where there are no more than k, what all of them reach.

    The k largest of the maxima of blocks are k scores, so the k-th of those is no larger than what is
    looked for: of many scores only the few that reach it need be put in order.
    """
    if len(scores) <= k:
        return _LEFT_OUT
    blocks = len(scores) // _BLOCK
    if blocks > k:
        highest = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        reach = scores[scores >= np.partition(highest, blocks - k)[blocks - k]]
        scores = reach if len(reach) >= k else scores  # what is no number reaches nothing
    last = len(scores) - k
    found: np.float32 = np.partition(scores, last)[last]
    return found


def above_threshold(
    profile: Profile,
    table: ItemTable,
    threshold: float,
    *,
    candidates: NDArray[np.int32] | None = None,
    include_seen: bool = False,
    left_out: NDArray[np.int32] | None = None,
    scores: NDArray[np.float32] | None = None,
) -> Ranking:
    """All candidates that score at least ``threshold``; otherwise as :func:`top_k`."""
    items, chosen = _choices(profile, table, candidates, include_seen, left_out, scores)
    return _ranking(items, chosen, table, least=threshold)


def _choices(
    profile: Profile,
    table: ItemTable,
    candidates: NDArray[np.int32] | None,
    include_seen: bool,
    left_out: NDArray[np.int32] | None,
    known: NDArray[np.float32] | None,
) -> tuple[NDArray[np.int32] | None, NDArray[np.float32]]:
    """Candidates, each once (None: all items), and their scores, with what is left out marked so."""
    items = None if candidates is None else np.unique(candidates).astype(np.int32)
    if known is None:
        scores = score(profile, table, items)
    else:
        scores = known.copy() if items is None else known[items]
    if include_seen:
        again = np.zeros(table.n_items, dtype=np.float32)
        again[profile.items] = _taken_again(profile, table)
        if items is not None:
            again = again[items]
        rates = np.array([profile.repeat_rate])
        scores = _mixture(scores[None], again[None], rates)[0]
    else:
        _leave_out(scores, profile.items, items)
    if left_out is not None:
        _leave_out(scores, left_out, items)
    return items, scores


def _leave_out(
    scores: NDArray[np.float32], left_out: NDArray[np.int32], items: NDArray[np.int32] | None
) -> None:
    """Mark ``left_out`` in the scores of ``items``, or of all items where that is None."""
    scores[left_out if items is None else np.isin(items, left_out)] = _LEFT_OUT


def _ranking(
    items: NDArray[np.int32] | None,
    scores: NDArray[np.float32],
    table: ItemTable,
    *,
    least: float | np.float32,
) -> Ranking:
    """Those that score at least ``least`` and aren't left out, best first."""
    chosen = np.flatnonzero(scores >= max(least, _LEAST))
    scores = scores[chosen]
    order = np.argsort(-scores, kind="stable")  # candidates ascend, so ties do
    chosen = chosen[order]
    best = chosen.astype(np.int32) if items is None else items[chosen]
    return Ranking(best, scores[order], tuple(map(table.ids.__getitem__, best.tolist())))


def score_matrix(
    vectors: NDArray[np.float32], histories: Histories, table: ItemTable, *, window: int
) -> NDArray[np.float32]:
    """s of many users and all items: the same as :func:`score` of each, float32 [m, n_items].

    Args:
        vectors: float32 [m, k], the users' U.
        histories: what each of them did.
        table: of the items.
        window: events that a profile holds.
    """
    logits: NDArray[np.float32] = vectors @ table.vectors.T
    if tells_nearest(table):
        logits = pooled(logits, nearest_matrix(table, histories), log_popularity(table))
    if tells_next(table):
        logits = mixed(logits, next_matrix(table, histories, window=window))
    return logits


def mix_repeats(
    logits: NDArray[np.float32],
    histories: Histories,
    table: ItemTable,
    *,
    window: int,
    habits: Scale = HABITS,
) -> NDArray[np.float32]:
    """The mixture with repeats for many users: the same as ``top_k`` of each with ``include_seen``.

    Args:
        logits: float32 [m, n_items], scores of :func:`score_matrix`.
        histories: the m users.
        table: what the logits were scored with; its popularity says what is around.
        window: events that a profile holds.
        habits: time scale of the frequencies, as in the profiles.

    Returns:
        float32 [m, n_items], probabilities: each row adds up to 1.
    """
    devices = histories.devices
    again = np.zeros(logits.shape, dtype=np.float32)
    # The beginning of time lies before every event: ages count from each user's newest one.
    [faded] = decay([habits], *event_ages(histories, np.iinfo(np.int64).min))
    np.add.at(again, (devices, histories.items), faded.astype(np.float32))
    pairs = np.unique(devices * logits.shape[1] + histories.items)
    n_items = np.bincount(pairs // logits.shape[1], minlength=histories.n_devices)
    popularity = log_popularity(table)
    for user in np.flatnonzero(histories.lengths):
        start, stop = histories.offsets[user : user + 2]
        held = np.unique(histories.items[start:stop])
        since = max(start, stop - window)
        again[user, held] = repeat_weights(
            again[user, held],
            popularity[held],
            recent=np.searchsorted(held, histories.items[since:stop]),
            times=histories.times[since:stop],
            earlier=int(histories.times[since - 1]) if since > start else None,
            habits=habits,
        )
    first = histories.times[histories.offsets[:-1][devices]]
    n_began = np.bincount(devices, histories.times == first, minlength=histories.n_devices)
    return _mixture(logits, again, repeat_rate(histories.lengths, n_items, n_began))


def _taken_again(profile: Profile, table: ItemTable) -> NDArray[np.float32]:
    """q of ``profile.items``, up to a factor."""
    return repeat_weights(
        profile.frequencies,
        log_popularity(table, profile.items),
        recent=np.searchsorted(profile.items, [event.item for event in profile.window]),
        times=np.array([event.time for event in profile.window], dtype=np.int64),
        earlier=profile.before_window,
        habits=profile.habits,
    )


def _mixture(
    logits: NDArray[np.float32], again: NDArray[np.float32], rates: NDArray[np.float64]
) -> NDArray[np.float32]:
    """p [m, n] of logits [m, n], weights of what is repeated [m, n] and repeat rates [m]."""
    if not logits.shape[1]:
        return logits
    total = again.sum(axis=1, keepdims=True)
    # Nothing to repeat among the candidates: the softmax alone.
    rate = np.where(total > 0, rates[:, None], 0.0).astype(np.float32)
    held = again > 0
    top = logits.max(axis=1, keepdims=True)
    mixed: NDArray[np.float32] = np.exp(_FLATTENED * (logits - top))
    repeats = np.where(held, mixed, 0).sum(axis=1, keepdims=True)
    others = np.where(held, 0, mixed).sum(axis=1, keepdims=True)
    most = _LENIENCE * others * rate / (1 - rate)
    # Where there is nothing else to choose, what is held shares all.
    limited = (repeats > most) & (others > 0)
    mixed *= np.where(held & limited, most / np.where(limited, repeats, 1), 1)
    mixed /= mixed.sum(axis=1, keepdims=True)
    mixed *= 1 - rate
    mixed += again * (rate / np.where(total > 0, total, 1))
    return mixed
