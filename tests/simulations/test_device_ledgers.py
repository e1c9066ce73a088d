"""Which devices of a simulation keep ledgers, and that they find them again."""

import pytest

from fedprofile.common.config import RunConfig
from fedprofile.common.errors import ConfigError
from fedprofile.common.randomness import NoiseSource
from fedprofile.simulations.device_ledgers import open_device_ledgers
from fedprofile.simulations.run_folder import RunFolder


def opened(town, folder, *, randomness=None, **ledger):
    config = RunConfig.model_validate({"ledger": ledger})
    return open_device_ledgers(
        RunFolder(folder),
        config,
        population=town.population,
        delta=1e-5,
        randomness=randomness or NoiseSource.csprng(),
    )


@pytest.fixture(scope="module")
def town(build_town):
    return build_town(n_devices=40)


def test_as_many_devices_as_asked_for_begin_a_ledger_each(town, tmp_path):
    ledgers = opened(town, tmp_path, devices=5, device_epsilon=3.0)
    assert len(list((tmp_path / "devices").glob("*.jsonl"))) == 5
    chosen = sorted(ledgers.devices)
    assert len(chosen) == 5
    budgets = [ledgers(device) for device in range(40)]
    assert sum(budget is not None for budget in budgets) == 5
    for budget in budgets:
        if budget is not None:
            budget.close()
    with ledgers(chosen[0]) as budget:
        assert budget.epsilon_spent() == 0
    assert opened(town, tmp_path / "none").devices == set()
    assert not (tmp_path / "none").exists()


def test_a_run_that_goes_on_finds_its_own_devices_again(town, tmp_path):
    first = opened(town, tmp_path, devices=5)
    assert opened(town, tmp_path, devices=5).devices == first.devices
    first.paths[min(first.devices)].unlink()  # killed while they were begun
    again = opened(town, tmp_path, devices=5)
    assert len(first.devices & again.devices) >= 4
    assert len(again.devices) == 5


def test_a_seed_decides_who_keeps_one_and_none_doesnt(town, tmp_path):
    def chosen(name, randomness):
        return opened(town, tmp_path / name, devices=8, randomness=randomness).devices

    def seeded(seed):
        return NoiseSource.seeded(seed=seed, label="device ledgers")

    assert chosen("a", seeded(1)) == chosen("b", seeded(1)) != chosen("c", seeded(2))
    assert chosen("d", None) != chosen("e", None)  # one chance in 77 million


def test_runs_may_share_a_folder_and_with_it_lifetimes(town, tmp_path):
    shared = str(tmp_path / "kept")
    first = opened(town, tmp_path / "a", devices=5, device_folder=shared)
    second = opened(town, tmp_path / "b", devices=5, device_folder=shared)
    assert first.paths == second.paths
    assert first.devices == second.devices
    with pytest.raises(ConfigError, match="population"):
        opened(town, tmp_path / "c", devices=5, device_folder=shared, population="others")


def test_more_than_there_are(town, tmp_path):
    with pytest.raises(ConfigError, match="ask for 40 or fewer"):
        opened(town, tmp_path, devices=41)
