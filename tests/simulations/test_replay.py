"""Moments, what each profile knows at them, and quality, against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.decay import Scale
from fedprofile.common.histories import Histories
from fedprofile.simulations.fairness import MINIMUM
from fedprofile.simulations.replay import (
    POLICIES,
    known_events,
    moments_after,
    replay,
    some_of,
    steps,
)

N_ITEMS, DAY = 5, 86_400
START = 10 * DAY + 3_600


def build(events_by_user):
    """Histories of lists of (time, item)."""
    rows = [(time, item) for events in events_by_user for time, item in sorted(events)]
    lengths = [len(events) for events in events_by_user]
    times, items = zip(*rows, strict=True) if rows else ((), ())
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array(items, dtype=np.int32),
        times=np.array(times, dtype=np.int64),
        sessions=np.zeros(len(rows), dtype=np.int32),
        weights=np.ones(len(rows), dtype=np.float32),
        types=np.zeros(len(rows), dtype=np.int16),
    )


moments_in_time = st.integers(0, 9).map(lambda step: START + (step - 3) * 20_000)
logs = st.lists(
    st.lists(st.tuples(moments_in_time, st.integers(0, N_ITEMS - 1)), max_size=8),
    min_size=1,
    max_size=4,
)


class Counting:
    """Ranks by how often the history holds an item; ties by a fixed taste."""

    def scores(self, history, now):
        found = np.zeros((history.n_devices, N_ITEMS), dtype=np.float32)
        np.add.at(found, (history.devices, history.items), 1.0)
        return found - np.arange(N_ITEMS, dtype=np.float32) / 100


def by_hand(log):
    """(user, time) → index, distinct items, new ones, and what each policy knows."""
    found = {}
    for user, events in enumerate(log):
        late = sorted({time for time, _ in events if time >= START})
        for index, time in enumerate(late, start=1):
            items = {item for t, item in events if t == time}
            earlier = {item for t, item in events if t < time}
            bounds = (START, max(START, time // DAY * DAY), time)
            known = [[item for t, item in events if t < bound] for bound in bounds]
            found[user, time] = (index, items, items - earlier, known)
    return found


@given(logs)
def test_moments_and_what_is_known_at_them(log):
    histories = build(log)
    moments = moments_after(histories, START)
    known = known_events(histories, moments, start=START)
    expected = by_hand(log)
    assert list(zip(moments.users, moments.times, strict=True)) == sorted(expected)
    for row, (index, items, new, policies) in enumerate(expected[key] for key in sorted(expected)):
        mine = slice(moments.offsets[row], moments.offsets[row + 1])
        assert moments.indices[row] == index
        assert sorted(moments.items[mine]) == sorted(items)
        assert set(moments.items[mine][moments.new[mine]]) == new
        assert [known[policy][row] for policy in POLICIES] == [len(held) for held in policies]


def ndcg(held, targets, k, *, masked):
    scores = {item: held.count(item) - item / 100 for item in range(N_ITEMS)}
    ranked = sorted((i for i in scores if not (masked and i in held)), key=lambda i: -scores[i])[:k]
    gain = sum(1 / math.log2(place + 2) for place, i in enumerate(ranked) if i in targets)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(k, len(targets))))


def run(log, *, k=3, most=1_000, minimum=1, **settings):
    return replay(
        Counting(),
        build(log),
        start=START,
        vectors=np.eye(N_ITEMS, dtype=np.float32),
        scales=(Scale("days", 30.0),),
        k=k,
        most=most,
        samples=0,
        minimum=minimum,
        **settings,
    )


@given(logs)
def test_quality_is_that_of_plain_loops(log):
    groups = run(log)
    for view in ("all", "new"):
        for p, policy in enumerate(POLICIES):
            values = {}
            for (user, _), (_, items, new, policies) in by_hand(log).items():
                targets = items if view == "all" else new
                if targets:
                    quality = ndcg(policies[p], targets, 3, masked=view == "new")
                    values.setdefault(user, []).append(quality)
            means = [np.mean(of_user) for of_user in values.values()]
            whole = groups[view][0]
            assert whole.users == len(means)
            assert whole.quality[policy].mean == pytest.approx(
                np.mean(means or [np.nan]), nan_ok=True
            )


def test_a_profile_that_follows_is_better_where_interests_turn():
    # Item 0 until the cut, item 4 from then on.
    user = [(START - DAY * day, 0) for day in range(1, 6)]
    user += [(START + 3_600 * hour, 4) for hour in range(40)]
    groups = {group.name: group for group in run([user], k=1)["all"]}
    assert groups["moment 1 from the cut"].gain.mean == 0
    later = groups["moment 16+ from the cut"]
    assert later.quality["frozen"].mean == 0
    assert later.quality["every event"].mean == 1
    assert groups["interests turned, furthest quarter"].gain.mean > 0
    assert 0 < groups["all moments"].quality["daily"].mean < later.quality["every event"].mean


def test_no_more_moments_than_asked_for_and_as_many_steps_as_announced():
    log = [[(START + 60 * minute, minute % N_ITEMS) for minute in range(700)]]
    done = []
    groups = run(log, most=600, on_chunk=lambda: done.append(1))
    assert groups["all"][0].moments == 600
    assert len(done) == steps(build(log), start=START, most=600) == 6


def test_few_users_have_no_figures_and_are_counted():
    few = [[(START - 1, 0), (START + 1, 4)] for _ in range(19)]  # one event known
    many = [[(START - 2, 0), (START - 1, 1), (START + 1, 4)] for _ in range(20)]
    for groups in run(few + many, minimum=MINIMUM).values():
        found = {group.name: group for group in groups}
        assert (found["1 event known"].users, found["1 event known"].moments) == (19, 19)
        assert found["1 event known"].to_dict()["gain"]["mean"] is None
        assert np.isnan([of.mean for of in found["1 event known"].quality.values()]).all()
        assert found["2 events known"].users == 20
        assert found["2 events known"].quality["frozen"].mean >= 0
        assert found["all moments"].users == 39


def test_moments_that_are_chosen_are_the_same_every_time():
    moments = moments_after(build([[(START + n, n % N_ITEMS) for n in range(50)]]), START)
    first, second = some_of(moments, 20), some_of(moments, 20)
    assert first.size == 20
    assert (np.diff(first.times) > 0).all()
    np.testing.assert_array_equal(first.times, second.times)
    assert some_of(moments, 50) is moments


def test_nobody_came_back():
    groups = run([[(START - 5, 1)]])
    assert groups["all"][0].moments == 0
    assert np.isnan(groups["all"][0].gain.mean)
