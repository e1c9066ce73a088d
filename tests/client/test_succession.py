import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.profile import build
from fedprofile.client.reasons import why
from fedprofile.client.scoring import above_threshold, score, score_matrix, top_k
from fedprofile.client.serving import serving_table
from fedprofile.client.succession import mixed, next_chances, next_matrix, tells_next
from fedprofile.common.decay import Scale
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable
from fedprofile.common.successors import Successors

N_ITEMS = 6
SCALES = (Scale("events", 3.0),)
FOLLOWS = Successors.of(
    np.array([0, 0, 1, 2]), np.array([3, 4, 5, 0]), np.array([0.5, 0.25, 0.75, 0.125])
)
PRIOR = np.log(np.float32([0.3, 0.25, 0.2, 0.15, 0.06, 0.04]))


def table(successors=FOLLOWS, whole=False):
    vectors = np.abs(np.random.default_rng(3).normal(size=(N_ITEMS, 4))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = tuple(f"商品{i}" for i in range(N_ITEMS))
    public = ItemTable(vectors, names, ((),) * N_ITEMS, {"text": (0, 4)}, successors, whole)
    return public, serving_table(public, prior=PRIOR, ids=None)


def histories(*users):
    """Each user is a list of (item, time)."""
    events = [event for user in users for event in user]
    items, times = zip(*events, strict=True) if events else ((), ())
    return Histories(
        offsets=np.cumsum([0, *map(len, users)]),
        items=np.array(items, dtype=np.int32),
        times=np.array(times, dtype=np.int64),
        sessions=np.zeros(len(items), dtype=np.int32),
        weights=np.ones(len(items), dtype=np.float32),
        types=np.zeros(len(items), dtype=np.int16),
    )


def profile_of(user, window=32):
    public, _ = table()
    # U has a 1 for popularity, as an encoder's has.
    return build(
        histories(user),
        table=public,
        scales=SCALES,
        window_size=window,
        encode=lambda p: np.append(6 * p.sums.sum(axis=0), 1).astype(np.float32),
    )


def test_the_last_event_counts_most():
    public, _ = table()
    chances = next_chances(profile_of([(1, 10), (0, 20)]), public)
    # Weights 2^(−1/1.5) and 1, made to add up to 1.
    older = 2 ** (-1 / 1.5) / (1 + 2 ** (-1 / 1.5))
    newer = 1 - older
    expected = [0, 0, 0, newer * 0.5, newer * 0.25, older * 0.75]
    np.testing.assert_allclose(chances, expected, rtol=1e-6)


def test_a_basket_has_no_order():
    public, _ = table()
    chances = next_chances(profile_of([(1, 20), (0, 20)]), public)
    np.testing.assert_allclose(chances, [0, 0, 0, 0.25, 0.125, 0.375], rtol=1e-6)


def test_of_whole_histories_all_that_is_held_counts_by_how_often_and_how_lately():
    public, _ = table(whole=True)
    day, year = 86_400, 365
    user = [(0, 0), (1, 0), (1, 180 * day), (5, year * day), (5, year * day)]
    chances = next_chances(profile_of(user, window=2), public)
    weights = {0: 2 ** (-year / 180), 1: 2 ** (-year / 180) + 2 ** (-(year - 180) / 180), 5: 2.0}
    shares = {item: weight / sum(weights.values()) for item, weight in weights.items()}
    expected = [0, 0, 0, 0.5 * shares[0], 0.25 * shares[0], 0.75 * shares[1]]
    np.testing.assert_allclose(chances, expected, rtol=1e-5)


def test_scores_are_those_of_the_mixture():
    profile = profile_of([(5, 5), (0, 20)])
    _, without = table(None)
    _, served = table()
    plain = score(profile, without).astype(np.float64)
    chances = next_chances(profile, served).astype(np.float64)
    softmax = np.exp(plain) / np.exp(plain).sum()
    expected = np.log(chances + (1 - chances.sum()) * softmax) + np.log(np.exp(plain).sum())
    found = score(profile, served)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # What comes next is a chance, so all of them add up to what they did.
    assert np.exp(found).sum() == pytest.approx(np.exp(plain).sum(), rel=1e-5)
    some = np.int32([4, 3])
    np.testing.assert_array_equal(score(profile, served, some), found[some])


def test_what_follows_moves_up_and_where_nothing_does_all_stays():
    _, without = table(None)
    _, served = table()
    followed = profile_of([(0, 20)])
    before = top_k(followed, without, 5).items.tolist()
    after = top_k(followed, served, 5).items.tolist()
    assert after.index(3) < before.index(3) or before[0] == 3
    assert after[0] == 3
    again = top_k(followed, served, 6, include_seen=True)
    assert sorted(again.items.tolist()) == list(range(6))
    assert above_threshold(followed, served, float(score(followed, served)[3])).items[0] == 3
    alone = profile_of([(5, 20)])
    np.testing.assert_array_equal(score(alone, served), score(alone, without))
    nothing = table(Successors.none())[1]
    np.testing.assert_array_equal(score(followed, nothing), score(followed, without))
    trained = serving_table(table()[0], prior=PRIOR, ids=np.zeros((N_ITEMS, 2), np.float32))
    assert not tells_next(trained)
    assert tells_next(served)
    empty = profile_of([])
    np.testing.assert_array_equal(score(empty, served), score(empty, without))


users = st.lists(
    st.lists(st.tuples(st.integers(0, N_ITEMS - 1), st.integers(0, 9)), max_size=25).map(
        lambda user: sorted(user, key=lambda event: event[1])
    ),
    min_size=1,
    max_size=4,
)


def test_no_order_of_a_basket_changes_what_comes_next():
    public, _ = table()
    basket = [(item, 20) for item in (0, 1, 2, 3, 4, 5) * 4]
    one = next_chances(profile_of([(1, 5), *basket]), public)
    other = next_chances(profile_of([(1, 5), *basket[::-1]]), public)
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_few_candidates_are_ranked_by_scores_that_are_known():
    _, served = table()
    profile = profile_of([(0, 20)])
    known = score(profile, served)
    some = np.int32([5, 3, 1])
    for seen in (False, True):
        options = {"candidates": some, "include_seen": seen}
        told = top_k(profile, served, 3, scores=known, **options)
        found = top_k(profile, served, 3, **options)
        assert told.ids == found.ids
        np.testing.assert_array_equal(told.scores, found.scores)
    np.testing.assert_array_equal(known, score(profile, served))


@settings(deadline=None)
@given(users, st.sampled_from([2, 5, 32]), st.booleans())
def test_a_simulated_user_is_ranked_as_a_device_ranks(population, window, whole):
    public, served = table(whole=whole)
    profiles = [profile_of(user, window) for user in population]
    log = histories(*population)
    for row, profile in enumerate(profiles):
        np.testing.assert_allclose(
            next_matrix(public, log, window=window)[row], next_chances(profile, public), atol=1e-6
        )
    vectors = np.stack([profile.vector for profile in profiles])
    matrix = score_matrix(vectors, log, served, window=window)
    for row, profile in enumerate(profiles):
        np.testing.assert_allclose(matrix[row], score(profile, served), rtol=1e-4, atol=1e-4)


def test_scores_that_differ_beyond_floats_stay_finite():
    logits = np.float32([[0, -500, -3e4, 80]])
    chances = np.float32([[0, 0.5, 0, 0.25]])
    found = mixed(logits, chances)
    assert np.isfinite(found).all()
    assert found[0, 1] == pytest.approx(80 + np.log(0.5), rel=1e-5)
    assert found[0, 2] == pytest.approx(-3e4, rel=1e-4)


def test_reasons_name_what_an_item_follows_on_and_what_it_is_most_like():
    public, served = table()
    profile = profile_of([(1, 10), (2, 15), (0, 20)])
    reasons = why(profile, public, 3, served=served)
    ((event, part),) = reasons.follows
    assert (event.item, event.time) == (0, 20)
    assert part == pytest.approx(float(next_chances(profile, served)[3]), rel=1e-6)
    item, cosine = reasons.nearest
    likeness = public.vectors[[0, 1, 2]] @ public.vectors[3]
    assert item == likeness.argmax()
    assert cosine == pytest.approx(float(likeness.max()), rel=1e-5)
    for one in range(N_ITEMS):
        total = sum(part for _, part in why(profile, public, one, served=served, top=9).follows)
        assert total == pytest.approx(float(next_chances(profile, served)[one]), abs=1e-7)
    # An item held isn't like itself, and a table that tells nothing gives no reasons of the kind.
    assert why(profile, public, 0, served=served).nearest[0] in (1, 2)
    assert why(profile, public, 3, served=table(None)[1]).follows == ()


def test_reasons_name_what_is_held_that_an_item_goes_with():
    goes_with = Successors.of(
        np.array([0, 1, 2, 4, 5]), np.array([3, 3, 3, 3, 3]), np.array([0.1, 0.4, 0.25, 0.3, 0.01])
    )
    public, served = table(goes_with, whole=True)
    profile = profile_of([(1, 10), (2, 15), (0, 20), (0, 30), (5, 40)], window=2)
    reasons = why(profile, public, 3, served=served, top=2)
    assert reasons.follows == ()
    assert [item for item, _ in reasons.together] == [1, 2]
    everything = why(profile, public, 3, served=served, top=9).together
    # Next to nothing of it is that of the last one, which goes a little with anything.
    chance = float(next_chances(profile, served)[3])
    assert sum(part for _, part in everything) == pytest.approx(chance - 0.01 / 5, rel=1e-3)
    assert {item for item, _ in everything} == {0, 1, 2}
    assert why(profile, public, 5, served=served).together == ()
    # Where it is told what follows what, held items alone speak for nothing.
    assert why(profile, public, 3, served=table(goes_with)[1]).together == ()
