import hashlib
from dataclasses import fields

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.config import ModelConfig
from fedprofile.common.encoder import build_encoder
from fedprofile.common.histories import Histories
from fedprofile.common.messages import Binding, TrainTask
from fedprofile.simulations.population import Population, device_keys


@pytest.fixture(scope="module")
def town(build_town):
    return build_town(n_devices=23)


def context(partition):
    return Context(
        run_id=1,
        node_id=2,
        node_config={"partition-id": partition},
        state=RecordDict(),
        run_config={},
    )


def columns(histories):
    return {
        column.name: np.asarray(getattr(histories, column.name)) for column in fields(Histories)
    }


def assert_same(got, expected):
    for name, values in columns(expected).items():
        np.testing.assert_array_equal(columns(got)[name], values, err_msg=name)


@pytest.mark.parametrize("size", [1, 7, 23, 100])
def test_hosts_are_slices_that_cover_the_population(town, size):
    population = town.population
    find = population.host_finder(size, town.trainer)
    hosts = [find(context(partition)) for partition in range(population.hosts(size))]
    assert [d for host in hosts for d in host.devices] == list(range(23))
    for host in hosts:
        assert_same(host._histories, population.histories.take(np.array(host.devices)))
        # Views: a million devices are not copied to be hosted.
        assert np.shares_memory(host._histories.items, population.histories.items)
        assert host._trainer is town.trainer
    assert find(context(0)) is hosts[0]


def test_only_users_with_events_become_devices(town):
    some = town.population.histories.take(np.arange(4))
    offsets = np.array([0, 0, some.offsets[1], some.offsets[2], some.offsets[2], some.offsets[4]])
    gaps = Histories(**{**columns(some), "offsets": offsets})
    population = Population.of(
        gaps, user_ids="vwxyz", table=town.population.table, model=town.config.model, n_types=1
    )
    assert population.keys.tolist() == device_keys("wxz").tolist()
    assert population.users.tolist() == [1, 2, 4]
    assert (population.histories.lengths > 0).all()
    assert population.size == 3
    assert_same(population.histories, gaps.take(np.array([1, 2, 4])))


def test_comes_back_from_disk_as_it_was(town, tmp_path):
    town.population.save(tmp_path)
    loaded = Population.load(tmp_path)
    assert_same(loaded.histories, town.population.histories)
    assert isinstance(loaded.histories.items, np.memmap)
    assert loaded.users.tolist() == town.population.users.tolist()
    assert loaded.keys.tolist() == town.population.keys.tolist()
    assert loaded.model == town.population.model
    assert loaded.n_types == town.population.n_types
    assert loaded.table.content_hash == town.population.table.content_hash
    assert not list(tmp_path.glob("*.tmp"))


def test_a_reloaded_population_trains_the_same_encoder(town, tmp_path):
    """An encoder takes the blocks of an item in their order; a table on disk has lost it."""
    town.population.save(tmp_path)
    loaded = Population.load(tmp_path)
    assert list(loaded.table.blocks.items()) == list(town.population.table.blocks.items())
    assert list(town.population.table.blocks) != sorted(town.population.table.blocks)

    def encoder(population):
        return build_encoder(
            population.model,
            blocks=population.table.blocks,
            n_items=population.table.n_items,
            n_types=population.n_types,
            seed=1,
        )

    pairs = zip(
        encoder(town.population).state_dict().items(),
        encoder(loaded).state_dict().items(),
        strict=True,
    )
    assert all(a == b and torch.equal(v, w) for (a, v), (b, w) in pairs)


# --- neighbours: the same users but for one ------------------------------------------------------

USERS, CLIP = 6, 0.05


@pytest.fixture(scope="module")
def busy_town(build_town):
    """Histories longer than the default window, so that devices choose what they learn from."""
    window = ModelConfig().window
    town = build_town(n_devices=USERS, n_items=500, sessions=80, model={"window": window})
    assert (town.population.histories.lengths > window).sum() >= USERS - 1
    return town


def clipped_sum(town, population, seed, dropout):
    """Sum of what all devices of ``population`` send in a round."""
    task = TrainTask(
        binding=Binding(run="r", round=1, release=4, items=population.table.content_hash),
        devices=np.arange(population.size),
        weights=town.initial(),
        prior=np.zeros(population.table.n_items, dtype=np.float32),
        vectors=np.zeros((population.table.n_items, 0), dtype=np.float32),
        steps=2,
        learning_rate=0.5,
        negatives=4,
        dropout=dropout,
        new_targets_only=False,
        clip_norm=CLIP,
        noise_multiplier=1.0,
        seed=seed,
    )
    host = population.host_finder(population.size, town.trainer)(context(0))
    arrays = host.train(task).arrays
    return np.concatenate([arrays[name].ravel().astype(float) for name in sorted(arrays)])


@settings(max_examples=25)
@given(
    gone=st.integers(0, USERS - 1), seed=st.integers(0, 2**62), dropout=st.sampled_from([0.0, 0.4])
)
def test_a_user_more_or_less_moves_the_sum_by_the_clip_norm_at_most(busy_town, gone, seed, dropout):
    """Also for who knows the public seed: what the others contribute must not change."""
    everyone = busy_town.population
    stay = np.delete(np.arange(USERS), gone)
    others = Population.of(
        everyone.histories.take(stay),
        user_ids=[f"user {number}" for number in stay],
        table=everyone.table,
        model=everyone.model,
        n_types=1,
    )
    sums = [clipped_sum(busy_town, who, seed, dropout) for who in (everyone, others)]
    moved = sums[0] - sums[1]
    assert np.linalg.norm(moved) <= CLIP * 1.001


def test_keys_follow_from_ids_alone():
    keys = device_keys(["a", "東京", "a", ""])
    # BLAKE2b by hand: Python's own, read as a little-endian number.
    digest = hashlib.blake2b("東京".encode(), digest_size=8).digest()
    assert keys.dtype == np.uint64
    assert keys[1] == int.from_bytes(digest, "little")
    assert keys[0] == keys[2]
    assert len(set(keys.tolist())) == 3
    assert len(set(device_keys([f"user {n}" for n in range(10_000)]).tolist())) == 10_000
    assert device_keys([]).shape == (0,)
