import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.decay import (
    Scale,
    decayed_sums,
    decayed_weights,
    event_ages,
    event_factors,
)
from fedprofile.common.errors import ConfigError
from fedprofile.common.histories import Histories

DAY = 86_400
SCALES = (Scale("days", 2.0), Scale("days", 30.0), Scale("events", 3.0))


def histories_of(devices):
    """Devices as lists of (time, item, weight)."""
    events = [event for device in devices for event in sorted(device, key=lambda e: e[0])]
    return Histories(
        offsets=np.concatenate([[0], np.cumsum([len(d) for d in devices])]).astype(np.int64),
        items=np.array([e[1] for e in events], dtype=np.int32),
        times=np.array([e[0] for e in events], dtype=np.int64),
        sessions=np.zeros(len(events), dtype=np.int32),
        weights=np.array([e[2] for e in events], dtype=np.float32),
        types=np.zeros(len(events), dtype=np.int16),
    )


event = st.tuples(
    st.sampled_from([DAY * d // 2 for d in range(30)]),
    st.integers(0, 19),
    st.floats(0.125, 5, width=32),
)
populations = st.lists(st.lists(event, max_size=30), min_size=1, max_size=6)


def naive_sums(history, vectors, now, scales):
    """The definition, event by event, in float64."""
    total = np.zeros((len(scales), vectors.shape[1]))
    times = history.times.tolist()
    now = max([now, *times])
    for item, when, weight in zip(history.items, times, history.weights, strict=True):
        for s, scale in enumerate(scales):
            later = len({t for t in times if t > when})
            age = (now - when) / DAY if scale.clock == "days" else later
            total[s] += weight * 2.0 ** (-age / scale.half_life) * vectors[item]
    return total


@settings(max_examples=50, deadline=None)
@given(populations, st.integers(0, 40 * DAY))
def test_vectorised_sums_follow_the_definition(devices, now):
    histories = histories_of(devices)
    vectors = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    sums = decayed_sums(histories, vectors, now, SCALES)
    for d, history in enumerate(histories):
        expected = naive_sums(history, vectors, now, SCALES)
        np.testing.assert_allclose(sums[d], expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(event, min_size=1, max_size=40))
def test_event_by_event_equals_the_batch(events):
    history = histories_of([events])
    vectors = np.random.default_rng(0).random((20, 5)).astype(np.float32)
    sums = np.zeros((len(SCALES), 5), dtype=np.float32)
    newest = int(history.times[0])
    for item, when, weight in zip(history.items, history.times, history.weights, strict=True):
        held, added = event_factors(SCALES, int(when) - newest, int(when > newest))
        sums = sums * held[:, None] + weight * added[:, None] * vectors[item]
        newest = int(when)
    np.testing.assert_allclose(sums, decayed_sums(history, vectors, newest, SCALES)[0], rtol=1e-5)


def test_a_late_event_arrives_aged():
    vectors = np.eye(2, dtype=np.float32)
    on_time = histories_of([[(0, 0, 1.0), (3 * DAY, 1, 1.0)]])
    held, added = event_factors(SCALES, -3 * DAY, 1)
    sums = np.tile(vectors[1], (3, 1)) * held[:, None] + added[:, None] * vectors[0]
    np.testing.assert_allclose(sums, decayed_sums(on_time, vectors, 3 * DAY, SCALES)[0], rtol=1e-6)


def test_a_basket_ages_as_one():
    histories = histories_of([[(5, 0, 1.0), (5, 1, 1.0), (9, 2, 1.0)], [], [(9, 0, 1.0)]])
    days, steps = event_ages(histories, np.array([9, 0, 9 + 2 * DAY]))
    assert steps.tolist() == [1, 1, 0, 0]
    assert days[3] == 2.0


def test_a_now_before_the_last_event_counts_as_that_event():
    histories = histories_of([[(0, 0, 1.0), (2 * DAY, 0, 1.0)]])
    weights = decayed_weights(histories, 0, [Scale("days", 2.0)])
    np.testing.assert_allclose(weights, [[0.5, 1.0]])


def test_no_events_give_zeros():
    histories = histories_of([[], []])
    assert not decayed_sums(histories, np.ones((3, 4), np.float32), 0, SCALES).any()


def test_unequal_lengths_over_several_chunks():
    generator = np.random.default_rng(1)
    devices = [
        [(int(t), int(generator.integers(50)), 1.0) for t in generator.integers(0, 99 * DAY, n)]
        for n in generator.geometric(0.02, size=300)
    ]
    histories = histories_of(devices)
    vectors = generator.standard_normal((50, 160)).astype(np.float32)
    sums = decayed_sums(histories, vectors, 99 * DAY, SCALES)
    for d in (0, 17, 299):
        expected = naive_sums(histories.device(d), vectors, 99 * DAY, SCALES)
        np.testing.assert_allclose(sums[d], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan"), float("inf")])
def test_a_half_life_must_be_positive(half_life):
    with pytest.raises(ConfigError, match="half-life"):
        Scale("days", half_life)


def test_an_unknown_clock_is_named():
    with pytest.raises(ConfigError, match="weeks"):
        Scale("weeks", 1.0)


def test_a_cohort_of_a_thousand_is_quick():
    generator = np.random.default_rng(0)
    histories = Histories(
        offsets=np.arange(0, 60_001, 60, dtype=np.int64),
        items=generator.integers(0, 3_700, 60_000).astype(np.int32),
        times=np.sort(generator.integers(0, 99 * DAY, (1_000, 60)), axis=1).reshape(-1),
        sessions=np.zeros(60_000, dtype=np.int32),
        weights=np.ones(60_000, dtype=np.float32),
        types=np.zeros(60_000, dtype=np.int16),
    )
    vectors = generator.standard_normal((3_700, 160)).astype(np.float32)
    durations = []
    for _ in range(5):
        start = time.process_time()
        decayed_sums(histories, vectors, 99 * DAY, SCALES)
        durations.append(time.process_time() - start)
    assert min(durations) < 0.25, f"{min(durations):.3f} s; a loop over devices takes longer"
