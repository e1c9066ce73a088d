import io

import pytest
from rich.console import Console

from fedprofile.client.answers import (
    InterestShift,
    ListChange,
    ProfileChange,
    RankShift,
    RecentEvent,
    RecordEventsResponse,
    VectorShift,
    WeightShift,
)
from fedprofile.client.change_text import show_change

PROFILE = ProfileChange(
    old_events=11,
    new_events=12,
    old_repeat_rate=0.33,
    new_repeat_rate=0.40,
    vector=VectorShift(10.0, 10.3, 2.2, 12.44),
    interests=(
        InterestShift("days", 60.0, VectorShift(0.0, 1.0, 1.0)),
        InterestShift("events", 2.0, VectorShift(2.0, 1.0, 1.2, 3.0)),
    ),
    tags=(
        WeightShift("[茶]", 0.0, 1.0),
        WeightShift("red", 1.0, 0.9),
        WeightShift("cup", 1, 0.999),
    ),
    other_tags=3,
    frequencies=(WeightShift("mug", 1.0, 2.0),),
    entered=(RecentEvent("mug", "view", 1_700_000_000, 1.0),),
)
LISTS = ListChange(
    top_k=4,
    entered=(RankShift("in-1", 23, 2, 1.0, 2.5),),
    left=(RankShift("mug", 2, None, 2.0, None), RankShift("out-1", 4, 1_234, 1.5, 0.5)),
    fell=(RankShift("[down]", 1, 3, 3.0, 2.25),),
    stayed=(RankShift("same", 4, 4, 1.0, 1.0),),
)


def shown(profile=PROFILE, lists=LISTS, **numbers):
    out = io.StringIO()
    answer = RecordEventsResponse(
        **{"recorded": 1} | numbers, profile_change=profile, list_change=lists
    )
    show_change(answer, Console(file=out, width=80, highlight=False))
    return out.getvalue()


def rows(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_owner_reads_what_moved():
    lines = rows(shown())
    for expected in (
        "Your profile turned by 12.4° and is 3.0% longer. It is made of 12 events now (11 before).",
        "60 days has its first direction",
        "2 events turned by 3.0° and is 50.0% shorter",
        "[茶] rose 1.00 (0.00)",
        "red fell 0.90 (1.00)",
        "4 tags moved by less.",
        "mug rose 2.00 (1.00)",
        "What isn't repeated fades with time.",
        "Of what you do, 40% repeats an earlier item, as far as can be told (33% before).",
        "The list of the 4 best items that you haven't met changed; 1 item is where it was.",
        "in in-1 2 (23) 2.5 (1)",
        "down [down] 3 (1) 2.25 (3)",
        "out mug – (2) – (2)",
        "out out-1 1,234 (4) 0.5 (1.5)",
        "mug is out because you have met it now.",
    ):
        assert expected in lines, expected
    assert not any("cup" in line for line in lines)


def test_changes_that_two_digits_do_not_show_are_counted():
    faint = ProfileChange(1, 2, 0.5, 0.5, VectorShift(0.0, 0.0, 0.0), tags=PROFILE.tags[2:])
    text = shown(profile=faint)
    assert "Your profile has no direction. It is made of 2 events now (1 before)." in text
    assert "1 tag moved by less than 0.01." in text
    assert "item, how often" not in text


def test_an_event_of_long_ago_is_said_to_be_one():
    assert "too old to be among the recent events" not in shown()
    left = (RecentEvent("old", "view", 1_700_000_000, 1.0),)
    late = ProfileChange(1, 2, 0.5, 0.5, VectorShift(1.0, 1.0, 0.0, 0.0), left=left)
    text = shown(profile=late)
    assert "too old to be among the recent events" in text
    assert "old of 2023-11-14 is no longer among the recent events" in text
    assert "turned by 0.0°. It is made" in text


def test_a_list_that_keeps_its_order_is_said_to():
    text = shown(lists=ListChange(4, stayed=LISTS.stayed))
    assert "The list of the 4 best items that you haven't met has the order it had." in text


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"recorded": 0, "repeated": 1}, "this was recorded before"),
        ({"recorded": 1, "unlearned": 1}, "this teaches the model nothing"),
    ],
)
def test_that_nothing_changed_is_said(numbers, reason):
    text = shown(lists=ListChange(4, stayed=LISTS.stayed), **numbers)
    assert text.count("\n") == 1
    assert f"Nothing changed: {reason}, so your profile and your list stay as they were." in text


def test_a_list_that_changed_although_nothing_was_learned_is_shown():
    lists = ListChange(4, left=(RankShift("[no]", 2, None, 2.0, None),), stayed=LISTS.stayed)
    text = shown(lists=lists, recorded=1, unlearned=1)
    assert "Your profile stays as it was: this teaches the model nothing." in text
    assert "[no] is out because you turned it down." in text
    assert "turned by" not in text


def test_that_there_is_no_model_is_said():
    text = shown(profile=None, lists=None, unlearned=1)
    assert "There is no usable model to make a profile and a list with" in text
