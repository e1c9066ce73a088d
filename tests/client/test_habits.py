import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.client.habits import POWERS, repeat_weights
from fedprofile.common.decay import Scale

DAY = 86_400
HABITS = Scale("days", 180.0)


def told(events, popularity, *, window=32):
    """The same, event by event: what each model said of a repeat before it came."""
    evidence = np.zeros(len(POWERS))
    first, newest = max(len(events) - window, 0), events[-1][1]
    # A moment is asked whole or not at all.
    cut = events[first - 1][1] if first else None
    for place, (item, day) in enumerate(events):
        before = {}
        for other, then in events:
            if then < day:
                before[other] = before.get(other, 0.0) + 2 ** ((then - day) / HABITS.half_life)
        if place < first or day == cut or before.get(item, 0.0) <= 2**-6:
            continue
        if newest - day >= 8 * HABITS.half_life:
            continue
        for a, power in enumerate(POWERS):
            strengths = {j: f * math.exp(power * popularity[j]) for j, f in before.items()}
            evidence[a] += math.log(strengths[item] / sum(strengths.values()))
    held = defaultdict(float)
    for item, day in events:
        held[item] += 2 ** ((day - newest) / HABITS.half_life)
    chances = np.exp(evidence - evidence.max())
    chances /= chances.sum()
    found = np.zeros(len(popularity))
    for chance, power in zip(chances, POWERS, strict=True):
        strengths = {j: f * math.exp(power * popularity[j]) for j, f in held.items()}
        for item, strength in strengths.items():
            found[item] += chance * strength / sum(strengths.values())
    return found


def weights_of(events, popularity, *, window=32):
    """What :func:`repeat_weights` makes of (item, day) events, of all items, adding up to 1."""
    items, days = (np.array(column) for column in zip(*events, strict=True))
    held, place = np.unique(items, return_inverse=True)
    faded = 2.0 ** ((days - days[-1]) / HABITS.half_life)
    found = np.zeros(len(popularity))
    found[held] = repeat_weights(
        np.bincount(place, faded).astype(np.float32),
        np.array(popularity, dtype=np.float32)[held],
        recent=place[-window:],
        times=days[-window:] * DAY,
        earlier=int(days[-window - 1]) * DAY if len(days) > window else None,
        habits=HABITS,
    )
    return found / found.sum()


@st.composite
def histories(draw, longest=400):
    days = sorted(draw(st.lists(st.integers(0, longest), min_size=1, max_size=60)))
    return [(draw(st.integers(0, 5)), day) for day in days]


POPULARITIES = st.lists(st.floats(-9, 0), min_size=6, max_size=6)


@given(events=histories(), popularity=POPULARITIES, window=st.integers(1, 40))
def test_each_model_counts_by_what_it_foretold(events, popularity, window):
    found = weights_of(events, popularity, window=window)
    expected = told(events, popularity, window=window)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@given(events=histories(longest=4_000), popularity=POPULARITIES)
def test_what_is_long_ago_tells_nothing(events, popularity):
    found, expected = weights_of(events, popularity), told(events, popularity)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-5)


def test_a_first_basket_repeats_nothing_however_many_lines_it_has():
    """Of eighty lines the window holds the second half, which has every item again."""
    popularity = -np.arange(40) / 8
    basket = [(line % 40, 3) for line in range(80)]
    found = weights_of(basket, popularity, window=40)
    np.testing.assert_allclose(found, told(basket, popularity, window=40), rtol=1e-5)
    even = np.mean([np.exp(a * popularity) / np.exp(a * popularity).sum() for a in POWERS], axis=0)
    np.testing.assert_allclose(found, even, rtol=1e-5)


def test_of_a_long_window_the_last_events_are_asked():
    """What was repeated early says otherwise than what is repeated now."""
    popularity = [0.0, -0.3, -0.3]
    early = [(day % 4 and day % 2, day) for day in range(100)]
    late = [(1 + day % 2, 100 + day) for day in range(70)]
    found = weights_of(early + late, popularity, window=170)
    np.testing.assert_allclose(found, told(early + late, popularity, window=64), rtol=1e-4)
    assert not np.allclose(found, told(early + late, popularity, window=170), rtol=1e-3)


def test_what_is_popular_and_came_later_leaves_no_rounding_behind():
    events, popularity = [(1, 0), (1, 1), (0, 2)], [0.0, -90.0]
    np.testing.assert_allclose(
        weights_of(events, popularity), told(events, popularity), rtol=1e-4, atol=1e-9
    )


def test_what_nobody_takes_any_more_leaves_numbers():
    found = weights_of([(0, 0), (1, 0), (1, 5)], [0.0, -math.inf])
    assert np.isfinite(found).all()


def test_staples_are_taken_whatever_others_take():
    """Item 0 is popular and was tried once, item 1 is not and is taken every week."""
    popularity = [0.0, -6.0]
    staples = [(0, 0), *((1, 7 * week) for week in range(1, 21))]
    staple = weights_of(staples, popularity)[1]
    assert staple == pytest.approx(20 / 21, abs=0.02)
    lukewarm = 20 * math.exp(-6 / 4) / (1 + 20 * math.exp(-6 / 4))
    assert staple > lukewarm + 0.1


def test_what_is_around_is_taken_while_it_is():
    """Of items held equally often only the popular ones come again."""
    popularity = [0.0, 0.0, *[-6.0] * 8]
    tried = [(item, 0) for item in range(10)]
    fashion = [*tried, *((week % 2, 7 * week) for week in range(1, 11))]
    once = 2 ** (-70 / 180)
    equally = 2 * (5 * 1.0 + once) / (2 * (5 * 1.0 + once) + 8 * once)
    assert weights_of(fashion, popularity)[:2].sum() > equally + 0.08


def test_before_anything_is_repeated_all_models_count_alike():
    popularity = np.array([0.0, -4.0])
    expected = np.mean(
        [np.exp(a * popularity) / np.exp(a * popularity).sum() for a in POWERS], axis=0
    )
    np.testing.assert_allclose(weights_of([(0, 3), (1, 3)], popularity), expected, rtol=1e-5)


def test_without_popularity_frequencies_are_all():
    found = weights_of([(0, 0), (1, 0), (1, 180), (1, 360)], [0.0, 0.0])
    np.testing.assert_allclose(found, np.array([0.25, 1.75]) / 2.0, rtol=1e-5)


def test_who_holds_nothing_takes_nothing_again():
    nothing = np.zeros(0, dtype=np.float32)
    places = np.zeros(0, dtype=np.int64)
    found = repeat_weights(
        nothing, nothing, recent=places, times=places, earlier=None, habits=HABITS
    )
    assert found.shape == (0,)


def test_ages_of_many_years_stay_finite():
    events = [(0, 0), (1, 1), (0, 20_000), (1, 20_001), (0, 20_002)]
    found = weights_of(events, [0.0, -3.0])
    assert np.isfinite(found).all()
    assert (found > 0).all()
