import sys
import types

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.config import ItemsConfig, PrivacyConfig, StatisticsConfig
from fedprofile.common.errors import ConfigError, DataError
from fedprofile.common.items import COOCCURRENCE_BLOCK
from fedprofile.server.item_vectors import BLOCK_WEIGHTS, build_item_table, with_room

SMALL = ItemsConfig(dimension=8)


def catalogue(**columns):
    columns.setdefault("item_id", [f"i{row}" for row in range(len(next(iter(columns.values()))))])
    return pl.DataFrame(columns, schema_overrides={"item_id": pl.String})


def cosine(table, first, second, block=None):
    start, stop = table.blocks[block] if block else (0, table.dimension)
    a, b = table.vectors[first, start:stop], table.vectors[second, start:stop]
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


TEXTS = ["red tea cup", "blue tea cup", "garden spade", "garden hose", "steel spade", "tea towel"]


@pytest.mark.parametrize("encoder", ["tfidf", "hashed"])
def test_like_texts_have_like_vectors(encoder):
    config = ItemsConfig(dimension=64, text_encoder=encoder)
    table = build_item_table(catalogue(text=TEXTS), config)
    assert cosine(table, 0, 1) > cosine(table, 0, 3) + 0.1
    assert cosine(table, 2, 4) > cosine(table, 0, 4) + 0.1


@pytest.mark.parametrize("encoder", ["tfidf", "hashed"])
def test_text_without_spaces_is_compared_by_its_parts(encoder):
    colours = ["红色", "蓝色", "绿色", "黄色"]
    kinds = ["陶瓷咖啡杯", "不锈钢园艺铲子", "纯棉浴室毛巾", "木制儿童玩具"]
    texts = [colour + kind for kind in kinds for colour in colours]
    config = ItemsConfig(dimension=64, text_encoder=encoder)
    table = build_item_table(catalogue(text=texts), config)
    similarity = table.vectors @ table.vectors.T
    same = np.kron(np.eye(4), np.ones((4, 4))) > 0
    assert similarity[same].min() > similarity[~same].max() + 0.2
    assert "咖啡" in table.tags[0] or "陶瓷" in table.tags[0]


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [("चाय का प्याला", "चाय की केतली", "चाय"), ("чашка чая", "чашка кофе", "чашка")],
)
def test_words_of_other_scripts_stay_whole(first, second, shared):
    table = build_item_table(catalogue(text=[first, second]), SMALL)
    assert table.tags == ((shared,), (shared,))


def test_numbers_alone_carry_no_text():
    table = build_item_table(catalogue(text=["tea 12", "hose 12", "tea", "12"]), SMALL)
    assert cosine(table, 0, 2) == pytest.approx(1, abs=1e-5)
    assert not table.vectors[3].any()
    assert all("12" not in tags for tags in table.tags)


def test_blocks_have_the_documented_norm():
    table = build_item_table(
        catalogue(text=TEXTS, category=list("aabbcc"), price=[1.0, 2, 3, 40, 50, 600]), SMALL
    )
    assert list(table.blocks) == ["text", "category", "price"]
    assert table.vectors.dtype == np.float32
    for name, (start, stop) in table.blocks.items():
        norms = np.linalg.norm(table.vectors[:, start:stop], axis=1)
        np.testing.assert_allclose(norms, BLOCK_WEIGHTS[name], rtol=1e-5)
    assert table.dimension == max(stop for _, stop in table.blocks.values())


def test_near_prices_are_alike():
    table = build_item_table(catalogue(price=np.geomspace(1, 1000, 50).tolist()), SMALL)
    assert cosine(table, 0, 1, "price") > 0.9 > cosine(table, 0, 10, "price")
    assert cosine(table, 0, 49, "price") < 0


def test_prices_too_close_to_tell_apart_give_no_block():
    table = build_item_table(catalogue(price=[0.0, 1e-320, None]), SMALL)
    assert list(table.blocks) == ["id"]


def test_an_item_without_features_is_zero():
    table = build_item_table(
        catalogue(
            text=["tea", None, "tea cup", "  "],
            category=["a", None, "b", ""],
            price=[1.0, None, 2.0, float("nan")],
            tags=[["x"], None, [], [None]],
        ),
        SMALL,
    )
    assert np.isfinite(table.vectors).all()
    assert not table.vectors[[1, 3]].any()
    assert table.vectors[[0, 2]].any(axis=1).all()
    assert (table.tags[1], table.tags[3]) == ((), ())


def test_tags_come_from_tags_then_category_then_text():
    table = build_item_table(
        catalogue(
            text=["tea cup", "tea cup", "tea cup"],
            category=["kitchen", "kitchen", None],
            tags=[["gift", "gift", "茶"], [], None],
        ),
        SMALL,
    )
    assert table.tags == (("gift", "茶"), ("kitchen",), ("cup", "tea"))


def test_constant_columns_say_nothing():
    table = build_item_table(catalogue(text=TEXTS, category=["same"] * 6, price=[2.0] * 6), SMALL)
    assert list(table.blocks) == ["text"]
    assert np.isfinite(table.vectors).all()


def test_many_categories_are_hashed():
    names = [f"category {row % 200}" for row in range(400)]
    table = build_item_table(catalogue(category=names), SMALL)
    start, stop = table.blocks["category"]
    assert stop - start == 64
    assert cosine(table, 0, 200, "category") == pytest.approx(1)


def test_without_text_ids_stay_distinct_and_the_same_in_any_catalogue():
    table = build_item_table(catalogue(item_id=[str(row) for row in range(300)]), ItemsConfig())
    assert list(table.blocks) == ["id"]
    similarity = table.vectors @ table.vectors.T
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)
    assert np.abs(similarity - np.eye(300)).max() < 0.6
    alone = build_item_table(catalogue(item_id=["7"]), ItemsConfig())
    np.testing.assert_array_equal(alone.vectors[0], table.vectors[7])


def test_hashed_text_does_not_depend_on_the_rest_of_the_catalogue():
    config = ItemsConfig(text_encoder="hashed")
    whole = build_item_table(catalogue(text=TEXTS), config)
    part = build_item_table(catalogue(text=TEXTS[:2]), config)
    np.testing.assert_allclose(part.vectors, whole.vectors[:2], atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(TEXTS))))
def test_the_order_of_rows_changes_nothing(order):
    frame = catalogue(text=TEXTS, price=[1.0, 2, 3, 4, 5, None])
    table = build_item_table(frame, SMALL)
    shuffled = build_item_table(frame[list(order)], SMALL)
    assert shuffled.ids == tuple(table.ids[row] for row in order)
    assert shuffled.tags == tuple(table.tags[row] for row in order)
    np.testing.assert_array_equal(shuffled.vectors, table.vectors[list(order)])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.text(max_size=12),
            st.none() | st.text(max_size=3),
            st.none() | st.floats(),
            st.none() | st.lists(st.none() | st.text(max_size=3), max_size=2),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["tfidf", "hashed"]),
)
def test_any_catalogue_gives_finite_vectors(rows, encoder):
    text, category, price, tags = (list(column) for column in zip(*rows, strict=True))
    frame = pl.DataFrame(
        {
            "item_id": [str(row) for row in range(len(rows))],
            "text": text,
            "category": category,
            "price": price,
            "tags": tags,
        },
        schema={
            "item_id": pl.String,
            "text": pl.String,
            "category": pl.String,
            "price": pl.Float64,
            "tags": pl.List(pl.String),
        },
    )
    table = build_item_table(frame, ItemsConfig(dimension=4, text_encoder=encoder))
    assert table.vectors.shape == (len(rows), table.dimension)
    assert np.isfinite(table.vectors).all()
    assert len(table.tags) == len(rows)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"id": ["a"]}), "column 'item_id' is missing"),
        (pl.DataFrame({"item_id": []}, schema={"item_id": pl.String}), "no items"),
        (pl.DataFrame({"item_id": ["a", None]}), "row 2 has no item_id"),
        (pl.DataFrame({"item_id": ["a", "b", "a"]}), "'a' stands twice"),
    ],
)
def test_a_catalogue_without_proper_ids_is_refused(frame, message):
    with pytest.raises(DataError, match=message):
        build_item_table(frame, SMALL)


SENTENCES = ItemsConfig(dimension=4, text_encoder="sentence", sentence_model="model-folder")


def test_the_sentence_encoder_asks_for_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedprofile\[text\]'"):
        build_item_table(catalogue(text=TEXTS), SENTENCES)


def sentence_package(load):
    package = types.ModuleType("sentence_transformers")
    package.SentenceTransformer = load
    return package


def test_a_sentence_model_is_never_downloaded(monkeypatch):
    def load(model, *, local_files_only):
        assert local_files_only
        raise OSError(f"{model} isn't cached")

    monkeypatch.setitem(sys.modules, "sentence_transformers", sentence_package(load))
    with pytest.raises(ConfigError, match="no model 'model-folder' on this machine"):
        build_item_table(catalogue(text=TEXTS), SENTENCES)


def test_sentence_vectors_are_reduced_and_items_without_text_stay_zero(monkeypatch):
    class Model:
        def __init__(self, model, *, local_files_only):
            pass

        def encode(self, sentences, *, show_progress_bar):
            return np.array([[len(s), s.count("e"), 1, 2, 3, 4] for s in sentences], np.float32)

    monkeypatch.setitem(sys.modules, "sentence_transformers", sentence_package(Model))
    table = build_item_table(catalogue(text=[*TEXTS, None]), SENTENCES)
    assert table.blocks == {"text": (0, 4)}
    assert not table.vectors[-1].any()
    assert table.vectors[:-1].any(axis=1).all()


@pytest.mark.parametrize(
    ("goods", "texts", "statistics", "privacy", "columns"),
    [
        (True, True, {}, {}, 0),
        (False, True, {}, {}, 64),
        (True, False, {"whole_histories": False}, {}, 64),
        (True, False, {"cooccurrence": 64}, {}, 64),
        (True, True, {"cooccurrence": 8}, {}, 8),
        (False, False, {"cooccurrence": 0}, {}, 0),
        (False, False, {"cooccurrence": 8}, {"split": {"popularity": 0.0}}, 0),
        (False, False, {"cooccurrence": 8}, {"split": {"popularity": 0.0}, "enabled": False}, 8),
    ],
)
def test_there_is_room_for_what_is_taken_together(goods, texts, statistics, privacy, columns):
    named = {"text": ["red mug", "blue mug"]} if texts else {"item_id": ["a", "b"]}
    table = build_item_table(catalogue(**named), SMALL)
    room = with_room(
        table,
        StatisticsConfig(**statistics),
        PrivacyConfig(**privacy),
        population_size=5_000,
        goods=goods,
    )
    assert (room.width_of(COOCCURRENCE_BLOCK), room.whole) == (columns, False)
    assert not room.vectors[:, table.dimension :].any()
    np.testing.assert_array_equal(room.vectors[:, : table.dimension], table.vectors)


def test_there_is_no_room_where_the_whole_budget_compares_no_items():
    table = build_item_table(catalogue(item_id=[str(row) for row in range(300)]), SMALL)

    def found(population_size, **privacy):
        settings = StatisticsConfig(), PrivacyConfig(delta=1e-5, **privacy)
        return with_room(table, *settings, population_size=population_size) is not table

    # By hand: μ = 0.5 at ε = 1.9931, and 0.1 · N · μ = 16 items.
    epsilon = 1.9931
    assert found(321, epsilon=epsilon)
    assert not found(319, epsilon=epsilon)
    assert found(5, epsilon=epsilon, enabled=False)


@pytest.mark.parametrize(
    ("goods", "statistics", "privacy", "whole"),
    [
        (True, {}, {"enabled": False}, True),
        (True, {}, {}, None),
        (False, {}, {"enabled": False}, False),
        (True, {"cooccurrence": 8}, {"enabled": False}, False),
        (True, {"cooccurrence": 0}, {"enabled": False}, False),
        (True, {"whole_histories": False}, {"enabled": False}, False),
        (False, {"whole_histories": True}, {}, True),
        (False, {"whole_histories": True}, {"split": {"popularity": 0.0}}, False),
    ],
)
@pytest.mark.parametrize("texts", [True, False])
def test_whole_histories_are_released_of_goods_without_privacy(
    goods, statistics, privacy, whole, texts
):
    named = {"text": ["red mug", "blue mug"]} if texts else {"item_id": ["a", "b"]}
    table = build_item_table(catalogue(**named), SMALL)
    settings = StatisticsConfig(**statistics), PrivacyConfig(**privacy)
    room = with_room(table, *settings, population_size=5_000, goods=goods)
    # Unless it is said, under privacy names of goods do without.
    assert room.whole == ((not texts) if whole is None else whole)
    if room.whole:
        assert room.compares
        np.testing.assert_array_equal(room.vectors, table.vectors)


def test_whole_histories_are_not_paid_for_where_trained_vectors_rank_alone():
    table = build_item_table(catalogue(item_id=["a", "b"]), SMALL)
    known = {"population_size": 5_000, "goods": True, "trained": True}
    room = with_room(table, StatisticsConfig(), PrivacyConfig(), **known)
    assert (room.whole, room.width_of(COOCCURRENCE_BLOCK)) == (False, 64)
    with pytest.raises(ConfigError, match=r"whole_histories: with model\.item_ids"):
        with_room(table, StatisticsConfig(whole_histories=True), PrivacyConfig(), **known)


def test_one_item_has_no_pair():
    table = build_item_table(catalogue(item_id=["a"]), SMALL)
    assert with_room(table, StatisticsConfig(), PrivacyConfig(), population_size=9_999) is table
