"""What the co-occurrence release tells of the items: which are alike, what follows what or goes with it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from ..common.mechanism import Mechanism
from ..common.successors import Successors
from .beyond_content import beyond_content
from .cooccurrence import item_vectors, vectors_size
from .neighbours import neighbours_of
from .popularity import ItemPriors
from .successors import successors_of

_VOICE = 0.5
"""What goes with what counts half beside content and encoder, for nothing is known of which says more: on a
shop's log a third to three quarters are level. Bare ids say nothing, and it counts in full."""


@dataclass(frozen=True, eq=False)
class Relations:
    """What was released of pairs, denoised.

    Attributes:
        vectors: float32 [n_items, r], see :func:`.cooccurrence.item_vectors`.
        successors: see :func:`.successors.successors_of`, whose chances count by ``beyond_content``; of
            whole histories :func:`.neighbours.neighbours_of`.
        beyond_content: see :func:`.beyond_content.beyond_content`; how much the vectors count beside
            content before anything is trained.
    """

    vectors: NDArray[np.float32]
    successors: Successors
    beyond_content: float = 1.0


def item_relations(
    noisy: NDArray[np.float64],
    *,
    table: ItemTable,
    head: NDArray[np.int64],
    priors: ItemPriors,
    mechanism: Mechanism,
    devices: int,
) -> Relations:
    """From the release as it left the mechanism. Of pairs taken close together, what content tells already
    counts less; what goes with what has a voice of its own.

    Args:
        noisy: float64 [K (K − 1)], sums of all pairs and differences by order; of whole histories
            [K (K − 1) / 2], sums alone.
        table: public; with room for vectors of r columns, or of whole histories.
        head: int64 [K], the items, most popular first.
        priors: log popularity.
        mechanism: of the release.
        devices: that answered.
    """
    if table.whole:
        neighbours = neighbours_of(
            noisy,
            head=head,
            priors=priors,
            voice=_VOICE if table.has_content else 1.0,
            stddev=mechanism.noise_stddev,
            devices=devices,
        )
        return Relations(np.zeros((table.n_items, 0), dtype=np.float32), neighbours)
    size, popularity = len(head), priors.long_run
    low, high = np.triu_indices(size, 1)
    # Only of the first ones is the noise on all pairs together small enough for vectors.
    first = vectors_size(size, mechanism)
    among = (low < first) & (high < first)
    vectors = item_vectors(
        noisy[: len(low)][among],
        head=head[:first],
        popularity=popularity,
        stddev=mechanism.noise_stddev,
        dimension=table.width_of(COOCCURRENCE_BLOCK),
    )
    successors = successors_of(
        noisy,
        head=head,
        popularity=popularity,
        stddev=mechanism.noise_stddev,
        population_size=mechanism.population_size,
    )
    share = beyond_content(successors, content=table.content, head=head, popularity=popularity)
    return Relations(vectors, successors.weighted(share), share)
