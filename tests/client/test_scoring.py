from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedprofile.client.habits import repeat_weights
from fedprofile.client.profile import build, empty_profile
from fedprofile.client.reasons import Reasons, why
from fedprofile.client.scoring import (
    above_threshold,
    mix_repeats,
    score,
    score_matrix,
    top_k,
)
from fedprofile.client.serving import serving_table
from fedprofile.common.decay import Scale
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable

DAY = 86_400
SCALES = (Scale("days", 2.0), Scale("events", 3.0))
N_ITEMS = 40


def make_table(vectors):
    tags = tuple((("cup", "red"), ("茶",), ())[item % 3] for item in range(len(vectors)))
    return ItemTable(vectors, tuple(f"商品{item}" for item in range(len(vectors))), tags)


TABLE = make_table(np.random.default_rng(1).standard_normal((N_ITEMS, 6)).astype(np.float32))


def make_histories(lengths, seed=0):
    generator = np.random.default_rng(seed)
    n = sum(lengths)
    times = [np.sort(generator.integers(0, 300, length)) * DAY for length in lengths]
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=generator.integers(0, 15, n).astype(np.int32),
        times=np.concatenate(times).astype(np.int64),
        sessions=np.zeros(n, dtype=np.int32),
        weights=generator.choice([0.5, 1.0, 3.0], n).astype(np.float32),
        types=np.zeros(n, dtype=np.int16),
    )


def make_profile(length=20, table=TABLE):
    return build(make_histories([length]), table=table, scales=SCALES, window_size=50)


def test_scores_are_inner_products():
    profile = make_profile()
    candidates = np.array([7, 3, 3, 39], dtype=np.int32)
    expected = TABLE.vectors[candidates].astype(float) @ profile.vector.astype(float)
    np.testing.assert_allclose(score(profile, TABLE, candidates), expected, rtol=1e-4)
    assert score(profile, TABLE).shape == (N_ITEMS,)
    assert score(profile, TABLE).dtype == np.float32


def test_seen_items_are_left_out_unless_asked_for():
    profile = make_profile()
    fresh = top_k(profile, TABLE, N_ITEMS)
    assert not set(fresh.items) & set(profile.items)
    assert len(fresh.items) == N_ITEMS - len(profile.items)
    everything = top_k(profile, TABLE, N_ITEMS, include_seen=True)
    assert sorted(everything.items) == list(range(N_ITEMS))
    assert everything.scores.sum() == pytest.approx(1, abs=1e-5)
    assert everything.ids[0] == TABLE.ids[everything.items[0]]


@pytest.mark.parametrize("strength", [0.0, 0.1, 1.0, 5.0])
def test_the_mixture_follows_its_formula(strength):
    profile = make_profile()
    profile = replace(profile, vector=np.float32(strength) * profile.vector)
    ranking = top_k(profile, TABLE, N_ITEMS, include_seen=True)
    weights = np.exp(0.8 * (TABLE.vectors.astype(float) @ profile.vector.astype(float)))
    rho = profile.repeat_rate
    held = np.isin(np.arange(N_ITEMS), profile.items)
    odds = weights[held].sum() / weights[~held].sum()
    weights[held] *= min(1, 2 * rho / (1 - rho) / odds)
    expected = (1 - rho) * weights / weights.sum()
    expected[profile.items] += rho * profile.frequencies / profile.frequencies.sum()
    np.testing.assert_allclose(ranking.scores, expected[ranking.items], rtol=1e-4)
    assert ranking.items.tolist() == np.lexsort((np.arange(N_ITEMS), -expected)).tolist()


def test_who_never_repeats_is_shown_new_items_first():
    """What is held is most like itself, and would fill the list."""
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((200, 6)).astype(np.float32)
    table = make_table(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    items = rng.permutation(200)[:60].astype(np.int32)
    offsets, days = np.array([0, 60]), np.arange(60, dtype=np.int64) * DAY
    plain = (np.arange(60, dtype=np.int32), np.ones(60, np.float32), np.zeros(60, np.int16))
    explorer = Histories(offsets, items, days, *plain)
    repeater = Histories(offsets, np.resize(items[:6], 60), days, *plain)
    for history, held in ((explorer, False), (repeater, True)):
        profile = build(history, table=table, scales=SCALES, window_size=50)
        first = top_k(profile, table, 5, include_seen=True).items
        assert np.isin(first, profile.items).tolist() == [held] * 5


def test_how_often_and_not_how_much_at_a_time_tells_what_is_taken_again():
    items, days = np.array([1, 1, 1, 2], np.int32), np.arange(4) * DAY
    weights, offsets = np.array([0.5, 0.5, 0.5, 9], np.float32), np.array([0, 4])
    order = (days, np.arange(4, dtype=np.int32), weights, np.zeros(4, np.int16))
    history = Histories(offsets, items, *order)
    [mixed] = mix_repeats(np.zeros((1, N_ITEMS), np.float32), history, TABLE, window=50)
    assert mixed[1] > 1.8 * mixed[2]
    profile = build(history, table=TABLE, scales=SCALES, window_size=50)
    ages = np.array([3, 2, 1, 0])
    expected = np.bincount([0, 0, 0, 1], 2 ** (-ages / 180))
    np.testing.assert_allclose(profile.frequencies, expected, rtol=1e-6)


def test_candidates_that_are_all_held_share_all():
    profile = make_profile()
    mixed = top_k(profile, TABLE, 99, candidates=profile.items, include_seen=True)
    assert len(mixed.items) == len(profile.items)
    assert mixed.scores.sum() == pytest.approx(1, abs=1e-5)


def test_repeats_are_what_habits_make_of_them():
    shares = np.random.default_rng(2).dirichlet(np.ones(N_ITEMS)).astype(np.float32)
    served = serving_table(TABLE, prior=np.log(shares), ids=None)
    histories = make_histories([30, 12])
    logits = np.zeros((2, N_ITEMS), np.float32)
    mixed = mix_repeats(logits, histories, served, window=50)
    for user, history in enumerate(histories):
        profile = build(history, table=TABLE, scales=SCALES, window_size=50)
        profile = replace(profile, vector=np.zeros(served.dimension, np.float32))
        repeated = repeat_weights(
            profile.frequencies,
            np.log(shares[profile.items]),
            recent=np.searchsorted(profile.items, [event.item for event in profile.window]),
            times=np.array([event.time for event in profile.window]),
            earlier=profile.before_window,
            habits=profile.habits,
        )
        expected = np.full(N_ITEMS, (1 - profile.repeat_rate) / N_ITEMS)
        expected[profile.items] += profile.repeat_rate * repeated / repeated.sum()
        np.testing.assert_allclose(mixed[user], expected, rtol=1e-4)
        one = top_k(profile, served, N_ITEMS, include_seen=True)
        np.testing.assert_allclose(one.scores, expected[one.items], rtol=1e-4)
        some = np.concatenate([profile.items[:3], [0, 1]]).astype(np.int32)
        among = top_k(profile, served, 5, candidates=some, include_seen=True)
        assert among.scores.sum() == pytest.approx(1, abs=1e-5)


def test_among_unseen_candidates_nothing_is_repeated():
    profile = make_profile()
    unseen = np.setdiff1d(np.arange(N_ITEMS, dtype=np.int32), profile.items)
    mixed = top_k(profile, TABLE, 99, candidates=unseen, include_seen=True)
    assert mixed.scores.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(mixed.items, top_k(profile, TABLE, 99).items)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (30, 2), elements=st.sampled_from([-1.0, 0.0, 1.0])),
    st.integers(1, 35),
)
def test_ties_go_to_the_lower_index(vectors, k):
    table = make_table(vectors)
    profile = build(make_histories([8]), table=table, scales=SCALES, window_size=50)
    scores = score(profile, table)
    allowed = np.setdiff1d(np.arange(30), profile.items)
    expected = sorted(allowed, key=lambda item: (-scores[item], item))[:k]
    assert top_k(profile, table, k).items.tolist() == expected


@pytest.mark.parametrize("k", [1, 7, 15, 16, 63, 64, 1_000, 1_001])
@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_a_long_catalogue_is_cut_like_a_short_one(k, levels):
    """Large enough for blocks; few levels are many ties, one of them at every block's end."""
    rng = np.random.default_rng(k)
    vectors = rng.integers(levels, size=(1_001, 1)).astype(np.float32)
    table = make_table(vectors)
    profile = replace(empty_profile(table, scales=SCALES, window_size=2), vector=np.ones(1, "f4"))
    expected = sorted(range(1_001), key=lambda item: (-vectors[item, 0], item))[:k]
    assert top_k(profile, table, k).items.tolist() == expected


@pytest.mark.parametrize("include_seen", [False, True])
def test_scores_that_are_known_make_the_same_list_and_stay(include_seen):
    profile = make_profile()
    scores = score(profile, TABLE)
    kept = scores.copy()
    for rank, limit in ((top_k, 6), (above_threshold, 0.01)):
        fresh = rank(profile, TABLE, limit, include_seen=include_seen)
        known = rank(profile, TABLE, limit, include_seen=include_seen, scores=scores)
        np.testing.assert_array_equal(known.items, fresh.items)
        np.testing.assert_allclose(known.scores, fresh.scores, rtol=1e-5)
        np.testing.assert_array_equal(scores, kept)


def test_scores_that_are_no_numbers_make_no_list():
    table = make_table(np.ones((1_001, 1), np.float32))
    profile = empty_profile(table, scales=SCALES, window_size=2)
    profile = replace(profile, vector=np.full(1, np.nan, np.float32))
    assert top_k(profile, table, 7).ids == ()


def test_candidates_are_ranked_once_each():
    profile = empty_profile(TABLE, scales=SCALES, window_size=5)
    ranking = top_k(profile, TABLE, 5, candidates=np.array([9, 2, 9], dtype=np.int32))
    assert ranking.items.tolist() == [2, 9]
    assert ranking.ids == ("商品2", "商品9")
    assert ranking.items.dtype == np.int32
    assert ranking.scores.dtype == np.float32


@pytest.mark.parametrize("include_seen", [False, True])
def test_the_threshold_cuts_the_same_ranking(include_seen):
    profile = make_profile()
    whole = top_k(profile, TABLE, N_ITEMS, include_seen=include_seen)
    threshold = float(whole.scores[4])
    cut = above_threshold(profile, TABLE, threshold, include_seen=include_seen)
    assert cut.items.tolist() == whole.items[:5].tolist()
    assert len(above_threshold(profile, TABLE, 1e9).items) == 0
    assert cut.first(2).ids == whole.ids[:2]


@pytest.mark.parametrize("include_seen", [False, True])
def test_no_candidates_no_ranking(include_seen):
    nothing = np.zeros(0, dtype=np.int32)
    ranking = top_k(make_profile(), TABLE, 3, candidates=nothing, include_seen=include_seen)
    assert ranking.ids == ()


def test_many_users_score_as_one_does():
    histories = make_histories([20, 0, 1, 35, 7])
    profiles = [build(h, table=TABLE, scales=SCALES, window_size=50) for h in histories]
    logits = score_matrix(np.stack([p.vector for p in profiles]), histories, TABLE, window=8)
    mixed = mix_repeats(logits, histories, TABLE, window=50)
    np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-5)
    for user, profile in enumerate(profiles):
        np.testing.assert_allclose(logits[user], score(profile, TABLE), rtol=1e-4, atol=1e-5)
        one = top_k(profile, TABLE, N_ITEMS, include_seen=True)
        np.testing.assert_allclose(mixed[user][one.items], one.scores, rtol=1e-4)


@pytest.mark.parametrize("began", [0, -4_000])
def test_repeats_of_many_users_are_those_of_each(began):
    """With histories longer than the window, popularity, and times before 1970."""
    shares = np.random.default_rng(2).dirichlet(np.full(N_ITEMS, 0.3)).astype(np.float32)
    served = serving_table(TABLE, prior=np.log(np.maximum(shares, 1e-6)), ids=None)
    histories = make_histories([20, 0, 1, 90, 60], seed=5)
    histories = replace(histories, times=histories.times + began * DAY)
    logits = np.zeros((5, N_ITEMS), np.float32)
    mixed = mix_repeats(logits, histories, served, window=6, habits=Scale("days", 40.0))
    for user, history in enumerate(histories):
        settings = {"scales": SCALES, "habits": Scale("days", 40.0)}
        profile = build(history, table=TABLE, window_size=6, **settings)
        profile = replace(profile, vector=np.zeros(served.dimension, np.float32))
        one = top_k(profile, served, N_ITEMS, include_seen=True)
        np.testing.assert_allclose(mixed[user][one.items], one.scores, rtol=1e-3)


def test_mixing_leaves_the_logits_alone():
    logits = np.zeros((1, N_ITEMS), np.float32)
    mix_repeats(logits, make_histories([5]), TABLE, window=50)
    assert not logits.any()


def test_large_scores_stay_finite():
    logits = np.full((1, N_ITEMS), 1e4, np.float32)
    logits[0, 3] = -1e4
    assert np.isfinite(mix_repeats(logits, make_histories([5]), TABLE, window=50)).all()


def test_the_parts_of_the_events_add_up_to_the_cosine():
    # Nothing speaks against an item where all numbers are positive, so no part is left out.
    table = make_table(np.abs(TABLE.vectors))
    profile = make_profile(length=12, table=table)
    for item, vector in enumerate(table.vectors):
        cosines = profile.sums @ vector / np.linalg.norm(vector)
        expected = float((cosines / np.linalg.norm(profile.sums, axis=1)).mean())
        parts = [part for _, part in why(profile, table, item, top=99).events]
        assert sum(parts) == pytest.approx(expected, rel=1e-4)
        assert parts == sorted(parts, reverse=True)


def test_reasons_name_the_like_event_and_the_shared_tag():
    vectors = np.eye(6, dtype=np.float32)
    vectors[4] = vectors[0]
    table = ItemTable(vectors, tuple("abcdef"), (("cup", "tea"), (), ("x",), (), ("tea",), ()))
    history = Histories(
        offsets=np.array([0, 3], dtype=np.int64),
        items=np.array([1, 0, 2], dtype=np.int32),
        times=np.array([0, DAY, 2 * DAY], dtype=np.int64),
        sessions=np.arange(3, dtype=np.int32),
        weights=np.ones(3, dtype=np.float32),
        types=np.zeros(3, dtype=np.int16),
    )
    profile = build(history, table=table, scales=SCALES, window_size=5)
    reasons = why(profile, table, 4)
    ((event, part),) = reasons.events
    assert event.item == 0
    cosine = (profile.sums @ vectors[4] / np.linalg.norm(profile.sums, axis=1)).mean()
    assert part == pytest.approx(float(cosine), rel=1e-5)
    ((tag, share),) = reasons.tags
    assert tag == "tea"
    assert 0 < share < 0.5
    assert why(profile, table, 3) == Reasons()


def test_what_was_done_again_and_again_is_told_once():
    table = ItemTable(np.eye(3, dtype=np.float32), tuple("abc"), ((),) * 3, {"text": (0, 3)})
    times = np.arange(5, dtype=np.int64) * DAY
    history = Histories(
        offsets=np.array([0, 5], dtype=np.int64),
        items=np.array([1, 0, 0, 0, 0], dtype=np.int32),
        times=times,
        sessions=np.arange(5, dtype=np.int32),
        weights=np.ones(5, dtype=np.float32),
        types=np.array([0, 0, 1, 0, 0], dtype=np.int16),
    )
    profile = build(history, table=table, scales=SCALES, window_size=9)
    events = why(profile, table, 0).events
    assert [(event.item, event.type, event.time) for event, _ in events] == [
        (0, 0, 4 * DAY),
        (0, 1, 2 * DAY),
    ]
    cosine = (profile.sums[:, 0] / np.linalg.norm(profile.sums, axis=1)).mean()
    assert sum(part for _, part in events) == pytest.approx(float(cosine), rel=1e-5)


def test_nothing_known_nothing_explained():
    reasons = why(empty_profile(TABLE, scales=SCALES, window_size=5), TABLE, 0)
    assert reasons == Reasons()


def test_bad_questions_are_refused():
    profile = make_profile()
    with pytest.raises(ConfigError, match="k = 0"):
        top_k(profile, TABLE, 0)
    with pytest.raises(DataError, match="candidate 40 is not in the table of 40 items"):
        top_k(profile, TABLE, 3, candidates=np.array([40], dtype=np.int32))
    with pytest.raises(DataError, match="candidate -1"):
        score(profile, TABLE, np.array([-1], dtype=np.int32))
    with pytest.raises(DataError, match="candidate 40"):
        why(profile, TABLE, 40)
    longer = TABLE.with_block("popularity", np.ones((N_ITEMS, 1), np.float32))
    with pytest.raises(DataError, match="profile vector has 6 numbers, item vectors 7"):
        score(profile, longer)
