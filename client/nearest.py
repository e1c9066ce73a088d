"""How like each item is to what its owner held: the nearest of all held items decides.

The profile vector says what somebody likes on the whole. Whoever likes two unlike things likes neither
their mean; the nearest item held keeps the two apart (as late interaction does for words: Khattab & Zaharia
2020, §3.3). It is worked out on the device, of vectors that are public or released, and costs no ε.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..common.decay import CONTENT_TEMPERATURE
from ..common.histories import Histories
from ..common.items import COOCCURRENCE_BLOCK, ID_BLOCK, ItemTable
from .serving import PRIOR_BLOCK, TRAINED_BLOCK

SHARE = 0.2
"""w, of the nearest item in a score. On validation better on a shop's log and on bare ids, and about level
on the built-in one; a third is better on the first and clearly worse on the last."""
_SAYS_NOTHING = (ID_BLOCK, TRAINED_BLOCK, PRIOR_BLOCK)
_LEARNED_AT_ONCE = 16
_CANDIDATES_AT_ONCE = 256


def tells_nearest(table: ItemTable) -> bool:
    """Whether the nearest item is asked: where something tells which items are alike, and no vector of
    each item's own was trained. An encoder that has those needs no help, and is worse for it."""
    told = set(table.blocks) - set(_SAYS_NOTHING)
    if TRAINED_BLOCK in table.blocks or not told:
        return False
    # Noise may have left nothing of what is taken together.
    return told != {COOCCURRENCE_BLOCK} or bool(_content(table).any())


def pooled(
    logits: NDArray[np.float32], cosines: NDArray[np.float32], prior: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(1 − w)·⟨U, v⟩ + w·(log π + 6·n): a logarithmic opinion pool of two models (Genest & Zidek 1986, §3).

    One is the encoder's. The other takes an item for as probable as it is popular and like the nearest
    item held, as sharply as an untrained encoder takes the cosine with the interests.

    Args:
        logits: float32 [..., n], ⟨U, v⟩ of the items; where popularity was released, it is part of it.
        cosines: float32 [..., n], with the nearest item held.
        prior: float32 [n], log popularity of the items.
    """
    scores: NDArray[np.float32] = (SHARE * CONTENT_TEMPERATURE) * cosines
    scores += (1 - SHARE) * logits
    scores += SHARE * prior
    return scores


def log_popularity(table: ItemTable, items: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
    """log π of ``items``, or of every item, in one piece: float32 [n]; 0 where none was released."""
    start, stop = table.blocks.get(PRIOR_BLOCK, (0, 0))
    if start == stop:
        return np.zeros(table.n_items if items is None else len(items), dtype=np.float32)
    if items is None:
        return table.vectors[:, start].copy()
    found: NDArray[np.float32] = table.vectors[items, start]
    return found


class NearestHeld:
    """Largest cosine of every item with any item held, kept in step with one owner's items.

    One more item held costs one product with the table.

    Args:
        table: of the items.

    Attributes:
        asked: see :func:`tells_nearest`.
        prior: float32 [n_items], log popularity, kept beside: picked out of a large table it takes as
            long as scoring.
    """

    def __init__(self, table: ItemTable) -> None:
        self.asked = tells_nearest(table)
        self.prior = log_popularity(table)
        self._vectors = _content(table)
        self._lengths = _lengths(self._vectors)
        self._held = np.zeros(0, dtype=np.int32)
        self._cosines = np.zeros(table.n_items, dtype=np.float32)

    def to(self, held: NDArray[np.int32]) -> NDArray[np.float32]:
        """Cosine of each item with the one of ``held`` that is most like it, float32 [n_items] ≥ 0.

        The array is this object's own, and changes with the next call.

        Args:
            held: indices of the items held, ascending, each once.
        """
        if len(np.setdiff1d(self._held, held, assume_unique=True)):
            self._held = held[:0]  # what is held no more may have been the nearest
            self._cosines[:] = 0
        fresh = np.setdiff1d(held, self._held, assume_unique=True)
        for start in range(0, len(fresh), _LEARNED_AT_ONCE):
            rows = fresh[start : start + _LEARNED_AT_ONCE]
            known = self._vectors[rows] / self._lengths[rows, None]
            likest = (self._vectors @ known.T).max(axis=1)
            np.maximum(self._cosines, likest / self._lengths, out=self._cosines)
        self._held = held
        return self._cosines


def nearest_of(
    table: ItemTable, held: NDArray[np.int32], items: NDArray[np.int32]
) -> NDArray[np.float32]:
    """The same for some items alone, float32 [n]."""
    if not len(held):
        return np.zeros(len(items), dtype=np.float32)
    vectors = _content(table)
    chosen, known = vectors[items], vectors[held]
    cosines = (chosen / _lengths(chosen)[:, None]) @ (known / _lengths(known)[:, None]).T
    likest: NDArray[np.float32] = np.maximum(cosines.max(axis=1), 0.0)
    return likest


def nearest_item(table: ItemTable, held: NDArray[np.int32], item: int) -> tuple[int, float] | None:
    """The item held that is most like another one, and the cosine; None where none is like it at all."""
    others = held[held != item]
    if not len(others):
        return None
    vectors = _content(table)
    chosen, known = vectors[[item]], vectors[others]
    cosines = (known / _lengths(known)[:, None]) @ (chosen / _lengths(chosen)[:, None])[0]
    best = int(cosines.argmax())
    return (int(others[best]), float(cosines[best])) if cosines[best] > 0 else None


def nearest_matrix(table: ItemTable, histories: Histories) -> NDArray[np.float32]:
    """The same for many users, float32 [n_devices, n_items]."""
    found = np.zeros((histories.n_devices, table.n_items), dtype=np.float32)
    pairs = np.unique(histories.devices * table.n_items + histories.items)
    if not len(pairs):
        return found
    vectors = _content(table)
    unit = vectors / _lengths(vectors)[:, None]
    held, place = np.unique(pairs % table.n_items, return_inverse=True)
    users, first = np.unique(pairs // table.n_items, return_index=True)
    of_user = np.split(place, first[1:])
    for start in range(0, table.n_items, _CANDIDATES_AT_ONCE):
        columns = slice(start, start + _CANDIDATES_AT_ONCE)
        cosines = unit[held] @ unit[columns].T
        # One by one: a maximum over unequal stretches at once takes several times as long.
        for user, rows in zip(users.tolist(), of_user, strict=True):
            cosines[rows].max(axis=0, initial=0.0, out=found[user, columns])
    return found


def _content(table: ItemTable) -> NDArray[np.float32]:
    """Columns that tell which items are alike: content, and what is taken together; side by side."""
    told = [block for name, block in table.blocks.items() if name not in _SAYS_NOTHING]
    start, stop = min((b[0] for b in told), default=0), max((b[1] for b in told), default=0)
    return table.vectors[:, start:stop]


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Norm of each row; 1 where it is 0, so that an item that nothing is told of is like none."""
    norms: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    norms[norms == 0] = 1
    return norms
