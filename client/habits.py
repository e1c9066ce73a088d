"""What somebody takes again: things that are around, or the same things whatever others take.

On a shop's log what somebody had is had again while it is in season; staples are bought all year. Which of
the two a person does, their own last events tell. Each power a of popularity is a model of repeats,

    q_a(j) ∝ f_j·π_j^a,

with f the decayed frequencies of what is held. The models are averaged by how well each foretold the
repeats among the last events (Bayesian model averaging, Hoeting et al. 1999, eq. 1–3), all alike before
anything is repeated. It is fitted on the device, to its own history, and never leaves it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..common.decay import SECONDS_PER_DAY, Scale

POWERS = np.array([0.0, 0.25, 0.5])
"""a: from staples, of which popularity tells nothing, to what is taken while it is around."""
_RECENT = 64
"""Last events that are asked, at most: all pairs of them are compared."""
_LEAST_SHARE = 2.0**-8
"""Of an event's weight. Older ones are lost in the rounding of the frequencies, and tell nothing."""
_LEAST_POPULARITY = -100.0
"""Log popularity below that of the most popular item held: less is nothing, and infinite no number."""
_HELD = 2.0**-6
"""Decayed frequency from which an item counts as held before; below is rounding."""


def repeat_weights(
    frequencies: NDArray[np.float32],
    popularity: NDArray[np.float32],
    *,
    recent: NDArray[np.int64],
    times: NDArray[np.int64],
    earlier: int | None,
    habits: Scale,
) -> NDArray[np.float32]:
    """Σ_a w_a·q_a of the items held, up to a factor.

    Args:
        frequencies: float32 [h], decayed number of the events of each item held, as of the last event.
        popularity: float32 [h], their log popularity.
        recent: int64 [W], places of the last events' items among those held.
        times: int64 [W], when those events were, in seconds, ascending.
        earlier: time of the newest event before those; None where there is none.
        habits: how frequencies fade; by the wall clock.

    Returns:
        float32 [h].
    """
    if len(recent) > _RECENT:
        recent, times, earlier = recent[-_RECENT:], times[-_RECENT:], int(times[-_RECENT - 1])
    if not len(recent):
        return frequencies
    fallen = np.maximum(popularity - popularity.max(), _LEAST_POPULARITY)
    weights = np.exp(np.multiply.outer(POWERS, fallen))
    strengths = frequencies * weights
    totals = strengths.sum(axis=1)
    # All in weights as of the last event: what was held before one is what is held now without the later.
    once = np.exp2(-(times[-1] - times) / SECONDS_PER_DAY / habits.half_life)
    later = times >= times[:, None]
    same = recent == recent[:, None]
    before = frequencies[recent] - (later & same) @ once
    repeats = (before > _HELD * once) & (once > _LEAST_SHARE)
    # A moment whose first events aren't among the last ones would be its own past.
    repeats &= times != earlier
    taken = weights[:, recent]
    held = np.maximum(totals[:, None] - (taken * once) @ later.T, taken * before)
    foretold = np.log(taken[:, repeats]) - np.log(held[:, repeats])
    evidence = foretold.sum(axis=1)
    chances = np.exp(evidence - evidence.max())
    mixed: NDArray[np.float32] = ((chances / totals) @ strengths).astype(np.float32)
    return mixed
