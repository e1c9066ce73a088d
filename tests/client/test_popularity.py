import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.popularity import popularity_contribution
from fedprofile.common.histories import Histories

DAY = 86_400
NOW = 1_700_000_000
N_ITEMS = 6

device = st.lists(st.tuples(st.integers(0, N_ITEMS - 1), st.integers(-5, 4000)), max_size=9)
populations = st.lists(device, min_size=1, max_size=6)
time_scales = st.lists(st.floats(0.5, 400), max_size=3).map(tuple)


def histories_of(population):
    """A device is a list of (item, days ago); the oldest comes first."""
    ordered = [sorted(events, key=lambda event: -event[1]) for events in population]
    rows = [event for events in ordered for event in events]
    return Histories(
        offsets=np.cumsum([0, *map(len, ordered)], dtype=np.int64),
        items=np.array([item for item, _ in rows], dtype=np.int32),
        times=np.array([NOW - days * DAY for _, days in rows], dtype=np.int64),
        sessions=np.zeros(len(rows), dtype=np.int32),
        weights=np.ones(len(rows), dtype=np.float32),
        types=np.zeros(len(rows), dtype=np.int16),
    )


def contribution(histories, half_lives=(7.0, 45.0), clip_norm=1.0):
    return popularity_contribution(
        histories, now=NOW, half_lives_days=half_lives, n_items=N_ITEMS, clip_norm=clip_norm
    )


def by_definition(population, half_lives, clip_norm):
    """Device by device in plain Python, in the order histories have."""
    scales = (math.inf, *half_lives)
    total = np.zeros((len(scales), N_ITEMS))
    for events in population:
        part = np.zeros_like(total)
        met = set()
        for item, days in sorted(events, key=lambda event: -event[1]):
            if item not in met:
                part[:, item] = [2 ** (-max(days, 0) / h) for h in scales]
            met.add(item)
        shares = [0.1, *[0.9 / len(half_lives)] * len(half_lives)] if half_lives else [1]
        for row, share in zip(part, shares, strict=True):
            row *= min(1, clip_norm * math.sqrt(share) / max(np.linalg.norm(row), 1e-30))
        total += part
    return total


@settings(max_examples=100, deadline=None)
@given(populations, time_scales, st.sampled_from([0.01, 1.0, 3.0, 1e30, math.inf]))
def test_follows_the_definition(population, half_lives, clip_norm):
    update = contribution(histories_of(population), half_lives, clip_norm)
    assert update.devices == len(population)
    assert update.clip_norm == clip_norm
    assert update.arrays["popularity"].dtype == np.float32
    expected = by_definition(population, half_lives, clip_norm)
    np.testing.assert_allclose(update.arrays["popularity"], expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(populations, st.data(), time_scales, st.floats(0.01, 5))
def test_one_device_moves_the_sum_by_no_more_than_the_clip(population, data, half_lives, clip_norm):
    absent = data.draw(st.integers(0, len(population) - 1))
    neighbour = population[:absent] + population[absent + 1 :]
    whole = contribution(histories_of(population), half_lives, clip_norm).arrays["popularity"]
    rest = contribution(histories_of(neighbour), half_lives, clip_norm).arrays["popularity"]
    assert np.linalg.norm(whole.astype(float) - rest) <= clip_norm * (1 + 1e-5)


def test_the_bound_is_reached():
    # Otherwise noise would be paid for that protects nothing.
    loyal = [[(item, 0) for item in range(N_ITEMS)]]
    assert contribution(histories_of(loyal)).norm > 0.9999


@settings(max_examples=50, deadline=None)
@given(populations, st.randoms(use_true_random=False))
def test_company_does_not_matter(population, random):
    whole = contribution(histories_of(population)).arrays["popularity"]
    random.shuffle(population)
    alone = sum(contribution(histories_of([d])).arrays["popularity"] for d in population)
    np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-6)


def test_a_staple_counts_once_and_history_keeps_its_order():
    histories = histories_of([[(4, 30), (2, 20), (4, 10), (4, 0)]])
    update = contribution(histories, half_lives=(10.0,), clip_norm=math.inf)
    np.testing.assert_allclose(update.arrays["popularity"][0], [0, 0, 1, 0, 1, 0])
    np.testing.assert_allclose(update.arrays["popularity"][1], [0, 0, 1 / 4, 0, 1 / 8, 0])
    assert histories.items.tolist() == [4, 2, 4, 4]


def test_nobody_and_nothing():
    assert contribution(histories_of([])).devices == 0
    silent = contribution(histories_of([[], [], []]))
    assert silent.devices == 3
    assert not silent.arrays["popularity"].any()
