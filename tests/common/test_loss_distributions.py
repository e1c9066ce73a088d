"""Loss distributions against dp_accounting's own: the figures have the same digits."""

import math

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.accounting import RELATIONS
from fedprofile.common.loss_distributions import gaussian_loss

GRID = 1e-2  # dp_accounting is slow; tests of accounting compare with it on the grid in use


def both(noise_multiplier, q, adjacency):
    ours = gaussian_loss(noise_multiplier, sampling_probability=q, grid=GRID, adjacency=adjacency)
    theirs = from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=GRID,
        sampling_prob=q,
        neighboring_relation=RELATIONS[adjacency],
    )
    return ours, theirs


@pytest.mark.parametrize("adjacency", list(RELATIONS))
@pytest.mark.parametrize("q", [1.0, 0.999, 0.5, 0.02, 1e-5])
@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 1e4])
def test_epsilon_and_delta_are_dp_accountings(noise_multiplier, q, adjacency):
    ours, theirs = both(noise_multiplier, q, adjacency)
    for delta in (1e-3, 1e-6, 1e-10):
        for count in (1, 20):
            figures = [
                loss.self_compose(count).get_epsilon_for_delta(delta) for loss in (ours, theirs)
            ]
            assert figures[0] == pytest.approx(figures[1], rel=1e-9, abs=1e-12)
    epsilons = [-1.0, -0.01, 0.0, 0.01, 1.0, 30.0]
    deltas = [loss.get_delta_for_epsilon(epsilons) for loss in (ours, theirs)]
    assert np.allclose(*deltas, rtol=1e-9, atol=1e-15)


@settings(max_examples=25)
@given(
    noise_multiplier=st.floats(0.4, 100),
    q=st.floats(1e-6, 1.0),
    adjacency=st.sampled_from(list(RELATIONS)),
    delta=st.floats(1e-9, 0.1),
)
def test_any_release_costs_what_dp_accounting_says(noise_multiplier, q, adjacency, delta):
    ours, theirs = both(noise_multiplier, q, adjacency)
    expected = theirs.get_epsilon_for_delta(delta)
    assert ours.get_epsilon_for_delta(delta) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("adjacency", list(RELATIONS))
def test_next_to_no_noise_overflows_nowhere(adjacency):
    for q in (1.0, 0.5):
        loss = gaussian_loss(2.0**-5, sampling_probability=q, grid=1e-2, adjacency=adjacency)
        assert 0 < loss.get_epsilon_for_delta(1e-5) < math.inf
