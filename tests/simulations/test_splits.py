"""Splits keep past and future apart, whatever the log looks like."""

import datetime as dt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.config import EvaluationConfig
from fedprofile.common.errors import ConfigError
from fedprofile.common.histories import Histories
from fedprofile.simulations.splits import (
    global_time_split,
    leave_one_out,
    make_split,
    quantile_times,
)


def log(*devices):
    """Histories from one list of (time, session, item) per device, given in order."""
    events = [event for device in devices for event in device]
    times, sessions, items = (list(c) for c in zip(*events, strict=True)) if events else ([],) * 3
    return Histories(
        offsets=np.cumsum([0, *map(len, devices)]).astype(np.int64),
        items=np.array(items, np.int32),
        times=np.array(times, np.int64),
        sessions=np.array(sessions, np.int32),
        weights=np.ones(len(items), np.float32),
        types=np.zeros(len(items), np.int16),
    )


def rows(targets):
    return {
        int(user): targets.items[targets.offsets[i] : targets.offsets[i + 1]].tolist()
        for i, user in enumerate(targets.users)
    }


def known(targets):
    return {
        int(user): targets.history.device(i).items.tolist() for i, user in enumerate(targets.users)
    }


@st.composite
def logs(draw):
    devices = []
    for _ in range(draw(st.integers(1, 5))):
        times = sorted(draw(st.lists(st.integers(0, 30), max_size=8)))
        opens = draw(st.lists(st.booleans(), min_size=len(times), max_size=len(times)))
        sessions = np.cumsum(opens).tolist()
        items = draw(st.lists(st.integers(0, 6), min_size=len(times), max_size=len(times)))
        devices.append(list(zip(times, sessions, items, strict=True)))
    return log(*devices)


def test_targets_that_were_had_before_are_counted():
    histories = log(
        [(1, 0, 5), (22, 1, 5), (22, 1, 6)],
        [(1, 0, 6), (2, 0, 5), (25, 1, 6)],
        [(1, 0, 7), (21, 1, 5)],  # others had it, not this one
    )
    assert global_time_split(histories, 10, 20).test.repeated == 2 / 4
    assert global_time_split(histories, 10, 20).validation.repeated is None  # nobody was there


def test_global_cut_by_hand():
    histories = log(
        [(1, 0, 5), (11, 1, 7), (11, 1, 6), (11, 1, 7), (15, 2, 1), (22, 3, 4), (25, 4, 2)],
        [(2, 0, 3), (30, 1, 3)],  # nothing in the validation period
        [(12, 0, 1), (21, 1, 2)],  # cold in validation, warm in the test
        [(3, 0, 9)],  # never comes back
        [],
    )
    split = global_time_split(histories, 10, 20)
    assert split.train.n_devices == 5
    assert split.train.items.tolist() == [5, 3, 9]
    assert rows(split.validation) == {0: [6, 7]}
    assert known(split.validation) == {0: [5]}
    assert split.validation.now.tolist() == [11]
    assert split.validation.cold_users == 1
    assert rows(split.test) == {0: [4], 1: [3], 2: [2]}
    assert known(split.test) == {0: [5, 7, 6, 7, 1], 1: [3], 2: [1]}
    assert split.test.now.tolist() == [22, 30, 21]
    assert split.test.cold_users == 0


@given(logs(), st.integers(1, 29), st.integers(1, 10), st.booleans())
def test_a_refit_trains_up_to_the_test_and_holds_out_the_same(histories, start, width, by_time):
    def split(refit):
        if by_time:
            return global_time_split(histories, start, start + width, refit=refit)
        return leave_one_out(histories, refit=refit)

    chosen, refitted = split(False), split(True)
    assert refitted.refitted
    assert not chosen.refitted
    assert chosen.train is chosen.choosing
    for targets in ("validation", "test"):
        ours, theirs = getattr(refitted, targets), getattr(chosen, targets)
        assert (rows(ours), known(ours)) == (rows(theirs), known(theirs))
    np.testing.assert_array_equal(refitted.choosing.items, chosen.train.items)
    for row, user in enumerate(refitted.test.users.tolist()):
        # What is tested was trained on all that the device knows when it is asked.
        asked = refitted.test.history.device(row)
        np.testing.assert_array_equal(refitted.train.device(user).times, asked.times)
    if by_time:
        assert (refitted.train.times < start + width).all()
        assert (chosen.train_time, refitted.train_time) == (start, start + width)


def test_a_session_over_a_cut_is_no_target_of_the_later_side():
    split = global_time_split(
        log([(1, 0, 0), (8, 1, 1), (12, 1, 2), (18, 2, 3), (21, 2, 4)]), 10, 20
    )
    assert rows(split.validation) == {0: [3]}  # not 2 (began before), not 4 (the test's time)
    assert rows(split.test) == {}


@given(logs(), st.integers(1, 29), st.integers(1, 10))
def test_global_cut_lets_no_future_in(histories, start, width):
    split = global_time_split(histories, start, start + width)
    assert (split.train.times < start).all()
    assert split.train.n_events == (histories.times < start).sum()
    cuts = ((split.validation, start, start + width), (split.test, start + width, 10**9))
    for targets, begin, end in cuts:
        assert (targets.history.times < begin).all()
        assert ((targets.now >= begin) & (targets.now < end)).all()
        assert (targets.history.lengths > 0).all()
        assert (np.diff(targets.offsets) > 0).all()
        assert (np.diff(targets.users) > 0).all()
        for row, user in enumerate(targets.users):
            device = histories.device(int(user))
            session = device.sessions[device.times >= begin]
            at = (device.sessions == session[session >= 0][0]) & (device.times >= begin)
            if device.times[device.sessions == device.sessions[at][0]].min() >= begin:
                expected = np.unique(device.items[at & (device.times < end)])
                mine = targets.items[targets.offsets[row] : targets.offsets[row + 1]]
                assert mine.tolist() == expected.tolist()


@given(logs(), st.integers(0, 5), st.integers(0, 5))
def test_chunks_are_rows(histories, start, size):
    targets = global_time_split(histories, 8, 16).test
    chunk = targets.chunk(start, start + size)
    wanted = slice(start, start + size)
    assert chunk.users.tolist() == targets.users[wanted].tolist()
    assert rows(chunk) == {u: rows(targets)[u] for u in chunk.users.tolist()}
    assert known(chunk) == {u: known(targets)[u] for u in chunk.users.tolist()}
    assert chunk.now.tolist() == targets.now[wanted].tolist()


def test_leave_one_out_by_hand():
    split = leave_one_out(log([(1, 0, 4), (2, 1, 5), (3, 2, 6), (4, 3, 6)], [(1, 0, 2), (9, 1, 3)]))
    assert split.train.items.tolist() == [4, 5]
    assert (rows(split.validation), known(split.validation)) == ({0: [6]}, {0: [4, 5]})
    assert (rows(split.test), known(split.test)) == ({0: [6], 1: [3]}, {0: [4, 5, 6], 1: [2]})
    assert split.validation.cold_users == 1


def test_leave_one_out_draws_within_a_basket():
    # Sorted by item, as files often are: file order would make the highest item every target.
    basket = [(5, 1, item) for item in range(10)]
    split = leave_one_out(log(*[[(1, 0, 0), (2, 0, 0), *basket] for _ in range(300)]))
    counts = np.bincount(split.test.items, minlength=10)
    assert counts.min() > 10
    assert counts.max() < 60


@given(logs())
def test_leave_one_out_loses_no_event(histories):
    split = leave_one_out(histories)
    for row, user in enumerate(split.test.users):
        held_out = split.test.items[split.test.offsets[row] : split.test.offsets[row + 1]]
        mine = np.concatenate([split.test.history.device(row).items, held_out])
        assert sorted(mine) == sorted(histories.device(int(user)).items)
        assert split.test.now[row] == histories.device(int(user)).times[-1]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_quantiles_leave_their_share_before(times):
    histories = log([(t, 0, 0) for t in sorted(times)])
    for q, cut in zip((0.5, 0.9), quantile_times(histories, 0.5, 0.9), strict=True):
        assert (histories.times < cut).mean() <= q <= (histories.times <= cut).mean()


def test_dates_are_utc_midnights():
    day = 86_400
    histories = log([(day * d, d, d) for d in range(10)], [(day * d, d, d) for d in range(10)])
    config = EvaluationConfig(validation_from=dt.date(1970, 1, 5), test_from=dt.date(1970, 1, 8))
    split = make_split(histories, config)
    assert (split.validation_time, split.test_time) == (4 * day, 7 * day)
    assert rows(split.test) == {0: [7], 1: [7]}


def test_none_holds_nothing_out():
    histories = log([(1, 0, 1)], [])
    split = make_split(histories, EvaluationConfig(split="none"))
    assert split.train is histories
    assert split.test.n_users == split.validation.n_users == 0
    assert split.test.history.n_devices == 0
    assert split.test_time is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"validation_from": "1960-01-01", "test_from": "1960-02-01"}, "no training events"),
        ({"validation_from": "2200-01-01", "test_from": "2200-02-01"}, "validation target"),
        ({"validation_from": "1970-01-02", "test_from": "2200-02-01"}, "test target"),
        ({"validation_quantile": 0.1, "test_quantile": 0.11}, "validation_quantile = 0.1"),
        ({"split": "leave-one-out"}, "three events"),
    ],
)
def test_empty_parts_are_refused_in_one_line(config, words):
    histories = log([(1, 0, 1), (100_000, 1, 2)])
    with pytest.raises(ConfigError, match="evaluation") as caught:
        make_split(histories, EvaluationConfig.model_validate(config))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_log_is_refused():
    with pytest.raises(ConfigError, match="no events"):
        make_split(log([], []), EvaluationConfig())


@given(logs(), st.integers(0, 2**5 - 1), st.sampled_from(["global-time", "leave-one-out", "none"]))
def test_who_takes_part_has_the_same_history_and_targets_whoever_else_does(histories, bits, kind):
    members = (bits >> np.arange(histories.n_devices)) & 1 == 1
    config = EvaluationConfig(split=kind)
    try:
        whole = make_split(histories, config)
        some = make_split(histories, config, members)
    except ConfigError:
        return  # nobody is left on one of the sides
    chosen = {int(user) for user in np.flatnonzero(members)}
    assert (some.validation_time, some.test_time) == (whole.validation_time, whole.test_time)
    for ours, theirs in ((some.validation, whole.validation), (some.test, whole.test)):
        assert rows(ours) == {u: items for u, items in rows(theirs).items() if u in chosen}
        assert known(ours) == {u: items for u, items in known(theirs).items() if u in chosen}
    for user in range(histories.n_devices):
        expected = whole.train.device(user).items if members[user] else []
        np.testing.assert_array_equal(some.train.device(user).items, expected)
