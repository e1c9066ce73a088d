"""How the privacy loss of a Gaussian release is distributed: dp_accounting's answer, without its loop.

dp_accounting walks over the hundred thousands of points of its grid one by one, which takes most of
what an ε or a calibrated noise takes. Here all points are worked out at once, by the same formulas.
"""

from __future__ import annotations

import math

import numpy as np
from dp_accounting.pld.common import log_sinh
from dp_accounting.pld.pld_pmf import PLDPmf, create_pmf_pessimistic_connect_dots_fixed_gap
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss
from numpy.typing import NDArray

from .mechanism import Adjacency

_Points = NDArray[np.float64]


def gaussian_loss(
    noise_multiplier: float, *, sampling_probability: float, grid: float, adjacency: Adjacency
) -> PrivacyLossDistribution:
    """Loss distribution of one Gaussian release of a Poisson sample, q = 1 for everybody.

    Pessimistic, by connecting the dots (Doroshenko et al. 2022, algorithm 1): equal, but for the
    last digits, to ``from_gaussian_mechanism`` of dp_accounting.

    Args:
        noise_multiplier: σ, at sensitivity 1.
        sampling_probability: q in (0, 1].
        grid: step between the losses.
        adjacency: of the populations that are compared.
    """

    def masses(kind: AdjacencyType) -> PLDPmf:
        loss = GaussianPrivacyLoss(
            noise_multiplier, sampling_prob=sampling_probability, adjacency_type=kind
        )
        bounds = loss.connect_dots_bounds()
        lower = math.floor(bounds.epsilon_lower / grid)
        upper = math.ceil(bounds.epsilon_upper / grid)
        deltas = _deltas(loss, np.arange(lower, upper + 1) * grid, noise_multiplier)
        return create_pmf_pessimistic_connect_dots_fixed_gap(grid, lower, upper, deltas)

    if adjacency == "replace-one":
        return PrivacyLossDistribution(masses(AdjacencyType.REPLACE))
    removed = masses(AdjacencyType.REMOVE)
    if sampling_probability == 1:  # then adding a user is as likely to be seen
        return PrivacyLossDistribution(removed)
    return PrivacyLossDistribution(removed, masses(AdjacencyType.ADD))


def _deltas(loss: GaussianPrivacyLoss, epsilons: _Points, noise_multiplier: float) -> _Points:
    """δ at each ε: the mass, above what ε explains, of all outcomes that lose more than that."""
    outcomes = _outcomes(loss, epsilons, noise_multiplier)
    explained = np.exp(epsilons + loss.mu_lower_log_cdf(outcomes))
    deltas: _Points = loss.mu_upper_cdf(outcomes) - explained
    every = outcomes == np.inf  # and ε < 0
    deltas[every] = -np.expm1(epsilons[every])
    return deltas.clip(0.0, 1.0)


def _outcomes(loss: GaussianPrivacyLoss, epsilons: _Points, noise_multiplier: float) -> _Points:
    """The largest outcome at which each ε is lost, ±∞ where every or none loses more.

    In the order in which dp_accounting calculates: then no digit of a composition differs.
    """
    q, variance = loss.sampling_prob, noise_multiplier**2
    if loss.adjacency_type == AdjacencyType.REPLACE:
        if q == 1:
            return -epsilons * variance / 2
        # The loss is log(1 − q + q·e^(−(2x + 1)/2σ²)) − log(1 − q + q·e^((2x − 1)/2σ²)).
        log_alpha = 0.5 * (1 / noise_multiplier) ** 2 + math.log1p(-q) - math.log(q)
        log_inner = log_alpha + np.array([log_sinh(e / 2) for e in np.abs(epsilons).tolist()])
        arsinh = np.logaddexp(0.5 * np.logaddexp(0, 2 * log_inner), log_inner)
        return variance * (-np.sign(epsilons) * arsinh - epsilons / 2)
    # The loss is log(1 − q + q·e^(−(1 + 2x)/2σ²)) by removing, and by adding −1 times that at −x.
    sign = 1.0 if loss.adjacency_type == AdjacencyType.REMOVE else -1.0
    unsampled = sign * epsilons
    if q < 1:
        with np.errstate(divide="ignore"):  # log 0 where no outcome loses as much, or all do
            scaled = unsampled + np.log(1 / q)
            less = np.minimum(np.exp(np.log(1 / q - 1) - scaled), 1.0)
            unsampled = np.where(unsampled == 0, 0.0, scaled + np.log1p(-less))
    removed = -0.5 - sign * unsampled * variance
    return removed if sign > 0 else 1 + removed
