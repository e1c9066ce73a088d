"""Files as tables: delimited text, Parquet and XLSX, read whole, nothing interpreted yet.

Text stays text here: a code such as ``00123`` must not become a number, and what a column means is
known only to the preset.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fastexcel
import polars as pl

from ..common.errors import DataError

SUFFIXES = (".csv", ".tsv", ".dat", ".data", ".parquet", ".xlsx")
"""What is read from a folder; other files are left alone."""

LIST_SEPARATOR = "\x1f"
"""Joins the members of a list cell, so that every table holds plain values."""

_SEPARATORS = {".tsv": "\t", ".data": "\t"}
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one file or sheet, and the name to call it by in messages."""

    name: str
    frame: pl.DataFrame


def list_files(path: Path) -> list[Path]:
    """The file itself, or the table files of a folder in name order.

    Raises:
        DataError: nothing is there, or the folder holds no table.
    """
    if path.is_dir():
        files = sorted(
            file
            for file in path.iterdir()
            if file.is_file()
            and file.suffix.lower() in SUFFIXES
            and not file.name.startswith((".", "~$"))
        )
        if not files:
            raise DataError(
                f"{path}: no table in this folder; put {', '.join(SUFFIXES)} files into it"
            )
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return [path]


def column_names(path: Path, header: Sequence[str] | None = None) -> list[str]:
    """Column names of a file (its first sheet that has any), without reading its rows.

    Args:
        path: the file.
        header: names for a file without a header line.

    Raises:
        DataError: the file is empty, unreadable, of an unknown kind, or names a column twice.
    """
    match path.suffix.lower():
        case ".parquet":
            try:
                names = list(pl.read_parquet_schema(path))
            except _UNREADABLE as error:
                raise _damaged(path, "Parquet", error) from error
        case ".xlsx":
            workbook = _workbook(path)
            sheets = (_sheet_header(workbook, sheet) for sheet in workbook.sheet_names)
            names = next((names for names in sheets if names), [])
        case suffix if suffix in SUFFIXES:
            names = list(header) if header is not None else _split(path, _first_line(path))
        case suffix:
            raise DataError(
                f"{path}: can't read files of type '{suffix}'; use one of {', '.join(SUFFIXES)}"
            )
    return _checked(path.name, names)


def read_tables(
    path: Path, header: Sequence[str] | None = None, fallback_encoding: str | None = None
) -> list[Table]:
    """Read one file; a workbook yields one table per sheet that isn't empty.

    Args:
        path: the file.
        header: names for a text file without a header line.
        fallback_encoding: tried where a text file is not UTF-8.

    Raises:
        DataError: the file is empty, damaged, in another encoding, or names a column twice.
    """
    names = column_names(path, header)
    if path.suffix.lower() == ".xlsx":
        tables = _read_workbook(path)
    elif path.suffix.lower() == ".parquet":
        try:
            tables = [Table(path.name, pl.read_parquet(path))]
        except _UNREADABLE as error:
            raise _damaged(path, "Parquet", error) from error
    else:
        text = _read_text(path, names, header is None, fallback_encoding)
        tables = [Table(path.name, text)]
    if not any(table.frame.height for table in tables):
        raise DataError(f"{path}: has no rows; put interactions below the header or remove it")
    return [Table(table.name, _flat(table.frame)) for table in tables]


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Plain values only, so that tables can be stacked and whole lines compared."""
    expressions = []
    for name, kind in frame.schema.items():
        column = pl.col(name)
        if isinstance(kind, pl.List | pl.Array):
            column = column.cast(pl.List(pl.String)).list.join(LIST_SEPARATOR, ignore_nulls=True)
        elif isinstance(kind, pl.Struct):
            column = column.struct.json_encode()
        elif isinstance(kind, pl.Categorical | pl.Enum):
            column = column.cast(pl.String)
        elif isinstance(kind, pl.Datetime):
            column = column.cast(pl.Datetime("us", kind.time_zone))
            if kind.time_zone is not None:
                column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        expressions.append(column)
    return frame.select(expressions)


def _checked(name: str, columns: list[str]) -> list[str]:
    if not columns:
        raise DataError(f"{name}: is empty; it needs a header line and rows")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(
            f"{name}: column {', '.join(map(repr, twice))} appears more than once; rename one"
        )
    return columns


def _damaged(path: Path, kind: str, error: BaseException) -> DataError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{path}: not a readable {kind} file ({reason}); export or copy it again")


# Delimited text ------------------------------------------------------------------------------


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = line.decode("latin-1")
    if "\x00" in text:
        raise DataError(f"{path}: not UTF-8 text (looks like UTF-16); save it as UTF-8")
    return text.rstrip("\r\n")


def _separator(path: Path, first_line: str) -> str:
    """By suffix; for ``.csv`` and ``.dat`` the most frequent candidate in the first line."""
    known = _SEPARATORS.get(path.suffix.lower())
    if known is not None:
        return known
    if "::" in first_line:
        return "::"
    return max(",;\t|", key=first_line.count)


def _split(path: Path, line: str) -> list[str]:
    if not line:
        return []
    separator = _separator(path, line)
    if separator == "::":
        return line.split("::")
    fields = pl.read_csv(
        io.BytesIO(line.encode()), separator=separator, has_header=False, infer_schema=False
    )
    return ["" if field is None else str(field).strip() for field in fields.row(0)]


def _read_text(
    path: Path, names: list[str], has_header: bool, fallback_encoding: str | None
) -> pl.DataFrame:
    separator = _separator(path, _first_line(path))
    try:
        try:
            return _parse_text(path, path, names, separator, has_header)
        except pl.exceptions.ComputeError as error:
            if "utf-8" not in str(error).lower() or fallback_encoding is None:
                raise
            content = io.BytesIO(path.read_bytes().decode(fallback_encoding).encode())
            return _parse_text(path, content, names, separator, has_header)
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{path}: is empty; it needs a header line and rows") from error
    except (*_UNREADABLE, UnicodeDecodeError) as error:
        if "utf-8" in str(error).lower():
            raise DataError(f"{path}: not UTF-8 text; save it as UTF-8") from error
        _check_fields(path, separator, names)
        raise _damaged(path, "text", error) from error


def _check_fields(path: Path, separator: str, names: list[str]) -> None:
    """Name the first line with too many fields, which the parser itself doesn't."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        lines = csv.reader(file, delimiter=separator)
        for fields in lines:
            if len(fields) > len(names):
                raise DataError(
                    f"{path}: line {lines.line_num} has {len(fields)} fields, not {len(names)} "
                    f"({', '.join(names)}); put quotes around a field that contains "
                    f"{separator!r}"
                )


def _parse_text(
    path: Path, source: Path | io.BytesIO, names: list[str], separator: str, has_header: bool
) -> pl.DataFrame:
    if separator != "::":
        frame = pl.read_csv(source, separator=separator, has_header=has_header, infer_schema=False)
        if frame.width != len(names):
            raise DataError(
                f"{path}: lines have {frame.width} fields, not {len(names)} ({', '.join(names)})"
            )
        frame.columns = names
        return frame
    lines = pl.read_csv(
        source,
        separator="\x1f",
        has_header=False,
        skip_rows=int(has_header),
        new_columns=["line"],
        quote_char=None,
        infer_schema=False,
    )["line"]
    fields = lines.str.count_matches("::", literal=True) + 1
    wrong = (fields != len(names)).arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: line {row + 1 + has_header} has {fields[row]} fields, not {len(names)} "
            f"({'::'.join(names)})"
        )
    return lines.str.split_exact("::", len(names) - 1).struct.rename_fields(names).struct.unnest()


# Workbooks -----------------------------------------------------------------------------------


def _workbook(path: Path) -> fastexcel.ExcelReader:
    try:
        return fastexcel.read_excel(path)
    except (fastexcel.FastExcelError, OSError) as error:
        raise _damaged(path, "XLSX", error) from error


def _sheet_header(workbook: fastexcel.ExcelReader, sheet: str) -> list[str]:
    """The names as written; the reader itself would rename the second of two equal ones."""
    try:
        top = workbook.load_sheet(sheet, header_row=None, n_rows=1).to_polars()
    except fastexcel.FastExcelError:
        return []
    return [] if top.is_empty() else [str(name).strip() for name in top.row(0) if name is not None]


def _read_workbook(path: Path) -> list[Table]:
    workbook = _workbook(path)
    tables = []
    for sheet in workbook.sheet_names:
        names = _sheet_header(workbook, sheet)
        if not names:
            continue
        name = f"{path.name}:{sheet}"
        _checked(name, names)
        try:
            # A column's type is told by all its rows: a stock code may first look like a number.
            frame = workbook.load_sheet(sheet, schema_sample_rows=None).to_polars()
        except fastexcel.FastExcelError as error:
            raise _damaged(path, "XLSX", error) from error
        tables.append(Table(name, frame.rename(str.strip)))
    return tables
