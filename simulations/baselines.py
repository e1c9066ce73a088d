"""Baselines that see every history at once: central, not private, fitted on training events only.

Each is a frozen :class:`Baseline`. Its settings are chosen on validation targets by :func:`tune`; where
what is tested may have seen the validation part, it is fitted anew with them. Nothing here is ever shown
a test target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol, Self, TypeVar

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..common.decay import SECONDS_PER_DAY, Scale, decayed_weights
from ..common.histories import Histories
from ..common.items import ItemTable
from .evaluation import Scorer, score_chunks
from .metrics import rank_metrics
from .splits import Split, Targets

MAXIMUM_EASE_ITEMS = 10_000
"""EASE inverts an n_items × n_items matrix; larger catalogues go without it."""

_PROFILE_SCALES = (
    None,
    Scale("days", 30.0),
    Scale("days", 90.0),
    Scale("events", 2.0),
    Scale("events", 5.0),
)
_ITEMS_AT_ONCE = 512
_BETWEEN_TIES = 1e-3


class Baseline(Scorer, Protocol):
    """A scorer that can be fitted anew."""

    def refit(self, train: Histories, table: ItemTable) -> Self:
        """The same settings, fitted to other events."""
        ...


S = TypeVar("S", bound=Scorer)
D = TypeVar("D", "ContentCosine", "ItemKNN", "EASE", "PersonalFrequency")


@dataclass(frozen=True, eq=False)
class Popularity:
    """The same list for everybody: items by the number of users who took them.

    Attributes:
        counts: float32 [n_items], distinct users; where a half-life is set, each counts
            2^(-age/half-life) by the age of their last event with the item.
        half_life_days: None counts all users alike.
    """

    counts: NDArray[np.float32]
    half_life_days: float | None

    @classmethod
    def fit(
        cls, train: Histories, table: ItemTable, half_life_days: float | None = None
    ) -> Popularity:
        """Count users per item; ages run to the last training event."""
        counts = _taken(train, table.n_items, half_life_days).sum(axis=0)
        return cls(np.asarray(counts, np.float32).ravel(), half_life_days)

    def refit(self, train: Histories, table: ItemTable) -> Popularity:
        """See :meth:`Baseline.refit`."""
        return self.fit(train, table, self.half_life_days)

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Scorer.scores`."""
        return np.broadcast_to(self.counts, (history.n_devices, len(self.counts)))


@dataclass(frozen=True, eq=False)
class ContentCosine:
    """Cosine between a decayed sum of item vectors and every item vector; nothing is learned.

    Attributes:
        unit: float32 [n_items, dimension], item vectors of norm 1, or 0 where an item has none.
        scale: decay of the profile.
    """

    unit: NDArray[np.float32]
    scale: Scale | None

    @classmethod
    def fit(cls, table: ItemTable, scale: Scale | None = None) -> ContentCosine:
        """Normalise the public vectors; no events are needed."""
        return cls(_unit(table.vectors), scale)

    def refit(self, train: Histories, table: ItemTable) -> ContentCosine:
        """See :meth:`Baseline.refit`."""
        return self.fit(table, self.scale)

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Scorer.scores`."""
        profile = _profile(history, self.scale, len(self.unit)) @ self.unit
        return _unit(profile) @ self.unit.T


@dataclass(frozen=True, eq=False)
class ItemKNN:
    """Item-based nearest neighbours on co-occurrence cosine (Sarwar et al. 2001, §3).

    Attributes:
        similarity: float32 CSR [n_items, n_items], from items held to candidates; a candidate keeps
            its nearest neighbours only.
        neighbours: how many.
        scale: decay of the profile.
    """

    similarity: csr_matrix
    neighbours: int
    scale: Scale | None

    @classmethod
    def fit(
        cls, train: Histories, table: ItemTable, neighbours: int = 100, scale: Scale | None = None
    ) -> ItemKNN:
        """Cosine of the items' user sets, a block of candidates at a time."""
        taken = _taken(train, table.n_items)
        norms = np.sqrt(np.asarray(taken.sum(axis=0)).ravel())
        unit = taken.multiply(1 / np.where(norms > 0, norms, 1.0)).tocsc()
        keep = min(neighbours, table.n_items)
        rows, columns, values = [], [], []
        for start in range(0, table.n_items, _ITEMS_AT_ONCE):
            block = (unit[:, start : start + _ITEMS_AT_ONCE].T @ unit).toarray()
            own = np.arange(len(block))
            block[own, start + own] = 0.0
            nearest = np.argpartition(-block, keep - 1, axis=1)[:, :keep]
            rows.append(nearest.ravel())
            columns.append(np.repeat(start + own, keep))
            values.append(np.take_along_axis(block, nearest, axis=1).ravel())
        entries = (np.concatenate(rows), np.concatenate(columns))
        similarity = csr_matrix(
            (np.concatenate(values), entries), (table.n_items,) * 2, dtype=np.float32
        )
        similarity.eliminate_zeros()
        return cls(similarity, neighbours, scale)

    def refit(self, train: Histories, table: ItemTable) -> ItemKNN:
        """See :meth:`Baseline.refit`."""
        return self.fit(train, table, self.neighbours, self.scale)

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Scorer.scores`."""
        profile = _profile(history, self.scale, self.similarity.shape[0])
        scores: NDArray[np.float32] = (profile @ self.similarity).toarray()
        return scores


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """Σ_j sim(i, j)·r_j / Σ_j sim(i, j) over the neighbours j of candidate i (Sarwar et al. 2001, §3.2.1).

    The mean that predicts a rating, with the decayed profile for ratings: a neighbour that isn't held
    counts as 0. It is for comparison. :class:`ItemKNN` leaves the denominator out, by which an item with a
    single neighbour scores as high as that neighbour weighs, however little alike they are: right for the
    rating that somebody would give, and not for what they take next.

    Attributes:
        knn: the neighbours, and the decay of the profile.
    """

    knn: ItemKNN

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Scorer.scores`; 0 for items without neighbours."""
        total = np.asarray(self.knn.similarity.sum(axis=0)).ravel()
        scores = self.knn.scores(history, now)
        scores /= np.where(total > 0, total, 1)
        return scores


@dataclass(frozen=True, eq=False)
class EASE:
    """Embarrassingly shallow autoencoder (Steck 2019, eq. 8), applied to a decayed profile.

    Attributes:
        weights: float32 [n_items, n_items], from items held to candidates, zero diagonal.
        ridge: λ, the penalty on the weights.
        half_life_days: decay of the training matrix; None for the binary one of the paper.
        scale: decay of the profile.
    """

    weights: NDArray[np.float32]
    ridge: float
    half_life_days: float | None
    scale: Scale | None

    @classmethod
    def fit(
        cls,
        train: Histories,
        table: ItemTable,
        ridge: float = 300.0,
        half_life_days: float | None = None,
        scale: Scale | None = None,
    ) -> EASE:
        """B = I - P / diag(P) with P = (XᵀX + λI)⁻¹; takes time n_items³ and memory n_items²."""
        taken = _taken(train, table.n_items, half_life_days)
        gram = (taken.T @ taken).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += ridge
        factor, _ = scipy.linalg.lapack.dpotrf(gram, lower=1, overwrite_a=1)
        inverse, _ = scipy.linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        weights = (-inverse / np.diag(inverse)).astype(np.float32)
        np.fill_diagonal(weights, 0.0)
        return cls(weights, ridge, half_life_days, scale)

    def refit(self, train: Histories, table: ItemTable) -> EASE:
        """See :meth:`Baseline.refit`."""
        return self.fit(train, table, self.ridge, self.half_life_days, self.scale)

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Scorer.scores`."""
        scores: NDArray[np.float32] = (
            _profile(history, self.scale, len(self.weights)) @ self.weights
        )
        return scores


@dataclass(frozen=True, eq=False)
class PersonalFrequency:
    """The user's own items first, by how often and how lately they took them, and then by popularity.

    Attributes:
        popularity: float32 [n_items] in [0, 1].
        scale: decay of the user's own counts.
    """

    popularity: NDArray[np.float32]
    scale: Scale | None

    @classmethod
    def fit(
        cls, train: Histories, table: ItemTable, scale: Scale | None = None
    ) -> PersonalFrequency:
        """Only the order of items that a user doesn't have is fitted."""
        counts = Popularity.fit(train, table).counts
        return cls(counts / max(float(counts.max()), 1.0), scale)

    def refit(self, train: Histories, table: ItemTable) -> PersonalFrequency:
        """See :meth:`Baseline.refit`."""
        return self.fit(train, table, self.scale)

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Scorer.scores`."""
        # Not how much at a time: better on a shop's validation part, and what profiles go by.
        times = replace(history, weights=np.ones_like(history.weights))
        own = _profile(times, self.scale, len(self.popularity)).toarray()
        held = 1.0 + own + _BETWEEN_TIES * self.popularity
        return np.where(own > 0, held, self.popularity).astype(np.float32)


def tune(candidates: Iterable[S], validation: Targets, *, k: int, mask_seen: bool) -> S:
    """The candidate of highest mean NDCG@k on validation targets; the first where level."""

    def quality(candidate: S) -> float:
        return sum(
            float(rank_metrics(scores, chunk, k=k, mask_seen=mask_seen).ndcg.sum())
            for chunk, scores in score_chunks(candidate, validation)
        )

    return max(candidates, key=quality)


def tuned_baselines(
    split: Split,
    table: ItemTable,
    *,
    k: int,
    names: Collection[str] | None = None,
    without: Collection[str] = (),
) -> dict[str, Scorer]:
    """All baselines, or those in ``names``: settings chosen on validation, fitted on ``split.train``.

    Those in ``without`` are left out. ``personal-frequency`` is chosen for repeat purchases, the others
    for new items. ``ease`` is missing above :data:`MAXIMUM_EASE_ITEMS` items.
    """
    found: dict[str, Scorer] = {}
    for name, candidates in _grids(split.choosing, table).items():
        if (names is None or name in names) and name not in without:
            repeats = name == "personal-frequency"
            chosen = tune(candidates, split.validation, k=k, mask_seen=not repeats)
            found[name] = chosen.refit(split.train, table) if split.refitted else chosen
    return found


def _grids(train: Histories, table: ItemTable) -> dict[str, Iterator[Baseline]]:
    """Candidates of each baseline, fitted one at a time as they are asked for."""
    grids: dict[str, Iterator[Baseline]] = {
        "popularity": iter([Popularity.fit(train, table)]),
        "recent-popularity": (
            Popularity.fit(train, table, days) for days in (7.0, 14.0, 30.0, 60.0)
        ),
        "content-cosine": _decayed(iter([ContentCosine.fit(table)])),
        "item-knn": _decayed(ItemKNN.fit(train, table, size) for size in (50, 200)),
        "personal-frequency": _decayed(iter([PersonalFrequency.fit(train, table)])),
    }
    if table.n_items <= MAXIMUM_EASE_ITEMS:
        settings = product((100.0, 300.0, 1_000.0), (None, 30.0))
        grids["ease"] = _decayed(EASE.fit(train, table, *setting) for setting in settings)
    return grids


def _decayed(models: Iterator[D]) -> Iterator[D]:
    """Every model with every decay of the profile."""
    return (replace(model, scale=scale) for model in models for scale in _PROFILE_SCALES)


def _taken(histories: Histories, n_items: int, half_life_days: float | None = None) -> csr_matrix:
    """Who took what, float32 CSR [n_devices, n_items]: 1, or 2^(-age/half-life), last time."""
    order = np.lexsort((histories.times, histories.items, histories.devices))
    devices, items, times = (
        x[order] for x in (histories.devices, histories.items, histories.times)
    )
    last = np.ones(len(order), dtype=np.bool_)
    last[:-1] = (np.diff(devices) != 0) | (np.diff(items) != 0)
    devices, items, times = devices[last], items[last], times[last]
    values = np.ones(len(times), np.float32)
    if half_life_days is not None and len(times):
        age = (times.max() - times) / SECONDS_PER_DAY
        values = np.exp2(-age / half_life_days).astype(np.float32)
    return csr_matrix((values, (devices, items)), (histories.n_devices, n_items))


def _profile(histories: Histories, scale: Scale | None, n_items: int) -> csr_matrix:
    """Weights of the items that each device holds, decayed and summed; float32 CSR [m, n_items].

    Ages run from the device's own last event: a factor common to a user's scores ranks nothing, and
    counted from the moment asked a long absence would underflow.
    """
    weights = histories.weights
    if scale is not None:
        weights = decayed_weights(histories, np.iinfo(np.int64).min, [scale])[0]
    entries = (weights, (histories.devices, histories.items))
    return csr_matrix(entries, (histories.n_devices, n_items))


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)
