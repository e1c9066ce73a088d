import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedprofile.common.config import DataConfig
from fedprofile.simulations.loading import load_log
from fedprofile.simulations.rejections import encode_pairs, turned_down

WEIGHTS = {"play": 1, "like": 3, "skip": -1, "ban": -1, "impression": 0, "zap": 1}
SURE = [  # enough of everybody and everything, before anything else happens
    f"{user},{item},{time},like" for time, user in enumerate("ab") for item in "xyz"
]


def load(tmp_path, lines, **options):
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["user_id,item_id,timestamp,event", *lines]) + "\n")
    return load_log(DataConfig(path=str(path), **{"preset": "music"} | options))


def named(log):
    """Pairs that are left out, by original ids."""
    return {
        (ids[user], log.item_ids[item])
        for ids, pairs in ((log.user_ids, log.rejected), (log.rare_ids, log.rare_rejected))
        for user, item in pairs.tolist()
    }


def test_pairs_are_told_by_their_last_event_that_says_anything(tmp_path):
    lines = [
        *SURE,
        *("a,x,1000,skip", "a,x,2000,impression"),
        *("a,y,1000,skip", "a,y,2000,play"),
        *("b,y,2000,ban", "b,y,1000,play"),
        *("b,z,1000,play", "b,z,1000,skip"),  # of one time
    ]
    log = load(tmp_path, lines)
    assert named(log) == {("a", "x"), ("b", "y"), ("b", "z")}
    assert load(tmp_path, lines[::-1]).rejected.tolist() == log.rejected.tolist()
    assert "skip" not in log.event_types
    own = load(tmp_path, lines, event_weights={"Skip": 0.5, "play": -2})
    assert named(own) == {("a", "y"), ("b", "y"), ("b", "z")}
    assert named(load(tmp_path, lines, preset="generic")) == set()


def test_users_who_did_too_little_are_told_of_too_and_strangers_are_not(tmp_path):
    lines = [*SURE, "solo,x,50,like", "solo,y,60,skip", "nobody,x,60,skip", "a,unheard,60,skip"]
    log = load(tmp_path, lines)
    assert log.rare_ids == ("solo",)
    assert named(log) == {("solo", "y")}


def test_nothing_else_of_the_log_changes(tmp_path):
    with_them = load(tmp_path, [*SURE, "a,x,1000,skip", "b,y,9,impression"])
    without = load(tmp_path, SURE)
    assert with_them.histories.items.tolist() == without.histories.items.tolist()
    assert with_them.catalogue.equals(without.catalogue)
    assert with_them.quality.rows_removed == 2
    assert without.rejected.shape == without.rare_rejected.shape == (0, 2)


def test_built_in_populations_turn_nothing_down():
    log = load_log(DataConfig(synthetic_users=20, synthetic_items=30))
    assert log.rejected.shape == (0, 2)


def test_pairs_are_counted_in_the_order_of_users_and_items():
    pairs = pl.DataFrame({"user": ["b", "a", "b", "c"], "item": ["x", "y", "w", "x"]})
    users, items = pl.Series(["a", "b"]), pl.Series(["w", "x", "y"])
    assert encode_pairs(pairs, users, items).tolist() == [[0, 2], [1, 0], [1, 1]]
    assert encode_pairs(pairs.clear(), users, items).shape == (0, 2)


@pytest.mark.parametrize(("spoken", "left"), [(8, 1), (9, 1), (10, 0)])
def test_of_one_time_a_rejection_counts(spoken, left):
    rows = [pl.DataFrame({"user": ["a"], "item": ["x"], "time": [time]}) for time in (9, spoken)]
    assert turned_down(*rows).height == left


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from("xyz"),
            st.integers(10, 16),
            st.sampled_from(sorted(WEIGHTS)),
        ),
        max_size=25,
    )
)
def test_a_pair_is_out_exactly_if_its_last_event_that_says_anything_turns_it_down(tmp_path, rows):
    log = load(tmp_path, [*SURE, *(",".join(map(str, row)) for row in rows)])
    last = {}
    for user, item, _, event in sorted(
        (row for row in rows if WEIGHTS[row[3]]), key=lambda row: (row[2], -WEIGHTS[row[3]])
    ):
        last[user, item] = WEIGHTS[event]
    listed = {*log.user_ids, *log.rare_ids}
    assert named(log) == {pair for pair, weight in last.items() if weight < 0 and pair[0] in listed}
