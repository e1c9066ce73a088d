"""Lists of those who are made new are the ones that a device with so few events would make."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.client.numpy_encoder import NumpyEncoder
from fedprofile.client.profile import build
from fedprofile.client.scoring import top_k
from fedprofile.client.serving import serving_table
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import build_encoder
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable
from fedprofile.common.successors import Successors
from fedprofile.simulations.cold_start import (
    KNOWN,
    cold_start,
    cold_steps,
    first_lists,
    last_events,
)
from fedprofile.simulations.evaluation import CHUNK
from fedprofile.simulations.models import EncoderScorer
from fedprofile.simulations.splits import Targets

N_ITEMS, K, DAY = 40, 5, 86_400
PRIOR = np.random.default_rng(5).standard_normal(N_ITEMS).astype(np.float32)
CONFIG = ModelConfig(width=8, heads=2, layers=1, window=4)


def did(items, rng=None):
    """Histories of one list of items a user, an event a day."""
    rng = rng or np.random.default_rng(0)
    lengths = [len(one) for one in items]
    n = sum(lengths)
    return Histories(
        offsets=np.cumsum([0, *lengths]).astype(np.int64),
        items=np.array([item for one in items for item in one], dtype=np.int32),
        times=np.concatenate([DAY * np.arange(1, m + 1) for m in [*lengths, 0]]).astype(np.int64),
        sessions=np.zeros(n, dtype=np.int32),
        weights=rng.uniform(0.5, 3, n).astype(np.float32),
        types=rng.integers(0, 2, n).astype(np.int16),
    )


def asked(histories, wanted):
    n = histories.n_devices
    return Targets(
        history=histories,
        users=np.arange(n, dtype=np.int64),
        offsets=np.cumsum([0, *map(len, wanted)]).astype(np.int64),
        items=np.array([item for one in wanted for item in one], dtype=np.int32),
        now=np.full(n, 1_000 * DAY, dtype=np.int64),
        cold_users=0,
    )


@pytest.fixture
def town():
    """Users who did from one event to a dozen, and what they take next."""
    rng = np.random.default_rng(7)
    items = [rng.integers(0, N_ITEMS, n).tolist() for n in (1, 2, 3, 5, 6, 12)]
    return asked(did(items, rng), [rng.choice(N_ITEMS, 6, False).tolist() for _ in items])


class Last:
    """Likes what comes after the last item held, and everything held best of all."""

    def scores(self, history, now):
        found = np.tile(-np.arange(N_ITEMS, dtype=np.float32), (history.n_devices, 1))
        for row, one in enumerate(history):
            found[row, one.items[-1:] + 1] = 10
            found[row, one.items] = 99
        return found


@given(st.lists(st.lists(st.integers(0, N_ITEMS - 1), max_size=7), min_size=1), st.integers(0, 8))
def test_the_last_events_of_each(items, n):
    told = last_events(did(items), n)
    assert [one.items.tolist() for one in told] == [one[max(0, len(one) - n) :] for one in items]
    whole = did(items)
    for mine, theirs in zip(told, whole, strict=True):
        np.testing.assert_array_equal(mine.times, theirs.times[len(theirs.items) - mine.n_events :])


def test_what_is_new_is_told_by_the_whole_history_whatever_the_profile_knows():
    # The second user finds nothing new: 8 is long forgotten by short profiles.
    targets = asked(did([[3, 1, 6], [8, 0, 2]]), [[3, 7], [8]])
    for known in KNOWN:
        lists = first_lists(Last(), targets, known, k=K)
        assert lists.users.tolist() == [0]
        assert not {3, 1, 6} & set(lists.lists[0].tolist())
        # Item 7 comes after the last one; where nothing is known, 0, 2, 4 and 5 are before it.
        assert lists.lists[0].tolist()[:1] == ([0] if known == 0 else [7])
        assert lists.ndcg[0] == pytest.approx(1 / math.log2(6) if known == 0 else 1)


def test_figures_of_all_rows_are_of_the_same_users():
    targets = asked(did([[n % 30, (n * 7) % 30] for n in range(25)]), [[31]] * 25)
    found = cold_start(Last(), targets, prior=PRIOR, k=K, samples=50)
    popularity, nothing, one, *_, everything = found.starts
    assert found.users == 25
    assert [start.known for start in found.starts] == [None, *KNOWN]
    assert popularity.gain is None
    assert popularity.hr_gain is None
    assert everything.hr_gain.mean == pytest.approx(everything.hr.mean - popularity.hr.mean)
    assert one.ndcg == everything.ndcg  # only the last event counts here
    assert one.gain.mean == pytest.approx(one.ndcg.mean - popularity.ndcg.mean)
    assert nothing.ndcg.low <= nothing.ndcg.mean <= nothing.ndcg.high
    told = found.to_dict()
    assert [row["name"] for row in told["lists"]] == [
        "popularity",
        "no event",
        "last event",
        "last 2",
        "last 5",
        "all events",
    ]


def test_few_users_have_no_figures(town):
    found = cold_start(Last(), town, prior=PRIOR, k=K, samples=0)
    assert found.to_dict() == {"users": 6, "lists": []}
    assert len(cold_start(Last(), town, prior=PRIOR, k=K, samples=0, minimum=6).starts) == 6
    none = asked(did([]), [])
    assert cold_start(Last(), none, prior=PRIOR, k=K, samples=0).users == 0


def test_as_many_steps_as_announced():
    done = []
    targets = asked(did([[0]] * (CHUNK + 1)), [[1]] * (CHUNK + 1))
    cold_start(Last(), targets, prior=PRIOR, k=1, samples=0, on_chunk=lambda: done.append(1))
    assert len(done) == cold_steps(targets) == 12


def make_model(kind, successors, seed):
    """The population's scorer and the device's encoder, of the same weights; seed None: untrained."""
    rng = np.random.default_rng(1)
    follows = Successors.of(
        rng.permutation(N_ITEMS), rng.permutation(N_ITEMS), rng.uniform(0.1, 0.6, N_ITEMS)
    )
    table = ItemTable(
        rng.standard_normal((N_ITEMS, 7)).astype(np.float32),
        tuple(map(str, range(N_ITEMS))),
        ((),) * N_ITEMS,
        {"text": (0, 4), "category": (4, 7)},
        follows if successors else None,
    )
    config = CONFIG.model_copy(update={"encoder": kind})
    encoder = build_encoder(config, blocks=table.blocks, n_items=N_ITEMS, n_types=2, seed=1)
    weights = {name: weight.detach() for name, weight in encoder.named_parameters()}
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        weights = {n: 0.4 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}
    encode = NumpyEncoder(
        config,
        {name: weight.numpy() for name, weight in weights.items()},
        blocks=table.blocks,
        vectors=table.vectors,
        n_types=2,
    )
    return EncoderScorer(encoder, weights, table, PRIOR, config), encode


def by_device(scorer, encode, history, whole):
    """What a device that knows ``history`` lists of what is new by ``whole``."""
    profile = build(
        history,
        table=scorer.table,
        scales=scorer.model.scales,
        window_size=scorer.model.window,
        encode=encode,
    )
    served = serving_table(scorer.table, prior=PRIOR, ids=None)
    new = np.setdiff1d(np.arange(N_ITEMS, dtype=np.int32), whole.items)
    return top_k(profile, served, K, candidates=new).items.tolist()


@pytest.mark.parametrize("successors", [False, True])
@pytest.mark.parametrize("kind", ["transformer", "gru", "mean", "dense"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_lists_are_those_of_a_device_with_so_few_events(kind, successors, seed):
    scorer, encode = make_model(kind, successors, seed)
    rng = np.random.default_rng(seed)
    items = [rng.integers(0, N_ITEMS, n).tolist() for n in (1, 2, 3, 5, 6, 12)]
    targets = asked(did(items, rng), [list(range(N_ITEMS))] * len(items))
    for known in KNOWN:
        lists = first_lists(scorer, targets, known, k=K).lists
        for user, whole in enumerate(targets.history):
            history = whole if known is None else last_events(whole, known)
            assert lists[user].tolist() == by_device(scorer, encode, history, whole)


@pytest.mark.parametrize("successors", [False, True])
def test_a_device_without_events_has_one_list_for_all_and_untrained_it_is_popularity(
    town, successors
):
    for seed in (None, 3):
        scorer, encode = make_model("transformer", successors, seed)
        nobody = did([[]])
        listed = by_device(scorer, encode, nobody.device(0), nobody)
        everything = asked(did([[]] * 3), [[0]] * 3)
        found = first_lists(scorer, everything, 0, k=K).lists
        assert found.tolist() == [listed] * 3
        if seed is None:
            assert listed == np.argsort(-PRIOR, kind="stable")[:K].tolist()
