"""Some of the users, so that what a run is worth can be seen against how many take part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def taking_part(user_ids: Sequence[str], share: float) -> NDArray[np.bool_]:
    """Who of ``user_ids`` takes part where a ``share`` of them does, bool [n].

    A user is in where a hash of their id, as a fraction of the largest, is below ``share``. So it
    hangs on nobody else, which keeps adding or removing one user a change of one user; and whoever is
    in at a smaller share is in at a larger one. How many are in varies around ``share · n``.

    Args:
        user_ids: ids, in the order of the log.
        share: above 0 and up to 1, at which everybody is in.
    """
    places = (
        int.from_bytes(hashlib.blake2b(user.encode(), digest_size=8, person=b"user share").digest())
        for user in user_ids
    )
    return np.fromiter((place < share * 2**64 for place in places), np.bool_, len(user_ids))
