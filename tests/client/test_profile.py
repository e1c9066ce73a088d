import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.profile import Event, build, content_vector, empty_profile, update
from fedprofile.common.decay import Scale
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable

DAY = 86_400
DAYS = (Scale("days", 2.0), Scale("days", 30.0))
SCALES = (*DAYS, Scale("events", 3.0))
N_ITEMS = 12


def make_table():
    vectors = np.random.default_rng(0).standard_normal((N_ITEMS, 5)).astype(np.float32)
    tags = tuple((("red", "cup"), ("cup",), ("茶",), ())[item % 4] for item in range(N_ITEMS))
    return ItemTable(vectors, tuple(f"id,{item}" for item in range(N_ITEMS)), tags)


TABLE = make_table()


def history_of(events):
    events = sorted(events, key=lambda e: e.time)
    return Histories(
        offsets=np.array([0, len(events)], dtype=np.int64),
        items=np.array([e.item for e in events], dtype=np.int32),
        times=np.array([e.time for e in events], dtype=np.int64),
        sessions=np.zeros(len(events), dtype=np.int32),
        weights=np.array([e.weight for e in events], dtype=np.float32),
        types=np.array([e.type for e in events], dtype=np.int16),
    )


def replay(events, scales=SCALES, window_size=6, encode=content_vector):
    profile = empty_profile(TABLE, scales=scales, window_size=window_size, encode=encode)
    for event in events:
        profile = update(profile, event, table=TABLE, encode=encode)
    return profile


def assert_same(first, second, same_window=True):
    np.testing.assert_allclose(first.sums, second.sums, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(first.vector, second.vector, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_allclose(first.frequencies, second.frequencies, rtol=1e-4)
    assert first.tags == pytest.approx(second.tags, rel=1e-4)
    assert first.n_events == second.n_events
    assert first.updated_at == second.updated_at
    assert (first.began_at, first.n_began) == (second.began_at, second.n_began)
    assert first.before_window == second.before_window
    assert first.repeat_rate == second.repeat_rate
    if same_window:
        assert first.window == second.window


events = st.builds(
    Event,
    item=st.integers(0, N_ITEMS - 1),
    time=st.sampled_from([day * DAY // 2 for day in range(60)]),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
    type=st.integers(0, 2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(events, min_size=1, max_size=25))
def test_building_equals_updating_event_by_event(events):
    events = sorted(events, key=lambda e: e.time)
    built = build(history_of(events), table=TABLE, scales=SCALES, window_size=6)
    assert_same(replay(events), built)


@settings(max_examples=60, deadline=None)
@given(st.lists(events, min_size=1, max_size=25))
def test_on_the_wall_clock_the_order_of_arrival_does_not_matter(events):
    built = build(history_of(events), table=TABLE, scales=DAYS, window_size=6)
    distinct = len({e.time for e in events}) == len(events)
    assert_same(replay(events, scales=DAYS), built, same_window=distinct)


def test_an_empty_history_is_an_empty_profile():
    built = build(history_of([]), table=TABLE, scales=SCALES, window_size=6)
    assert_same(built, empty_profile(TABLE, scales=SCALES, window_size=6))
    assert built.updated_at is None
    assert not built.vector.any()


def test_a_late_event_on_the_events_clock_is_as_old_as_the_times_after_it():
    profile = replay([Event(0, 10), Event(1, 20), Event(2, 30)])
    after = update(profile, Event(3, 15), table=TABLE)
    added = after.sums[2] - profile.sums[2]
    np.testing.assert_allclose(added, 2 ** (-2 / 3) * TABLE.vectors[3], rtol=1e-5)
    assert after.updated_at == 30
    assert [e.item for e in after.window] == [0, 3, 1, 2]


def test_a_full_window_lets_the_oldest_go():
    full = replay([Event(item, item) for item in range(1, 7)])
    after = update(full, Event(9, 100), table=TABLE)
    assert [e.item for e in after.window] == [2, 3, 4, 5, 6, 9]
    assert after.before_window == 1
    again = update(after, Event(8, 0), table=TABLE)
    assert again.window == after.window
    assert again.before_window == 1


def test_an_update_leaves_the_old_profile_alone():
    profile = replay([Event(0, 0), Event(4, 5)])
    shown = json.dumps(profile.to_dict(TABLE))
    update(profile, Event(0, 10 * DAY), table=TABLE)
    assert json.dumps(profile.to_dict(TABLE)) == shown


def test_repeats_raise_the_repeat_rate():
    explorer = replay([Event(item, item) for item in range(10)])
    regular = replay([Event(3, time) for time in range(10)])
    assert explorer.repeat_rate == pytest.approx(1 / 11)
    assert regular.repeat_rate == pytest.approx(10 / 11)


def test_the_first_moment_tells_nothing_of_repeats():
    basket = [Event(item, 0) for item in range(10)]
    assert replay(basket).repeat_rate == 1 / 2
    assert replay([*basket, Event(3, DAY)]).repeat_rate == 2 / 3
    assert replay([*basket, Event(11, DAY)]).repeat_rate == 1 / 3
    twice = [Event(3, 0), Event(3, 0), Event(3, 0)]
    assert replay(twice).repeat_rate == 1 / 2
    assert replay([*twice, Event(4, DAY)]).repeat_rate == 2 / 3
    earlier = replay([*basket, Event(3, -DAY)])  # then the basket repeats it
    assert (earlier.began_at, earlier.n_began) == (-DAY, 1)
    assert earlier.repeat_rate == 2 / 12


def test_the_encoder_sees_the_new_sums_and_window():
    def encode(profile):
        return np.append(profile.sums[0], np.float32(len(profile.window)))

    profile = replay([Event(0, 0), Event(1, 5)], encode=encode)
    np.testing.assert_array_equal(profile.vector, np.append(profile.sums[0], 2))


def test_the_owner_gets_everything_as_json():
    profile = build(
        history_of([Event(2, 5), Event(0, 7)]),
        table=TABLE,
        scales=SCALES,
        window_size=6,
        declared={"言語": "日本語"},
    )
    export = json.loads(json.dumps(profile.to_dict(TABLE), ensure_ascii=False))
    assert export["declared"] == {"言語": "日本語"}
    assert set(export["tags"]) == {"茶", "red", "cup"}
    assert [e["item"] for e in export["recent"]] == ["id,2", "id,0"]
    assert set(export["frequencies"]) == {"id,0", "id,2"}
    assert len(export["interests"]) == 3
    assert export["updated_at"] == 7


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Event(N_ITEMS, 0), "item index 12 is not in the table of 12 items"),
        (Event(-1, 0), "item index -1"),
        (Event(0, 0, weight=0.0), "weight 0.0 of item 'id,0' must be positive"),
        (Event(0, 0, weight=float("nan")), "weight nan"),
        (Event(0, 0, weight=float("inf")), "weight inf"),
    ],
)
def test_a_bad_event_is_refused(event, message):
    with pytest.raises(DataError, match=message):
        update(empty_profile(TABLE, scales=SCALES, window_size=6), event, table=TABLE)
    with pytest.raises(DataError, match=message):
        build(history_of([event]), table=TABLE, scales=SCALES, window_size=6)


def test_a_profile_of_another_table_is_refused():
    longer = TABLE.with_block("popularity", np.ones((N_ITEMS, 1), np.float32))
    with pytest.raises(DataError, match="current item table"):
        update(replay([Event(0, 0)]), Event(1, 1), table=longer)


def test_a_window_holds_at_least_one_event():
    with pytest.raises(ConfigError, match="at least one"):
        empty_profile(TABLE, scales=SCALES, window_size=0)


@pytest.mark.parametrize("module", ["profile", "scoring"])
def test_a_device_scores_without_heavy_imports(module):
    heavy = ["torch", "flwr", "opacus", "sklearn", "scipy", "polars"]
    code = (
        f"import sys, fedprofile.client.{module}; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
