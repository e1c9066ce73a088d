import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedprofile.client import changes as changes_module
from fedprofile.client.answers import RecommendRequest
from fedprofile.client.api import ProfileServer
from fedprofile.client.api_limits import LONGEST_COMPARED, MOST_EVENTS
from fedprofile.client.connect import connect
from fedprofile.client.device import Device
from fedprofile.client.interactions import Interaction
from fedprofile.common.errors import ConfigError, DataError

NOW, DAY = 1_750_000_000, 86_400
N_ITEMS = 40


def one(number, item, at=NOW, event="view"):
    return Interaction(str(number), f"商品{item}", at, event)


def ranked(device, top_k=N_ITEMS):
    """The list that is recommended, best first, and its scores."""
    found = device.recommend(RecommendRequest(top_k=top_k)).items
    return [one.item for one in found], [one.score for one in found]


def told(change):
    """The new list by what is told of it, best first, and its scores."""
    groups = (change.entered, change.rose, change.fell, change.stayed)
    listed = sorted((one for group in groups for one in group), key=lambda one: one.new_rank)
    assert [one.new_rank for one in listed] == list(range(1, len(listed) + 1))
    return [one.item for one in listed], [one.new_score for one in listed]


def applied(before, change):
    """The new list by the old one and what changed in it."""
    places = {item: rank for rank, item in enumerate(before[: change.top_k], start=1)}
    for gone in change.left:
        assert places.pop(gone.item) == gone.old_rank
    for moved in (*change.entered, *change.rose, *change.fell):
        assert places.get(moved.item, moved.old_rank) == moved.old_rank
        places[moved.item] = moved.new_rank
    return sorted(places, key=places.get)


steps = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, N_ITEMS + 3),  # some are in no table
            st.integers(0, 20),  # days ago, so that many come late
            st.sampled_from(["view", "purchase", "nonsense", "skip"]),
        ),
        min_size=1,
        max_size=3,
    ),
    min_size=1,
    max_size=6,
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps, st.integers(1, 12))
def test_the_old_list_and_what_is_told_are_the_list_that_is_recommended(make_device, steps, top_k):
    device = make_device(f"d{time.monotonic_ns()}")
    for number, events in enumerate(steps):
        before, profile = ranked(device)[0], device.profile()
        rows = [
            one(f"{number}-{k}", item, NOW - day * DAY, event)
            for k, (item, day, event) in enumerate(events)
        ]
        answer = device.record(rows, change_top_k=top_k)
        change, moved = answer.list_change, answer.profile_change
        items, scores = ranked(device, top_k)
        assert applied(before, change) == items
        assert told(change) == (items, pytest.approx(scores, rel=1e-5))
        now = device.profile()
        assert (moved.old_events, moved.new_events) == (profile.events, now.events)
        assert (moved.old_repeat_rate, moved.new_repeat_rate) == (
            profile.repeat_rate,
            now.repeat_rate,
        )
        new = {shift.name: shift.new for shift in moved.tags}
        assert {**profile.tags, **new} == pytest.approx(dict(now.tags), rel=1e-5)
        new = {shift.name: shift.new for shift in moved.frequencies}
        assert {**profile.frequencies, **new} == pytest.approx(dict(now.frequencies), rel=1e-5)
        if answer.recorded == answer.unlearned:
            assert moved.vector.distance == 0
            # Only what is turned down goes, and only what isn't any more comes.
            told_off = {event for *_, event in events} == {"nonsense"} and before == ranked(device)[
                0
            ]
            assert not told_off or len(change.stayed) == len(items)


def test_the_service_tells_what_the_device_tells(make_device):
    here, there = make_device("here"), make_device("there")
    events = [one(n, n * 7 % N_ITEMS, NOW - (n % 5) * DAY) for n in range(12)]
    events += [one("unknown", 99), events[0], one("last", 3)]
    with ProfileServer(there), connect(there.folder.path) as client:
        for event in events:
            expected = here.record([event], change_top_k=5)
            assert client.record([event], change_top_k=5) == expected
            assert expected.profile_change is not None
        assert client.record([], change_top_k=5) == here.record([], change_top_k=5)
        assert client.record([one("more", 4)]).list_change is None
        for wrong in (-1, 0, LONGEST_COMPARED + 1):
            with pytest.raises(ConfigError):
                client.record([one("never", 5)], change_top_k=wrong)


def test_a_device_that_was_opened_anew_tells_the_same(make_device):
    kept, other = make_device("kept"), make_device("other")
    for number in range(8):
        event = one(number, number * 7 % N_ITEMS, NOW + number)
        answer = kept.record([event], change_top_k=N_ITEMS)
        with Device(other.folder, clock=lambda: NOW) as opened:
            again = opened.record([event], change_top_k=N_ITEMS)
        assert again.profile_change == answer.profile_change
        items, scores = told(answer.list_change)
        assert told(again.list_change) == (items, pytest.approx(scores, rel=1e-5))


@pytest.mark.parametrize(
    "events",
    [[one("unknown", 99)], [one("type", 3, event="zoom")], [one("first", 1)], []],
    ids=["item", "type", "again", "none"],
)
def test_what_teaches_nothing_changes_nothing(make_device, events):
    device = make_device()
    device.record([one("first", 1)])
    before = ranked(device, 4)
    answer = device.record(events, change_top_k=4)
    assert answer.recorded == answer.unlearned
    change = answer.profile_change
    assert (change.vector.distance, change.tags, change.frequencies) == (0, (), ())
    assert (change.old_events, change.new_events) == (1, 1)
    assert told(answer.list_change) == before
    assert len(answer.list_change.stayed) == 4
    assert answer.list_change.left == ()


def test_what_is_turned_down_is_told_to_leave_the_list(make_device):
    device = make_device()
    device.record([one("first", 1)])
    best, *others = ranked(device, 5)[0]
    item = best.removeprefix("商品")
    answer = device.record([one("no", item, event="skip")], change_top_k=4)
    assert answer.recorded == answer.unlearned == 1
    assert answer.profile_change.vector.distance == 0
    [gone] = answer.list_change.left
    assert (gone.item, gone.old_rank, gone.new_rank) == (best, 1, None)
    assert told(answer.list_change)[0] == others
    again = device.record([one("no more", item, NOW + 1, "skip")], change_top_k=4)
    assert (len(again.list_change.stayed), again.list_change.left) == (4, ())
    back = device.record([one("but", item, NOW + 2, "nonsense")], change_top_k=4)
    assert [one.item for one in back.list_change.entered] == [best]


def test_without_a_model_there_is_no_change_to_tell(make_device):
    answer = make_device(model=None).record([one(1, 1)], change_top_k=3)
    assert (answer.recorded, answer.unlearned) == (1, 1)
    assert (answer.profile_change, answer.list_change) == (None, None)


def test_what_is_told_is_on_the_disk_and_nothing_is_worked_out_unasked(make_device, monkeypatch):
    device = make_device()
    found = []

    def watched(*_, top_k):
        with Device(device.folder, clock=lambda: NOW) as other:
            found.append(other.status().events)
        raise DataError("it fails")

    monkeypatch.setattr(changes_module, "with_change", watched)
    with pytest.raises(DataError, match="it fails"):
        device.record([one(1, 1)], change_top_k=3)
    assert found == [1]
    assert device.record([one(2, 2)]).recorded == 1
    assert found == [1]
    assert device.profile().events == 2


@pytest.mark.parametrize("top_k", [-3, 0, LONGEST_COMPARED + 1])
def test_a_list_that_is_none_is_refused_before_anything_is_stored(make_device, top_k):
    device = make_device()
    with pytest.raises(ConfigError, match="list"):
        device.record([one(1, 1)], change_top_k=top_k)
    with pytest.raises(ConfigError, match="1,001 events whose change"):
        device.record([one(n, 1) for n in range(MOST_EVENTS + 1)], change_top_k=3)
    assert device.status().events == 0
