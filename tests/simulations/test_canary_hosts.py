"""Canaries as devices: directions, coins, and a host that a real federation accepts."""

import numpy as np
import pytest

from fedprofile.common.errors import MessageError
from fedprofile.common.messages import Binding, TrainTask
from fedprofile.common.randomness import NoiseSource
from fedprofile.simulations import canary_hosts
from fedprofile.simulations.canary_hosts import (
    AuditedPopulation,
    Canaries,
    CanaryHost,
    flattened,
)


@pytest.fixture(scope="module")
def town(build_town):
    return build_town(n_devices=20)


def canaries(*included, seed=5):
    return Canaries(np.array(included, dtype=bool), seed)


def host_of(town, who, first=20):
    return CanaryHost(who, first=first, population=town.population, trainer=town.trainer)


def task(town, *devices, clip_norm=0.5, items=None):
    return TrainTask(
        binding=Binding(
            run="r", release=1, round=1, items=items or town.population.table.content_hash
        ),
        devices=np.array(devices, dtype=np.int64),
        weights=town.initial(),
        prior=np.zeros(30, dtype=np.float32),
        vectors=np.zeros((30, 0), dtype=np.float32),
        steps=1,
        learning_rate=0.1,
        negatives=4,
        dropout=0.0,
        new_targets_only=True,
        clip_norm=clip_norm,
        noise_multiplier=1.0,
        seed=1,
    )


def test_directions_are_unit_vectors_and_repeatable():
    who = canaries(*[True] * 50)
    all_of_them = who.directions(np.arange(50), 3_000)
    np.testing.assert_allclose(np.linalg.norm(all_of_them, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(who.directions(np.array([7, 3]), 3_000), all_of_them[[7, 3]])
    cosines = (all_of_them @ all_of_them.T)[np.triu_indices(50, 1)]
    assert abs(cosines.std() * np.sqrt(3_000) - 1) < 0.1
    assert not np.array_equal(
        canaries(True, seed=6).directions(np.array([0]), 9), all_of_them[0, :9]
    )


def test_inner_products_come_in_blocks(monkeypatch):
    who = canaries(*[True] * 7)
    vectors = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    whole = who.along(vectors)
    monkeypatch.setattr(canary_hosts, "_BLOCK", 100)
    np.testing.assert_allclose(who.along(vectors), whole, rtol=1e-5)
    np.testing.assert_allclose(whole, who.directions(np.arange(7), 40) @ vectors.T, rtol=1e-5)


def test_coins_are_fair_and_the_seed_repeats_them():
    first, again = (
        Canaries.draw(4_000, randomness=NoiseSource.seeded(seed=1, label="x")) for _ in range(2)
    )
    np.testing.assert_array_equal(first.included, again.included)
    assert first.seed == again.seed
    assert abs(first.included.mean() - 0.5) < 4 * 0.5 / np.sqrt(4_000)


def test_an_update_is_the_sum_of_the_present_canaries_at_the_clip_norm(town):
    who = canaries(True, False, True)
    update = host_of(town, who).train(task(town, 20, 21, 22))
    size = sum(w.size for w in town.initial().values())
    expected = 0.5 * who.directions(np.array([0, 2]), size).sum(axis=0)
    np.testing.assert_allclose(flattened(update.arrays), expected, atol=1e-7)
    assert {n: a.shape for n, a in update.arrays.items()} == {
        n: w.shape for n, w in town.initial().items()
    }
    assert (update.devices, update.clip_norm) == (3, 0.5)
    alone = host_of(town, who).train(task(town, 20))
    assert alone.norm == pytest.approx(0.5, rel=1e-5)


def test_a_canary_that_is_out_looks_like_a_user_without_data(town):
    update = host_of(town, canaries(False, False)).train(task(town, 20, 21))
    assert update.devices == 2
    assert update.norm == 0


@pytest.mark.parametrize("devices", [(19,), (22,), (20, 20)])
def test_a_canary_host_answers_for_its_own_only(town, devices):
    with pytest.raises(MessageError, match="not hosted"):
        host_of(town, canaries(True, True)).train(task(town, *devices))
    with pytest.raises(MessageError, match="another item table"):
        host_of(town, canaries(True)).train(task(town, 20, items="f" * 64))


def test_population_has_canaries_after_members_and_leaves_outsiders_out(town):
    outside = np.zeros(20, dtype=bool)
    outside[[3, 8]] = True
    audited = AuditedPopulation.of_users(town.population, canaries(True, False), outside=outside)
    assert (audited.members.size, audited.size) == (18, 20)
    assert audited.outsiders.n_devices == 2
    assert audited.hosts(10) == 3
    np.testing.assert_array_equal(audited.users, np.delete(np.arange(20), [3, 8]))
    np.testing.assert_array_equal(
        audited.outsiders.device(1).items, town.population.histories.device(8).items
    )
