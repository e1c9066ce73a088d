from dataclasses import fields

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from fedprofile.common.encoder import build_encoder
from fedprofile.common.histories import Histories
from fedprofile.simulations.population import Population


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
        gaps, table=town.population.table, model=town.config.model, n_types=1
    )
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
