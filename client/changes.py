"""What recording changed, for its owner's eyes: worked out where it is asked for, and after the commit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .answers import RecordEventsResponse
from .list_change import list_change
from .profile import Profile
from .profile_change import profile_change
from .profile_keeper import ProfileKeeper
from .scoring import top_k as best


def with_change(
    answer: RecordEventsResponse,
    keeper: ProfileKeeper,
    before: Profile,
    rejected: NDArray[np.int32],
    *,
    top_k: int,
) -> RecordEventsResponse:
    """``answer``, and how profile and list changed.

    Args:
        answer: what became of the events.
        keeper: holds the profile as it is now.
        before: the profile as it was.
        rejected: items that were turned down then, int32 [n].
        top_k: length of the list, ≥ 1.
    """
    bundle, after, table = keeper.bundle, keeper.profile(), keeper.bundle.served
    # The old scores first: what is kept for scoring then only has to learn what came.
    old_scores = keeper.scores() if before is after else keeper.scores_of(before)
    rankings = [
        best(profile, table, max(table.n_items, 1), left_out=out, scores=scores)
        for profile, out, scores in (
            (before, rejected, old_scores),
            (after, keeper.rejected(), keeper.scores()),
        )
    ]
    return replace(
        answer,
        profile_change=profile_change(before, after, ids=table.ids, event_types=bundle.event_types),
        list_change=list_change(*rankings, top_k=top_k),
    )
