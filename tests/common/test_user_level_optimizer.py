import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam

from fedprofile.common.errors import ConfigError, MessageError, ReplyRejected
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.randomness import NoiseSource
from fedprofile.common.user_level_optimizer import (
    UserLevelDPOptimizer,
    clip_and_sum,
    release_sum,
)

SHAPES = {"weight": (30, 200), "bias": (30,), "scale": ()}
OPEN = Mechanism(
    clip_norm=math.inf, noise_multiplier=0.0, sampling_probability=0.1, population_size=50
)


def mechanism(**changes):
    values = {
        "clip_norm": 0.5,
        "noise_multiplier": 1.5,
        "sampling_probability": 0.05,
        "population_size": 50,
    }
    return Mechanism(**{**values, **changes})


def noise(label="test"):
    return NoiseSource.seeded(seed=0, label=label)


def stacked(clients, *, scale=1.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn((clients, *shape), generator=generator, dtype=dtype)
        for name, shape in SHAPES.items()
    }


def zeros(shapes=SHAPES):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def server(optimizer=SGD, *, used=None, source=None, learning_rate=1.0, shapes=SHAPES):
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    wrapped = UserLevelDPOptimizer(
        optimizer(parameters.values(), lr=learning_rate),
        named_parameters=parameters,
        mechanism=used or mechanism(),
        noise=source or noise(),
    )
    return parameters, wrapped


def flat(tensors):
    return np.concatenate([t.detach().double().numpy().ravel() for t in tensors.values()])


def oracle(updates, clip_norm):
    """Plain float64 numpy: rows clipped by C / (norm + 1e-6) and added up."""
    rows = np.concatenate(
        [u.double().numpy().reshape(len(u), -1) for u in updates.values()], axis=1
    )
    norms = np.linalg.norm(rows, axis=1)
    factors = np.minimum(1.0, clip_norm / (norms + 1e-6))
    return (factors[:, None] * rows).sum(axis=0), norms


@settings(max_examples=40, deadline=None)
@given(
    clients=st.integers(1, 9),
    clip_norm=st.floats(1e-3, 1e4),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1_000),
)
def test_clip_and_sum_equals_a_plain_oracle(clients, clip_norm, scale, seed):
    updates = stacked(clients, scale=scale, seed=seed)
    updates["weight"][0] = 0.0  # clients need not be alike
    sums, norms = clip_and_sum(updates, clip_norm=clip_norm)
    expected, expected_norms = oracle(updates, clip_norm)
    size = np.abs(expected).max()
    np.testing.assert_allclose(flat(sums), expected, rtol=1e-5, atol=1e-5 * size)
    np.testing.assert_allclose(norms.numpy(), expected_norms, rtol=1e-5)
    assert {name: tuple(total.shape) for name, total in sums.items()} == SHAPES


def test_parameters_longer_than_a_block_are_clipped_as_one():
    updates = {"long": torch.randn(3, 5, 4_001, generator=torch.Generator().manual_seed(0))}
    sums, _ = clip_and_sum(updates, clip_norm=0.7)
    np.testing.assert_allclose(flat(sums), oracle(updates, 0.7)[0], rtol=1e-5, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    clip_norm=st.floats(1e-3, 1e3),
    size=st.sampled_from([1e-8, 1e-3, 1.0, 1e6, 1e15]),
    spike=st.floats(0, 1e3),
    ratio=st.floats(0, 1),
)
def test_no_update_moves_the_sum_by_more_than_the_clip(clip_norm, size, spike, ratio):
    hostile = torch.full((1, 300_000), size * ratio)
    hostile[0, 0] = size * spike
    sums, _ = clip_and_sum({"weight": hostile}, clip_norm=clip_norm)
    assert np.linalg.norm(flat(sums)) <= clip_norm * (1 + 1e-5)


def test_numbers_lost_in_float32_do_not_slip_past_the_clip():
    hostile = torch.full((1, 1_000_000), 3e-4)
    hostile[0, 0] = 1.0
    for size in (1e3, 1e6, 1e12):
        sums, _ = clip_and_sum({"weight": hostile * size}, clip_norm=1.0)
        assert np.linalg.norm(flat(sums)) <= 1 + 1e-5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("clip_norm", [0.5, math.inf])
def test_one_broken_number_raises(value, clip_norm):
    updates = stacked(4)
    updates["bias"][2, 7] = value
    with pytest.raises(ReplyRejected, match="update 2") as rejected:
        clip_and_sum(updates, clip_norm=clip_norm)
    assert rejected.value.reason == "non-finite"


def test_arguments_stay_as_they_were_and_can_be_used_again():
    updates = stacked(3)
    before = {name: update.clone() for name, update in updates.items()}
    first, _ = clip_and_sum(updates, clip_norm=0.5)
    second, _ = clip_and_sum(updates, clip_norm=0.5)
    for name, update in updates.items():
        assert torch.equal(update, before[name])
        assert torch.equal(first[name], second[name])
    _, optimizer = server()
    kept = {name: total.clone() for name, total in first.items()}
    optimizer.step_from_sum(first)
    optimizer.step_from_sum(first)
    assert all(torch.equal(first[name], kept[name]) for name in first)


def test_nobody_sums_to_zero():
    sums, norms = clip_and_sum(stacked(0), clip_norm=0.5)
    assert all(torch.equal(sums[name], total) for name, total in zeros().items())
    assert norms.shape == (0,)


def test_unusable_stacks_and_clips_are_refused():
    for clip_norm in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="clip_norm"):
            clip_and_sum(stacked(2), clip_norm=clip_norm)
    for updates in ({}, {**stacked(2), "bias": torch.zeros(3, 30)}):
        with pytest.raises(ConfigError, match="stacked updates"):
            clip_and_sum(updates, clip_norm=1.0)


def assert_noise(values, stddev):
    """Within ±1 % at 10⁵ coordinates or more: two-sided, about 4.5 standard errors."""
    assert values.size >= 100_000
    assert abs(values.std() / stddev - 1) < 0.01
    assert abs(values.mean()) < 5 * stddev / math.sqrt(values.size)


BIG = {"weight": (400, 300), "bias": (500,)}


def noise_of_a_step(used, source):
    parameters, optimizer = server(used=used, source=source, shapes=BIG)
    optimizer.step_from_sum(zeros(BIG))
    return flat(parameters) * used.expected_cohort  # in units of the sum


def noise_of_a_release(used, source):
    return flat(release_sum(zeros(BIG), mechanism=used, noise=source))


@pytest.mark.parametrize("path", [noise_of_a_step, noise_of_a_release])
@pytest.mark.parametrize("source", [noise(), NoiseSource.csprng()], ids=["seeded", "csprng"])
def test_noise_of_the_real_path_is_sigma_times_clip(path, source):
    assert_noise(path(mechanism(), source), 1.5 * 0.5)


@pytest.mark.parametrize("factor", [2 / 3, 0.98, 1.02, 1.5])
@pytest.mark.parametrize("path", [noise_of_a_step, noise_of_a_release])
def test_the_check_of_noise_sees_a_wrong_sigma(path, factor):
    wrong = mechanism(noise_multiplier=1.5 * factor)
    with pytest.raises(AssertionError):
        assert_noise(path(wrong, noise()), 1.5 * 0.5)


def test_noise_differs_from_step_to_step():
    parameters, optimizer = server(shapes=BIG)
    optimizer.step_from_sum(zeros(BIG))
    first = flat(parameters)
    optimizer.step_from_sum(zeros(BIG))
    second = flat(parameters) - first
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(first.size)


def test_noise_does_not_depend_on_the_sum():
    used = mechanism()
    raw, _ = clip_and_sum(stacked(5), clip_norm=used.clip_norm)
    released = release_sum(raw, mechanism=used, noise=noise())
    added = flat(released) - flat(raw)
    np.testing.assert_allclose(
        added, flat(release_sum(zeros(), mechanism=used, noise=noise())), atol=1e-6
    )


def test_step_divides_by_the_expected_cohort_whoever_came():
    used = mechanism(noise_multiplier=0.0)  # q·N = 2.5, in a cohort of 4
    updates = stacked(4)
    sums, _ = clip_and_sum(updates, clip_norm=used.clip_norm)
    parameters, optimizer = server(used=used, learning_rate=0.3)
    optimizer.step_from_sum(sums)
    expected = -0.3 * oracle(updates, used.clip_norm)[0] / 2.5
    np.testing.assert_allclose(flat(parameters), expected, rtol=1e-5, atol=1e-8)


def test_step_from_sum_equals_opacus_on_the_stack():
    updates = stacked(4)
    sums, _ = clip_and_sum(updates, clip_norm=0.5)
    from_sum, optimizer = server()
    optimizer.step_from_sum(sums)
    from_stack, optimizer = server()
    for name, p in from_stack.items():
        p.grad_sample = updates[name].clone()
    optimizer.step()
    np.testing.assert_allclose(flat(from_sum), flat(from_stack), rtol=1e-5, atol=1e-7)


def test_fedavg_moves_to_the_mean_of_the_clients():
    everyone = mechanism(
        clip_norm=math.inf, noise_multiplier=0.0, sampling_probability=1.0, population_size=4
    )
    updates = stacked(4)  # w_global − w_client with w_global = 0
    sums, _ = clip_and_sum(updates, clip_norm=everyone.clip_norm)
    parameters, optimizer = server(used=everyone)
    optimizer.step_from_sum(sums)
    mean_client = {name: -update.mean(dim=0) for name, update in updates.items()}
    np.testing.assert_allclose(flat(parameters), flat(mean_client), rtol=1e-5, atol=1e-7)


def test_fedadam_keeps_its_state_when_wrapped_anew():
    used = mechanism(noise_multiplier=0.0)
    rounds = [clip_and_sum(stacked(4, seed=s), clip_norm=0.5)[0] for s in range(3)]
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    adam = Adam(parameters.values(), lr=0.01)
    for number, sums in enumerate(rounds):
        UserLevelDPOptimizer(
            adam,
            named_parameters=parameters,
            mechanism=used,
            noise=noise(f"round/{number}"),
        ).step_from_sum(sums)
    reference = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    plain = Adam(reference.values(), lr=0.01)
    for sums in rounds:
        for name, p in reference.items():
            p.grad = sums[name] / used.expected_cohort
        plain.step()
    np.testing.assert_allclose(flat(parameters), flat(reference), rtol=1e-5, atol=1e-7)


def test_empty_cohort_steps_along_noise_alone():
    sums, _ = clip_and_sum(stacked(0), clip_norm=0.5)
    parameters, optimizer = server()
    optimizer.step_from_sum(sums)
    assert (flat(parameters) != 0).all()


def test_without_privacy_the_same_path_adds_nothing():
    updates = stacked(3, scale=100.0)
    sums, _ = clip_and_sum(updates, clip_norm=OPEN.clip_norm)
    np.testing.assert_allclose(flat(sums), oracle(updates, math.inf)[0], rtol=1e-5, atol=1e-4)
    released = release_sum(sums, mechanism=OPEN, noise=noise())
    assert all(torch.equal(released[name], sums[name]) for name in sums)
    parameters, optimizer = server(used=OPEN)
    optimizer.step_from_sum(sums)
    np.testing.assert_allclose(flat(parameters), -flat(sums) / OPEN.expected_cohort, rtol=1e-6)


def test_float64_sums_are_released_in_float64():
    sums, _ = clip_and_sum(stacked(3, dtype=torch.float64), clip_norm=0.5)
    released = release_sum(sums, mechanism=mechanism(), noise=noise())
    assert {tensor.dtype for tensor in released.values()} == {torch.float64}


def test_sums_that_do_not_fit_are_refused_before_any_noise():
    parameters, optimizer = server()
    broken = [
        ({"weight": torch.zeros(30, 200)}, "missing or unknown parameter bias, scale"),
        ({**zeros(), "other": torch.zeros(1)}, "unknown parameter other"),
        ({**zeros(), "bias": torch.zeros(31)}, "'bias' has shape"),
        ({**zeros(), "scale": torch.tensor(math.nan)}, "'scale' holds"),
    ]
    for sums, message in broken:
        with pytest.raises(MessageError, match=message):
            optimizer.step_from_sum(sums)
    assert (flat(parameters) == 0).all()


def test_names_must_cover_the_optimizer():
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    adam = SGD(parameters.values(), lr=1.0)
    del parameters["bias"]
    with pytest.raises(ConfigError, match="named_parameters"):
        UserLevelDPOptimizer(
            adam, named_parameters=parameters, mechanism=mechanism(), noise=noise()
        )
