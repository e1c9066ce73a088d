import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedprofile.common.config import DataConfig
from fedprofile.common.errors import DataError
from fedprofile.simulations.loading import load_log

HEADER = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country"
CLEAN = [
    "1,10001,BOX,2,2010-01-01 10:00:00,1.5,7,France",
    "1,10002,CUP,1,2010-01-01 10:00:00,2.5,7,France",
    "2,10001,BOX,4,2010-02-01 10:00:00,1.5,8,Spain",
    "2,10002,CUP,1,2010-02-01 10:00:00,2.5,8,Spain",
]


def removed(log):
    return {rule.name: rule.removed for rule in log.quality.rules if rule.removed}


def changed(log):
    return {rule.name: rule.changed for rule in log.quality.rules if rule.changed}


def load(tmp_path, *files, header=HEADER, **options):
    for number, lines in enumerate(files):
        (tmp_path / f"part-{number}.csv").write_text("\n".join([header, *lines]) + "\n")
    return load_log(DataConfig(path=str(tmp_path), **options))


def adds_up(report):
    return report.rows_read == report.rows_kept + report.rows_removed


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (CLEAN[0], "exact duplicates"),
        ("3,10001,BOX,2,2010-03-01 10:00:00,1.5,,France", "missing user"),
        ("3,,BOX,2,2010-03-01 10:00:00,1.5,7,France", "missing item"),
        ("3,10001,BOX,2,,1.5,7,France", "missing time"),
        ("C3,10001,BOX,-2,2010-03-01 10:00:00,1.5,7,France", "cancelled sessions"),
        ("3,10001,BOX,-2,2010-03-01 10:00:00,1.5,7,France", "negative values"),
        ("3,10001,BOX,0,2010-03-01 10:00:00,1.5,7,France", "negative values"),
        ("3,10001,BOX,2,2010-03-01 10:00:00,0,7,France", "zero price"),
        ("3,POST,POSTAGE,2,2010-03-01 10:00:00,18,7,France", "non-items"),
        ("3,10001,BOX,NaN,2010-03-01 10:00:00,1.5,7,France", "broken values"),
        ("3,10001,BOX,inf,2010-03-01 10:00:00,1.5,7,France", "broken values"),
        ("3,10001,BOX,some,2010-03-01 10:00:00,1.5,7,France", "broken values"),
        ("1,10001,BOX,9,2010-01-01 10:00:00,1.5,7,France", "merged lines"),
        ("3,10001,BOX,9,2010-01-01 10:00:00,1.5,9,France", "rare users"),
    ],
)
def test_each_rule_counts_the_row_that_breaks_it(tmp_path, line, rule):
    log = load(tmp_path, [*CLEAN, line])
    assert removed(log) == {rule: 1}
    assert adds_up(log.quality)
    assert log.quality.rows_kept == log.histories.n_events == 4


def test_a_row_that_breaks_two_rules_is_counted_once(tmp_path):
    log = load(tmp_path, [*CLEAN, "C9,POST,P,-1,2010-01-05 10:00:00,0,,Spain"])
    assert removed(log) == {"missing user": 1}


def test_overlap_of_files_is_told_from_duplicates_in_one(tmp_path):
    log = load(tmp_path, [*CLEAN, CLEAN[0]], [CLEAN[0], CLEAN[1], CLEAN[1]])
    assert removed(log) == {"exact duplicates": 2, "overlapping files": 2}


def test_letters_of_codes_are_brought_to_upper_case(tmp_path):
    log = load(tmp_path, [*CLEAN, "3,10003a,X,1,2010-03-01 10:00:00,1,7,France"])
    assert changed(log) == {"item codes": 1}
    assert log.item_ids == ("10001", "10002", "10003A")


def test_broken_price_is_unknown_and_the_row_stays(tmp_path):
    lines = [*CLEAN, "3,10003,X,1,2010-03-01 10:00:00,NaN,7,France"]
    log = load(tmp_path, lines)
    assert log.catalogue["price"].to_list() == [1.5, 2.5, None]
    assert changed(log) == {"broken prices": 1}


def test_negative_event_types_are_dropped_by_preset_and_override(tmp_path):
    lines = [
        "a,x,1000,like",
        "a,y,2000,Hide",
        "b,x,1000,share",
        "b,y,2000,poke",
        "a,y,3000,like",
    ]
    header = "user_id,item_id,timestamp,event"
    log = load(tmp_path, lines, header=header, preset="social", event_weights={"Poke": 0.5})
    assert removed(log) == {"negative events": 1}
    assert log.event_types == ("like", "poke", "share")
    weights = {
        log.event_types[t]: w
        for t, w in zip(log.histories.types, log.histories.weights, strict=True)
    }
    assert weights == {"like": 2.0, "share": 4.0, "poke": 0.5}
    with pytest.raises(DataError, match=r"no events left.*negative events"):
        load(
            tmp_path,
            lines,
            header=header,
            preset="social",
            event_weights={"like": 0, "share": -1, "poke": 0},
        )


def test_rare_users_and_items_are_removed_until_all_have_enough(tmp_path):
    # z is bought once; without it, user c has one event; without c, y is bought twice still.
    lines = [
        *(f"{user},{item},{time}" for time, user in enumerate("ab") for item in "xy"),
        "c,z,9",
        "c,x,9",
    ]
    log = load(
        tmp_path,
        lines,
        header="user_id,item_id,timestamp",
        minimum_user_events=2,
        minimum_item_events=2,
    )
    assert removed(log) == {"rare items": 1, "rare users": 1}
    assert (log.user_ids, log.item_ids) == (("a", "b"), ("x", "y"))


def test_a_pause_starts_a_session_where_none_is_given(tmp_path):
    lines = ["a,x,0", "a,y,1800", "a,x,3601", "b,x,0", "b,y,1801"]
    log = load(tmp_path, lines, header="user_id,item_id,timestamp")
    assert log.histories.sessions.tolist() == [0, 0, 1, 0, 1]
    assert log.quality.sessions == 4


def test_sessions_that_overlap_stay_whole(tmp_path):
    lines = ["a,x,0,s", "a,y,100,s", "a,z,50,t", "b,x,0,", "b,y,10,"]
    log = load(tmp_path, lines, header="user_id,item_id,timestamp,session_id")
    assert log.histories.sessions.tolist() == [0, 0, 1, 0, 0]
    assert log.histories.times.tolist() == [0, 100, 100, 0, 10]
    assert changed(log) == {"overlapping sessions": 1}


cells = {
    "Invoice": st.sampled_from(["1", "2", "3", "C4", ""]),
    "StockCode": st.sampled_from(["10001", "10002a", "10003", "POST", "", "nan"]),
    "Description": st.sampled_from(["BOX", "杯子", ""]),
    "Quantity": st.sampled_from(["1", "5", "0", "-2", "NaN", "inf", ""]),
    "InvoiceDate": st.sampled_from(["2010-01-01", "2010-01-02 10:00:00", ""]),
    "Price": st.sampled_from(["1.5", "0", "-1", "NaN", ""]),
    "Customer ID": st.sampled_from(["7", "8", "9", ""]),
    "Country": st.just("France"),
}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=12), max_size=2),
    minimum=st.integers(1, 2),
)
def test_every_row_of_a_dirty_table_is_accounted_for(tmp_path, parts, minimum):
    base = [dict(zip(HEADER.split(","), line.split(","), strict=True)) for line in CLEAN]
    for old in tmp_path.iterdir():
        old.unlink()
    for number, rows in enumerate([base, *parts]):
        pl.DataFrame(rows).write_csv(tmp_path / f"{number}.csv")
    log = load_log(DataConfig(path=str(tmp_path), minimum_item_events=minimum))
    assert adds_up(log.quality)
    assert log.quality.rows_read == 4 + sum(map(len, parts))
    histories = log.histories
    assert histories.n_events == log.quality.rows_kept == len(histories.items)
    assert (histories.weights > 0).all()
    assert (histories.lengths >= 2).all()
    for device in histories:
        assert (device.times[1:] >= device.times[:-1]).all()
        assert set(device.sessions[1:] - device.sessions[:-1]) <= {0, 1}
        assert device.sessions[0] == 0
