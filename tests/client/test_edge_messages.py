from dataclasses import fields, is_dataclass

import pytest

from fedprofile.client import answers, edge_v1_pb2
from fedprofile.client.edge_messages import from_message, to_message
from fedprofile.client.interactions import Interaction
from fedprofile.common.errors import ConfigError

KINDS = [kind for kind in vars(answers).values() if isinstance(kind, type) and is_dataclass(kind)]


@pytest.mark.parametrize("kind", [*KINDS, Interaction], ids=lambda kind: kind.__name__)
def test_a_dataclass_has_the_fields_of_its_message(kind):
    message = edge_v1_pb2.DESCRIPTOR.message_types_by_name[kind.__name__]
    assert {f.name for f in fields(kind)} == set(message.fields_by_name)
    for field in fields(kind):
        described = message.fields_by_name[field.name]
        # A message that must be there is told from an unset one, too.
        nested = str(field.type) in vars(answers)
        assert described.has_presence == (nested or "None" in str(field.type))


def test_there_and_back():
    profile = answers.GetProfileResponse(
        model="m",
        events=3,
        repeat_rate=0.25,
        updated_at=0,
        declared={"a": "ü"},
        tags={"茶": 0.5},
        recent=(answers.RecentEvent("i", "e", 2**40, 1.5),),
        interests=(answers.Interest("days", 3.0, (1.0, -2.5)),),
        vector=(0.1, 0.2),
    )
    message = to_message(profile, edge_v1_pb2.GetProfileResponse())
    again = type(message).FromString(message.SerializeToString())
    assert from_message(answers.GetProfileResponse, again) == profile


def test_unset_is_none_and_empty_is_not():
    for request in (
        answers.RecommendRequest(),
        answers.RecommendRequest(answers.Candidates(()), top_k=0),
        answers.EraseProfileRequest(item="", before=0),
    ):
        message = to_message(request, getattr(edge_v1_pb2, type(request).__name__)())
        assert from_message(type(request), message) == request


@pytest.mark.parametrize("wrong", [-1, 2**40, "x"])
def test_what_a_message_cannot_hold_is_refused(wrong):
    with pytest.raises(ConfigError, match="top_k"):
        to_message(answers.RecommendRequest(top_k=wrong), edge_v1_pb2.RecommendRequest())
