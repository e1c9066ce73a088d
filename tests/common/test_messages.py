"""The wire: what goes out comes back the same, and whatever else comes back is refused by name."""

import io
import json
import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.errors import MessageError, ReplyRejected
from fedprofile.common.messages import (
    Binding,
    CooccurrenceTask,
    PopularityTask,
    TrainTask,
    cooccurrence_message,
    hosting_query,
    hosting_reply,
    popularity_message,
    read_cooccurrence_task,
    read_hosting,
    read_popularity_task,
    read_task,
    read_train_task,
    read_update,
    refusal,
    train_message,
    update_reply,
)
from fedprofile.common.updates import ClippedUpdate

BINDING = Binding(run="läuft 東京", round=3, release=8, items="i" * 64, model="m" * 64)
SHAPES = {"weight": (4, 3), "scale": ()}

pytestmark = pytest.mark.usefixtures("grid_of_nobody")


def over_the_wire(message):
    return message_from_proto(message_to_proto(message))


def arrays(value=0.1):
    return {name: np.full(shape, value, dtype=np.float32) for name, shape in SHAPES.items()}


def train_task(**changes):
    values = {
        "binding": BINDING,
        "devices": np.array([2, 5, 2**40]),
        "weights": {"layer.weight": np.eye(3, dtype=np.float32)[:, :2], "b": np.float32([1])},
        "prior": np.log(np.float32([0.25, 0.75])),
        "vectors": np.float32([[0.6, 0.8, 0], [0, 0, 0]]),
        "steps": 2,
        "learning_rate": 0.1,
        "negatives": 7,
        "dropout": 0.3,
        "new_targets_only": True,
        "clip_norm": 0.5,
        "noise_multiplier": 1.5,
        "seed": 2**62 - 1,
    }
    return TrainTask(**{**values, **changes})


def popularity_task(**changes):
    values = {
        "binding": BINDING,
        "devices": np.arange(3),
        "clip_norm": 1.0,
        "noise_multiplier": 2.5,
        "half_lives_days": (7.0, 45.0),
        "now": 1_700_000_000,
    }
    return PopularityTask(**{**values, **changes})


def cooccurrence_task(**changes):
    values = {
        "binding": BINDING,
        "devices": np.arange(3),
        "head": np.array([4, 0, 2**33]),
        "clip_norm": 1.0,
        "noise_multiplier": 2.5,
    }
    return CooccurrenceTask(**{**values, **changes})


def assert_same(task, expected):
    for name, value in vars(expected).items():
        got = vars(task)[name]
        if name == "weights":
            assert got.keys() == value.keys()
            for key in value:
                np.testing.assert_array_equal(got[key], value[key])
                assert got[key].dtype == np.float32
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(got, value)
            assert got.dtype == value.dtype
            assert got.flags.writeable
        else:
            assert got == value
            assert type(got) is type(value)


@pytest.mark.parametrize("clip_norm", [0.5, math.inf])
def test_tasks_come_through_unchanged(clip_norm):
    train = train_task(clip_norm=clip_norm)
    assert_same(read_train_task(over_the_wire(train_message(9, train))), train)
    popularity = popularity_task(clip_norm=clip_norm)
    assert_same(read_popularity_task(over_the_wire(popularity_message(9, popularity))), popularity)
    together = cooccurrence_task(clip_norm=clip_norm)
    message = over_the_wire(cooccurrence_message(9, together))
    assert_same(read_cooccurrence_task(message), together)
    assert_same(read_task(message), together)


def test_tasks_of_another_precision_are_not_sent():
    with pytest.raises(TypeError):
        train_message(9, train_task(prior=np.zeros(2)))


@pytest.mark.parametrize("missing", ["task", "arrays", "weights"])
def test_incomplete_tasks_are_refused(missing):
    message = over_the_wire(train_message(9, train_task()))
    del message.content[missing]
    with pytest.raises(MessageError, match="train task"):
        read_train_task(message)


@pytest.mark.parametrize(
    "settings_",
    ["", "[]", "1", '{"binding": 1}', '{"binding": {"run": "x"}}', '{"devices": [1]}', "{" * 5000],
)
def test_malformed_settings_are_refused(settings_):
    for build, task, read in (
        (train_message, train_task(), read_train_task),
        (popularity_message, popularity_task(), read_popularity_task),
        (cooccurrence_message, cooccurrence_task(), read_cooccurrence_task),
    ):
        message = over_the_wire(build(9, task))
        message.content["task"] = ConfigRecord({"settings": settings_})
        with pytest.raises(MessageError, match="outside the wire format"):
            read(message)


@pytest.mark.parametrize("dropout", [1.0, -0.1, 7, math.nan, math.inf, "0.1", None, [0.1], True])
def test_a_dropout_that_leaves_nothing_or_is_no_share_is_refused(dropout):
    message = over_the_wire(train_message(9, train_task(dropout=dropout)))
    with pytest.raises(MessageError, match="train task outside the wire format"):
        read_train_task(message)


@pytest.mark.parametrize("dropout", [0.0, 0.999])
def test_any_share_below_one_can_be_left_out(dropout):
    task = train_task(dropout=dropout)
    assert_same(read_train_task(over_the_wire(train_message(9, task))), task)


@pytest.mark.parametrize("name", ["dropout", "negatives", "seed"])
def test_settings_of_another_version_are_refused(name):
    # Left out or made up, a device would train otherwise than the rest of its cohort.
    message = over_the_wire(train_message(9, train_task()))
    known = json.loads(message.content["task"]["settings"])
    value = known.pop(name)
    for settings_ in (known, {**known, name: value, "later": 1}):
        message.content["task"]["settings"] = json.dumps(settings_)
        with pytest.raises(MessageError, match="train task outside the wire format"):
            read_train_task(message)


def test_other_arrays_than_those_that_were_signed_are_refused():
    task = train_task(vectors=np.zeros((2, 3), dtype=np.float32))
    other = train_message(9, train_task())
    message = over_the_wire(train_message(9, task))
    message.content["arrays"] = other.content["arrays"]
    with pytest.raises(MessageError, match="arrays aren't those that the settings are about"):
        read_train_task(message)


@pytest.mark.parametrize(
    "weights",
    [
        None,
        {"b": [1], "layer.weight": [3, 2]},
        "[]",
        "{}",
        '{"b": 1, "layer.weight": [3, 2]}',
        '{"b": [true], "layer.weight": [3, 2]}',
        '{"b": [1.0], "layer.weight": [3, 2]}',
        '{"b": ["1"], "layer.weight": [3, 2]}',
        '{"b": [-1], "layer.weight": [-3, 2]}',
        '{"b": [2], "layer.weight": [3, 2]}',
        '{"b": [0], "layer.weight": [3, 2]}',
        '{"b": [1], "layer.weight": [1073741824, 1073741824]}',
    ],
    ids=str,
)
def test_shapes_that_the_weights_do_not_have_are_refused(weights):
    message = over_the_wire(train_message(9, train_task()))
    settings_ = json.loads(message.content["task"]["settings"])
    message.content["task"]["settings"] = json.dumps({**settings_, "weights": weights})
    with pytest.raises(MessageError, match="train task outside the wire format"):
        read_train_task(message)


def test_a_round_takes_few_objects_each_way_whatever_the_encoder_has():
    weights = {f"layer.{number}": np.ones(3, np.float32) for number in range(50)}
    message = train_message(9, train_task(weights=weights))
    update = ClippedUpdate(weights, devices=1, clip_norm=math.inf)
    assert len(get_all_nested_objects(message)) < 15
    assert len(get_all_nested_objects(update_reply(message, BINDING, update))) == 6


@pytest.mark.parametrize("head", [[], [3], range(2_897)])
def test_a_head_that_asks_for_too_much_or_nothing_is_refused(head):
    message = over_the_wire(cooccurrence_message(9, cooccurrence_task(head=np.array(head, int))))
    with pytest.raises(MessageError, match="a head of"):
        read_cooccurrence_task(message)


def test_one_kind_of_task_is_not_another():
    with pytest.raises(MessageError, match="outside the wire format"):
        read_train_task(over_the_wire(popularity_message(9, popularity_task())))
    with pytest.raises(MessageError, match="outside the wire format"):
        read_popularity_task(over_the_wire(train_message(9, train_task())))


# --- replies -----------------------------------------------------------------------------------


def instruction():
    return train_message(9, train_task())


def reply(update=None, binding=BINDING):
    update = update or ClippedUpdate(arrays(), devices=2, clip_norm=0.5)
    return over_the_wire(update_reply(instruction(), binding, update))


def read(message):
    return read_update(message, binding=BINDING, shapes=SHAPES)


@settings(max_examples=30, deadline=None)
@given(
    devices=st.integers(1, 2**31), clip_norm=st.sampled_from([1.0, math.inf]), seed=st.integers(0)
)
def test_updates_come_through_unchanged(devices, clip_norm, seed):
    rng = np.random.default_rng(seed)
    sent = {n: (0.1 * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}
    sent["weight"] = np.asfortranarray(sent["weight"])
    got = read(reply(ClippedUpdate(sent, devices=devices, clip_norm=clip_norm)))
    assert (got.devices, got.clip_norm) == (devices, clip_norm)
    assert got.arrays.keys() == sent.keys()
    for name in sent:
        np.testing.assert_array_equal(got.arrays[name], sent[name])


@pytest.mark.parametrize(
    "thing",
    [arrays(), np.zeros(3), {"loss": 1.0}, [1, 2], None, "text", RecordDict(), 3.5],
    ids=lambda thing: type(thing).__name__,
)
def test_only_a_clipped_update_leaves_a_device(thing):
    with pytest.raises(MessageError, match="only a ClippedUpdate may leave"):
        update_reply(instruction(), BINDING, thing)


def test_no_update_can_be_made_that_breaks_its_bound():
    one = {"weight": np.full((4, 3), 1 / math.sqrt(12), dtype=np.float32)}
    assert ClippedUpdate(one, devices=1, clip_norm=1.0).norm == pytest.approx(1, rel=1e-6)
    ClippedUpdate({"weight": 3 * one["weight"]}, devices=3, clip_norm=1.0)
    ClippedUpdate({"weight": one["weight"] * 1e6}, devices=1, clip_norm=math.inf)
    ClippedUpdate({"weight": np.zeros(2, np.float32)}, devices=0, clip_norm=math.inf)
    for broken, devices, clip_norm, reason in (
        (1.001 * one["weight"], 1, 1.0, "norm"),
        (one["weight"], 0, 1.0, "norm"),
        (one["weight"], 0, math.inf, "norm"),
        (one["weight"], 1, math.nan, "norm"),
        (one["weight"], 1, -1.0, "norm"),
        (one["weight"] * np.float32(np.nan), 1, 1.0, "non-finite"),
        (one["weight"] * np.float32(np.inf), 1, math.inf, "non-finite"),
    ):
        with pytest.raises(ReplyRejected) as caught:
            ClippedUpdate({"weight": broken.astype(np.float32)}, devices, clip_norm)
        assert caught.value.reason == reason


def test_a_failing_device_tells_the_kind_of_failure_alone():
    error = refusal(instruction(), ValueError("bought item 17 twice")).error
    assert error.reason == "ValueError"


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def with_update(array, name="numbers"):
    def change(message):
        message.content["update"][name] = array

    return change


def with_receipt(**values):
    def change(message):
        message.content["receipt"].update(values)

    return change


def without(name, record=None):
    def change(message):
        del (message.content if record is None else message.content[record])[name]

    return change


def with_record(name, record):
    def change(message):
        message.content[name] = record

    return change


def ours(dtype="<f4", shape=(13,), stype="fedprofile.little-endian", data=bytes(52)):
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)


NUMBERS = np.zeros(13, dtype=np.float32)
HOSTILE = {
    # Arrays in numpy's format, whose header a reader would have to trust, whatever they hold.
    "npy": ("malformed", with_update(Array(NUMBERS))),
    "npy backwards": ("malformed", with_update(Array(NUMBERS[::-1]))),
    "npy pickled objects": (
        "malformed",
        with_update(
            ours(
                "object", stype="numpy.ndarray", data=npy(NUMBERS.astype(object), allow_pickle=True)
            ),
        ),
    ),
    "npy oversized header": (
        "malformed",
        with_update(
            ours(
                "float32", stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535
            ),
        ),
    ),
    # Our format, broken.
    "truncated": ("malformed", with_update(ours(data=bytes(51)))),
    "empty": ("malformed", with_update(ours(data=b""))),
    "too long": ("malformed", with_update(ours(data=bytes(53)))),
    "float64": ("malformed", with_update(ours("<f8", data=bytes(104)))),
    "int32": ("malformed", with_update(ours("<i4"))),
    "big-endian": ("malformed", with_update(ours(">f4"))),
    "object": ("malformed", with_update(ours("|O"))),
    "unknown type": ("malformed", with_update(ours("nonsense"))),
    "wrong shape": ("shape", with_update(ours(shape=(1, 13)))),
    "too few": ("shape", with_update(ours(shape=(12,), data=bytes(48)))),
    "negative shape": ("shape", with_update(ours(shape=(-13,)))),
    "vast shape": ("shape", with_update(ours(shape=(2**30, 2**30)))),
    "unknown name": ("shape", with_update(ours(), "extra")),
    "missing name": ("shape", without("numbers", "update")),
    "other shapes": ("shape", with_receipt(shapes='{"scale": [1], "weight": [4, 3]}')),
    "other names": ("shape", with_receipt(shapes='{"scales": [], "weight": [4, 3]}')),
    "shapes as list": ("shape", with_receipt(shapes=[4, 3])),
    "no shapes": ("shape", without("shapes", "receipt")),
    "no arrays": ("shape", with_record("update", ArrayRecord())),
    "nan": ("non-finite", with_update(ours(data=np.float32([np.nan] * 13).tobytes()))),
    "inf": ("non-finite", with_update(ours(data=np.float32([-np.inf] * 13).tobytes()))),
    "huge": ("norm", with_update(ours(data=np.float32([1e38] * 13).tobytes()))),
    "norm": ("norm", with_update(ours(data=np.float32([0.3] * 13).tobytes()))),
    # Receipts.
    "other run": ("stale", with_receipt(run="other")),
    "other round": ("stale", with_receipt(round=2)),
    "round as float": ("stale", with_receipt(round=3.0)),
    "round as text": ("stale", with_receipt(round="3")),
    "other release": ("stale", with_receipt(release=7)),
    "other items": ("stale", with_receipt(items="j" * 64)),
    "other model": ("stale", with_receipt(model="n" * 64)),
    "no model": ("stale", without("model", "receipt")),
    "devices as float": ("malformed", with_receipt(devices=2.0)),
    "devices as bool": ("malformed", with_receipt(devices=True)),
    "devices as list": ("malformed", with_receipt(devices=[2])),
    "negative devices": ("malformed", with_receipt(devices=-2)),
    "no devices": ("malformed", without("devices", "receipt")),
    "clip as int": ("malformed", with_receipt(clip_norm=1)),
    "clip as text": ("malformed", with_receipt(clip_norm="0.5")),
    "clip is nan": ("norm", with_receipt(clip_norm=math.nan)),
    "clip is negative": ("norm", with_receipt(clip_norm=-0.5)),
    # Records.
    "no receipt": ("malformed", without("receipt")),
    "no update": ("malformed", without("update")),
    "receipt of arrays": ("malformed", with_record("receipt", ArrayRecord())),
    "update of settings": ("malformed", with_record("update", ConfigRecord({"weight": 1.0}))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_replies_are_refused_with_their_reason(kind):
    reason, change = HOSTILE[kind]
    message = reply()
    change(message)
    with pytest.raises(ReplyRejected) as caught:
        read(over_the_wire(message))
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_a_round_of_one_is_not_a_truth():
    binding = Binding(run="r", round=1, release=4, items="i")
    message = over_the_wire(
        update_reply(instruction(), binding, ClippedUpdate(arrays(), devices=2, clip_norm=0.5))
    )
    message.content["receipt"]["round"] = True
    with pytest.raises(ReplyRejected, match="another round"):
        read_update(over_the_wire(message), binding=binding, shapes=SHAPES)


@pytest.mark.parametrize("reason", ["died", None, "line\nbreak", "x" * 10_000])
def test_error_replies_are_refused_in_one_line(reason):
    message = Message(Error(code=5, reason=reason), reply_to=instruction())
    with pytest.raises(ReplyRejected) as caught:
        read(message)
    assert caught.value.reason == "error"
    assert "code 5" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_hosting_comes_through():
    query = over_the_wire(hosting_query(4))
    assert read_hosting(over_the_wire(hosting_reply(query, first=10, count=5))) == range(10, 15)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"first": 0},
        {"first": -1, "count": 2},
        {"first": 0, "count": -1},
        {"first": 0.0, "count": 2},
        {"first": "0", "count": 2},
        {"first": True, "count": True},
        {"first": [0], "count": 2},
    ],
    ids=str,
)
def test_malformed_hosting_is_refused(record):
    message = Message(
        RecordDict({"hosting": ConfigRecord(record)}), reply_to=over_the_wire(hosting_query(4))
    )
    with pytest.raises(ReplyRejected, match="malformed"):
        read_hosting(over_the_wire(message))
    with pytest.raises(ReplyRejected, match="malformed"):
        read_hosting(Message(RecordDict(), reply_to=over_the_wire(hosting_query(4))))


@pytest.mark.parametrize(("whole", "most"), [(False, 2_048), (True, 2_896)])
def test_a_head_is_as_large_as_the_numbers_allow(whole, most):
    assert CooccurrenceTask.largest_head(whole=whole) == most
    for numbers in (1, 2, 3, 6, 7, 10, 1_000, CooccurrenceTask.most_numbers, 1 << 40):
        head = CooccurrenceTask.largest_head(whole=whole, numbers=numbers)
        allowed = min(numbers, CooccurrenceTask.most_numbers)
        assert head == 2 or CooccurrenceTask.numbers(head, whole=whole) <= allowed
        assert CooccurrenceTask.numbers(head + 1, whole=whole) > allowed
