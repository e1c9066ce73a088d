import codecs

import polars as pl
import pytest
import xlsxwriter

from fedprofile.common.errors import DataError
from fedprofile.simulations.sources import column_names, list_files, read_tables


def one(path, **options):
    (table,) = read_tables(path, **options)
    return table.frame


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", "user_id,note\n007,x\n"),
        ("log.csv", "user_id;note\n007;x\n"),
        ("log.tsv", "user_id\tnote\n007\tx\n"),
        ("log.dat", "user_id::note\n007::x\n"),
    ],
)
def test_text_is_read_by_its_separator_and_stays_text(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    assert one(path).to_dicts() == [{"user_id": "007", "note": "x"}]


def test_quotes_commas_and_cjk_survive(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('item_id,text\n"a,""b""",緑茶の茶碗\n', encoding="utf-8-sig")
    assert one(path).to_dicts() == [{"item_id": 'a,"b"', "text": "緑茶の茶碗"}]


def test_files_without_a_header_take_the_given_names(tmp_path):
    path = tmp_path / "movies.dat"
    path.write_bytes("1::Les Misérables: Part 1::Drama|War\n".encode("latin-1"))
    frame = one(path, header=("item_id", "title", "genres"), fallback_encoding="latin-1")
    assert frame.row(0) == ("1", "Les Misérables: Part 1", "Drama|War")


def test_all_sheets_of_a_workbook_are_read(tmp_path):
    path = tmp_path / "log.xlsx"
    with xlsxwriter.Workbook(path) as book:
        for name, code in (("2009", 85123), ("2010", "85123A")):
            sheet = book.add_worksheet(name)
            sheet.write_row(0, 0, ["Stock Code ", "n"])
            sheet.write_row(1, 0, [code, 1])
        book.add_worksheet("empty")
    tables = read_tables(path)
    assert [table.name for table in tables] == ["log.xlsx:2009", "log.xlsx:2010"]
    assert [str(table.frame["Stock Code"][0]).removesuffix(".0") for table in tables] == [
        "85123",
        "85123A",
    ]


def test_nested_and_categorical_columns_become_plain(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"tags": [["a", "b"]], "kind": ["x"], "box": [{"k": 1}]}).with_columns(
        pl.col("kind").cast(pl.Categorical)
    ).write_parquet(path)
    assert set(one(path).schema.values()) == {pl.String}


def test_a_folder_yields_its_tables_in_name_order(tmp_path):
    for name in ("b.csv", "a.parquet", "README.md", ".hidden.csv"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in list_files(tmp_path)] == ["a.parquet", "b.csv"]


def test_missing_path_and_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        list_files(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="no table in this folder"):
        list_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", b"", "is empty"),
        ("log.csv", b"user_id,item_id\n", "has no rows"),
        ("log.csv", b"a,b,a\n1,2,3\n", "column 'a' appears more than once"),
        ("log.csv", b"a,b\n\xff\xfe,1\n", "not UTF-8"),
        ("log.csv", codecs.BOM_UTF16_LE + "a,b\n1,2\n".encode("utf-16-le"), "not UTF-8"),
        ("log.csv", b'a,b\n"1\n1",2\n1,2,3\n', "line 4 has 3 fields, not 2"),
        ("log.csv", b'a,b\n1,"2', "not a readable text file"),
        ("log.dat", b"a::b\n1::2\n1\n", "line 3 has 1 fields, not 2"),
        ("log.parquet", b"", "not a readable Parquet file"),
        ("log.parquet", b"PAR1 is where it starts", "not a readable Parquet file"),
        ("log.xlsx", b"PK but no workbook", "not a readable XLSX file"),
        ("log.json", b"{}", "can't read files of type '.json'"),
    ],
)
def test_bad_files_get_one_line_that_names_them(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_tables(path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_truncated_parquet(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"a": range(10_000)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_tables(path)


def test_duplicate_columns_in_a_workbook(tmp_path):
    path = tmp_path / "log.xlsx"
    with xlsxwriter.Workbook(path) as book:
        sheet = book.add_worksheet("sales")
        sheet.write_row(0, 0, ["a", "b", "a"])
        sheet.write_row(1, 0, [1, 2, 3])
    with pytest.raises(DataError, match="'a' appears more than once"):
        column_names(path)
