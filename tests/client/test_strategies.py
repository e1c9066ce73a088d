"""Each strategy ranks by its own part of the score alone, and tells the reasons of that part."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fedprofile.client.answers import Candidates, RecommendRequest
from fedprofile.client.interactions import Interaction
from fedprofile.client.profile import build
from fedprofile.client.reasons import Reasons, why
from fedprofile.client.scoring import score
from fedprofile.client.serving import serving_table
from fedprofile.client.strategies import available, strategy_of
from fedprofile.client.succession import next_chances
from fedprofile.common.decay import Scale
from fedprofile.common.errors import ConfigError, DeviceError
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable
from fedprofile.common.successors import Successors

NOW, DAY = 1_750_000_000, 86_400
N_ITEMS = 40
ALONE = ("content", "sequential", "neural")
SCALES = (Scale("days", 30.0), Scale("events", 2.0))
FOLLOWS = Successors.of(
    np.array([1, 1, 2, 3]), np.array([9, 11, 10, 9]), np.array([0.5, 0.3, 0.6, 0.2])
)
PRIOR = np.log(np.random.default_rng(4).dirichlet(np.ones(N_ITEMS))).astype(np.float32)


def make_tables(
    *, together=1.0, prior=PRIOR, successors=FOLLOWS, trained=None, content=True, whole=False
):
    """Public table and table to rank with; ``together`` scales what is told of co-occurrence."""
    vectors = np.random.default_rng(7).standard_normal((N_ITEMS, 9)).astype(np.float32)
    vectors[:, 4:7] *= together
    # Content around what a release fills in, so that no strategy can go by a single stretch.
    blocks = {"text" if content else "id": (0, 4), "cooccurrence": (4, 7)}
    if content:
        blocks["category"] = (7, 9)
    else:
        vectors = vectors[:, :7]
    names = tuple(f"商品{item}" for item in range(N_ITEMS))
    tags = tuple((("tea", "red"), ("茶",), ())[item % 3] for item in range(N_ITEMS))
    public = ItemTable(vectors, names, tags, blocks, successors, whole)
    return public, serving_table(public, prior=prior, ids=trained)


def profile_of(public, served, items=(5, 8, 2, 1)):
    """Of one event a day; U is the sum of the interests, something for trained columns, and a 1."""
    history = Histories(
        offsets=np.array([0, len(items)]),
        items=np.array(items, dtype=np.int32),
        times=NOW + DAY * np.arange(len(items), dtype=np.int64),
        sessions=np.arange(len(items), dtype=np.int32),
        weights=np.ones(len(items), dtype=np.float32),
        types=np.zeros(len(items), dtype=np.int16),
    )

    def encode(profile):
        rest = np.full(served.dimension - public.dimension - 1, 0.7)
        return np.concatenate([profile.sums.sum(axis=0), rest, [1]]).astype(np.float32)

    return build(history, table=public, scales=SCALES, window_size=9, encode=encode)


def scores_by(name, **told):
    public, served = make_tables(**told)
    return strategy_of(name).scores(profile_of(public, served), public, served)


def test_content_is_the_cosine_of_the_decayed_interests_within_content():
    public, served = make_tables()
    profile = profile_of(public, served)
    columns = [0, 1, 2, 3, 7, 8]
    sums, vectors = profile.sums[:, columns].astype(float), public.vectors[:, columns].astype(float)
    directions = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    expected = 6 * directions.mean(axis=0) @ vectors.T
    found = strategy_of("content").scores(profile, public, served)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (found.dtype, found.shape) == (np.float32, (N_ITEMS,))


def test_sequential_is_the_mixture_of_what_follows_and_of_popularity():
    public, served = make_tables()
    profile = profile_of(public, served)
    told = next_chances(profile, served).astype(float)
    assert told[9] > 0
    assert told[10] > 0
    expected = np.log(told + (1 - told.sum()) * np.exp(PRIOR.astype(float)))
    found = strategy_of("sequential").scores(profile, public, served)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    nothing = strategy_of("sequential").scores(profile_of(public, served, (6,)), public, served)
    np.testing.assert_array_equal(nothing, PRIOR)


def test_collaborative_is_the_mixture_of_what_goes_with_what_is_held_and_of_popularity():
    public, served = make_tables(whole=True)
    # Far more events than a window of 9 holds: what goes with the first of them still counts.
    profile = profile_of(public, served, (1, *range(20, 40)))
    ages = np.arange(20, -1, -1.0)
    share = 2 ** (-ages / 180)
    share /= share.sum()
    told = np.zeros(N_ITEMS)
    told[[9, 11]] = 0.5 * share[0], 0.3 * share[0]
    expected = np.log(told + (1 - told.sum()) * np.exp(PRIOR.astype(float)))
    found = strategy_of("collaborative").scores(profile, public, served)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    reasons = strategy_of("collaborative").why(profile, 9, public, served)
    assert vars(reasons) == vars(Reasons(together=reasons.together))
    assert reasons.together == ((1, pytest.approx(told[9], rel=1e-5)),)


@pytest.mark.parametrize("trained", [None, np.ones((N_ITEMS, 2), np.float32)])
def test_neural_is_the_profile_vector_without_popularity(trained):
    public, served = make_tables(trained=trained)
    profile = profile_of(public, served)
    expected = served.vectors[:, :-1].astype(float) @ profile.vector[:-1].astype(float)
    before = profile.vector.copy()
    found = strategy_of("neural").scores(profile, public, served)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(profile.vector, before)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("content", set()),
        ("sequential", {"popularity", "successors"}),
        ("neural", {"together", "trained"}),
    ],
)
def test_each_goes_by_its_own_part_and_by_nothing_else(name, counts):
    others = {
        "together": {"together": -2.0},
        "popularity": {"prior": PRIOR[::-1].copy()},
        "successors": {"successors": replace(FOLLOWS, chances=FOLLOWS.chances / 2)},
        "trained": {"trained": np.random.default_rng(1).random((N_ITEMS, 2), np.float32)},
    }
    plain = scores_by(name)
    moved = {what: np.abs(scores_by(name, **told) - plain).max() for what, told in others.items()}
    assert {what for what, much in moved.items() if much > 1e-3} == counts
    assert all(much < 1e-5 for what, much in moved.items() if what not in counts)


def test_what_a_model_has_nothing_for_is_refused_and_what_there_is_named():
    everything = make_tables()
    bare = make_tables(content=False, successors=None)
    none_kept = make_tables(successors=Successors.none())
    whole = make_tables(whole=True)
    assert available(*whole) == ("content", "collaborative", "neural", "hybrid")
    assert available(*everything) == (*ALONE, "hybrid")
    assert available(*bare) == ("neural", "hybrid")
    assert available(*none_kept) == ("content", "neural", "hybrid")
    for tables, name, message in (
        (bare, "content", "nothing but their ids; ask for neural or hybrid"),
        (
            whole,
            "sequential",
            "what follows what; ask for content or collaborative or neural or hybrid",
        ),
        (bare, "collaborative", "what goes with what; ask for neural or hybrid"),
        (
            make_tables(),
            "collaborative",
            "with what; ask for content or sequential or neural or hybrid",
        ),
        (bare, "sequential", "what follows what; ask for neural or hybrid"),
        (none_kept, "sequential", "what follows what; ask for content or neural or hybrid"),
    ):
        with pytest.raises(DeviceError, match=f"^strategy {name}: .*{message}$"):
            strategy_of(name).scores(profile_of(*tables), *tables)


@pytest.mark.parametrize("name", ["hybrid", "", "Content", "popular"])
def test_there_is_no_other(name):
    with pytest.raises(
        ConfigError, match=f"'{name}'.*content, collaborative, sequential, neural or hybrid"
    ):
        strategy_of(name)


# --- reasons


def test_only_the_reasons_of_a_score_are_told():
    public, served = make_tables()
    profile = profile_of(public, served)
    whole = [why(profile, public, item, served=served) for item in range(N_ITEMS)]
    found = {
        name: [strategy_of(name).why(profile, item, public, served) for item in range(N_ITEMS)]
        for name in ALONE
    }
    kinds = {
        name: {kind for one in told for kind, value in vars(one).items() if value}
        for name, told in (*found.items(), ("hybrid", whole))
    }
    assert kinds == {
        "content": {"events", "tags"},
        "sequential": {"follows"},
        "neural": {"events", "tags"},
        "hybrid": {"events", "tags", "follows", "nearest"},
    }
    for item, one in enumerate(whole):
        assert found["sequential"][item].follows == one.follows
        assert found["neural"][item] == replace(one, follows=(), nearest=None)
        assert found["content"][item].tags == one.tags


def test_the_parts_of_the_events_are_those_of_the_score():
    public, served = make_tables()
    public = replace(public, vectors=np.abs(public.vectors))  # so that no part is left out
    profile = profile_of(public, served, (5, 8, 2))
    content, columns = strategy_of("content"), [0, 1, 2, 3, 7, 8]
    scores = content.scores(profile, public, served)
    lengths = np.linalg.norm(public.vectors[:, columns], axis=1)
    for item in range(N_ITEMS):
        told = content.why(profile, item, public, served).events
        total = 6 * sum(part for _, part in told) * lengths[item]
        assert total == pytest.approx(float(scores[item]), rel=1e-4)


def test_content_names_no_event_that_only_goes_together_with_an_item():
    vectors = np.eye(4, dtype=np.float32)[[0, 1, 2]]
    vectors[1:, 3] = 1  # the last two are taken together, and unlike
    blocks = {"text": (0, 3), "cooccurrence": (3, 4)}
    public = ItemTable(vectors, ("a", "b", "c"), ((),) * 3, blocks)
    served = serving_table(public, prior=np.zeros(3, np.float32), ids=None)
    profile = profile_of(public, served, (1,))
    assert strategy_of("content").why(profile, 2, public, served).events == ()
    [(event, _)] = strategy_of("neural").why(profile, 2, public, served).events
    assert event.item == 1


# --- on a device


@pytest.fixture
def phone(make_device, bundle_writer, tmp_path):
    """A device with a model that has something for every strategy, and some events."""
    bundle_writer(tmp_path / "run", successors=FOLLOWS)
    device = make_device(model=tmp_path / "run")
    items = (5, 8, 2, 8, 3, 1)
    device.record(
        [Interaction(f"e{n}", f"商品{i}", NOW - DAY * (9 - n), "view") for n, i in enumerate(items)]
    )
    return device


def listed(device, strategy, **asked):
    found = device.recommend(RecommendRequest(strategy=strategy, **{"top_k": 99} | asked))
    return {one.item: one.score for one in found.items}


def expected_of(device, strategy):
    """Item → score of everything, worked out beside the device."""
    history, bundle = device.history()
    profile = build(
        history,
        table=bundle.public,
        scales=bundle.config.scales,
        window_size=bundle.config.window,
        encode=bundle.encode,
    )
    if strategy == "hybrid":
        scores = score(profile, bundle.served)
    else:
        scores = strategy_of(strategy).scores(profile, bundle.public, bundle.served)
    held = {bundle.served.ids[item] for item in profile.items}
    return dict(zip(bundle.served.ids, scores.tolist(), strict=True)), held


@pytest.mark.parametrize("strategy", [*ALONE, "hybrid"])
def test_a_device_ranks_by_what_is_asked_for(phone, strategy):
    scores, held = expected_of(phone, strategy)
    found = listed(phone, strategy)
    new = sorted(scores.keys() - held, key=lambda item: -scores[item])
    assert list(found) == new
    assert list(found.values()) == pytest.approx([scores[i] for i in new], rel=1e-3, abs=1e-4)


def test_the_lists_differ(phone):
    assert len({tuple(listed(phone, name))[:5] for name in (*ALONE, "hybrid")}) == 4


@pytest.mark.parametrize("strategy", ALONE)
def test_whatever_else_is_asked_goes_by_that_strategy(phone, strategy):
    whole = listed(phone, strategy)
    assert list(listed(phone, strategy, top_k=3)) == list(whole)[:3]
    limit = list(whole.values())[4]
    assert listed(phone, strategy, top_k=None, threshold=limit) == {
        item: score for item, score in whole.items() if score >= limit
    }
    some = Candidates(("商品30", "商品1", "商品12", "unheard of"))
    chosen = listed(phone, strategy, candidates=some)
    assert chosen == {item: score for item, score in whole.items() if item in some.items}
    every = listed(phone, strategy, include_seen=True)
    assert sum(every.values()) == pytest.approx(1, abs=1e-5)
    assert len(every) == N_ITEMS
    # New items of a mixture stand in the order they had.
    assert [item for item in every if item in whole] == list(whole)
    for aims in ({"diversity": 0.6}, {"calibration": 0.6}):
        various = listed(phone, strategy, top_k=8, **aims)
        assert list(various) != list(whole)[:8]
        assert all(whole[item] == score for item, score in various.items())
    first = next(iter(whole))
    phone.record([Interaction("no", first, NOW, "skip")])
    assert first not in listed(phone, strategy)
    assert first not in listed(phone, strategy, include_seen=True)


def test_hybrid_is_what_is_done_unasked_and_stays_so(phone):
    unasked = phone.recommend(RecommendRequest(top_k=99, explain=True))
    for name in ALONE:
        listed(phone, name)
        listed(phone, name, include_seen=True)
    for name in ("", "hybrid"):
        asked = RecommendRequest(top_k=99, explain=True, strategy=name)
        assert phone.recommend(asked) == unasked


def test_a_list_follows_what_happens(phone):
    for name in ALONE:
        before = listed(phone, name)
        phone.record([Interaction(f"new {name}", "商品2", NOW, "view")])
        assert listed(phone, name) != before


def test_reasons_are_those_of_the_strategy(phone):
    def told(strategy):
        found = phone.recommend(RecommendRequest(top_k=99, explain=True, strategy=strategy)).items
        kinds = ("events", "tags", "follows", "nearest")
        return {kind for one in found for kind in kinds if getattr(one, kind)}

    assert told("content") == told("neural") == {"events", "tags"}
    assert told("sequential") == {"follows"}
    assert told("hybrid") == {"events", "tags", "follows", "nearest"}


def test_what_cannot_be_ranked_is_refused(make_device, bundle_writer, tmp_path, phone):
    with pytest.raises(ConfigError, match="'popular': there is no such; give content"):
        listed(phone, "popular")
    bundle_writer(tmp_path / "bare", blocks={"id": (0, 4), "cooccurrence": (4, 6)})
    bare = make_device("bare-phone", model=tmp_path / "bare")
    for name in ("content", "sequential"):
        with pytest.raises(DeviceError, match="ask for neural or hybrid"):
            listed(bare, name)
    for name in ("neural", "hybrid"):
        assert len(listed(bare, name)) == N_ITEMS
    unlearned = make_device("none", model=None)
    with pytest.raises(ConfigError, match="there is no such"):
        listed(unlearned, "popular")
    with pytest.raises(DeviceError, match="no model yet"):
        listed(unlearned, "content")


RANKED = """
import sys
from pathlib import Path
from fedprofile.client.answers import RecommendRequest
from fedprofile.client.device import Device
from fedprofile.client.device_folder import DeviceFolder

device = Device(DeviceFolder.open(Path(sys.argv[1])))
for strategy in ("", "hybrid", "neural"):
    device.recommend(RecommendRequest(top_k=3, explain=True, strategy=strategy))
    print("fedprofile.client.strategies" in sys.modules, "torch" in sys.modules)
device.close()
"""


def test_who_ranks_as_usual_loads_nothing_more(phone):
    phone.close()
    command = [sys.executable, "-c", RANKED, str(phone.folder.path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.splitlines() == ["False False", "False False", "True False"]
