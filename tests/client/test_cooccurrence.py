import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.cooccurrence import cooccurrence_contribution, together_contribution
from fedprofile.common.histories import Histories
from fedprofile.common.messages import CooccurrenceTask

N_ITEMS = 7
HEAD = np.array([4, 0, 6, 2, 5])

populations = st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=14), min_size=1, max_size=6)


def histories_of(population):
    """A device is a list of items, in order."""
    items = [item for device in population for item in device]
    return Histories(
        offsets=np.cumsum([0, *map(len, population)], dtype=np.int64),
        items=np.array(items, dtype=np.int32),
        times=np.arange(len(items), dtype=np.int64),
        sessions=np.zeros(len(items), dtype=np.int32),
        weights=np.ones(len(items), dtype=np.float32),
        types=np.zeros(len(items), dtype=np.int16),
    )


def contribution(population, clip_norm=1.0, head=HEAD):
    return cooccurrence_contribution(
        histories_of(population), head=head, n_items=N_ITEMS, clip_norm=clip_norm
    ).arrays["cooccurrence"]


def by_definition(population, clip_norm):
    """Device by device in plain Python; pairs in the order of the upper triangle."""
    places = {item: place for place, item in enumerate(HEAD.tolist())}
    pairs = [(i, j) for i in range(len(HEAD)) for j in range(i + 1, len(HEAD))]
    total = np.zeros(2 * len(pairs))
    for device in population:
        counts = np.zeros((len(HEAD), len(HEAD)))
        for later, other in enumerate(device):
            for lag in range(1, 7):
                if later >= lag and other in places and device[later - lag] in places:
                    counts[places[device[later - lag]], places[other]] += 2.0 ** -(lag - 1)
        roots = np.sqrt(counts)
        sums = [roots[i, j] + roots[j, i] for i, j in pairs]
        differences = [0.3 * (roots[i, j] - roots[j, i]) for i, j in pairs]
        part = np.array(sums + differences)
        norm = np.linalg.norm(part)
        total += part * (clip_norm / norm if norm else 0)
    return total


@settings(max_examples=150, deadline=None)
@given(populations, st.sampled_from([0.01, 1.0, 3.0]))
def test_follows_the_definition(population, clip_norm):
    found = contribution(population, clip_norm)
    np.testing.assert_allclose(found, by_definition(population, clip_norm), rtol=1e-5, atol=1e-7)


@settings(max_examples=150, deadline=None)
@given(populations, st.lists(st.integers(0, N_ITEMS - 1), max_size=40), st.integers(0, 5))
def test_no_device_moves_the_sum_by_more_than_the_clip(population, device, place):
    more = [*population[:place], device, *population[place:]]
    moved = contribution(more).astype(np.float64) - contribution(population)
    assert np.linalg.norm(moved) <= 1 + 1e-5


def test_a_pair_is_told_where_any_two_of_the_head_are_close():
    assert contribution([[0, 1, 1, 1, 1, 1, 4]]).max() == pytest.approx(1 / math.hypot(1, 0.3))
    assert not contribution([[0, 1, 1, 1, 1, 1, 1, 4]]).any()
    assert not contribution([[0], [4], [], [0, 0, 3, 1]]).any()
    assert len(contribution([[0, 4]])) == CooccurrenceTask.numbers(len(HEAD), whole=False) == 20


def test_the_order_within_a_pair_is_told_beside_it():
    one, other = contribution([[0, 4, 6]]), contribution([[6, 4, 0]])
    np.testing.assert_array_equal(one[:10], other[:10])
    np.testing.assert_array_equal(one[10:], -other[10:])
    assert one[10:].any()
    assert not contribution([[0, 4, 1, 1, 1, 1, 1, 1, 4, 0]])[10:].any()


@given(st.permutations([0, 4, 6, 2]))
def test_events_of_one_time_have_no_order(basket):
    log = histories_of([[*basket, 5]])
    at_once = replace(log, times=np.array([7, 7, 7, 7, 9]))
    told = cooccurrence_contribution(
        at_once, head=np.array([0, 4, 6, 2]), n_items=N_ITEMS, clip_norm=1.0
    ).arrays["cooccurrence"]
    pairs = CooccurrenceTask.pairs(4)
    assert (told[:pairs] > 0).all()
    assert not told[pairs:].any()
    after = cooccurrence_contribution(
        at_once, head=np.array([0, 5]), n_items=N_ITEMS, clip_norm=1.0
    ).arrays["cooccurrence"]
    np.testing.assert_allclose(after, np.array([1, 0.3]) / math.hypot(1, 0.3), rtol=1e-6)


def test_nothing_is_sent_unclipped():
    with pytest.raises(ValueError, match="scaled to the clip"):
        contribution([[0, 4]], clip_norm=math.inf)


# --- whole histories


def together(population, clip_norm=1.0):
    return together_contribution(
        histories_of(population), head=HEAD, n_items=N_ITEMS, clip_norm=clip_norm
    ).arrays["cooccurrence"]


@settings(max_examples=150, deadline=None)
@given(populations, st.sampled_from([0.01, 1.0, 3.0]))
def test_of_whole_histories_each_pair_that_is_held_counts_the_same(population, clip_norm):
    pairs = [(i, j) for i in range(len(HEAD)) for j in range(i + 1, len(HEAD))]
    total = np.zeros(len(pairs))
    for device in population:
        part = np.array([HEAD[i] in device and HEAD[j] in device for i, j in pairs], dtype=float)
        if part.any():
            total += clip_norm * part / np.linalg.norm(part)
    found = together(population, clip_norm)
    np.testing.assert_allclose(found, total, rtol=1e-5, atol=1e-7)
    assert len(found) == CooccurrenceTask.numbers(len(HEAD), whole=True) == 10


@settings(max_examples=150, deadline=None)
@given(populations, st.lists(st.integers(0, N_ITEMS - 1), max_size=40), st.integers(0, 5))
def test_of_whole_histories_no_device_moves_the_sum_by_more_than_the_clip(
    population, device, place
):
    more = [*population[:place], device, *population[place:]]
    moved = together(more).astype(np.float64) - together(population)
    assert np.linalg.norm(moved) <= 1 + 1e-5
    held = set(device) & set(HEAD.tolist())
    assert np.linalg.norm(moved) == pytest.approx(float(len(held) > 1), abs=1e-5)


def test_of_whole_histories_nothing_is_sent_unclipped_either():
    for clip_norm in (math.inf, 0.0, math.nan):
        with pytest.raises(ValueError, match="scaled to the clip"):
            together([[0, 4]], clip_norm=clip_norm)
