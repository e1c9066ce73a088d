"""Lists that are various and true to the profile, where the best scores alone are neither.

Items are taken one at a time from the head of a ranking; the next one has the largest

    (1 − d − c) · relevance(i)  −  d · max over the list of cos(i, j)  −  c · KL(p ‖ q(list + i))

With d > 0 this is maximal marginal relevance (Carbonell & Goldstein 1998, §2): no item that is like one
the list has. With c > 0 it is calibration (Steck 2018, §3–4): someone whose profile is 70 % tea and 30 %
mugs gets a list of about that. Both only use what the device holds, so they cost no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.errors import ConfigError
from ..common.items import ItemTable
from .scoring import Ranking

_SMOOTHING = 0.01
"""α of Steck 2018, §3: how much of p is mixed into q, so that a tag the list lacks costs finitely."""
_POOL, _SMALLEST_POOL = 10, 100
_LARGEST_POOL = 10_000


@dataclass(frozen=True)
class Aims:
    """What a list is for besides relevance, as shares of what decides.

    Attributes:
        diversity: d, from 0 to 1.
        calibration: c, from 0 to 1; the two add up to at most 1.

    Raises:
        ConfigError: a share is out of range.
    """

    diversity: float = 0.0
    calibration: float = 0.0

    def __post_init__(self) -> None:
        for name, share in (("diversity", self.diversity), ("calibration", self.calibration)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name}: {share:g}; give a share from 0 to 1")
        if self.diversity + self.calibration > 1:
            raise ConfigError(
                f"diversity {self.diversity:g} and calibration {self.calibration:g} leave less than "
                "nothing for relevance; let them add up to 1 or less"
            )

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return self.diversity + self.calibration > 0


def pool_size(k: int) -> int:
    """How many of the best a list of ``k`` is chosen from: ten times as many, 100 or more."""
    return max(k, min(max(_POOL * k, _SMALLEST_POOL), _LARGEST_POOL))


def rerank(
    ranking: Ranking, table: ItemTable, k: int, *, aims: Aims, tags: Mapping[str, float]
) -> Ranking:
    """The ``k`` items of ``ranking`` that serve relevance and ``aims`` together, in the order chosen.

    Args:
        ranking: the pool, best first; :func:`pool_size` items are a good number.
        table: public item vectors and tags.
        k: length of the list, fewer where the ranking is shorter.
        aims: what else counts.
        tags: the profile's, tag → weight; where it has none, calibration changes nothing.
    """
    if not aims.active:
        return ranking.first(k)
    held = {tag: place for place, tag in enumerate(sorted(tags))}
    shares = np.zeros((len(ranking.items), len(held)))
    for row, item in enumerate(ranking.items.tolist()):
        of_item = table.tags[item]
        for tag in of_item:
            if tag in held:
                shares[row, held[tag]] += 1 / len(of_item)
    chosen = choose(
        ranking.scores,
        table.vectors[ranking.items],
        shares,
        distribution([tags[tag] for tag in held]),
        k=k,
        aims=aims,
    )
    return Ranking(
        ranking.items[chosen],
        ranking.scores[chosen],
        tuple(ranking.ids[place] for place in chosen.tolist()),
    )


def distribution(weights: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """``weights`` ≥ 0 as shares that add up to 1; zeros where all are zero."""
    held = np.asarray(weights, dtype=np.float64)
    total = held.sum()
    return held / total if total > 0 else held


def choose(
    scores: NDArray[np.float32],
    vectors: NDArray[np.float32],
    shares: NDArray[np.float64],
    wanted: NDArray[np.float64],
    *,
    k: int,
    aims: Aims,
) -> NDArray[np.int64]:
    """Rows of the pool in the order they are chosen, ties by the smaller row: int64 [min(k, pool)].

    Args:
        scores: float [pool]; relevance is these, from 0 for the least to 1 for the best.
        vectors: float [pool, dimension]; a zero vector is like nothing.
        shares: float [pool, tags], how much of an item each tag is; rows add up to 1 or less.
        wanted: float [tags], p, the profile's own shares.
        k: length of the list.
        aims: what counts.
    """
    span = float(np.ptp(scores)) if len(scores) else 0.0
    relevance = (scores - scores.min()).astype(np.float64) / span if span > 0 else 0.0 * scores
    worth = (1 - aims.diversity - aims.calibration) * relevance
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1.0)
    likeness = np.zeros(len(scores))  # to the list, which is empty; then the largest so far
    list_shares = np.zeros_like(wanted)
    open_rows = np.ones(len(scores), dtype=bool)
    chosen: list[int] = []
    for length in range(1, min(k, len(scores)) + 1):
        value = worth.copy()
        if aims.diversity:
            value -= aims.diversity * likeness
        if aims.calibration:
            value -= aims.calibration * divergence(wanted, (list_shares + shares) / length)
        best = int(np.argmax(np.where(open_rows, value, -np.inf)))
        chosen.append(best)
        open_rows[best] = False
        list_shares += shares[best]
        to_best = unit @ unit[best]
        likeness = to_best if length == 1 else np.maximum(likeness, to_best)
    return np.array(chosen, dtype=np.int64)


def divergence(wanted: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p ‖ (1 − α)·q + α·p) in nats (Steck 2018, eq. 4–5), 0 where q is p.

    Args:
        wanted: float [tags], p; adds up to 1, or to 0 where nothing is known, with divergence 0.
        found: float [..., tags], q.

    Returns:
        float64 [...].
    """
    mixed = (1 - _SMOOTHING) * found + _SMOOTHING * wanted
    held = wanted > 0
    ratio = np.log(wanted[held] / mixed[..., held])
    result: NDArray[np.float64] = (wanted[held] * ratio).sum(axis=-1)
    return result
