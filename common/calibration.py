"""How much noise a planned run needs to stay within its budget."""

from __future__ import annotations

import math
from collections import Counter

from dp_accounting import DpEvent, NonPrivateDpEvent
from scipy.optimize import brentq

from .accounting import (
    LEAST_NOISE_MULTIPLIER,
    ROUNDING,
    Events,
    epsilon,
    gaussian_mu,
    remember_fit,
)
from .errors import BudgetError, ConfigError
from .mechanism import Adjacency, Mechanism

_TOLERANCE = 5e-4  # of a calibrated noise multiplier, relative
_RAISES = 8  # by that tolerance, before the fine grid is taken at its word
_BRACKET = 1.5  # between a noise multiplier that is too small and one that is enough
_MOST_NOISE_MULTIPLIER = 2.0**30


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    rounds: int,
    prior_events: Events = (),
    adjacency: Adjacency = "add-or-remove-one",
) -> float:
    """Least σ with which ``rounds`` Poisson-sampled releases after ``prior_events`` cost ≤ ε.

    Returns:
        σ with epsilon(all) ≤ ``target_epsilon``; a σ 0.1 % smaller would exceed it.

    Raises:
        ConfigError: a value is out of range, or ε is so large that hardly any noise is left.
        BudgetError: ``prior_events`` leave nothing of ε.
    """
    if not 0 < target_epsilon < math.inf:
        raise ConfigError(f"epsilon must be above 0 and finite, got {target_epsilon}")
    if rounds < 1:
        raise ConfigError(f"rounds must be 1 or more to calibrate noise, got {rounds}")
    spent = epsilon(prior_events, delta=delta, adjacency=adjacency)
    if math.isinf(spent) and not any(isinstance(e, NonPrivateDpEvent) for e in prior_events):
        raise _unresolved(delta)
    if spent >= target_epsilon:
        raise BudgetError(
            f"earlier releases cost ε = {spent:.4g} of {target_epsilon:.4g}: nothing is left for "
            f"{rounds} rounds; raise epsilon or spend less before",
            epsilon_reached=spent,
        )

    target = target_epsilon * (1 - ROUNDING)

    def releases(noise_multiplier: float) -> Counter[DpEvent]:
        mechanism = Mechanism(
            clip_norm=1.0,
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            population_size=1,
        )
        return Counter(prior_events) + Counter({mechanism.event(): rounds})

    def enough(noise_multiplier: float, *, coarse: bool = False) -> bool:
        reached = epsilon(
            releases(noise_multiplier), delta=delta, coarse=coarse, adjacency=adjacency
        )
        return reached <= target

    # Near the answer from the start: far below it a loss distribution outgrows memory. By the
    # central limit μ = q·√(R·(e^(1/σ²) − 1)) (Bu, Dong, Long & Su 2020, theorem 5).
    mu = gaussian_mu(epsilon=target_epsilon, delta=delta)
    guess = math.log1p((mu / sampling_probability) ** 2 / rounds) ** -0.5
    upper = max(guess, 2 * LEAST_NOISE_MULTIPLIER)
    while not enough(upper, coarse=True):
        upper *= _BRACKET
        if upper > _MOST_NOISE_MULTIPLIER:
            raise BudgetError(
                f"no noise fits {rounds} rounds into ε = {target_epsilon:.4g} after releases that "
                f"cost {spent:.4g}; raise epsilon",
                epsilon_reached=spent,
            )
    while enough(upper / _BRACKET, coarse=True):
        upper /= _BRACKET
        if upper <= LEAST_NOISE_MULTIPLIER:
            raise ConfigError(
                f"epsilon {target_epsilon:.4g} asks for next to no noise; lower it or switch "
                "privacy off"
            )

    def gap(log_noise_multiplier: float) -> float:
        events = releases(math.exp(log_noise_multiplier))
        return epsilon(events, delta=delta, coarse=True, adjacency=adjacency) - target

    tolerance = _TOLERANCE / 10
    log_noise_multiplier = brentq(gap, math.log(upper / _BRACKET), math.log(upper), xtol=tolerance)
    while gap(log_noise_multiplier) > 0:  # the root is somewhere within the tolerance
        log_noise_multiplier += tolerance
    # Enough on the coarse grid is enough on the fine one; less may be too.
    noise_multiplier, step = math.exp(log_noise_multiplier), _TOLERANCE
    while enough(noise_multiplier * (1 - step)):
        noise_multiplier *= 1 - step
        step = min(2 * step, 0.5)
    while step > _TOLERANCE:
        step /= 2
        if enough(noise_multiplier * (1 - step)):
            noise_multiplier *= 1 - step
    # With a tiny δ the coarse grid may have promised too much.
    for _ in range(_RAISES):
        if enough(noise_multiplier):
            remember_fit(
                releases(noise_multiplier),
                delta=delta,
                target_epsilon=target_epsilon,
                adjacency=adjacency,
            )
            return noise_multiplier
        noise_multiplier *= 1 + _TOLERANCE
    raise _unresolved(delta)


def _unresolved(delta: float) -> ConfigError:
    return ConfigError(
        f"delta {delta:.3g} is below what loss distributions resolve; raise privacy.delta"
    )
