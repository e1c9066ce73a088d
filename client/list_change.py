"""How the list of the best new items changed: Δr, told of the rankings before and after."""

from __future__ import annotations

from .answers import ListChange, RankShift
from .scoring import Ranking


def list_change(old: Ranking, new: Ranking, *, top_k: int) -> ListChange:
    """What became of the list of the ``top_k`` best.

    Args:
        old: all items that the owner hadn't met, best first.
        new: all items that the owner hasn't met now.
        top_k: length of the list, ≥ 1.
    """
    old_ranks = {item: rank for rank, item in enumerate(old.ids, start=1)}
    new_ranks = {item: rank for rank, item in enumerate(new.ids, start=1)}

    def shift(item: str) -> RankShift:
        was, now = old_ranks.get(item), new_ranks.get(item)
        return RankShift(
            item,
            old_rank=was,
            new_rank=now,
            old_score=None if was is None else float(old.scores[was - 1]),
            new_score=None if now is None else float(new.scores[now - 1]),
        )

    before, listed = old.ids[:top_k], new.ids[:top_k]
    there, stays = set(before), set(listed)
    # By how much further down each is.
    kept = [(shift(item), new_ranks[item] - old_ranks[item]) for item in listed if item in there]
    return ListChange(
        top_k=top_k,
        entered=tuple(shift(item) for item in listed if item not in there),
        left=tuple(shift(item) for item in before if item not in stays),
        rose=tuple(one for one, down in kept if down < 0),
        fell=tuple(one for one, down in kept if down > 0),
        stayed=tuple(one for one, down in kept if down == 0),
    )
