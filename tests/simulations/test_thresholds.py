"""Lists that are counted at a threshold are those that devices make; and thresholds look at no target."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.numpy_encoder import NumpyEncoder
from fedprofile.client.profile import build
from fedprofile.client.scoring import above_threshold
from fedprofile.client.serving import serving_table
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import build_encoder
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable
from fedprofile.common.successors import Successors
from fedprofile.simulations import thresholds
from fedprofile.simulations.models import EncoderScorer
from fedprofile.simulations.splits import Targets
from fedprofile.simulations.thresholds import CHUNK, cut_lists, typical_thresholds

DAY = 86_400


def did(seen):
    """Histories of one list of items a user, an event a day."""
    lengths = [len(one) for one in seen]
    n = sum(lengths)
    return Histories(
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        items=np.array([item for one in seen for item in one], dtype=np.int32),
        times=np.concatenate([DAY * np.arange(1, m + 1) for m in [*lengths, 0]]).astype(np.int64),
        sessions=np.zeros(n, dtype=np.int32),
        weights=np.ones(n, dtype=np.float32),
        types=np.zeros(n, dtype=np.int16),
    )


def asked(seen, taken):
    return Targets(
        history=did(seen),
        users=np.arange(len(seen), dtype=np.int64),
        offsets=np.cumsum([0, *map(len, taken)]).astype(np.int64),
        items=np.array([item for one in taken for item in sorted(one)], dtype=np.int32),
        now=np.full(len(seen), 1_000 * DAY, dtype=np.int64),
        cold_users=0,
    )


class Told:
    """Scores of a table by a user's first event, which has a time of their own."""

    def __init__(self, table):
        self.table, self.sizes = np.array(table, dtype=np.float32), []

    def scores(self, history, now):
        raise AssertionError("lists of new items aren't made by the mixture with repeats")

    def unmixed(self, history):
        self.sizes.append(history.n_devices)
        return self.table[history.sessions[history.offsets[:-1]]]


def town(seed, *, users=23, n_items=9):
    """A scorer and targets; some users take nothing new, and some scores are level or no numbers."""
    rng = np.random.default_rng(seed)
    seen = [rng.integers(0, n_items, rng.integers(1, 5)).tolist() for _ in range(users)]
    taken = [set(rng.integers(0, n_items, rng.integers(1, 4)).tolist()) for _ in range(users)]
    taken[0] = set(seen[0])
    scores = rng.integers(-4, 5, (users, n_items)) / 2
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[rng.random(scores.shape) < 0.05] = np.nan
    return numbered(scores, asked(seen, taken)), seen, taken


def numbered(scores, targets):
    """A scorer that tells users apart, and targets that do."""
    history = targets.history
    history = replace(history, sessions=history.devices.astype(np.int32))
    return Told(scores), replace(targets, history=history)


def by_hand(scores, seen, taken, threshold):
    """Length, emptiness, precision and recall, one user and one item at a time."""
    sizes, hits, shares = [], 0, []
    for row, held, wanted in zip(scores, seen, taken, strict=True):
        listed = [
            item
            for item, score in enumerate(row)
            if item not in held and np.isfinite(score) and score >= np.float32(threshold)
        ]
        new = [item for item in wanted if item not in held]
        sizes.append(len(listed))
        hits += sum(item in wanted for item in listed)
        if new:
            shares.append(sum(item in listed for item in new) / len(new))
    return (
        sum(sizes) / len(sizes),
        sizes.count(0) / len(sizes),
        hits / sum(sizes) if sum(sizes) else None,
        sum(shares) / len(shares) if shares else None,
    )


def figures(cut):
    return cut.mean_length, cut.empty, cut.precision, cut.recall


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.lists(st.sampled_from([-1e300, -9, -0.5, 0.1, 1, 2, 9, 1e300]), max_size=4),
)
def test_lists_are_counted_as_by_hand(seed, levels):
    (scorer, targets), seen, taken = town(seed)
    cuts = cut_lists(scorer, targets, levels)
    assert [cut.threshold for cut in cuts] == levels
    for cut in cuts:
        least = np.clip(cut.threshold, -1e38, 1e38)
        expected = by_hand(scorer.table, seen, taken, least)
        assert figures(cut) == tuple(pytest.approx(one) for one in expected)
        assert "NaN" not in json.dumps(cut.to_dict())


def test_who_takes_nothing_new_counts_in_lists_and_not_in_recall():
    scorer, targets = numbered([[0, 3, 1], [0, 3, 1]], asked([[0], [0]], [{0}, {0, 1, 2}]))
    [cut] = cut_lists(scorer, targets, [2.0])
    assert (cut.users, cut.mean_length, cut.empty) == (2, 1.0, 0.0)
    assert cut.precision == 0.5  # of two lists of one item
    assert cut.recall == 0.5  # of the one who had two to find
    scorer, targets = numbered([[0, 3, 1]], asked([[0]], [{0}]))
    [cut] = cut_lists(scorer, targets, [2.0])
    assert figures(cut) == (1.0, 0.0, 0.0, None)


def test_nothing_above_the_threshold_has_no_precision():
    scorer, targets = numbered([[0, 3, 1]], asked([[0]], [{1}]))
    [cut] = cut_lists(scorer, targets, [3.5])
    assert figures(cut) == (0.0, 1.0, None, 0.0)
    nothing = numbered([[-np.inf] * 3], asked([[0]], [{1}]))
    assert typical_thresholds(*nothing) == []
    [cut] = cut_lists(*nothing, [-1e300])
    assert figures(cut) == (0.0, 1.0, None, 0.0)
    assert cut_lists(*nothing, []) == []


def test_nobody_and_one_item():
    nobody = numbered(np.zeros((0, 3)), asked([], []))
    assert typical_thresholds(*nobody) == []
    assert cut_lists(*nobody, [1.0]) == []
    held = numbered([[5.0]], asked([[0]], [{0}]))
    assert typical_thresholds(*held) == []
    two = did([[0], [0]])
    one = replace(asked([[0], [0]], [{1}, {1}]), history=two)
    scorer, targets = numbered([[5.0, 0.25], [5.0, -0.25]], one)
    assert typical_thresholds(scorer, targets) == [-0.25]  # all there is


def test_a_list_is_no_longer_than_a_device_makes_it(monkeypatch):
    monkeypatch.setattr(thresholds, "LONGEST_LIST", 2)
    scores = [[9, 1, 2, 2, 2], [9, 1, 0, 0, 3], [9, 0, 0, 0, 0]]
    scorer, targets = numbered(scores, asked([[0]] * 3, [{4}, {1, 4}, {4}]))
    [cut] = cut_lists(scorer, targets, [1.0])
    # Of level ones the first two: items 2 and 3, and 1 and 4.
    assert figures(cut) == (4 / 3, pytest.approx(1 / 3), 2 / 4, pytest.approx(1 / 3))


def test_of_many_level_scores_the_first_items_are_listed(monkeypatch):
    monkeypatch.setattr(thresholds, "LONGEST_LIST", 700)
    scores = np.random.default_rng(0).integers(0, 2, (1, 1000)).astype(float)
    scores[0, 0] = -1
    best = np.lexsort((np.arange(1000), -scores[0]))[:700]
    left_out = int(np.setdiff1d(np.flatnonzero(scores[0] == 0), best)[0])
    for wanted, listed in ((int(best[-1]), 1.0), (left_out, 0.0)):
        scorer, targets = numbered(scores, asked([[0]], [{wanted}]))
        [cut] = cut_lists(scorer, targets, [0.0])
        assert (cut.mean_length, cut.recall) == (700, listed)
    level = np.zeros((1, 1000))
    scorer, targets = numbered(level, asked([[0]], [{700, 701}]))
    [cut] = cut_lists(scorer, targets, [0.0])
    assert (cut.mean_length, cut.recall) == (700, 0.5)


def test_a_threshold_of_nothing_has_no_sign():
    known = np.concatenate([np.ones(200), [-1e-9]]).astype(np.float32)
    assert str(thresholds._rounded(known[-1], known)) == "0.0"


def test_chunks_change_nothing(monkeypatch):
    (scorer, targets), _, _ = town(3)
    levels = [-1.0, 0.5, 2.0]
    whole = cut_lists(scorer, targets, levels)
    monkeypatch.setattr(thresholds, "CHUNK", 7)
    scorer.sizes.clear()
    parts = cut_lists(scorer, targets, levels)
    assert scorer.sizes == [7, 7, 7, 2]
    for cut, other in zip(parts, whole, strict=True):
        assert figures(cut) == tuple(pytest.approx(one) for one in figures(other))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_thresholds_give_the_lengths_they_are_for(seed, scale):
    rng = np.random.default_rng(seed)
    n, n_items = 40, 130
    scores = scale * rng.standard_normal((n, n_items)) - scale
    seen = [rng.integers(0, n_items, 3).tolist() for _ in range(n)]
    scorer, targets = numbered(scores, asked(seen, [{0}] * n))
    levels = typical_thresholds(scorer, targets)
    lengths = [cut.mean_length for cut in cut_lists(scorer, targets, levels)]
    assert lengths == [pytest.approx(length, rel=0.0101) for length in (1, 5, 10, 50)]
    assert levels == sorted(levels, reverse=True)
    # Printed and read again, they cut the same lists.
    again = [float(str(level)) for level in levels]
    assert [cut.mean_length for cut in cut_lists(scorer, targets, again)] == lengths
    if scale == 1.0:
        assert len(str(abs(levels[-1]))) <= 5  # few digits do


def test_level_scores_are_one_threshold():
    scorer, targets = numbered(np.full((3, 20), -0.7), asked([[0]] * 3, [{1}] * 3))
    levels = typical_thresholds(scorer, targets)
    assert len(levels) == 1
    assert cut_lists(scorer, targets, levels)[0].mean_length == 19


def test_a_small_catalogue_has_shorter_lists():
    scores = np.arange(16, dtype=float).reshape(2, 8)
    scorer, targets = numbered(scores, asked([[0]] * 2, [{1}] * 2))
    levels = typical_thresholds(scorer, targets)
    assert [cut.mean_length for cut in cut_lists(scorer, targets, levels)] == [1, 5, 7]


def test_thresholds_look_at_no_target_and_at_a_chunk_of_users(monkeypatch):
    (scorer, targets), _, _ = town(5, users=CHUNK + 90)
    found = typical_thresholds(scorer, targets)
    assert scorer.sizes == [CHUNK]
    blind = replace(targets, items=np.zeros(0, np.int32), offsets=np.zeros(CHUNK + 91, np.int64))
    assert typical_thresholds(scorer, blind) == found
    # And not those who come first.
    scorer.table[:CHUNK] += 100
    assert typical_thresholds(scorer, targets)[-1] < 50


N_ITEMS = 40


def make_model(*, successors, item_ids, seed):
    """The population's scorer, a device's encoder of the same weights, and what it ranks with."""
    rng = np.random.default_rng(seed)
    follows = Successors.of(
        rng.permutation(N_ITEMS), rng.permutation(N_ITEMS), rng.uniform(0.1, 0.6, N_ITEMS)
    )
    table = ItemTable(
        rng.standard_normal((N_ITEMS, 7)).astype(np.float32),
        tuple(map(str, range(N_ITEMS))),
        ((),) * N_ITEMS,
        {"text": (0, 7)},
        follows if successors else None,
    )
    config = ModelConfig(width=8, heads=2, layers=1, window=4, item_ids=item_ids)
    encoder = build_encoder(config, blocks=table.blocks, n_items=N_ITEMS, n_types=1, seed=1)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: 0.4 * torch.randn(weight.shape, generator=generator)
        for name, weight in encoder.named_parameters()
    }
    encode = NumpyEncoder(
        config,
        {name: weight.numpy() for name, weight in weights.items()},
        blocks=table.blocks,
        vectors=table.vectors,
        n_types=1,
    )
    prior = rng.standard_normal(N_ITEMS).astype(np.float32)
    ids = weights["item_ids.weight"].numpy() if item_ids else None
    served = serving_table(table, prior=prior, ids=ids)
    return EncoderScorer(encoder, weights, table, prior, config), encode, served


@pytest.mark.parametrize(("successors", "item_ids"), [(False, False), (True, False), (False, True)])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_is_counted_is_what_devices_list(successors, item_ids, seed):
    scorer, encode, served = make_model(successors=successors, item_ids=item_ids, seed=seed)
    rng = np.random.default_rng(seed)
    seen = [rng.integers(0, N_ITEMS, n).tolist() for n in (1, 2, 5, 6, 12)]
    taken = [set(rng.integers(0, N_ITEMS, 6).tolist()) for _ in seen]
    targets = asked(seen, taken)
    profiles = [
        build(
            history,
            table=scorer.table,
            scales=scorer.model.scales,
            window_size=scorer.model.window,
            encode=encode,
        )
        for history in targets.history
    ]
    # Devices compute in another order: cut where no rounding tells, in the wide gaps between scores.
    scores = [above_threshold(profile, served, -1e30).scores for profile in profiles]
    order = np.sort(np.concatenate(scores))
    gaps = np.diff(order)
    widest = [part[gaps[part].argmax()] for part in np.array_split(np.arange(len(gaps)), 4)]
    assert gaps[widest].min() > 1e-3
    levels = [float(order[place] + gaps[place] / 2) for place in widest]
    for cut in cut_lists(scorer, targets, levels):
        lists = [above_threshold(profile, served, cut.threshold) for profile in profiles]
        rows = [set(ranking.items.tolist()) for ranking in lists]
        new = [wanted - set(held) for held, wanted in zip(seen, taken, strict=True)]
        hits = [len(row & wanted) for row, wanted in zip(rows, taken, strict=True)]
        assert cut.mean_length == sum(map(len, rows)) / len(rows)
        assert cut.empty == sum(not row for row in rows) / len(rows)
        assert cut.precision == pytest.approx(sum(hits) / sum(map(len, rows)))
        found = [hit / len(wanted) for hit, wanted in zip(hits, new, strict=True) if wanted]
        assert cut.recall == pytest.approx(sum(found) / len(found))
