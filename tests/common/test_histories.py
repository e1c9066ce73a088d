from dataclasses import fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.histories import Histories

COLUMNS = [field.name for field in fields(Histories)[1:]]


@st.composite
def histories(draw):
    lengths = draw(st.lists(st.integers(0, 4), min_size=0, max_size=6))
    events = sum(lengths)
    numbers = np.arange(events)
    return Histories(
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        items=numbers.astype(np.int32),
        times=(numbers * 10).astype(np.int64),
        sessions=(numbers % 3).astype(np.int32),
        weights=(numbers + 0.5).astype(np.float32),
        types=(numbers % 2).astype(np.int16),
    )


def same(first, second):
    return np.array_equal(first.lengths, second.lengths) and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in COLUMNS
    )


@given(histories())
def test_counts_agree(found):
    assert found.n_devices == len(found.lengths) == len(list(found))
    assert found.n_events == found.lengths.sum() == len(found.items) == len(found.devices)
    assert np.array_equal(np.bincount(found.devices, minlength=found.n_devices), found.lengths)


@given(histories(), st.data())
def test_taken_devices_are_the_devices_one_by_one(found, data):
    indices = st.lists(st.integers(0, max(0, found.n_devices - 1)), max_size=5)
    chosen = np.array(data.draw(indices) if found.n_devices else [], dtype=np.int64)
    taken = found.take(chosen)
    assert taken.n_devices == len(chosen)
    for place, device in enumerate(chosen):
        assert same(taken.device(place), found.device(int(device)))
    for name in COLUMNS:
        assert getattr(taken, name).dtype == getattr(found, name).dtype


@given(histories())
def test_a_device_is_a_view_and_taking_is_a_copy(found):
    for device in found:
        assert all(np.shares_memory(getattr(device, n), getattr(found, n)) for n in COLUMNS) or (
            device.n_events == 0
        )
    everyone = found.take(np.arange(found.n_devices))
    assert same(everyone, found)
    assert not any(np.shares_memory(getattr(everyone, n), getattr(found, n)) for n in COLUMNS)


@given(histories(), st.integers(-5, 300))
def test_before_a_time_all_devices_stay_with_what_they_knew(found, time):
    early = found.before(time)
    assert early.n_devices == found.n_devices
    for kept, whole in zip(early, found, strict=True):
        assert np.array_equal(kept.items, whole.items[whole.times < time])


def test_a_part_of_a_population_need_not_start_at_event_0():
    whole = Histories(
        offsets=np.array([3, 5, 5], dtype=np.int64),
        items=np.arange(5, dtype=np.int32),
        times=np.arange(5, dtype=np.int64),
        sessions=np.zeros(5, dtype=np.int32),
        weights=np.ones(5, dtype=np.float32),
        types=np.zeros(5, dtype=np.int16),
    )
    assert whole.n_events == 2
    assert whole.device(0).items.tolist() == [3, 4]
    assert whole.take(np.array([1, 0])).items.tolist() == [3, 4]
