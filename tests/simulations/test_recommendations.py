from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from fedprofile.common.errors import RunFolderError
from fedprofile.common.histories import Histories
from fedprofile.simulations.evaluation import CHUNK
from fedprofile.simulations.recommendations import check_recommendations, write_recommendations


class Ascending:
    """Likes the last item best; notes what it was asked."""

    def __init__(self, n_items):
        self.n_items, self.asked, self.held = n_items, [], []

    def scores(self, history, now):
        self.asked.append((history, now))
        return self.unmixed(history) / 100

    def unmixed(self, history):
        self.held.append(history)
        return np.tile(np.arange(self.n_items, dtype=np.float32), (history.n_devices, 1))


def did(seen):
    """One device for each list of ``seen`` items, an event a second."""
    items = [item for one in seen for item in one]
    return Histories(
        offsets=np.cumsum([0, *map(len, seen)]),
        items=np.array(items, dtype=np.int32),
        times=np.arange(len(items), dtype=np.int64),
        sessions=np.zeros(len(items), dtype=np.int32),
        weights=np.ones(len(items), dtype=np.float32),
        types=np.zeros(len(items), dtype=np.int16),
    )


def pairs(rejected):
    return np.array(rejected, dtype=np.int64).reshape(-1, 2)


def make_log(seen, n_items, rare=(), rejected=(), rare_rejected=()):
    return SimpleNamespace(
        histories=did(seen),
        user_ids=tuple(f"佐藤 {number}" for number in range(len(seen))),
        item_ids=tuple(f'"{number}",' for number in range(n_items)),
        rare_ids=tuple(f"rare {number}" for number in range(len(rare))),
        rare=did(rare),
        rejected=pairs(rejected),
        rare_rejected=pairs(rare_rejected),
    )


def write(tmp_path, log, **options):
    scorer = Ascending(len(log.item_ids))
    write_recommendations(tmp_path / "new" / "lists.parquet", scorer, log, **options)
    return pl.read_parquet(tmp_path / "new" / "lists.parquet"), scorer


def test_best_first_from_rank_1_by_original_ids_without_what_was_seen(tmp_path):
    lists, _ = write(tmp_path, make_log([[4], [0, 4]], 5), k=2, include_seen=False)
    assert lists.columns == ["user_id", "rank", "item_id", "score"]
    assert lists.rows() == [
        ("佐藤 0", 1, '"3",', 3.0),
        ("佐藤 0", 2, '"2",', 2.0),
        ("佐藤 1", 1, '"3",', 3.0),
        ("佐藤 1", 2, '"2",', 2.0),
    ]


def test_what_was_seen_stays_in_on_request(tmp_path):
    lists, _ = write(tmp_path, make_log([[4], [0, 4]], 5), k=1, include_seen=True)
    assert lists["item_id"].to_list() == ['"4",', '"4",']
    assert lists["score"].to_list() == pytest.approx([0.04, 0.04])  # of the mixture with repeats


def test_users_who_did_too_little_to_learn_from_get_lists_too(tmp_path):
    lists, scorer = write(tmp_path, make_log([[4], [0]], 5, rare=[[4]]), k=1, include_seen=False)
    assert lists["user_id"].to_list() == ["佐藤 0", "佐藤 1", "rare 0"]
    assert lists["item_id"].to_list() == ['"3",', '"4",', '"3",']
    assert [history.n_devices for history in scorer.held] == [2, 1]


@pytest.mark.parametrize(
    ("include_seen", "expected"),
    [
        (False, [[2, 0], [3, 2, 1], [1, 0]]),
        (True, [[4, 2, 0], [3, 2, 1], [4, 1, 0]]),
    ],
)
def test_what_was_turned_down_is_in_no_list(tmp_path, include_seen, expected):
    log = make_log(
        [[4], [0]],
        5,
        rare=[[4]],
        rejected=[(0, 1), (0, 3), (1, 4)],
        rare_rejected=[(0, 2), (0, 3)],
    )
    lists, _ = write(tmp_path, log, k=3, include_seen=include_seen)
    found = lists.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    assert [[int(item.strip('",')) for item in items] for items in found] == expected


def test_what_was_turned_down_is_left_out_of_the_right_lists_of_many_users(tmp_path):
    n = CHUNK + 3
    log = make_log([[0]] * n, 7, rejected=[(user, 1 + user % 6) for user in range(n)])
    lists, _ = write(tmp_path, log, k=6, include_seen=False)
    assert lists.height == 5 * n
    for user in (0, CHUNK - 1, CHUNK, n - 1):
        mine = lists.filter(pl.col("user_id") == log.user_ids[user])["item_id"].to_list()
        assert mine == [f'"{item}",' for item in range(6, 0, -1) if item != 1 + user % 6]


def test_those_who_had_everything_are_told_of(tmp_path, capsys):
    lists, _ = write(tmp_path, make_log([[0, 1], [0]], 2), k=3, include_seen=False)
    assert lists["user_id"].to_list() == ["佐藤 1"]
    assert "1 users have no list" in capsys.readouterr().err


def test_a_list_is_as_long_as_there_are_items_left(tmp_path):
    lists, _ = write(tmp_path, make_log([[1], [0, 1, 2]], 3), k=10, include_seen=False)
    assert lists.select("user_id", "rank").rows() == [("佐藤 0", 1), ("佐藤 0", 2)]


def test_everybody_is_asked_at_the_end_of_the_log_with_all_they_did(tmp_path):
    log = make_log([[number % 7] for number in range(CHUNK + 3)], 7)
    lists, scorer = write(tmp_path, log, k=1, include_seen=True)
    assert lists["user_id"].to_list() == list(log.user_ids)
    assert {int(t) for _, now in scorer.asked for t in now} == {CHUNK + 3}
    assert sum(history.n_events for history, _ in scorer.asked) == CHUNK + 3


def test_a_file_that_holds_something_is_refused_before_the_run(tmp_path):
    check_recommendations(tmp_path / "deep" / "lists.parquet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "lists.parquet").write_bytes(b"")
    check_recommendations(tmp_path / "lists.parquet")
    (tmp_path / "lists.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunFolderError, match="exists already"):
        check_recommendations(tmp_path / "lists.parquet")
    with pytest.raises(RunFolderError, match="is a folder"):
        check_recommendations(tmp_path)
