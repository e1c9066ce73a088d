"""Public item vectors from catalogue content: text, categories and price.

The vectors are frozen: what is learned together is the encoder, a few thousand numbers, and not a
vector per item, which user-level DP would drown in noise. Nothing here may see an interaction.

Each feature block is L2-normalised per item and then given its weight, so that an item is compared
by text first, by category next and by price last; the encoder learns a gain per block on top. An
item without a feature has zeros in its block.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import normalize
from sklearn.random_projection import GaussianRandomProjection
from sklearn.utils.extmath import randomized_svd

from ..common.config import ItemsConfig, PrivacyConfig, StatisticsConfig
from ..common.errors import ConfigError, DataError
from ..common.items import COOCCURRENCE_BLOCK, ID_BLOCK, ItemTable
from .budget import compares

BLOCK_WEIGHTS = {"text": 1.0, ID_BLOCK: 1.0, "category": 0.5, "price": 0.3}
"""Norm of an item's block; ``id`` stands in for ``text`` where no item has any text."""

_CATEGORY_COLUMNS = 64
_COOCCURRENCE_COLUMNS = 64
_PRICE_KNOTS = 8
_PRICE_RESOLUTION = 1e-6
_HASHED_FEATURES = 1 << 14
_MAX_TERMS = 1 << 16
_TERMS_AS_TAGS = 3
# Han, Kana and their like are written without spaces.
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+)")


def with_room(
    table: ItemTable,
    statistics: StatisticsConfig,
    privacy: PrivacyConfig,
    *,
    population_size: int,
    goods: bool = False,
    trained: bool = False,
) -> ItemTable:
    """``table`` with room for what the release of co-occurrence will tell, if there is one: a block of
    zeros, or the mark that it is of whole histories.

    Where it is left open, what kind of items they are decides, which is public: names of goods tell what
    is taken together, and under privacy the release isn't worth its part of the budget; titles and names
    of other things tell little of it. Of goods it is of whole histories: a basket has no order, and what
    one has goes on to matter. There is none where it would get no part of the budget, or the whole budget
    of so few users would be too little for it.

    Args:
        table: public.
        statistics: how many columns, if that is said.
        privacy: the budget.
        population_size: N.
        goods: whether items are things that a shop sells.
        trained: whether items get trained vectors, too, by which they are ranked alone.

    Raises:
        ConfigError: the population is too small for a default δ, or whole histories are asked for where
            nothing would go by them.
    """
    columns, whole = statistics.cooccurrence, statistics.whole_histories
    if whole is None:
        worth_it = not privacy.enabled or "text" not in table.blocks
        whole = goods and columns is None and worth_it and not trained
    if whole and trained:
        raise ConfigError(
            "statistics.whole_histories: with model.item_ids lists go by trained vectors alone, and the "
            "release would be paid for in vain; unset one of the two"
        )
    if columns is None:
        columns = 0 if goods and "text" in table.blocks else _COOCCURRENCE_COLUMNS
    # Of one item there is no pair.
    if not (whole or columns) or table.n_items < 2:
        return table
    if not compares(privacy, n_items=table.n_items, population_size=population_size):
        return table
    if whole:
        return replace(table, whole=True)
    return table.with_block(COOCCURRENCE_BLOCK, np.zeros((table.n_items, columns), np.float32))


def build_item_table(catalogue: pl.DataFrame, config: ItemsConfig) -> ItemTable:
    """Vectors and tags of every item of a catalogue; the order of its rows doesn't matter.

    Args:
        catalogue: ``item_id`` (String, unique) and, where known, ``text`` and ``category``
            (String), ``price`` (Float64) and ``tags`` (List[String]); other columns are left alone.
            Nulls, NaN and blank strings are unknown values.
        config: text encoder and its number of columns.

    Returns:
        The table in the order of the rows. An item's tags are its ``tags``, else its category, else
        the words that mark its text.

    Raises:
        DataError: no items, or ids that are missing or not unique.
        ConfigError: the sentence encoder isn't installed or its model can't be loaded.
    """
    _check_ids(catalogue)
    # One order for all: randomised SVD depends on it.
    order = catalogue["item_id"].arg_sort()
    items = catalogue[order]
    ids = items["item_id"].to_list()
    texts = [_plain(text) for text in _strings(items, "text")]
    categories = _strings(items, "category")
    tags = _lists(items, "tags")

    parts = {}
    if any(texts):
        parts["text"] = _text_block(texts, config)
    else:
        parts[ID_BLOCK] = _id_block(ids, config.dimension)
    values = [
        [*own, *([category] if category else [])]
        for own, category in zip(tags, categories, strict=True)
    ]
    parts["category"] = _category_block(values)
    parts["price"] = _price_block(items)

    widths = {name: part.shape[1] for name, part in parts.items() if part.shape[1]}
    stops = np.cumsum(list(widths.values())).tolist()
    blocks = {name: (stop - widths[name], stop) for name, stop in zip(widths, stops, strict=True)}
    vectors = np.hstack([BLOCK_WEIGHTS[name] * normalize(parts[name]) for name in blocks])
    words = _marking_words(texts)
    described = [
        tuple(dict.fromkeys(own)) or ((category,) if category else tuple(marks))
        for own, category, marks in zip(tags, categories, words, strict=True)
    ]
    place = np.argsort(order.to_numpy())
    return ItemTable(
        vectors=np.ascontiguousarray(vectors[place], dtype=np.float32),
        ids=tuple(catalogue["item_id"]),
        tags=tuple(described[row] for row in place),
        blocks=blocks,
    )


def _check_ids(catalogue: pl.DataFrame) -> None:
    if "item_id" not in catalogue.columns:
        raise DataError("item table: column 'item_id' is missing; add it or map it in data.columns")
    ids = catalogue["item_id"]
    if ids.is_empty():
        raise DataError("item table: no items; check the file and the cleaning rules")
    if ids.has_nulls():
        row = int(ids.is_null().arg_max() or 0) + 1
        raise DataError(f"item table: row {row} has no item_id; give every item an id")
    if ids.n_unique() < len(ids):
        double = ids.filter(ids.is_duplicated())[0]
        raise DataError(f"item table: item_id {double!r} stands twice; keep one row per item")


def _strings(items: pl.DataFrame, column: str) -> list[str]:
    if column not in items.columns:
        return [""] * items.height
    return [(value or "").strip() for value in items[column].cast(pl.String)]


def _lists(items: pl.DataFrame, column: str) -> list[list[str]]:
    if column not in items.columns:
        return [[] for _ in range(items.height)]
    rows = items[column].cast(pl.List(pl.String))
    return [[tag.strip() for tag in (row or []) if tag and tag.strip()] for row in rows.to_list()]


# Text ---------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Lower-case words of any script between single spaces, without numbers standing alone."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join(word for word in kept.split() if not word.isdecimal())


def _words(plain: str) -> list[str]:
    """Words, and overlapping pairs of characters where a script has no spaces between words."""
    words = []
    for word in plain.split():
        for part in filter(None, _UNSPACED.split(word)):
            if len(part) > 1 and _UNSPACED.fullmatch(part):
                words += [first + second for first, second in pairwise(part)]
            else:
                words.append(part)
    return words


def _text_block(texts: list[str], config: ItemsConfig) -> NDArray[np.float64]:
    if config.text_encoder == "sentence":
        return _reduced(_sentences(texts, config.sentence_model), config.dimension)
    word = {"tokenizer": _words, "token_pattern": None, "lowercase": False, "ngram_range": (1, 2)}
    char = {"analyzer": "char_wb", "lowercase": False, "ngram_range": (3, 4)}
    if config.text_encoder == "hashed":
        # Nothing is fitted: an item keeps its vector when the catalogue grows.
        hashed = FeatureUnion(
            [
                ("word", HashingVectorizer(n_features=_HASHED_FEATURES, **word)),
                ("char", HashingVectorizer(n_features=_HASHED_FEATURES, **char)),
            ]
        ).transform(texts)
        projection = GaussianRandomProjection(config.dimension, random_state=0)
        return np.asarray(projection.fit(hashed[:1]).transform(hashed))
    tfidf = FeatureUnion(
        [
            ("word", TfidfVectorizer(sublinear_tf=True, max_features=_MAX_TERMS, **word)),
            ("char", TfidfVectorizer(sublinear_tf=True, max_features=_MAX_TERMS, **char)),
        ],
    ).fit_transform(texts)
    return _reduced(tfidf, config.dimension)


def _reduced(
    features: NDArray[np.float64] | sparse.csr_matrix, dimension: int
) -> NDArray[np.float64]:
    """Truncated SVD, U·Σ^½: [n_items, at most ``dimension``].

    The square root keeps the few strongest directions from deciding every similarity (Caron 2001,
    "Experiments with LSA scoring"; Levy et al. 2015 §3.3).
    """
    components = min(dimension, *features.shape)
    u, s, _ = randomized_svd(features, components, n_iter=5, random_state=0)
    return np.asarray(u * np.sqrt(s))


def _sentences(texts: list[str], model: str) -> NDArray[np.float64]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            "items.text_encoder = 'sentence' needs an extra: pip install 'fedprofile[text]'"
        ) from error
    try:
        encoder = SentenceTransformer(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"items.sentence_model: no model {model!r} on this machine; "
            "fetch it once, or give the path of its folder"
        ) from error
    known = [text for text in texts if text]
    embedded = np.asarray(encoder.encode(known, show_progress_bar=False), dtype=np.float64)
    vectors = np.zeros((len(texts), embedded.shape[1]))
    vectors[[row for row, text in enumerate(texts) if text]] = embedded
    return vectors


def _id_block(ids: Sequence[str], dimension: int) -> NDArray[np.float64]:
    """A random direction per id, the same on any machine: items that say nothing stay distinct."""
    digests = (hashlib.sha256(item.encode()).digest() for item in ids)
    generators = (np.random.default_rng(int.from_bytes(digest)) for digest in digests)
    return np.stack([generator.standard_normal(dimension) for generator in generators])


def _marking_words(texts: list[str]) -> list[list[str]]:
    """Each text's words of highest TF-IDF, among those that at least two texts share."""
    counts = Counter(word for text in texts for word in set(_words(text)))
    vocabulary = sorted(word for word, count in counts.items() if count > 1)
    if not vocabulary:
        return [[] for _ in texts]
    tfidf = TfidfVectorizer(
        tokenizer=_words,
        token_pattern=None,
        lowercase=False,
        sublinear_tf=True,
        vocabulary=vocabulary,
    ).fit_transform(texts)
    marks = []
    for start, stop in pairwise(tfidf.indptr):
        best = np.lexsort((tfidf.indices[start:stop], -tfidf.data[start:stop]))[:_TERMS_AS_TAGS]
        marks.append([vocabulary[column] for column in tfidf.indices[start:stop][best]])
    return marks


# Categories and price -----------------------------------------------------------------------------


def _category_block(values: list[list[str]]) -> NDArray[np.float64]:
    """One column per value, hashed where there are many; values that every item has say nothing."""
    sets = [set(row) for row in values]
    common = set.intersection(*sets)
    rows = [sorted(row - common) for row in sets]
    distinct = sorted(set().union(*rows))
    if len(distinct) > _CATEGORY_COLUMNS:
        hasher = FeatureHasher(_CATEGORY_COLUMNS, input_type="string")
        return np.asarray(hasher.transform(rows).toarray())
    column = {value: index for index, value in enumerate(distinct)}
    block = np.zeros((len(rows), len(distinct)))
    for index, row in enumerate(rows):
        block[index, [column[value] for value in row]] = 1.0
    return block


def _price_block(items: pl.DataFrame) -> NDArray[np.float64]:
    """Standardised log price, and hat functions on its quantiles: near prices are alike.

    Prices that are unknown, negative or not finite give zeros; prices that are all the same
    give no block.
    """
    if "price" not in items.columns:
        return np.zeros((items.height, 0))
    price = items["price"].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    known = np.isfinite(price) & (price >= 0)
    log_price = np.log1p(np.where(known, price, 0.0))
    if not known.any() or np.ptp(log_price[known]) < _PRICE_RESOLUTION:
        return np.zeros((items.height, 0))
    knots = np.unique(np.quantile(log_price[known], np.linspace(0, 1, _PRICE_KNOTS)))
    center, spread = log_price[known].mean(), log_price[known].std()
    standardised = np.clip((log_price - center) / (2 * spread), -1, 1)
    hats = np.stack([np.interp(log_price, knots, hat) for hat in np.eye(len(knots))], axis=1)
    block: NDArray[np.float64] = np.column_stack([standardised, hats]) * known[:, None]
    return block
