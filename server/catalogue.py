"""The public catalogue of a deployment: a table of items, or a small built-in one to try things with."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import polars as pl

from ..common.errors import DataError

_KNOWN = {"text": pl.String, "category": pl.String, "price": pl.Float64}
_KINDS = {  # kind → what is sold of it, and its price
    "tea": ("green tea", "black tea", "herbal tea", "oolong"),
    "coffee": ("espresso beans", "filter coffee", "decaf beans", "cold brew"),
    "kitchen": ("mug", "teapot", "kettle", "grinder"),
    "books": ("cookbook", "novel", "travel guide", "atlas"),
    "garden": ("seeds", "watering can", "flower pot", "gloves"),
}
_MAKES = ("small", "large", "organic", "vintage", "blue", "travel", "gift", "classic")


def read_catalogue(path: Path | None) -> pl.DataFrame:
    """Columns ``item_id`` and, where given, ``text``, ``category`` and ``price``.

    Args:
        path: CSV or Parquet with those columns; None for the built-in catalogue of 160 items.

    Raises:
        DataError: the file can't be read, or has no ``item_id``.
    """
    if path is None:
        return _built_in()
    try:
        if path.suffix.lower() == ".parquet":
            table = pl.read_parquet(path)
        else:
            table = pl.read_csv(path, infer_schema=False)  # 00123 is a code, not a number
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: can't read items ({str(error).partition(chr(10))[0]})") from error
    if "item_id" not in table.columns:
        raise DataError(
            f"{path}: column 'item_id' is missing; the columns are item_id,text,category,price"
        )
    columns = [pl.col("item_id").cast(pl.String).str.strip_chars()]
    columns += [
        pl.col(name).cast(kind, strict=False)
        for name, kind in _KNOWN.items()
        if name in table.columns
    ]
    return table.select(columns)


def _built_in() -> pl.DataFrame:
    rows = [
        {
            "item_id": f"{kind}-{thing.replace(' ', '-')}-{make}",
            "text": f"{make} {thing}",
            "category": kind,
            "price": 4.0 + 3.0 * place + 1.5 * len(make),
        }
        for kind, things in _KINDS.items()
        for (place, thing), make in product(enumerate(things), _MAKES)
    ]
    return pl.DataFrame(rows)
