"""Negatives must not tell what is held out.

A device that draws its negatives from a pool without its held-out items pushes every item down but
those. A model that is one bias per item then ranks them first, having learned nothing.
"""

import numpy as np
import pytest

from fedprofile.client.local_training import draw_negatives
from fedprofile.common.histories import Histories
from fedprofile.simulations.metrics import rank_metrics
from fedprofile.simulations.splits import Targets, leave_one_out

USERS, N_ITEMS, EVENTS, K = 400, 200, 15, 10
STEPS, COUNT = 20, 128
CHANCE = K / (N_ITEMS - EVENTS + 1)


@pytest.fixture(scope="module")
def targets() -> Targets:
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, N_ITEMS + 1)
    items = np.stack(
        [
            rng.choice(N_ITEMS, EVENTS, replace=False, p=popularity / popularity.sum())
            for _ in range(USERS)
        ]
    )
    return leave_one_out(
        Histories(
            offsets=np.arange(USERS + 1, dtype=np.int64) * EVENTS,
            items=items.astype(np.int32).ravel(),
            times=np.tile(np.arange(EVENTS, dtype=np.int64), USERS),
            sessions=np.tile(np.arange(EVENTS, dtype=np.int32), USERS),
            weights=np.ones(USERS * EVENTS, np.float32),
            types=np.zeros(USERS * EVENTS, np.int16),
        )
    ).test


def hit_rate(targets, pool_of):
    """HR@k of biases that each device learns by one step down for each of its negatives."""
    biases = np.zeros((targets.n_users, N_ITEMS), np.float32)
    for user in range(targets.n_users):
        pool = pool_of(user)
        drawn = pool[draw_negatives(n_items=len(pool), steps=STEPS, count=COUNT, seed=user)]
        np.subtract.at(biases[user], drawn.ravel(), 1.0)
    return rank_metrics(biases, targets, k=K, mask_seen=True).hr.mean()


def test_negatives_from_the_whole_catalogue_teach_nothing(targets):
    error = np.sqrt(CHANCE * (1 - CHANCE) / USERS)
    assert hit_rate(targets, lambda user: np.arange(N_ITEMS)) < CHANCE + 3 * error


def test_the_wrong_pool_gives_itself_away(targets):
    def without_held_out(user):
        return np.setdiff1d(np.arange(N_ITEMS), targets.items[targets.offsets[user]])

    assert hit_rate(targets, without_held_out) > 10 * CHANCE
