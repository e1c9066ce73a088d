from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedprofile.common.errors import DataError
from fedprofile.common.items import ItemTable


@pytest.fixture
def table():
    return ItemTable(
        vectors=np.arange(6, dtype=np.float32).reshape(3, 2),
        ids=("a,1", '"b"', "猫"),
        tags=(("red", "cup"), (), ("茶",)),
        blocks={"text": (0, 1), "category": (1, 2)},
    )


def test_a_saved_table_comes_back_the_same(table, tmp_path):
    table.save(tmp_path / "items.safetensors")
    again = ItemTable.load(tmp_path / "items.safetensors")
    np.testing.assert_array_equal(again.vectors, table.vectors)
    assert (again.ids, again.tags) == (table.ids, table.tags)
    # In the order of the columns, by which an encoder reads them.
    assert list(again.blocks.items()) == list(table.blocks.items())
    assert again.content_hash == table.content_hash


def test_what_its_pairs_are_of_is_part_of_it(table, tmp_path):
    whole = replace(table, whole=True)
    assert (table.compares, whole.compares) == (False, True)
    assert whole.content_hash != table.content_hash
    whole.save(tmp_path / "items.safetensors")
    again = ItemTable.load(tmp_path / "items.safetensors")
    assert again.whole
    assert again.content_hash == whole.content_hash
    assert again.with_block("more", np.ones((3, 1), np.float32)).whole


def test_pairs_are_of_one_kind(table, tmp_path):
    both = replace(table.with_block("cooccurrence", np.ones((3, 1), np.float32)), whole=True)
    both.save(tmp_path / "items.safetensors")
    with pytest.raises(DataError, match="whole histories, and vectors of close"):
        ItemTable.load(tmp_path / "items.safetensors")


def test_a_changed_byte_is_noticed(table, tmp_path):
    path = tmp_path / "items.safetensors"
    table.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="doesn't match its hash"):
        ItemTable.load(path)


@pytest.mark.parametrize("content", [b"", b"no table", b"\xff" * 64])
def test_a_damaged_file_is_named(content, tmp_path):
    path = tmp_path / "items.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"items\.safetensors"):
        ItemTable.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.safetensors"):
        ItemTable.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("change", ["vectors", "ids", "tags", "blocks"])
def test_the_hash_covers_everything(table, change):
    parts = {
        "vectors": table.vectors + 1,
        "ids": ("a", "b", "c"),
        "tags": ((), (), ()),
        "blocks": {"other": (0, 2)},
    }
    kept = {name: getattr(table, name) for name in parts if name != change}
    other = ItemTable(**kept, **{change: parts[change]})
    assert other.content_hash != table.content_hash


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(-10, 10, width=32)))
def test_a_block_is_appended(columns):
    table = ItemTable(np.ones((3, 2), np.float32), ("a", "b", "c"), ((), (), ()), {"text": (0, 2)})
    longer = table.with_block("popularity", columns)
    start, stop = longer.blocks["popularity"]
    assert (start, stop, longer.dimension) == (2, 6, 6)
    assert longer.vectors.dtype == np.float32
    np.testing.assert_array_equal(longer.vectors[:, start:stop], columns)
    np.testing.assert_array_equal(longer.vectors[:, :2], table.vectors)
    assert longer.content_hash != table.content_hash
    assert table.dimension == 2


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("text", np.ones((3, 1), np.float32), "exists already"),
        ("new", np.ones((2, 1), np.float32), r"shape \(2, 1\)"),
        ("new", np.ones(3, np.float32), r"shape \(3,\)"),
        ("new", np.array([[0], [np.nan], [0]], np.float32), "isn't finite for item"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(table, name, columns, message):
    with pytest.raises(DataError, match=message):
        table.with_block(name, columns)
