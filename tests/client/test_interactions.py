import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.client.interactions import (
    LONGEST_TEXT,
    Interaction,
    check_interaction,
    parse_time,
    read_interactions,
)
from fedprofile.common.errors import DataError

NOW = 1_750_000_000


def checked(**changes):
    one = Interaction(**{"id": "a", "item": "tea", "time": 5, **changes})
    return check_interaction(one, now=NOW, where="here")


def test_texts_are_trimmed_and_composed():
    found = checked(id=" a ", item=" Cafe\u0301 ", event=" Add to-Cart ", session="  ")
    assert found == Interaction("a", "Caf\u00e9", 5, "add_to_cart", None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item": " "}, "here: no item"),
        ({"id": ""}, "here: no id"),
        ({"item": "x" * (LONGEST_TEXT + 1)}, "item of 257 characters"),
        ({"item": "a\0b"}, "no text"),
        ({"item": "\udcff"}, "no text"),
        ({"time": -1}, "not between 1970 and tomorrow"),
        ({"time": NOW + 2 * 86_400}, "check the clock"),
        ({"value": 0.0}, "must be positive"),
        ({"value": float("nan")}, "must be positive"),
        ({"value": float("inf")}, "must be positive"),
    ],
)
def test_what_cannot_be_stored_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        checked(**changes)


def test_clocks_may_differ_by_a_day():
    assert checked(time=NOW + 86_400).time == NOW + 86_400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1717175100", 1717175100),
        ("1717175100.9", 1717175100),
        ("2024-05-31 17:05:00", 1717175100),
        ("2024-05-31T17:05:00Z", 1717175100),
        ("2024-05-31T19:05:00+02:00", 1717175100),
        ("2024-05-31 19:05:00+02", 1717175100),
        ("2024-05-31 19:05:00.25+0200", 1717175100),
        ("2024-05-31 17:05 UTC", 1717175100),
        ("20240531T170500Z", 1717175100),
        ("1717175100250", 1717175100),
        ("2024-05-31", 1717113600),
        ("20240531", 1717113600),
    ],
)
def test_times(text, seconds):
    assert parse_time(text, "x") == seconds


@pytest.mark.parametrize("text", ["", "yesterday", "nan", "inf", "2024-13-01", "1_717_175_100"])
def test_no_times(text):
    with pytest.raises(DataError, match="line 3: no time"):
        parse_time(text, "line 3")


def written(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_and_json_lines_say_the_same(tmp_path):
    table = (
        "\ufeffitem_id,timestamp,event,value,session_id\n"
        '"tea, green",2024-05-31 17:05,Purchase,2,s1\n'
        "茶,1717175100,,nan,\n\n"
    )
    lines = [
        {"item": "tea, green", "time": "2024-05-31 17:05", "event": "Purchase", "value": 2}
        | {"session": "s1"},
        {"item_id": "茶", "timestamp": 1717175100, "value": None},
    ]
    from_table = read_interactions(written(tmp_path, table), now=NOW)
    from_lines = read_interactions(
        written(tmp_path, "\n".join(map(json.dumps, lines)), "log.jsonl"), now=NOW
    )
    assert [(i.item, i.time, i.event, i.value, i.session) for i in from_table] == [
        ("tea, green", 1717175100, "purchase", 2.0, "s1"),
        ("茶", 1717175100, "", None, None),
    ]
    assert [(i.item, i.time, i.event, i.value, i.session) for i in from_lines] == [
        (i.item, i.time, i.event, i.value, i.session) for i in from_table
    ]


def test_the_same_file_names_the_same_interactions_and_a_repeated_line_is_two(tmp_path):
    path = written(tmp_path, "item_id,timestamp\ntea,5\ntea,5\ncup,5\n")
    first, again = read_interactions(path, now=NOW), read_interactions(path, now=NOW)
    assert first == again
    assert len({one.id for one in first}) == 3


def test_ids_of_the_file_are_kept(tmp_path):
    path = written(tmp_path, "event_id,item_id,timestamp\nx,tea,5\n")
    assert [one.id for one in read_interactions(path, now=NOW)] == ["x"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "no column 'item_id'; found: none"),
        ("a.csv", "item_id,when\ntea,5\n", "no column 'timestamp'; found: item_id, when"),
        ("a.csv", "item_id,timestamp\ntea\n", "line 2: 1 cells under 2 headings"),
        ("a.csv", "item_id,timestamp\ntea,\n", "line 2: no time; every"),
        ("a.csv", "item_id,timestamp\n,5\n", "line 2: no item"),
        ("a.csv", "item_id,timestamp\ntea,soon\n", "line 2: no time in 'soon'"),
        ("a.csv", "item_id,timestamp,value\ntea,5,much\n", "line 2: value 'much' is no number"),
        ("a.csv", 'item_id,timestamp\n"tea,5\n', "no CSV"),
        ("a.csv", b"item_id,timestamp\n\xff,5\n", "not UTF-8"),
        ("a.jsonl", "{", "line 1: no JSON"),
        ("a.jsonl", "[1]", "line 1: not an object"),
        ("a.jsonl", '{"item": {}, "time": 5}', "line 1: 'item' must be text or a number"),
        ("a.jsonl", '{"item": true, "time": 5}', "line 1: 'item' must be text or a number"),
        ("a.jsonl", "[" * 100_000, "line 1: no JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_interactions(written(tmp_path, text, name), now=NOW)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "user_id,item_id,timestamp\n聴0,tea,5\n聴1,tea,5\n聴2,tea,6\n,cup,7\n"),
        ("a.jsonl", '{"user_id": "聴0", "item": "tea", "time": 5}\n' * 2
         + '{"user_id": "聴1", "item": "tea", "time": 6}\n{"user_id": "聴2", "item": "tea", "time": 6}'),
    ],
)  # fmt: skip
def test_a_log_of_several_users_is_refused(tmp_path, name, text):
    with pytest.raises(
        DataError, match=r"'user_id' names 3 users \(聴0, 聴1, …\).*rows of one user"
    ):
        read_interactions(written(tmp_path, text, name), now=NOW)
    two = text.replace("聴2", "聴1").replace("user_id", "user")
    with pytest.raises(DataError, match=r"'user' names 2 users \(聴0, 聴1\)"):
        read_interactions(written(tmp_path, two, name), now=NOW)


def test_a_log_of_one_user_is_read_however_often_they_are_named(tmp_path):
    text = "user_id,item_id,timestamp\nCafe\u0301,tea,5\n Caf\u00e9 ,cup,6\n,mug,7\nnull,jug,8\n"
    assert len(read_interactions(written(tmp_path, text), now=NOW)) == 4


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.csv: can't read it"):
        read_interactions(tmp_path / "nothing.csv", now=NOW)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a.csv", "a.jsonl"):
        for head in (b"", b"item_id,timestamp,value\n"):
            path = folder / name
            path.write_bytes(head + content)
            with contextlib.suppress(DataError):
                found = read_interactions(path, now=NOW)
                assert all(one.item and one.id and one.time >= 0 for one in found)
