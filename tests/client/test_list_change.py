import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.client.answers import RankShift
from fedprofile.client.list_change import list_change
from fedprofile.client.scoring import Ranking


def ranking(ids):
    n = len(ids)
    scores = np.linspace(1, 0, n).astype(np.float32) if n else np.zeros(0, dtype=np.float32)
    return Ranking(np.arange(n, dtype=np.int32), scores, tuple(ids))


def test_items_are_told_by_what_became_of_them():
    change = list_change(ranking("abcdef"), ranking("adcfb"), top_k=4)
    names = {
        group: "".join(one.item for one in getattr(change, group))
        for group in ("entered", "left", "rose", "fell", "stayed")
    }
    assert names == {"entered": "f", "left": "b", "rose": "d", "fell": "", "stayed": "ac"}
    assert change.entered == (RankShift("f", 6, 4, 0.0, 0.25),)
    assert change.left[0].new_rank == 5
    met = list_change(ranking("ab"), ranking("b"), top_k=1)
    assert met.left == (RankShift("a", 1, None, 1.0, None),)


@given(
    st.permutations("abcdefgh"),
    st.permutations("abcdefgh"),
    st.sets(st.sampled_from("abcdefgh")),
    st.integers(1, 10),
)
def test_the_old_list_and_what_is_told_are_the_new_list(old, new, met, top_k):
    now = [item for item in new if item not in met]
    change = list_change(ranking(old), ranking(now), top_k=top_k)
    places = {item: place for place, item in enumerate(old[:top_k], start=1)}
    for one in change.left:
        assert places.pop(one.item) == one.old_rank
        assert one.new_rank is None or one.new_rank > top_k
        assert (one.new_rank is None) == (one.item in met)
    for one in (*change.rose, *change.fell):
        assert places[one.item] == one.old_rank
        places[one.item] = one.new_rank
    for one in change.entered:
        assert one.item not in places
        assert one.old_rank > top_k
        places[one.item] = one.new_rank
    assert sorted(places, key=places.get) == now[:top_k]
    assert sorted(places.values()) == list(range(1, len(now[:top_k]) + 1))
    assert all(one.new_rank < one.old_rank for one in change.rose)
    assert all(one.new_rank > one.old_rank for one in change.fell)
    assert all(one.new_rank == one.old_rank == places[one.item] for one in change.stayed)
    listed = (*change.entered, *change.rose, *change.fell, *change.stayed)
    scores = {one.item: one.new_score for one in listed}
    found = ranking(now).first(top_k)
    assert scores == dict(zip(found.ids, found.scores.tolist(), strict=True))
