import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.examples import build_examples, first_encounters
from fedprofile.common.decay import Scale, decayed_sums
from fedprofile.common.histories import Histories

DAY = 86_400
N_ITEMS = 15
SCALES = (Scale("days", 2.0), Scale("days", 40.0), Scale("events", 3.0))
VECTORS = np.random.default_rng(0).normal(size=(N_ITEMS, 4)).astype(np.float32)

# A device is a list of sessions: days since the one before, and events (item, weight, type).
events = st.lists(
    st.tuples(st.integers(0, N_ITEMS - 1), st.floats(0.25, 4, width=32), st.integers(0, 2)),
    min_size=1,
    max_size=4,
)
devices = st.lists(st.tuples(st.integers(0, 5000), events), max_size=12)
populations = st.lists(devices, min_size=1, max_size=5)


def histories_of(population, together=3):
    rows, lengths = [], []
    for device in population:
        time, count = 10**9, 0
        for session, (pause, inside) in enumerate(device):
            time += pause * DAY
            for minute, (item, weight, kind) in enumerate(inside):
                rows.append((item, time + 60 * (minute // together), session, weight, kind))
                count += 1
            time = rows[-1][1]
        lengths.append(count)
    columns = list(zip(*rows, strict=True)) or [[]] * 5
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=np.array(columns[0], dtype=np.int32),
        times=np.array(columns[1], dtype=np.int64),
        sessions=np.array(columns[2], dtype=np.int32),
        weights=np.array(columns[3], dtype=np.float32),
        types=np.array(columns[4], dtype=np.int16),
    )


def moments_of(history):
    """A number for each event: events of one time and session have the same."""
    moments = sorted(set(zip(history.times.tolist(), history.sessions.tolist(), strict=True)))
    return [moments.index(m) for m in zip(history.times, history.sessions, strict=True)]


def build(histories, keys, *, window=6, new=False, seed=0):
    return build_examples(
        histories,
        np.asarray(keys, dtype=np.uint64),
        vectors=VECTORS,
        scales=SCALES,
        window=window,
        new_targets_only=new,
        seed=seed,
    )


def of_device(examples, device):
    """One device's examples as plain values."""
    w = slice(*examples.window_offsets[device : device + 2])
    q = slice(*examples.query_offsets[device : device + 2])
    t = slice(*examples.target_offsets[device : device + 2])
    return {
        "items": examples.window_items[w].tolist(),
        "gaps": examples.window_gaps[w],
        "types": examples.window_types[w].tolist(),
        "weights": examples.window_weights[w].tolist(),
        "positions": examples.query_positions[q].tolist(),
        "sums": examples.query_sums[q],
        "targets": list(
            zip(examples.target_queries[t].tolist(), examples.target_items[t].tolist(), strict=True)
        ),
        "known": sorted(set(examples.known[device].indices.tolist())),
    }


@settings(max_examples=150, deadline=None)
@given(populations, st.integers(2, 9), st.booleans(), st.integers(0, 2**40))
def test_examples_follow_the_definition(population, window, new, seed):
    histories = histories_of(population)
    examples = build(histories, np.arange(len(population)) + 7, window=window, new=new, seed=seed)
    for device, history in enumerate(histories):
        got = of_device(examples, device)
        items, moments = history.items.tolist(), moments_of(history)
        starts = [i for i in range(len(items)) if i == 0 or moments[i] != moments[i - 1]]
        assert got["known"] == sorted(set(items))
        if len(starts) < 2:
            assert got["items"] == got["positions"] == got["targets"] == []
            continue

        # The stretch ends before a moment: the last one where the past fits into the window, else
        # any that a full window precedes.
        gaps = np.log1p(np.diff(history.times, prepend=history.times[:1]) / DAY)
        stretches = []
        for end in [s for s in starts if s >= window] or starts[-1:]:
            begin = max(0, end - window)
            queries = [s for s in starts if max(1, begin) <= s <= end]
            if (
                items[begin:end] == got["items"]
                and history.types[begin:end].tolist() == got["types"]
                and history.weights[begin:end].tolist() == got["weights"]
                and np.allclose(gaps[begin:end], got["gaps"], atol=1e-6)
                and set(got["positions"]) <= {query - begin for query in queries}
            ):
                stretches.append((begin, queries))
        assert stretches
        if len(stretches) > 1:
            continue  # a history so uniform that its stretches can't be told apart
        begin, every = stretches[0]
        queries = [begin + position for position in got["positions"]]
        assert queries == sorted(set(queries))
        for place, query in enumerate(queries):
            past = history.where(np.arange(len(items)) < query)
            expected = decayed_sums(past, VECTORS, int(history.times[query]), SCALES)[0]
            np.testing.assert_allclose(got["sums"][place], expected, rtol=1e-4, atol=1e-5)

        # By the query's place in the history; a query that nothing is asked of isn't there.
        targets = [
            (query, items[row])
            for query in every
            for row in range(query, len(items))
            if moments[row] == moments[query] and not (new and items[row] in items[:row])
        ]
        asked = [(queries[place], item) for place, item in got["targets"]]
        assert len(asked) == min(window, len(targets))
        assert {query for query, _ in asked} == set(queries)
        left = iter(targets)
        assert all(target in left for target in asked)  # in order, none made up


@settings(max_examples=60, deadline=None)
@given(populations, st.booleans(), st.randoms(use_true_random=False), st.integers(0, 2**40))
def test_a_device_learns_the_same_in_any_company(population, new, random, seed):
    histories = histories_of(population)
    keys = np.array([random.getrandbits(64) for _ in population], dtype=np.uint64)
    order = random.sample(range(len(population)), k=random.randint(1, len(population)))
    whole = build(histories, keys, window=4, new=new, seed=seed)
    part = build(histories.take(np.array(order)), keys[order], window=4, new=new, seed=seed)
    for place, device in enumerate(order):
        here, there = of_device(part, place), of_device(whole, device)
        for name in here:
            np.testing.assert_array_equal(here[name], there[name], err_msg=name)


@settings(max_examples=60, deadline=None)
@given(populations, st.integers(0, 2**40))
def test_no_input_of_a_query_holds_its_moment_or_later(population, seed):
    histories = histories_of(population)
    keys = np.arange(len(population), dtype=np.uint64)
    # Items tell their place in the history: 0, 1, 2 … on every device.
    local = np.arange(histories.n_events) - np.repeat(histories.offsets[:-1], histories.lengths)
    named = Histories(**{**vars(histories), "items": local.astype(np.int32)})
    examples = build_examples(
        named,
        keys,
        vectors=np.eye(int(local.max(initial=0)) + 1, dtype=np.float32),
        scales=(Scale("events", 1e6),),
        window=4,
        new_targets_only=False,
        seed=seed,
    )
    for device in range(len(population)):
        got = of_device(examples, device)
        for query, target in got["targets"]:
            read = got["items"][: got["positions"][query]]
            summed = np.flatnonzero(got["sums"][query][0])
            moments = moments_of(histories.device(device))
            opening = moments.index(moments[target])
            assert max(read, default=-1) < opening
            assert read == list(range(opening - len(read), opening))
            np.testing.assert_array_equal(summed, np.arange(opening))


def test_a_long_history_is_seen_from_all_sides():
    sessions = [(1, [(item % N_ITEMS, 1.0, 0)]) for item in range(40)]
    histories = histories_of([sessions])
    ends = {int(build(histories, [1], window=4, seed=seed).window_items[-1]) for seed in range(400)}
    assert ends == set(range(N_ITEMS))


def test_order_inside_a_session_is_learned_from():
    session = [(item, 1.0, 0) for item in (4, 9, 2)]
    one_by_one = of_device(build(histories_of([[(1, session)]], together=1), [1]), 0)
    assert one_by_one["targets"] == [(0, 9), (1, 2)]
    assert one_by_one["positions"] == [1, 2]
    as_a_basket = of_device(build(histories_of([[(1, session)]], together=3), [1]), 0)
    assert as_a_basket["targets"] == []


def test_targets_beyond_the_limit_are_drawn_evenly():
    basket = [(item, 1.0, 0) for item in range(10)]
    histories = histories_of([[(0, [(14, 1.0, 0)]), (1, basket)]], together=len(basket))
    drawn = np.zeros(10)
    for seed in range(600):
        drawn[build(histories, [3], window=4, seed=seed).target_items] += 1
    # 600 draws of 4 in 10: 240 each, standard deviation 12.
    assert drawn.sum() == 2400
    assert np.abs(drawn - 240).max() < 60


def test_nobody_and_nothing():
    nobody = build(histories_of([]), [])
    assert len(nobody.window_offsets) == 1
    assert nobody.known.shape == (0, N_ITEMS)
    silent = build(histories_of([[], [(1, [(2, 1.0, 0)])], []]), [1, 2, 3])
    assert not len(silent.target_items)
    assert silent.target_offsets.tolist() == [0, 0, 0, 0]


def test_building_leaves_the_history_in_order():
    histories = histories_of([[(1, [(9, 1.0, 0), (3, 1.0, 0)]), (1, [(1, 1.0, 0)])]])
    build(histories, [1])
    assert histories.items.tolist() == [9, 3, 1]


def test_first_encounters():
    histories = histories_of([[(1, [(5, 1.0, 0), (5, 1.0, 0), (2, 1.0, 0)])], [(1, [(5, 1.0, 0)])]])
    assert first_encounters(histories).tolist() == [True, False, True, True]
