from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xlsxwriter
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.config import ColumnMapping, DataConfig, ItemsConfig
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.server.item_vectors import build_item_table
from fedprofile.simulations.loading import load_log

RETAIL = Path(__file__).parents[3] / "shared" / "data" / "online-retail-ii"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def events(log):
    """(user, item, time, session, event type) of every event, in original ids."""
    h = log.histories
    return [
        (log.user_ids[u], log.item_ids[i], int(t), int(s), log.event_types[k])
        for u, i, t, s, k in zip(h.devices, h.items, h.times, h.sessions, h.types, strict=True)
    ]


def test_generic_log_with_item_table(tmp_path):
    log_path = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,event,value,session_id\n"
        'b,"tea, green",20,buy,1,s2\n'
        '"李 ""A""",緑茶,10,view,,s1\n'
        '"李 ""A""","tea, green",11,buy,3,s1\n'
        "b,緑茶,21,view,,s2\n",
    )
    items_path = write(
        tmp_path / "items.csv",
        'item_id,text,category,price,tags\n緑茶,上等な緑茶,茶,9.5,"a|b"\n"tea, green",Tea,tea,x,\n',
    )
    log = load_log(DataConfig(path=log_path, items=items_path))
    assert events(log) == [
        ("b", "tea, green", 20, 0, "buy"),
        ("b", "緑茶", 21, 0, "view"),
        ('李 "A"', "緑茶", 10, 0, "view"),
        ('李 "A"', "tea, green", 11, 0, "buy"),
    ]
    assert log.catalogue.to_dicts() == [
        {"item_id": "tea, green", "text": "Tea", "category": "tea", "price": None, "tags": None},
        {
            "item_id": "緑茶",
            "text": "上等な緑茶",
            "category": "茶",
            "price": 9.5,
            "tags": ["a", "b"],
        },
    ]


def test_values_become_weights_with_a_median_of_one_a_user_and_type(tmp_path):
    rows = "".join(
        f"{u},{i},{n},{event},{10 ** (n % 3 + (u == 'b'))}\n"
        for n, (u, i, event) in enumerate(
            (u, i, event) for event in ("play", "like") for u in "ab" for i in "xyz"
        )
    )
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp,event,value\n" + rows)
    log = load_log(DataConfig(path=path, preset="music"))
    h = log.histories
    for device in h:
        medians = {
            n: np.median(device.weights[device.types == k]) for k, n in enumerate(log.event_types)
        }
        assert medians == pytest.approx({"play": 1.0, "like": 3.0})
    # Who always buys by the hundred is no more eager than others.
    assert h.device(0).weights.max() == pytest.approx(3.0 * np.log1p(100) / np.log1p(10))
    assert h.device(1).weights.max() == pytest.approx(3.0 * np.log1p(1000) / np.log1p(100))


def test_a_missing_value_is_the_users_own_median(tmp_path):
    path = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,value\na,x,1,4\na,y,2,\na,z,3,9\na,w,4,4\nb,x,1,\nb,y,2,\n",
    )
    h = load_log(DataConfig(path=path)).histories
    assert h.device(0).weights == pytest.approx([1, 1, np.log(10) / np.log(5), 1])
    assert h.device(1).weights.tolist() == [1.0, 1.0]


def test_lines_of_one_basket_add_up_before_the_logarithm(tmp_path):
    path = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,value,session_id\n"
        "a,x,1,2,s\na,x,2,3,s\na,y,3,5,s\nb,x,1,5,s\nb,y,1,5,s\n",
    )
    log = load_log(DataConfig(path=path))
    assert log.histories.weights.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert log.histories.times.tolist()[:2] == [1, 3]


def test_the_order_of_lines_and_files_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "user_id": rng.integers(5, size=200),
            "item_id": rng.integers(9, size=200),
            "timestamp": rng.integers(1_000, size=200) * 600,
            "text": rng.choice(["red", "blue", "green"], size=200),
            "country": rng.choice(["FR", "JP"], size=200),
        }
    )
    logs = []
    for name, frame in (("one", table), ("two", table.sample(fraction=1, shuffle=True, seed=1))):
        (tmp_path / name).mkdir()
        frame[:90].write_parquet(tmp_path / name / "a.parquet")
        frame[90:].write_csv(tmp_path / name / "b.csv")
        logs.append(load_log(DataConfig(path=str(tmp_path / name))))
    first, second = logs
    assert events(first) == events(second)
    assert first.catalogue.equals(second.catalogue)
    assert first.users.equals(second.users)
    assert first.user_ids == ("0", "1", "2", "3", "4")


def test_the_most_frequent_description_stands(tmp_path):
    path = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,text,price\n"
        "a,x,1,damaged,1\na,x,9999,BOX,2\nb,x,1,BOX,30\nb,y,1,nan,\na,y,1,,\n",
    )
    log = load_log(DataConfig(path=path))
    assert log.catalogue["text"].to_list() == ["BOX", None]
    assert log.catalogue["price"].to_list() == [2.0, None]


@pytest.mark.parametrize("layout", ["dat", "csv", "data"])
def test_movielens(tmp_path, layout):
    ratings = [(1, 10, 5, 978300760), (1, 20, 3, 978302109), (2, 10, 4, 978300000), (2, 20, 1, 1e9)]
    ratings = [[str(int(cell)) for cell in row] for row in ratings]
    if layout == "dat":
        write(tmp_path / "ratings.dat", "\n".join("::".join(row) for row in ratings) + "\n")
        (tmp_path / "movies.dat").write_bytes(
            "10::Léon (1994)::Action|Crime\n20::Alien: Director's Cut::Horror\n".encode("latin-1")
        )
        write(tmp_path / "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    elif layout == "csv":
        header = "userId,movieId,rating,timestamp\n"
        write(tmp_path / "ratings.csv", header + "\n".join(",".join(row) for row in ratings))
        write(
            tmp_path / "movies.csv",
            "movieId,title,genres\n10,Léon (1994),Action|Crime\n20,Alien: Director's Cut,Horror\n",
        )
        write(tmp_path / "links.csv", "movieId,imdbId\n10,1\n")
    else:
        write(tmp_path / "u.data", "\n".join("\t".join(row) for row in ratings))
    log = load_log(DataConfig(path=str(tmp_path)))
    assert log.quality.preset == "movielens"
    assert (log.user_ids, log.item_ids) == (("1", "2"), ("10", "20"))
    assert log.event_types == ("rating",)
    if layout != "data":
        assert log.catalogue.to_dicts() == [
            {
                "item_id": "10",
                "text": "Léon (1994)",
                "category": "Action",
                "tags": ["Action", "Crime"],
            },
            {
                "item_id": "20",
                "text": "Alien: Director's Cut",
                "category": "Horror",
                "tags": ["Horror"],
            },
        ]
    if layout == "dat":
        assert log.users["gender"].to_list() == ["F", "M"]


def test_workbook_with_overlapping_sheets(tmp_path):
    path = tmp_path / "retail.xlsx"
    header = ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price"]
    header += ["Customer ID", "Country"]
    rows = [
        [1, 10001, "BOX", 2, "2010-12-01 10:00:00", 1.5, 7, "France"],
        [1, "10002A", "CUP", 2, "2010-12-01 10:00:00", 1.5, 7, "France"],
        [2, 10001, "BOX", 2, "2010-12-02 10:00:00", 1.5, 8, "France"],
        [2, "10002A", "CUP", 2, "2010-12-02 10:00:00", 1.5, 8, "France"],
        ["C3", 10001, "BOX", -2, "2010-12-02 10:00:00", 1.5, 8, "France"],
        [4, 10001, "BOX", 2, "2010-12-02 10:00:00", 1.5, None, "France"],
    ]
    with xlsxwriter.Workbook(path) as book:
        for name, part in (("2009", rows), ("2010", rows[:3])):
            sheet = book.add_worksheet(name)
            sheet.write_row(0, 0, header)
            for number, row in enumerate(part, start=1):
                sheet.write_row(number, 0, row)
    log = load_log(DataConfig(path=str(path)))
    removed = {rule.name: rule.removed for rule in log.quality.rules if rule.removed}
    assert removed == {"overlapping files": 3, "missing user": 1, "cancelled sessions": 1}
    assert log.item_ids == ("10001", "10002A")
    assert log.user_ids == ("7", "8")
    assert log.quality.rows_per_file == (("retail.xlsx:2009", 6), ("retail.xlsx:2010", 3))


def test_columns_are_mapped_in_the_configuration(tmp_path):
    path = write(tmp_path / "log.csv", "who;what;when\na;x;1\na;y;2\nb;x;1\nb;y;2\n")
    columns = ColumnMapping(user="who", item="what", time="when")
    assert load_log(DataConfig(path=path, columns=columns)).n_users == 2


HEADER = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("who,item_id,timestamp\na,x,1\n", r"log\.csv: no user column.*data\.columns\.user"),
        (HEADER + "a,x,1\na,y,soon\n", r"column 'timestamp' has 1 unreadable.*'soon' in row 2"),
        (HEADER + "a,x,1\na,y,2\n", r"only one user left \('a'\).*data\.columns\.user"),
        (HEADER + "a,x,1\na,x,9999\nb,x,1\nb,x,9999\n", r"only one item left \('x'\)"),
        (HEADER + "a,x,1\nb,y,2\n", r"no events left.*'rare users'"),
        (HEADER + ",x,1\n,y,2\n", r"no events left.*'missing user'"),
        ("", "is empty"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, content, message):
    path = write(tmp_path / "log.csv", content)
    with pytest.raises(DataError, match=message) as raised:
        load_log(DataConfig(path=path))
    assert "\n" not in str(raised.value)
    assert "log.csv" in str(raised.value)


def test_an_item_table_of_other_items_is_refused(tmp_path):
    path = write(tmp_path / "log.csv", HEADER + "a,x,1\na,y,2\nb,x,1\nb,y,2\n")
    items = write(tmp_path / "items.csv", "item_id,text\n1,Tea\n")
    with pytest.raises(DataError, match=r"items\.csv: none of its item ids"):
        load_log(DataConfig(path=path, items=items))


def test_an_item_table_is_the_catalogue(tmp_path):
    """Neither more nor less: what somebody bought beside it is counted and left out."""
    path = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,text,price\na,x,1,tee,9\na,y,2,cup,9\na,secret,3,gift,9\n"
        "b,x,1,tee,9\nb,y,2,cup,9\n,secret,2,gift,9\n",
    )
    items = write(tmp_path / "items.csv", "item_id,text\nz,Unsold\ny,\nx,Tea\n")
    log = load_log(DataConfig(path=path, items=items))
    assert log.catalogue.to_dicts() == [
        {"item_id": "x", "text": "Tea"},
        {"item_id": "y", "text": None},
        {"item_id": "z", "text": "Unsold"},
    ]
    removed = {rule.name: rule.removed for rule in log.quality.rules if rule.removed}
    assert removed == {"missing user": 1, "unknown items": 1}
    assert log.quality.rows_read == log.quality.rows_kept + log.quality.rows_removed
    assert (log.quality.items, log.quality.rows_kept) == (3, 4)


ITEMS = [f"i{number}" for number in range(8)]
lines = st.tuples(
    st.sampled_from([*ITEMS, "unlisted"]),
    st.integers(0, 200),
    st.sampled_from(["view", "buy", "cart", "return"]),
    st.sampled_from(["", "1", "2", "7", "100000", "-1", "nan"]),
    st.sampled_from(["red", "blue", ""]),
)
people = st.lists(st.lists(lines, min_size=1, max_size=8), min_size=3, max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("neighbours")


def load_people(folder, people):
    """The log of these users (name → lines) over a public item table."""
    rows = [
        {
            "user_id": user,
            "item_id": item,
            "timestamp": 10**9 + 600 * time,
            "event": event,
            "value": value,
            "text": text,
        }
        for user, lines in people.items()
        for item, time, event, value, text in lines
    ]
    pl.DataFrame(rows).write_csv(folder / "log.csv")
    words = ["tea", "tea cup", "cup", "gift", "gift tea", "box", "tin box", "tin"]
    table = {"item_id": ITEMS, "text": words, "price": [1.0, 2, 3, 4, 5, 6, 7, None]}
    pl.DataFrame(table).write_csv(folder / "items.csv")
    return load_log(
        DataConfig(path=str(folder / "log.csv"), items=str(folder / "items.csv"), preset="shop")
    )


@settings(max_examples=40)
@given(people=people, data=st.data())
def test_a_user_more_or_less_changes_nothing_of_anybody_else(folder, people, data):
    # Everybody has something that stays, so that no neighbour is an empty log.
    core = [("i0", 0, "buy", "1", ""), ("i1", 1, "buy", "3", "")]
    everyone = {f"u{number}": [*core, *own] for number, own in enumerate(people)}
    gone = data.draw(st.sampled_from(sorted(everyone)))
    whole = load_people(folder, everyone)
    part = load_people(folder, {user: own for user, own in everyone.items() if user != gone})
    assert part.user_ids == tuple(user for user in whole.user_ids if user != gone)
    for user in part.user_ids:
        here = part.histories.device(part.user_ids.index(user))
        there = whole.histories.device(whole.user_ids.index(user))
        for name in ("items", "times", "sessions", "weights"):
            assert getattr(here, name).tolist() == getattr(there, name).tolist(), (user, name)
        # The names of event types are public, their places in the list of all are not compared.
        types = [
            [log.event_types[kind] for kind in history.types]
            for log, history in ((part, here), (whole, there))
        ]
        assert types[0] == types[1]
    assert part.catalogue.equals(whole.catalogue)
    tables = [build_item_table(log.catalogue, ItemsConfig(dimension=4)) for log in (part, whole)]
    assert tables[0].content_hash == tables[1].content_hash
    assert np.array_equal(tables[0].vectors, tables[1].vectors)


def test_a_folder_without_the_files_of_its_preset(tmp_path):
    for name in ("a.csv", "b.csv"):
        write(tmp_path / name, HEADER + "a,x,1\n")
    with pytest.raises(DataError, match=r"preset movielens needs ratings\.dat"):
        load_log(DataConfig(path=str(tmp_path), preset="movielens"))


def test_synthetic_is_the_default():
    config = DataConfig(synthetic_users=20, synthetic_items=30)
    log = load_log(config)
    assert (log.n_users, log.n_items) == (20, 30)


@pytest.mark.skipif(not RETAIL.is_dir(), reason="Online Retail II is not here")
def test_online_retail_accounts_for_every_row():
    log = load_log(DataConfig(path=str(RETAIL)))
    report = log.quality
    assert report.rows_read == 896_392 == report.rows_kept + report.rows_removed
    removed = {rule.name: rule.removed for rule in report.rules}
    # The first rules once more, by set arithmetic on the raw files.
    first, second = (
        pl.read_parquet(path).with_columns(pl.col("InvoiceDate").cast(pl.Datetime("us")))
        for path in sorted(RETAIL.glob("*.parquet"))
    )
    assert removed["exact duplicates"] == sum(f.height - f.n_unique() for f in (first, second))
    distinct = pl.concat([first, second]).unique()
    assert removed["overlapping files"] == first.n_unique() + second.n_unique() - distinct.height
    assert removed["missing user"] == distinct["Customer ID"].null_count()
    known = distinct.drop_nulls("Customer ID")
    assert removed["cancelled sessions"] == known["Invoice"].str.starts_with("C").sum()
    sold = known.filter(~pl.col("Invoice").str.starts_with("C"), pl.col("Price") > 0)
    assert removed["zero price"] == known.height - removed["cancelled sessions"] - sold.height
    products = sold.filter(pl.col("StockCode").str.contains(r"^\d{5}[A-Za-z]{0,2}\s*$|^SP"))
    assert removed["non-items"] == sold.height - products.height
    baskets = products.n_unique(["Customer ID", "Invoice", "StockCode"])
    assert removed["merged lines"] == products.height - baskets
    assert report.rows_kept == baskets - removed["rare users"]
    assert log.catalogue["text"].null_count() == 0
    assert set(log.users.columns) == {"user_id", "country"}


def test_a_column_to_group_users_by_is_kept_under_its_name(tmp_path):
    path = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,region\na,x,1,north\na,y,2,south\na,z,3,south\nb,x,1,\nb,y,2,\n",
    )
    plain = load_log(DataConfig(path=path))
    assert plain.users.columns == ["user_id"]
    grouped = load_log(DataConfig(path=path, group_column="region"))
    assert grouped.users.to_dict(as_series=False) == {
        "user_id": ["a", "b"],
        "region": ["south", None],  # what a user has most often
    }
    np.testing.assert_array_equal(grouped.histories.items, plain.histories.items)


def test_an_attribute_that_the_preset_knows_can_be_grouped_by():
    small = {"synthetic_users": 5, "synthetic_items": 5}
    assert "country" in load_log(DataConfig(group_column="country", **small)).users.columns


@pytest.mark.parametrize("column", ["planet", "user_id", "user"])
def test_a_group_column_that_says_nothing_of_users_is_refused(tmp_path, column):
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp\na,x,1\na,y,2\nb,x,1\nb,y,2\n")
    with pytest.raises(DataError, match=rf"data\.group_column = '{column}'.*known: nothing"):
        load_log(DataConfig(path=path, group_column=column))
    with pytest.raises(DataError, match="known: country"):
        load_log(DataConfig(group_column=column, synthetic_users=5, synthetic_items=5))


def test_a_group_column_that_is_spelled_wrong_gets_the_columns_that_could_be(tmp_path):
    path = write(
        tmp_path / "log.csv",
        "user_id,item_id,timestamp,country,region,shop\na,x,1,A,n,1\na,y,2,A,n,1\nb,x,1,A,s,1\nb,y,2,A,s,2\n",
    )
    with pytest.raises(DataError, match="known: country; columns that could be: region, shop"):
        load_log(DataConfig(path=path, group_column="regin"))
    assert load_log(DataConfig(path=path, group_column="shop")).users["shop"].to_list() == [
        "1",
        "1",
    ]


def test_users_who_did_too_little_are_kept_beside_with_what_they_did(tmp_path):
    path = tmp_path / "log.csv"
    lines = ["a,x,1", "a,y,2", "b,x,3", "b,y,4", "solo,y,5", "other,z,6"]
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    log = load_log(DataConfig(path=str(path)))
    assert log.user_ids == ("a", "b")
    assert log.rare_ids == ("solo",)  # of `other` nothing is left: nobody else took z
    assert [log.item_ids[item] for item in log.rare.items] == ["y"]
    assert log.rare.times.tolist() == [5]
    everybody = load_log(DataConfig(path=str(path), minimum_user_events=1))
    assert everybody.rare_ids == ()
    assert everybody.user_ids == ("a", "b", "other", "solo")


@pytest.mark.parametrize("option", [{"preset": "shop"}, {"items": "items.csv"}])
def test_a_built_in_population_takes_nothing_that_is_of_files(option):
    with pytest.raises(ConfigError, match=f"data.{next(iter(option))} = .*has none"):
        load_log(DataConfig(**option))
