import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client import profile_change as module
from fedprofile.client.profile import Event, empty_profile, update
from fedprofile.client.profile_change import profile_change, vector_shift
from fedprofile.common.decay import Scale
from fedprofile.common.items import ItemTable

DAY = 86_400
SCALES = (Scale("days", 2.0), Scale("events", 3.0))
N_ITEMS = 12
TYPES = ("view", "purchase")
TABLE = ItemTable(
    np.random.default_rng(0).standard_normal((N_ITEMS, 5)).astype(np.float32),
    tuple(f"商品{item}" for item in range(N_ITEMS)),
    tuple((("red", "cup"), ("cup",), ("茶",), ())[item % 4] for item in range(N_ITEMS)),
)


def replay(events, window_size=6):
    profile = empty_profile(TABLE, scales=SCALES, window_size=window_size)
    for event in events:
        profile = update(profile, event, table=TABLE)
    return profile


def changed(before, after):
    return profile_change(before, after, ids=TABLE.ids, event_types=TYPES)


def frequencies_of(profile):
    pairs = zip(profile.items.tolist(), profile.frequencies.tolist(), strict=True)
    return {TABLE.ids[item]: weight for item, weight in pairs}


def test_the_change_tells_what_moved():
    before = replay([Event(0, 0)])
    after = update(before, Event(2, 30 * DAY, type=1), table=TABLE)
    change = changed(before, after)
    left = 2 ** (-30 / 180)
    assert [one.name for one in change.tags] == ["茶", "cup", "red"]
    assert [(one.old, one.new) for one in change.tags] == [
        (0.0, 1.0),
        (1.0, pytest.approx(left)),
        (1.0, pytest.approx(left)),
    ]
    assert [one.name for one in change.frequencies] == ["商品2", "商品0"]
    assert change.frequencies[1].new == pytest.approx(left)
    assert (change.old_events, change.new_events) == (1, 2)
    assert (change.old_repeat_rate, change.new_repeat_rate) == (1 / 2, 1 / 3)
    assert [(e.item, e.event, e.time) for e in change.entered] == [("商品2", "purchase", 30 * DAY)]
    assert change.left == ()
    assert [(one.clock, one.half_life) for one in change.interests] == [
        ("days", 2.0),
        ("events", 3.0),
    ]
    for one, old, new in zip(change.interests, before.sums, after.sums, strict=True):
        cosine = old @ new / np.linalg.norm(old) / np.linalg.norm(new)
        assert np.cos(np.radians(one.shift.angle)) == pytest.approx(float(cosine), abs=1e-6)
        assert one.shift.distance == pytest.approx(float(np.linalg.norm(new - old)))
    assert change.vector.new_length == pytest.approx(float(np.linalg.norm(after.vector)))


events = st.builds(
    Event,
    item=st.integers(0, N_ITEMS - 1),
    time=st.sampled_from([day * DAY // 2 for day in range(60)]),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
    type=st.integers(0, 1),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(events, max_size=12), st.lists(events, max_size=4))
def test_the_old_profile_and_what_is_told_are_the_new_one(first, then):
    before, after = replay(first), replay([*first, *then])
    change = changed(before, after)
    for old, told, new in (
        (before.tags, change.tags, after.tags),
        (frequencies_of(before), change.frequencies, frequencies_of(after)),
    ):
        assert all(one.old == old.get(one.name, 0.0) for one in told)
        assert {**old, **{one.name: one.new for one in told}} == pytest.approx(new, rel=1e-5)
        sizes = [abs(one.new - one.old) for one in told]
        assert sizes == sorted(sizes, reverse=True)

    def window(profile):
        return [(TABLE.ids[e.item], TYPES[e.type], e.time, e.weight) for e in profile.window]

    left = [(e.item, e.event, e.time, e.weight) for e in change.left]
    held = window(before)
    for one in left:
        held.remove(one)
    held += [(e.item, e.event, e.time, e.weight) for e in change.entered]
    assert sorted(held) == sorted(window(after))


def test_nothing_is_told_of_a_profile_that_is_the_same():
    profile = replay([Event(0, 0), Event(1, 5)])
    change = changed(profile, profile)
    assert (change.tags, change.frequencies, change.entered, change.left) == ((), (), (), ())
    for shift in (change.vector, *(one.shift for one in change.interests)):
        assert (shift.distance, shift.angle) == (0, 0)
        assert shift.old_length == shift.new_length


def test_what_is_rounded_differently_is_no_change():
    profile = replay([Event(0, 0)])
    tags = {tag: weight * (1 + 1e-8) for tag, weight in profile.tags.items()}
    assert module._shifts(profile.tags, tags) == ()


def test_an_event_that_is_too_old_for_the_window_does_not_enter_it():
    full = replay([Event(item, DAY + item) for item in range(6)])
    change = changed(full, update(full, Event(9, 100 * DAY), table=TABLE))
    assert [e.item for e in change.entered] == ["商品9"]
    assert [e.item for e in change.left] == ["商品0"]
    late = changed(full, update(full, Event(9, 0), table=TABLE))
    assert (late.entered, late.left) == ((), ())
    assert late.new_events == 7


def test_what_happens_twice_at_a_time_enters_twice():
    once = replay([Event(3, 5)])
    assert len(changed(once, replay([Event(3, 5), Event(3, 5)])).entered) == 1
    assert len(changed(replay([]), replay([Event(3, 5), Event(3, 5)])).entered) == 2


def test_of_many_the_largest_are_told_and_the_others_counted(monkeypatch):
    monkeypatch.setattr(module, "MOST_SHIFTS", 2)
    before = replay([Event(item, 0) for item in range(5)])
    change = changed(before, update(before, Event(2, 90 * DAY), table=TABLE))
    # cup falls by 0.88, 茶 rises by 0.71, and red falls by 0.59.
    assert [one.name for one in change.tags] == ["cup", "茶"]
    assert (len(change.frequencies), change.other_frequencies) == (2, 3)
    assert change.other_tags == len({"red", "cup", "茶"}) - 2


def test_angles_are_exact_where_a_cosine_is_not():
    for angle in (0.0, 1e-4, 1.0, 90.0, 179.999):
        turned = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
        shift = vector_shift(np.array([2.0, 0.0]), 3 * turned)
        assert shift.angle == pytest.approx(angle, rel=1e-6)
        assert (shift.old_length, shift.new_length) == (2, pytest.approx(3))
    nothing = np.zeros(2, dtype=np.float32)
    assert vector_shift(nothing, np.ones(2, dtype=np.float32)).angle is None
    assert vector_shift(nothing, nothing).angle is None
