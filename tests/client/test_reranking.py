"""Re-ranking for diversity and calibration, against definitions written down a second time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from fedprofile.client.reranking import (
    Aims,
    choose,
    distribution,
    divergence,
    pool_size,
    rerank,
)
from fedprofile.client.scoring import Ranking
from fedprofile.common.errors import ConfigError
from fedprofile.common.items import ItemTable


def pool(seed, size=12, tags=3):
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.standard_normal(size))[::-1].astype(np.float32)
    vectors = rng.standard_normal((size, 4)).astype(np.float32)
    vectors[rng.integers(size)] = 0.0
    shares = rng.dirichlet(np.ones(tags), size=size)
    return scores, vectors, shares, rng.dirichlet(np.ones(tags))


def cosine(a, b):
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms > 0 else 0.0


def slowly(scores, vectors, shares, wanted, k, aims):
    """The definition, one item and one pair at a time."""
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    chosen = []
    for _ in range(k):
        values = {}
        for row in range(len(scores)):
            if row in chosen:
                continue
            like = max((cosine(vectors[row], vectors[other]) for other in chosen), default=0.0)
            q = shares[[*chosen, row]].mean(axis=0)
            off = entropy(wanted, 0.99 * q + 0.01 * wanted)
            rest = 1 - aims.diversity - aims.calibration
            values[row] = rest * relevance[row] - aims.diversity * like - aims.calibration * off
        chosen.append(max(values, key=lambda row: (values[row], -row)))
    return chosen


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    diversity=st.sampled_from([0.0, 0.2, 0.5]),
    calibration=st.sampled_from([0.0, 0.3, 0.5]),
)
def test_items_are_chosen_as_defined(seed, diversity, calibration):
    aims = Aims(diversity, calibration)
    found = choose(*pool(seed), k=6, aims=aims)
    assert found.tolist() == slowly(*pool(seed), 6, aims)


@given(seed=st.integers(0, 2**32 - 1))
def test_divergence_is_the_smoothed_one_of_the_paper(seed):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    assert divergence(p, q) == pytest.approx(entropy(p, 0.99 * q + 0.01 * p), rel=1e-9)
    assert divergence(p, p) == pytest.approx(0, abs=1e-12)


def test_a_tag_the_list_lacks_costs_finitely_and_one_the_profile_lacks_is_no_mistake():
    lacks = divergence(np.array([0.7, 0.3]), np.array([1.0, 0.0]))
    assert lacks == pytest.approx(0.7 * math.log(0.7 / 0.997) + 0.3 * math.log(0.3 / 0.003))
    assert np.isfinite(divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])))
    assert divergence(np.zeros(2), np.array([0.5, 0.5])) == 0


def ranking_of(table, scores):
    order = np.argsort(-scores, kind="stable").astype(np.int32)
    return Ranking(order, scores[order], tuple(table.ids[item] for item in order))


@pytest.fixture
def shop():
    """Twenty teas that are all alike and score best, twenty mugs that score less."""
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    vectors = kinds + 0.05 * rng.standard_normal((40, 2)).astype(np.float32)
    tags = (("茶",),) * 20 + (("mugs",),) * 20
    table = ItemTable(vectors, tuple(f"i{n}" for n in range(40)), tags, {"text": (0, 2)})
    scores = np.concatenate([np.linspace(2, 1.5, 20), np.linspace(1, 0.5, 20)])
    return table, ranking_of(table, scores.astype(np.float32))


def test_without_aims_the_list_is_the_head_of_the_ranking(shop):
    table, ranking = shop
    found = rerank(ranking, table, 10, aims=Aims(), tags={"茶": 1.0})
    assert found.ids == ranking.ids[:10]


def test_calibration_gives_each_tag_its_share(shop):
    table, ranking = shop
    wanted = {"茶": 7.0, "mugs": 3.0}
    found = rerank(ranking, table, 10, aims=Aims(calibration=1.0), tags=wanted)
    assert sum(table.tags[item] == ("mugs",) for item in found.items) == 3
    plain = rerank(ranking, table, 10, aims=Aims(calibration=0.9), tags={})
    assert plain.ids == ranking.ids[:10]


def test_diversity_takes_what_is_unlike(shop):
    table, ranking = shop
    found = rerank(ranking, table, 2, aims=Aims(diversity=0.5), tags={})
    assert [table.tags[item] for item in found.items] == [("茶",), ("mugs",)]
    assert found.scores.tolist() == [2.0, 1.0]  # each item's own, in the order chosen


@pytest.mark.parametrize(
    ("diversity", "calibration"), [(-0.1, 0), (0, 1.1), (0.6, 0.6), (math.nan, 0)]
)
def test_shares_that_are_none_are_refused(diversity, calibration):
    with pytest.raises(ConfigError, match=r"diversity|calibration"):
        Aims(diversity, calibration)


def test_empty_and_equal_pools():
    table = ItemTable(np.zeros((3, 1), np.float32), ("a", "b", "c"), ((), (), ()))
    none = Ranking(np.zeros(0, np.int32), np.zeros(0, np.float32), ())
    assert rerank(none, table, 5, aims=Aims(0.5), tags={"x": 1.0}).ids == ()
    same = Ranking(np.arange(3, dtype=np.int32), np.ones(3, np.float32), table.ids)
    assert rerank(same, table, 5, aims=Aims(0.5, 0.5), tags={"x": 1.0}).ids == ("a", "b", "c")
    assert distribution([]).sum() == 0


def test_the_pool_grows_with_the_list_to_a_limit():
    assert [pool_size(k) for k in (1, 10, 50, 5_000, 20_000)] == [100, 100, 500, 10_000, 20_000]
