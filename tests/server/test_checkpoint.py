from dataclasses import replace

import pytest
import torch
from torch import nn

from fedprofile.common.errors import RunFolderError
from fedprofile.server.checkpoint import Checkpoint, optimizer_moments, restore_moments


def checkpoint(round_=3, **changes):
    values = {
        "round": round_,
        "config_digest": "digest",
        "items": "items",
        "release": 7,
        "weights": {"layer.weight": torch.randn(3, 2), "scale": torch.tensor(2.5)},
        "popularity": torch.randn(2, 4, dtype=torch.float64),
        "average": {"layer.weight": torch.randn(3, 2), "scale": torch.tensor(0.5)},
        "averaged": 2,
        "beyond_content": 0.25,
        "moments": {"layer.weight/exp_avg": torch.randn(3, 2), "scale/step": torch.tensor(3.0)},
        "rounds": ({"round": 0, "note": "東京"}, {"round": 3, "rejected": {"norm": 1}}),
    }
    return Checkpoint(**{**values, **changes})


def latest(folder):
    return Checkpoint.latest(folder, config_digest="digest", items="items")


def assert_same(got, expected):
    for name, value in vars(expected).items():
        if isinstance(value, dict):
            assert getattr(got, name).keys() == value.keys()
            assert all(torch.equal(getattr(got, name)[key], value[key]) for key in value)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(getattr(got, name), value)
            assert getattr(got, name).dtype == value.dtype
        else:
            assert getattr(got, name) == value


@pytest.mark.parametrize("release", [7, None])
def test_comes_back_as_it_was(tmp_path, release):
    saved = checkpoint(release=release)
    saved.save(tmp_path / "new folder")
    assert_same(latest(tmp_path / "new folder"), saved)


def test_an_untrained_state_comes_back(tmp_path):
    saved = checkpoint(0, average={}, averaged=0, moments={}, rounds=())
    saved.save(tmp_path)
    assert_same(latest(tmp_path), saved)


def test_nothing_is_there_before_the_first(tmp_path):
    assert latest(tmp_path / "missing") is None
    assert latest(tmp_path) is None


def test_the_newest_counts_and_the_one_before_is_kept(tmp_path):
    for number in (1, 2, 9, 10, 99_999, 100_000):
        checkpoint(number).save(tmp_path)
        assert latest(tmp_path).round == number
    assert len(list(tmp_path.iterdir())) == 2


def test_a_half_written_file_does_not_count(tmp_path):
    checkpoint(1).save(tmp_path)
    (tmp_path / ".round-000002.safetensors.4711.tmp").write_bytes(b"half")
    assert latest(tmp_path).round == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_file_is_named(tmp_path, content):
    checkpoint(1).save(tmp_path)
    path = tmp_path / "round-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(RunFolderError, match=r"round-000001\.safetensors: not a checkpoint"):
        latest(tmp_path)


def test_another_configuration_or_catalogue_is_refused(tmp_path):
    checkpoint(1, config_digest="other").save(tmp_path / "a")
    with pytest.raises(RunFolderError, match="belongs to another configuration"):
        latest(tmp_path / "a")
    checkpoint(1, items="other").save(tmp_path / "b")
    with pytest.raises(RunFolderError, match="items have changed"):
        latest(tmp_path / "b")


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.99)),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path, kind):
    gradients = [torch.randn(3, 2) for _ in range(4)]

    def started(weights, moments):
        parameters = {"layer.weight": nn.Parameter(weights.clone())}
        optimizer = OPTIMIZERS[kind](parameters.values())
        restore_moments(optimizer, parameters, moments)
        return parameters, optimizer

    def step(parameters, optimizer, gradient):
        parameters["layer.weight"].grad = gradient.clone()
        optimizer.step()

    through, optimizer = started(torch.ones(3, 2), {})
    for gradient in gradients:
        step(through, optimizer, gradient)

    parameters, optimizer = started(torch.ones(3, 2), {})
    for gradient in gradients:
        step(parameters, optimizer, gradient)
        moments = optimizer_moments(optimizer, parameters)
        saved = replace(
            checkpoint(), weights={n: p.detach() for n, p in parameters.items()}, moments=moments
        )
        saved.save(tmp_path)
        back = latest(tmp_path)
        parameters, optimizer = started(back.weights["layer.weight"], back.moments)
    assert torch.equal(parameters["layer.weight"], through["layer.weight"])
