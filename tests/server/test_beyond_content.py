import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.successors import Successors
from fedprofile.server.beyond_content import beyond_content

SIZE = 60
HEAD = np.random.default_rng(2).permutation(SIZE + 20)[:SIZE]
POPULARITY = np.log(np.random.default_rng(3).dirichlet(np.full(SIZE + 20, 2.0))).astype(np.float32)
CONTENT = np.random.default_rng(4).standard_normal((SIZE + 20, 5)).astype(np.float32)


def cosines():
    unit = CONTENT / np.linalg.norm(CONTENT, axis=1, keepdims=True)
    found = (unit @ unit.T)[np.ix_(HEAD, HEAD)].astype(float)
    np.fill_diagonal(found, -np.inf)
    return found


def pairs(chosen, chances=0.1):
    """``chosen`` int [m, 2], places in the head."""
    items, then = HEAD[np.asarray(chosen)].T
    return Successors.of(items, then, np.broadcast_to(chances, len(items)))


def beyond(successors, content=CONTENT, popularity=POPULARITY):
    return beyond_content(successors, content=content, head=HEAD, popularity=popularity)


def nearest(many=3):
    order = np.argsort(-cosines(), axis=1)[:, :many]
    return [(item, other) for item in range(SIZE) for other in order[item]]


def unseen(successors):
    """Part of pairs that were not seen, beside those that were."""
    weights = np.exp(POPULARITY[successors.pairs[:, 0]]) * successors.chances
    return 10 / (10 + weights.sum() ** 2 / np.square(weights).sum())


def test_what_content_tells_as_well_is_worth_nothing():
    successors = pairs(nearest())
    assert unseen(successors) < 0.2
    assert beyond(successors) == pytest.approx(unseen(successors), rel=1e-5)


def test_a_few_pairs_say_little_of_content():
    for many in (1, 5):
        successors = pairs(nearest()[:many], 0.1)
        assert unseen(successors) > 0.6
        assert beyond(successors) == pytest.approx(unseen(successors), rel=1e-5)


def test_items_that_are_alike_anyway_are_held_against_one_another():
    """Half of the items are alike, and have other ones of this half after them by chance."""
    rng = np.random.default_rng(8)
    content = CONTENT.copy()
    content[HEAD[:30]] = np.ones(5, np.float32) + 0.3 * content[HEAD[:30]]
    shares = np.exp(POPULARITY[HEAD].astype(float))
    chosen = []
    for item in range(30):
        others = np.where(np.arange(SIZE) == item, 0, shares)
        chosen += [
            (item, int(j)) for j in rng.choice(SIZE, 8, replace=False, p=others / others.sum())
        ]
    assert beyond(pairs(chosen, 0.05), content=content) > 0.85


def test_what_content_tells_nothing_of_is_worth_all():
    """Pairs at random, by popularity: their mean cosine is that of any two items."""
    rng = np.random.default_rng(5)
    shares = np.exp(POPULARITY[HEAD])
    every = [(i, j) for i in range(SIZE) for j in range(SIZE) if i != j]
    chances = np.array([shares[j] / shares.sum() for _, j in every])
    assert beyond(pairs(every, 0.9 * chances)) > 0.97
    some = rng.choice(len(every), 300, replace=False)
    assert beyond(pairs([every[pair] for pair in some])) == pytest.approx(1, abs=0.12)


def test_pairs_that_are_unlike_are_worth_no_more_than_all():
    order = np.argsort(np.where(np.eye(SIZE), np.inf, cosines()), axis=1)[:, :3]
    unlike = [(item, other) for item in range(SIZE) for other in order[item]]
    assert beyond(pairs(unlike)) == 1


def test_between_the_two_it_follows_its_formula():
    """Half of the pairs are nearest ones: by sums over all items, one by one."""
    rng = np.random.default_rng(6)
    chosen = {pair for pair in nearest() if rng.random() < 0.5}
    chosen |= {(i, int(j)) for i in range(SIZE) for j in rng.integers(SIZE, size=2) if i != j}
    successors = pairs(sorted(chosen), rng.uniform(0.01, 0.1, len(chosen)))
    cos, shares = cosines(), np.exp(POPULARITY[HEAD].astype(float))
    shares /= shares.sum()
    place = {int(item): row for row, item in enumerate(HEAD)}
    told = most = by_chance = 0.0
    for row in range(SIZE):
        own = successors.pairs[:, 0] == HEAD[row]
        chances = successors.chances[own].astype(float)
        then = [place[int(item)] for item in successors.pairs[own, 1]]
        told += shares[row] * float(chances @ cos[row, then])
        best = np.sort(cos[row])[::-1][: len(then)]
        most += shares[row] * float(np.sort(chances)[::-1] @ best)
        others = np.where(np.arange(SIZE) == row, 0, shares)
        chance = float(others @ np.where(others > 0, cos[row], 0)) / others.sum()
        by_chance += shares[row] * chances.sum() * chance
    alike = (told - by_chance) / (most - by_chance)
    expected = 1 - alike * (1 - unseen(successors))
    assert 0.2 < expected < 0.8
    assert beyond(successors) == pytest.approx(expected, rel=1e-5)


def test_where_nothing_is_told_it_weighs_as_it_is():
    assert beyond(Successors.none()) == 1
    assert beyond(pairs(nearest()), content=CONTENT[:, :0]) == 1
    assert beyond(pairs(nearest()), content=np.ones_like(CONTENT)) == 1
    assert beyond(pairs(nearest()), content=np.zeros_like(CONTENT)) == 1


def test_one_item_that_is_all_there_is_stays_finite():
    popularity = POPULARITY.copy()
    popularity[HEAD[0]] = 200.0
    assert math.isfinite(beyond(pairs(nearest()), popularity=popularity))


@given(seed=st.integers(0, 10_000), many=st.integers(1, 200))
def test_it_is_a_share(seed, many):
    rng = np.random.default_rng(seed)
    chosen = {(int(i), int(j)) for i, j in rng.integers(SIZE, size=(many, 2)) if i != j}
    if chosen:
        assert 0 < beyond(pairs(sorted(chosen), 0.001)) <= 1
