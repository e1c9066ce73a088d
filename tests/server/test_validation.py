"""What a round makes of replies: the valid ones are summed, the others counted by reason."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.messages import Binding, PopularityTask, popularity_message, update_reply
from fedprofile.common.updates import ClippedUpdate
from fedprofile.server.validation import add_up

BINDING = Binding(run="r", round=1, release=4, items="i")
SHAPES = {"a": (2, 2), "b": (3,)}
CLIP = 1.0

pytestmark = pytest.mark.usefixtures("grid_of_nobody")


def asking(node, binding=BINDING):
    task = PopularityTask(
        binding=binding,
        devices=np.arange(1),
        clip_norm=CLIP,
        noise_multiplier=1.0,
        half_lives_days=(),
        now=0,
    )
    return popularity_message(node, task)


def update(devices=1, value=0.1, clip_norm=CLIP):
    arrays = {name: np.full(shape, value, dtype=np.float32) for name, shape in SHAPES.items()}
    return ClippedUpdate(arrays, devices=devices, clip_norm=clip_norm)


def reply(node, binding=BINDING, **values):
    return update_reply(asking(node), binding, update(**values))


def tally(replies, asked):
    return add_up(replies, asked=asked, binding=BINDING, shapes=SHAPES, clip_norm=CLIP)


def test_valid_replies_are_added_up():
    found = tally([reply(4, devices=3, value=0.2), reply(7, value=-0.05)], {7: 1, 4: 3})
    np.testing.assert_allclose(found.total["a"], np.full((2, 2), 0.15), rtol=1e-6)
    assert found.total["b"].dtype == np.float64
    assert (found.devices, found.rejected, found.ignored) == (4, {}, {})


def hostile(node):
    broken = reply(node)
    broken.content["update"]["numbers"].data = np.float32([np.nan] * 7).tobytes()
    huge = reply(node)
    huge.content["update"]["numbers"].data = np.float32([1e30] * 7).tobytes()
    misshapen = reply(node)
    misshapen.content["update"]["numbers"].shape = (7, 1)
    return {
        "error": Message(Error(code=2, reason="died"), reply_to=asking(node)),
        "malformed": Message(RecordDict(), reply_to=asking(node)),
        "stale": reply(node, binding=replace(BINDING, round=0)),
        "shape": misshapen,
        "non-finite": broken,
        "norm": huge,
        "clip": reply(node, clip_norm=2.0),
        "devices": reply(node, devices=6),
    }


@pytest.mark.parametrize(
    "reason",
    ["error", "malformed", "stale", "shape", "non-finite", "norm", "clip", "devices"],
)
def test_a_refused_host_is_counted_and_the_rest_goes_on(reason):
    asked = {3: 2, 4: 5, 5: 2}
    found = tally([reply(3, devices=2), hostile(4)[reason], reply(5, devices=2)], asked)
    assert found.rejected == {reason: 5}
    assert found.devices == 4
    np.testing.assert_allclose(found.total["b"], 0.2, rtol=1e-6)


@pytest.mark.parametrize("field", [field.name for field in fields(Binding)])
def test_a_reply_to_anything_else_is_stale(field):
    """To another attempt at the same round too: that one is another release."""
    asked = getattr(BINDING, field)
    other = asked + 1 if isinstance(asked, int) else asked + "x"
    found = tally([reply(3, binding=replace(BINDING, **{field: other}))], {3: 1})
    assert (found.devices, found.rejected) == (0, {"stale": 1})


def test_nobody_at_all():
    found = tally([], {3: 2, 4: 5})
    assert found.rejected == {"no-reply": 7}
    assert found.devices == 0
    assert not any(total.any() for total in found.total.values())
    assert tally([], {}).rejected == {}


def test_devices_that_decline_are_counted():
    found = tally([reply(3, devices=2)], {3: 5})
    assert (found.devices, found.rejected) == (2, {"declined": 3})
    none = tally([reply(3, devices=0, value=0.0)], {3: 5})
    assert (none.devices, none.rejected) == (0, {"devices": 5})


def test_a_node_counts_once_and_strangers_not_at_all():
    replies = [reply(3, value=0.1), reply(9, value=0.3), reply(3, value=0.2), reply(3), reply(4)]
    found = tally(replies, {3: 1, 4: 1})
    assert found.devices == 2
    assert found.ignored == {"duplicate": 2, "unasked": 1}
    np.testing.assert_allclose(found.total["b"], 0.2, rtol=1e-6)


def test_a_second_try_does_not_heal_a_refused_reply():
    found = tally([hostile(3)["norm"], reply(3)], {3: 1})
    assert (found.devices, found.rejected, found.ignored) == (0, {"norm": 1}, {"duplicate": 1})


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.floats(-0.3, 0.3), min_size=2, max_size=9))
def test_the_order_of_arrival_does_not_matter(random, values):
    asked = {100 - node: 1 for node in range(len(values))}
    replies = [reply(node, value=v) for node, v in zip(asked, values, strict=True)]
    expected = tally(replies, asked).total
    random.shuffle(replies)
    again = tally(replies, asked).total
    for name in SHAPES:
        np.testing.assert_allclose(again[name], expected[name], rtol=0, atol=1e-14)


def test_without_a_clip_size_does_not_matter():
    big = ClippedUpdate({"b": np.full(3, 1e20, np.float32)}, devices=1, clip_norm=math.inf)
    found = add_up(
        [update_reply(asking(3), BINDING, big)],
        asked={3: 1},
        binding=BINDING,
        shapes={"b": (3,)},
        clip_norm=math.inf,
    )
    np.testing.assert_allclose(found.total["b"], 1e20, rtol=1e-6)
