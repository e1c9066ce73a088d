"""A plan that leaves devices able to answer: what its releases cost one of them by its own count.

A device can't check the server's coins. It counts every release that it takes part in in full, without
amplification and at a δ of its own (client/lifetime.py), and declines what exceeds its owner's limit. A
plan that looks at the server's budget alone may reach that limit before the first round.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..common.accounting import epsilon as priced
from ..common.accounting import fits, gaussian_mu
from ..common.errors import BudgetError
from ..common.ledger_entries import Entry, Reserve
from ..common.mechanism import Mechanism
from ..common.messages import TrainTask
from ..common.server_config import ServerConfig
from .budget import BudgetPlan, plan_budget
from .cooccurrence import head_size
from .split import LEAST_SHARE, Sizes

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_TRIFLE = 1e-4


def plan_federation(
    config: ServerConfig,
    *,
    sizes: Sizes,
    earlier: Mapping[DpEvent, int],
    made: Iterable[Entry] = (),
) -> BudgetPlan:
    """The plan of a deployed federation: :func:`~.budget.plan_budget`, within what owners allow.

    Args:
        config: of the federation.
        sizes: how many numbers a device sends.
        earlier: what was released of the same users before.
        made: the federation's own ledger, once it has begun: rounds go on with the noise they have there,
            whatever limit is set by now.

    Raises:
        BudgetError: nothing fits the budget, or rounds of a given noise the owners' limit.
        ConfigError: the population is too small for a default δ.
    """
    federation, rounds = config.federation, config.training.rounds
    plan = plan_budget(
        config.privacy,
        config.training,
        population_size=federation.population_size,
        sizes=sizes,
        earlier=earlier,
    )
    begun = {entry.task: entry.mechanism for entry in made if isinstance(entry, Reserve)}
    if TrainTask.name in begun:
        return replace(plan, training=begun[TrainTask.name])
    if not config.privacy.enabled or not federation.lifetime_epsilon:
        return plan
    return within_lifetimes(
        plan,
        times=times_asked(plan.training, rounds),
        given_noise=config.privacy.noise_multiplier is not None and rounds > 0,
        epsilon=federation.lifetime_epsilon,
        delta=federation.lifetime_delta,
        n_items=sizes.n_items,
    )


def times_asked(training: Mechanism, rounds: int) -> int:
    """Rounds that a device may be asked in: q·R, and two √(q·R) for chance and rounds that are repeated."""
    expected = training.sampling_probability * rounds
    return math.ceil(expected + 2 * math.sqrt(expected))


def within_lifetimes(
    plan: BudgetPlan,
    *,
    times: int,
    given_noise: bool,
    epsilon: float,
    delta: float,
    n_items: int,
) -> BudgetPlan:
    """``plan`` with as much more noise as lets a device take part in the statistics and ``times`` rounds.

    Gaussian releases in full cost 1/σ² each, which adds up to μ² (Dong, Roth & Su 2022, corollary 2): noise
    that grows by a factor f lowers the sum by f².

    Args:
        plan: of the server's budget alone.
        times: rounds that a device may be asked in.
        given_noise: that of rounds isn't to be changed.
        epsilon: what owners allow over a device's lifetime.
        delta: δ of that.
        n_items: of the catalogue.

    Raises:
        BudgetError: rounds of a given noise cost more by themselves.
    """
    limit = allowed = gaussian_mu(epsilon=epsilon, delta=delta) ** 2
    statistics = [m for m in (plan.popularity, plan.cooccurrence) if m is not None]
    cost = sum(m.noise_multiplier**-2 for m in statistics)
    trained = times * plan.training.noise_multiplier**-2
    if given_noise:
        allowed -= trained
    else:
        cost += trained
    if allowed <= (LEAST_SHARE * limit if statistics else 0.0):
        less = "leaves next to nothing for statistics" if allowed > 0 else "is less"
        reached = priced({_in_full(plan.training): times}, delta=delta, coarse=True)
        raise BudgetError(
            f"privacy.noise_multiplier = {plan.training.noise_multiplier:g} costs a device that is asked in"
            f" {times} rounds ε = {reached:.4g} by its own count, and federation.lifetime_epsilon = "
            f"{epsilon:g} {less}: it would decline; add noise, have fewer "
            "rounds, or set there what all owners allow",
            epsilon_reached=reached,
        )
    factor = max(1.0, math.sqrt(cost / allowed)) if cost else 1.0
    if factor == 1:
        return plan
    step = _TRIFLE / 2
    while True:
        found = _noisier(plan, factor, rounds_too=not given_noise)
        if _fits(found, times, epsilon=epsilon, delta=delta):
            break
        step *= 2
        factor *= 1 + step  # priced on a grid, several releases cost a trifle more
    other = found.cooccurrence
    if other is not None and not head_size(n_items, other):
        found = replace(found, cooccurrence=None)  # too much noise to compare items
    return found


def _noisier(plan: BudgetPlan, factor: float, *, rounds_too: bool) -> BudgetPlan:
    def noisier(mechanism: Mechanism | None) -> Mechanism | None:
        if mechanism is None:
            return None
        return replace(mechanism, noise_multiplier=factor * mechanism.noise_multiplier)

    training = noisier(plan.training) if rounds_too else plan.training
    assert training is not None
    return replace(
        plan,
        popularity=noisier(plan.popularity),
        cooccurrence=noisier(plan.cooccurrence),
        training=training,
    )


def _fits(plan: BudgetPlan, times: int, *, epsilon: float, delta: float) -> bool:
    events: Counter[DpEvent] = Counter()
    counted = ((plan.popularity, 1), (plan.cooccurrence, 1), (plan.training, times))
    for mechanism, count in counted:
        if mechanism is not None and count:
            events[_in_full(mechanism)] += count
    return fits(events, delta=delta, target_epsilon=epsilon)


def _in_full(mechanism: Mechanism) -> DpEvent:
    return replace(mechanism, sampling_probability=1.0).event()
