"""Groups leave nobody out, and none is so small that its figure is about a few people."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.simulations.fairness import (
    MINIMUM,
    UNKNOWN,
    Group,
    by_activity,
    by_value,
    large_enough,
)


def sizes(groups):
    return {group.name: len(group.rows) for group in groups}


@given(st.lists(st.integers(1, 12), max_size=12), st.integers(1, 15))
def test_no_figure_is_of_few_people_and_none_can_be_had_by_subtraction(counts, minimum):
    ends = np.cumsum([0, *counts])
    given_ = [Group(f"g{i}", np.arange(ends[i], ends[i + 1])) for i in range(len(counts))]
    found = large_enough(given_, minimum=minimum)
    assert len(found) != 1
    assert all(len(group.rows) >= minimum for group in found)
    if found:  # everybody is in exactly one group, so what the whole leaves over is nothing
        everybody = np.sort(np.concatenate([group.rows for group in found]))
        np.testing.assert_array_equal(everybody, np.arange(ends[-1]))
    elif sum(count >= minimum for count in counts) > 1:
        # Left out though there are two: they were needed to hide smaller ones.
        assert min(counts) < minimum


@given(st.lists(st.integers(0, 30), max_size=200))
def test_thirds_by_activity_keep_equals_together(events):
    groups = by_activity(np.array(events, dtype=np.int64))
    of = {row: group.name for group in groups for row in group.rows.tolist()}
    for one, other in zip(range(len(events)), range(1, len(events)), strict=False):
        if groups and events[one] == events[other]:
            assert of[one] == of[other]
    assert len(groups) in (0, 2, 3)


def test_thirds_are_thirds_where_numbers_differ():
    events = np.random.default_rng(0).permutation(300)
    groups = by_activity(events)
    assert sizes(groups) == {
        "up to 99 events": 100,
        "100–199 events": 100,
        "more than 199 events": 100,
    }
    assert sorted(events[groups[0].rows]) == list(range(100))


def test_groups_of_a_column_come_largest_first_and_small_ones_together():
    values = ["UK"] * 90 + ["日本"] * 30 + [None] * 25 + ["Malta"] * 12 + ["Iceland"] * 9
    groups = by_value(values)
    assert sizes(groups) == {"UK": 90, "日本": 30, UNKNOWN: 25, "others (2 groups)": 21}
    assert groups[0].name == "UK"


def test_a_single_small_group_takes_the_next_larger_one_with_it():
    groups = by_value(["a"] * 50 + ["b"] * 30 + ["c"] * (MINIMUM - 1))
    assert sizes(groups) == {"a": 50, "others (2 groups)": 30 + MINIMUM - 1}


def test_one_group_is_no_comparison():
    assert by_value(["UK"] * 100) == []
    assert by_value(["UK"] * 100 + ["Malta"]) == []
    assert by_activity(np.full(100, 4)) == []
    assert by_value([]) == by_activity(np.zeros(0, np.int64)) == []


def test_a_third_of_one_number_is_called_by_it():
    groups = by_activity(np.repeat([1, 2, 3], 30))
    assert sizes(groups) == {"up to 1 events": 30, "2 events": 30, "more than 2 events": 30}
    assert len(by_activity(np.repeat([1, 9], [90, 30]))) == 2  # most are alike: no middle
