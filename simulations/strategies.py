"""Ways to make a list, side by side: by content, from neighbours, by what follows or goes with what, by the
encoder, and all of it together.

The last is what devices do, and it is measured again with lists re-ranked for diversity and calibration.
Lists by content, by what was released of pairs and by the encoder are those that a device makes when it
is asked for that strategy (:mod:`fedprofile.client.strategies`).
Everything is measured on new items of the run's test users. It's the researcher's own measurement:
nothing is released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from ..client.profile import HABITS
from ..client.reranking import Aims, choose, distribution, divergence, pool_size
from ..client.strategies import content_scores
from ..client.succession import mixed, next_matrix
from ..common.decay import decayed_sums, decayed_weights
from ..common.histories import Histories
from ..common.items import ItemTable
from .baselines import ItemKNN, Popularity, WeightedSum, tuned_baselines
from .bootstrap import bootstrap_interval
from .evaluation import Scorer, evaluate
from .models import EncoderScorer
from .splits import Split, Targets

MEASURES = (
    "ndcg_at_k",
    "hr_at_k",
    "coverage_at_k",
    "diversity_at_k",
    "novelty_at_k",
    "miscalibration_at_k",
)
_NEIGHBOURS = "item-knn"
_HABITS_NOW = 0  # proportions don't depend on the time of asking


@dataclass(frozen=True, eq=False)
class TagShares:
    """How much of each item each tag is.

    Attributes:
        shares: float64 CSR [n_items, n_tags]; the tags of an item share it evenly.
    """

    shares: csr_matrix

    @classmethod
    def of(cls, table: ItemTable) -> TagShares:
        """Read off the item table."""
        names = sorted({tag for tags in table.tags for tag in tags})
        place = {tag: column for column, tag in enumerate(names)}
        rows = np.repeat(np.arange(table.n_items), [len(tags) for tags in table.tags])
        columns = [place[tag] for tags in table.tags for tag in tags]
        values = np.concatenate(
            [np.zeros(0), *(np.full(len(tags), 1 / len(tags)) for tags in table.tags if tags)]
        )
        return cls(csr_matrix((values, (rows, columns)), (table.n_items, len(names))))

    def wanted(self, histories: Histories) -> NDArray[np.float64]:
        """Each profile's tags as shares, float64 [m, n_tags]; zeros where it has none.

        A tag weighs as in :class:`~fedprofile.client.profile.Profile`: every event of an item counts for
        each of its tags in full.
        """
        weights = decayed_weights(histories, _HABITS_NOW, [HABITS])[0].astype(np.float64)
        taken = csr_matrix(
            (weights, histories.items.copy(), histories.offsets),
            (histories.n_devices, self.shares.shape[0]),
        )
        held: NDArray[np.float64] = (taken @ (self.shares > 0).astype(np.float64)).toarray()
        return np.array([distribution(row) for row in held]).reshape(held.shape)


@dataclass(frozen=True, eq=False)
class Reranked:
    """A scorer whose lists of new items are chosen anew: the list first, all else as it was.

    Attributes:
        base: what scores.
        table: public item vectors.
        tags: of the items.
        k: length of the lists.
        aims: what they are for besides relevance.
    """

    base: Scorer
    table: ItemTable
    tags: TagShares
    k: int
    aims: Aims

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """See :meth:`Scorer.scores`; of items that the history holds, no list is made."""
        scores = np.array(self.base.scores(history, now), dtype=np.float32)
        wanted = self.tags.wanted(history)
        fresh = scores.copy()
        fresh[history.devices, history.items] = -np.inf
        size = min(pool_size(self.k), fresh.shape[1])
        for row in range(len(scores)):
            pool = np.argpartition(-fresh[row], size - 1)[:size]
            pool = pool[np.lexsort((pool, -fresh[row, pool]))]
            pool = pool[fresh[row, pool] > -np.inf]
            held = np.flatnonzero(wanted[row])
            chosen = choose(
                fresh[row, pool],
                self.table.vectors[pool],
                self.tags.shares[pool][:, held].toarray(),
                wanted[row, held],
                k=self.k,
                aims=self.aims,
            )
            top = scores[row].max(initial=0.0)
            scores[row, pool[chosen]] = top + np.arange(len(chosen), 0, -1)
        return scores


@dataclass(frozen=True, eq=False)
class ByContent:
    """What is like the decayed interests, by public content alone: nothing is learned.

    Attributes:
        scorer: of the run.
    """

    scorer: EncoderScorer

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [m, n_items]."""
        table, scales = self.scorer.table, self.scorer.model.scales
        # As of the last event, as a profile is.
        sums = decayed_sums(history, table.vectors, np.iinfo(np.int64).min, scales)
        return content_scores(sums, table)


@dataclass(frozen=True, eq=False)
class EncoderAlone:
    """⟨U, v⟩ of the encoder's profile vector, without popularity, nearest item and what follows what.

    Attributes:
        scorer: of the run.
    """

    scorer: EncoderScorer

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [m, n_items]."""
        return self.scorer.alone(history)


@dataclass(frozen=True, eq=False)
class Following:
    """What follows on the last events or goes with what is held, as released, and popularity elsewhere.

    Attributes:
        scorer: of the run.
    """

    scorer: EncoderScorer

    def scores(self, history: Histories, now: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [m, n_items]."""
        table, model = self.scorer.table, self.scorer.model
        prior = np.broadcast_to(self.scorer.prior, (history.n_devices, table.n_items))
        return mixed(prior, next_matrix(table, history, window=model.window))


@dataclass(frozen=True)
class Strategy:
    """A way to make lists, and what came of it.

    Attributes:
        name: for people.
        private: whether it needs nobody's raw data; a pooled one is for comparison only.
        users: who had new items to find.
        measures: of :data:`MEASURES`, mean with interval where there is one.
    """

    name: str
    private: bool
    users: int
    measures: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content."""
        return {
            "name": self.name,
            "private": self.private,
            "users": self.users,
            **self.measures,
        }


def compare_strategies(
    scorer: EncoderScorer,
    split: Split,
    *,
    k: int,
    samples: int,
    aims: Sequence[Aims],
    on_strategy: Callable[[str], None] = lambda _: None,
) -> list[Strategy]:
    """Measure every way to make a list on the test users.

    Args:
        scorer: the run's model as devices use it.
        split: of the run; the baselines are fitted on its training part and tuned on validation.
        k: length of the lists.
        samples: resamples of users for intervals.
        aims: re-rankings to measure.
        on_strategy: called with the name of each when it is done.
    """
    table, tags = scorer.table, TagShares.of(scorer.table)
    counts = Popularity.fit(split.train, table).counts
    found = []
    for name, private, model in _strategies(scorer, split, tags, k, aims):
        view = evaluate(model, split.test, table, counts, k=k, bootstrap_samples=samples).new_items
        off = _miscalibration(view.ranks.users, view.ranks.lists, split.test, tags)
        told = view.to_dict()
        told["miscalibration_at_k"] = bootstrap_interval(off, samples=samples, seed=0).to_dict()
        measures = {measure: told[measure] for measure in MEASURES}
        found.append(Strategy(name, private, len(view.ranks.users), measures))
        on_strategy(name)
    return found


def ways(table: ItemTable) -> int:
    """How many ways there are to make a list, before re-ranking."""
    return 4 + table.has_content + bool(table.successors)


def _strategies(
    scorer: EncoderScorer, split: Split, tags: TagShares, k: int, aims: Sequence[Aims]
) -> Iterator[tuple[str, bool, Scorer]]:
    table = scorer.table
    if table.has_content:
        yield "content", True, ByContent(scorer)
    neighbours = tuned_baselines(split, table, k=k, names=(_NEIGHBOURS,))[_NEIGHBOURS]
    yield "collaborative", False, neighbours
    assert isinstance(neighbours, ItemKNN), "what else goes by that name"
    yield "collaborative, normalised", False, WeightedSum(neighbours)
    if table.successors:
        yield "collaborative, released" if table.whole else "sequential", True, Following(scorer)
    yield "neural", True, EncoderAlone(scorer)
    yield "hybrid", True, scorer
    for aim in aims:
        wishes = (("diversity", aim.diversity), ("calibration", aim.calibration))
        name = ", ".join(f"{what} {share:g}" for what, share in wishes if share)
        yield f"+ {name}", True, Reranked(scorer, scorer.table, tags, k, aim)


def _miscalibration(
    users: NDArray[np.int64], lists: NDArray[np.int32], targets: Targets, tags: TagShares
) -> NDArray[np.float64]:
    """KL of each user's own tags from the list's (Steck 2018, §3), float64 [p]; of those with tags."""
    wanted = tags.wanted(targets.history)[np.searchsorted(targets.users, users)]
    off = [
        divergence(row, tags.shares[items[items >= 0]].sum(axis=0).A1 / max((items >= 0).sum(), 1))
        for row, items in zip(wanted, lists, strict=True)
        if row.any()
    ]
    return np.array(off, dtype=np.float64)
