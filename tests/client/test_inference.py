import numpy as np
import pytest
import torch

from fedprofile.client.examples import build_examples
from fedprofile.client.inference import profile_vectors
from fedprofile.client.serving import PRIOR_BLOCK, serving_table
from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import EncoderInputs, build_encoder
from fedprofile.common.histories import Histories


@pytest.fixture(scope="module")
def town(build_town):
    return build_town(n_devices=30)


def encoder_of(kind, town, **changes):
    config = ModelConfig(
        encoder=kind,
        width=8,
        heads=2,
        window=6,
        half_lives_days=(30.0, 200.0),
        half_lives_events=(),
        **changes,
    )
    table = town.population.table
    encoder = build_encoder(config, blocks=table.blocks, n_items=table.n_items, n_types=1, seed=1)
    generator = torch.Generator().manual_seed(2)
    weights = {
        name: 0.3 * torch.randn(p.shape, generator=generator)
        for name, p in encoder.named_parameters()
    }
    return config, encoder, weights


def vectors_of(kind, town, histories, **changes):
    config, encoder, weights = encoder_of(kind, town, **changes)
    return profile_vectors(
        encoder,
        weights,
        histories,
        table=town.population.table,
        scales=config.scales,
        window=config.window,
    )


@pytest.mark.parametrize("kind", ["transformer", "gru", "mean", "dense"])
def test_a_device_has_the_same_profile_in_any_company(town, kind):
    histories = town.population.histories
    together = vectors_of(kind, town, histories)
    assert together.shape == (30, town.population.table.dimension + 1)
    assert together.dtype == np.float32
    assert (together[:, -1] == 1).all()
    for device in range(histories.n_devices):
        alone = vectors_of(kind, town, histories.device(device))
        np.testing.assert_allclose(alone[0], together[device], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["transformer", "gru", "mean", "dense"])
def test_ranking_reads_what_training_read(town, kind):
    """U at the last query of a device is U of its history up to there, at that moment."""
    histories = town.population.histories
    config, encoder, weights = encoder_of(kind, town)
    table = town.population.table
    keys = np.arange(histories.n_devices, dtype=np.uint64)
    checked = 0
    for device in range(histories.n_devices):
        alone = histories.device(device)
        if alone.n_events > config.window or alone.sessions.max() == 0:
            continue  # a long history ends at a random moment
        examples = build_examples(
            alone,
            keys[device : device + 1],
            vectors=table.vectors,
            scales=config.scales,
            window=config.window,
            new_targets_only=False,
            seed=0,
        )
        inputs = EncoderInputs(
            vectors=torch.from_numpy(table.vectors[examples.window_items]),
            rows=torch.from_numpy(examples.window_items.astype(np.int64)),
            gaps=torch.from_numpy(examples.window_gaps),
            types=torch.from_numpy(examples.window_types.astype(np.int64)),
            weights=torch.from_numpy(examples.window_weights),
            positions=torch.from_numpy(examples.query_positions),
            sums=torch.from_numpy(examples.query_sums),
        )
        trained = torch.func.functional_call(encoder, weights, (inputs,))[-1].detach().numpy()
        last = (alone.times == alone.times[-1]) & (alone.sessions == alone.sessions[-1])
        opening = int(np.argmax(last))
        past = alone.where(np.arange(alone.n_events) < opening)
        ranked = vectors_of(kind, town, past)
        np.testing.assert_allclose(ranked[0, :-1], trained, rtol=1e-4, atol=1e-5)
        checked += 1
    assert checked > 5


@pytest.mark.parametrize("kind", ["transformer", "gru", "mean", "dense"])
def test_devices_without_events_have_a_profile_too(town, kind):
    some = town.population.histories.take(np.arange(3))
    # None first, in the middle and last: nothing may be read beyond the columns.
    offsets = np.concatenate([[0], np.repeat(some.offsets, 2), some.offsets[-1:]])
    gaps = Histories(**{**vars(some), "offsets": offsets.astype(np.int64)})
    silent = gaps.lengths == 0
    assert silent[0]
    assert silent[-1]
    found = vectors_of(kind, town, gaps)
    assert np.isfinite(found).all()
    expected = vectors_of(kind, town, some)
    np.testing.assert_allclose(found[~silent], expected, rtol=1e-4, atol=1e-5)
    alone = vectors_of(kind, town, gaps.take(np.flatnonzero(silent)))
    np.testing.assert_allclose(found[silent], alone, rtol=1e-4, atol=1e-5)
    assert np.ptp(alone, axis=0).max() < 1e-5


def test_only_the_window_and_the_sums_are_read(town):
    histories = town.population.histories.device(int(np.argmax(town.population.histories.lengths)))
    assert histories.n_events > 6
    whole = vectors_of("transformer", town, histories)
    shifted = Histories(**{**vars(histories), "types": np.zeros_like(histories.types)})
    np.testing.assert_array_equal(vectors_of("transformer", town, shifted), whole)
    times = histories.times.copy()
    times[0] -= 10**8  # outside the window: the decayed sums alone notice
    older = Histories(**{**vars(histories), "times": times})
    assert np.abs(vectors_of("transformer", town, older) - whole).max() > 0


def test_nobody(town):
    nobody = town.population.histories.take(np.zeros(0, dtype=np.int64))
    for ids, width in ((False, 6), (True, 6 + 32)):
        found = vectors_of("mean", town, nobody, item_ids=ids)
        assert found.shape == (0, width + 1)
    somebody = vectors_of("mean", town, town.population.histories, item_ids=True)
    assert somebody.shape == (30, 6 + 32 + 1)


def test_serving_table_scores_content_ids_and_popularity_in_one_product(town):
    table = town.population.table
    rng = np.random.default_rng(0)
    prior = rng.normal(size=table.n_items).astype(np.float32)
    ids = rng.normal(size=(table.n_items, 32)).astype(np.float32)
    content, own = rng.normal(size=6), rng.normal(size=32)
    served = serving_table(table, prior=prior, ids=ids)
    assert served.blocks[PRIOR_BLOCK] == (38, 39)
    score = served.vectors @ np.concatenate([content, own, [1.0]])
    np.testing.assert_allclose(
        score, table.vectors @ content + ids @ own + prior, rtol=1e-4, atol=1e-4
    )
    assert serving_table(table, prior=prior, ids=None).dimension == 7
