import numpy as np
import pytest

from fedprofile.client.model_bundle import ModelBundle
from fedprofile.client.numpy_encoder import NumpyEncoder, encoder_shapes
from fedprofile.client.serving import serving_table
from fedprofile.common.config import ModelConfig
from fedprofile.common.histories import Histories
from fedprofile.common.items import ItemTable
from fedprofile.simulations import latency
from fedprofile.simulations.latency import Spread, measure_latency

N_ITEMS, K, START = 12, 4, 1_000


@pytest.fixture
def bundle():
    rng = np.random.default_rng(0)
    blocks, config = {"text": (0, K)}, ModelConfig(width=4, heads=1, layers=1, window=3)
    vectors = rng.standard_normal((N_ITEMS, K)).astype(np.float32)
    public = ItemTable(vectors, tuple(map(str, range(N_ITEMS))), ((),) * N_ITEMS, blocks)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in encoder_shapes(config, len(blocks), vectors.shape, 2).items()
    }
    return ModelBundle(
        name="",
        hash="",
        config=config,
        event_types=("view", "buy"),
        served=serving_table(public, prior=np.zeros(N_ITEMS, np.float32), ids=None),
        public=public,
        encode=NumpyEncoder(config, weights, blocks=blocks, vectors=vectors, n_types=2),
    )


@pytest.fixture
def log():
    """One user with a past, one who begins after the cut; baskets, and another type and weight."""
    return Histories(
        offsets=np.array([0, 5, 7]),
        items=np.array([3, 4, 5, 6, 3, 7, 8], np.int32),
        times=START + np.array([-9, -5, 1, 1, 8, 2, 2]),
        sessions=np.zeros(7, np.int32),
        weights=np.array([1, 1, 2, 1, 4, 0.5, 1], np.float32),
        types=np.array([0, 0, 1, 0, 1, 0, 0], np.int16),
    )


def test_profiles_learn_the_event_that_came_next(bundle, log, monkeypatch):
    learned, listed = [], []

    def update(profile, event, **settings):
        learned.append((profile.n_events, event.item, event.time - START, event.weight, event.type))
        return original(profile, event, **settings)

    def top_k(profile, table, k, *, scores):
        listed.append((profile.n_events, k))
        return ranked(profile, table, k, scores=scores)

    original, ranked = latency.update, latency.top_k
    monkeypatch.setattr(latency, "update", update)
    monkeypatch.setattr(latency, "top_k", top_k)
    found = measure_latency(bundle, log, start=START, k=2)
    assert found.moments == 3
    # The first of each basket; once more before, to warm up.
    assert learned == [(2, 5, 1, 2.0, 1), (4, 3, 8, 4.0, 1), (0, 7, 2, 0.5, 0)] * 2
    assert listed == [(3, 2), (5, 2), (1, 2)] * 2
    told = found.to_dict()
    assert told.keys() == {"moments", "update_ms", "list_ms"}
    assert told["update_ms"].keys() == told["list_ms"].keys() == {"median", "p95"}


def test_no_more_moments_than_asked_for(bundle, log):
    assert measure_latency(bundle, log, start=START, k=2, most=2).moments == 2


def test_nothing_came_after(bundle, log):
    assert measure_latency(bundle, log, start=START + 9, k=2) is None


def test_median_and_95th_percentile_in_milliseconds():
    spread = Spread.of(np.arange(101) / 1e3)
    assert (spread.median, spread.p95) == pytest.approx((50, 95))
