import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.errors import DataError
from fedprofile.common.items import ItemTable
from fedprofile.common.successors import MOST_PAIRS, Successors

N_ITEMS = 5
SOME = Successors.of(
    np.array([3, 0, 3, 0]), np.array([1, 4, 0, 2]), np.array([0.5, 0.25, 0.125, 0.5])
)


def table(successors):
    names = tuple(f"商品{i}" for i in range(N_ITEMS))
    vectors = np.eye(N_ITEMS, dtype=np.float32)
    return ItemTable(vectors, names, ((),) * N_ITEMS, {"text": (0, N_ITEMS)}, successors)


def test_pairs_are_in_order():
    assert SOME.pairs.tolist() == [[0, 2], [0, 4], [3, 0], [3, 1]]
    assert SOME.chances.tolist() == [0.5, 0.25, 0.125, 0.5]
    SOME.check(N_ITEMS)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.floats(0, 2), st.integers(0, 2)), min_size=0, max_size=9
    )
)
def test_what_comes_after_some_events_is_the_sum_of_what_comes_after_each(events):
    chances = np.zeros((N_ITEMS, N_ITEMS))
    chances[tuple(SOME.pairs.T)] = SOME.chances
    expected = np.zeros((3, N_ITEMS))
    for item, weight, row in events:
        expected[row] += weight * chances[item]
    found = SOME.after(
        np.array([item for item, _, _ in events], dtype=np.int32),
        np.array([weight for _, weight, _ in events], dtype=np.float64),
        n_items=N_ITEMS,
        rows=np.array([row for _, _, row in events], dtype=np.int64),
        n_rows=3,
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("successors", [SOME, Successors.none()])
def test_bytes_and_files_hold_the_same(successors, tmp_path):
    again = Successors.from_bytes(successors.to_bytes())
    np.testing.assert_array_equal(again.pairs, successors.pairs)
    np.testing.assert_array_equal(again.chances, successors.chances)
    path = tmp_path / "items.safetensors"
    table(successors).save(path)
    loaded = ItemTable.load(path)
    assert loaded.content_hash == table(successors).content_hash
    np.testing.assert_array_equal(loaded.successors.pairs, successors.pairs)
    np.testing.assert_array_equal(loaded.successors.chances, successors.chances)


def test_a_table_is_named_by_what_follows_what():
    stronger = Successors(SOME.pairs, SOME.chances * np.float32(1.1))
    other = Successors(SOME.pairs[:, ::-1].copy(), SOME.chances)
    names = {table(found).content_hash for found in (None, SOME, stronger, other)}
    assert len(names) == 4


@pytest.mark.parametrize(
    "wrong",
    [
        Successors(SOME.pairs[:3], SOME.chances),
        Successors(SOME.pairs[::-1].copy(), SOME.chances),
        Successors(SOME.pairs[[0, 0, 2, 3]], SOME.chances),
        Successors(SOME.pairs - 1, SOME.chances),
        Successors(SOME.pairs + 1, SOME.chances),
        Successors(SOME.pairs * np.int32([1, 0]), SOME.chances),
        Successors(SOME.pairs, -SOME.chances),
        Successors(SOME.pairs, SOME.chances * np.float32(np.nan)),
        Successors(SOME.pairs, SOME.chances * np.float32(np.inf)),
        Successors(SOME.pairs, SOME.chances * 2),
        Successors(SOME.pairs, SOME.chances * np.float32(1.25)),
        Successors(SOME.pairs.astype(np.int64), SOME.chances),
        Successors(SOME.pairs, SOME.chances.astype(np.float64)),
    ],
)
def test_what_are_no_chances_of_pairs_is_refused(wrong, tmp_path):
    with pytest.raises(DataError, match="successors"):
        wrong.check(N_ITEMS)
    path = tmp_path / "items.safetensors"
    table(wrong).save(path)
    with pytest.raises(DataError, match="not an item table"):
        ItemTable.load(path)


def test_more_pairs_than_are_told_are_refused():
    count = MOST_PAIRS + 1
    items = np.arange(count)
    many = Successors.of(items, items + 1, np.full(count, 0.1))
    with pytest.raises(DataError, match="are the most"):
        many.check(count + 1)


def test_half_a_pair_is_refused():
    with pytest.raises(DataError, match="no whole number"):
        Successors.from_bytes(SOME.to_bytes()[:-1])
