"""What releases cost together: ε at δ for add-or-remove-one user.

The reported figure is dp_accounting's, by privacy loss distributions (PLD; Doroshenko et al. 2022):
an upper bound that is tight to the digits shown. Rényi DP and Opacus's PRV accountant check it by
other mathematics and other code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NeighboringRelation,
    NonPrivateDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    identity,
)
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtri_exp

from .errors import ConfigError
from .loss_distributions import gaussian_loss
from .mechanism import Adjacency, Mechanism

_GRID = 1e-4  # dp_accounting's default step between privacy losses
_PRV_GRID = 2**24
"""Points at most that Opacus's accountant may want: some seconds and 1 GB; a ledger can ask for any."""
_PIECE = 2**14
_COARSE_DELTA = 1e-12  # below it that no longer holds, and rounding has a say
COARSE_GRID = 1e-3
"""Ten times as fast as the fine grid; a multiple of that, so its ε is never below."""
ROUNDING = 1e-9
"""Relative, between two ways to the same ε."""
LEAST_NOISE_MULTIPLIER = 2.0**-4
"""ε is in the hundreds there, and the cost of working it out grows as 1/σ²."""

Events = Sequence[DpEvent] | Mapping[DpEvent, int]
"""Releases one by one in any order, or each with how often it was made."""

RELATIONS: dict[Adjacency, NeighboringRelation] = {
    "add-or-remove-one": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": NeighboringRelation.REPLACE_ONE,
}
"""Neighbours, as a ledger and as dp_accounting name them."""
_Budget = tuple[float, float, Adjacency]  # δ, ε
_FITTING: dict[_Budget, list[dict[DpEvent, int]]] = {}  # the largest sets of releases found to fit


def epsilon(
    events: Events,
    *,
    delta: float,
    coarse: bool = False,
    adjacency: Adjacency = "add-or-remove-one",
) -> float:
    """ε of all ``events`` together, by PLD; inf where one is non-private, 0 where there are none.

    Equal events are composed at once, whatever their order, and the grid is dp_accounting's own
    (1e-4), so that anybody who recomputes the figure gets the same digits. A grid of 1e-3 mostly
    agrees to 1e-3, but not with many rounds at small q: 2,000 at q = 0.005 came out 0.002 too high.

    Args:
        events: what was released.
        delta: δ.
        coarse: take that grid of 1e-3: ten times as fast, and its ε is never below.
        adjacency: of the populations that are compared.

    Raises:
        ConfigError: ``delta`` is outside (0, 1).
    """
    grid = COARSE_GRID if coarse else _GRID
    return _epsilon_pld(_counted(events), _checked(delta), grid, adjacency)


def epsilon_finer(events: Events, *, delta: float) -> float:
    """:func:`epsilon` on a grid a hundredth as wide, which takes as much more: for small ε only.

    Raises:
        ConfigError: ``delta`` is outside (0, 1).
    """
    return _epsilon_pld(_counted(events), _checked(delta), _GRID / 100, "add-or-remove-one")


def rounding(events: Events) -> float:
    """How far :func:`epsilon` may be above what it is, for its grid.

    It takes each loss to be up to a step h more, so that n of them come to L' ≤ L + n·h, and
    δ'(ε + n·h) = E[(1 − e^(ε + n·h − L'))₊] ≤ E[(1 − e^(ε − L))₊] = δ(ε).
    """
    return _GRID * sum(count for _, count in _counted(events))


def epsilon_after_each(events: Sequence[DpEvent], *, delta: float) -> list[float]:
    """ε after each of ``events``: the last is :func:`epsilon`, those before bound it from above.

    A run of hundreds of rounds asks for hundreds of figures, so each event's loss distribution is
    made once and the composition goes on from event to event, on the coarse grid.

    Raises:
        ConfigError: ``delta`` is outside (0, 1), or an event is no Gaussian release, sampled or not.
    """
    total = epsilon(events, delta=delta)
    return epsilon_along([{event: 1} for event in events], delta=delta, total=total)


def epsilon_along(
    stretches: Sequence[Mapping[DpEvent, int]], *, delta: float, total: float
) -> list[float]:
    """ε after each of ``stretches``, releases with how often each was made; see :func:`epsilon_after_each`.

    Args:
        stretches: one after another.
        delta: δ.
        total: ε of all of them together, by :func:`epsilon`.

    Raises:
        ConfigError: an event is no Gaussian release, sampled or not.
    """
    curve: list[float] = []
    composed = identity(value_discretization_interval=COARSE_GRID)
    for stretch in stretches:
        for event, count in stretch.items():
            if isinstance(event, NonPrivateDpEvent):
                return curve + [math.inf] * (len(stretches) - len(curve))
            loss = _loss_distribution(event)
            composed = composed.compose(loss if count == 1 else loss.self_compose(count))
        # What comes later only adds, so the exact total bounds every figure too.
        curve.append(min(composed.get_epsilon_for_delta(delta), total))
    return [*curve[:-1], total] if curve else []


def privacy_profile(events: Events, *, epsilons: NDArray[np.float64]) -> NDArray[np.float64]:
    """δ(ε) of all ``events`` together at each ε: together they say how well users can be told apart.

    On the coarse grid, so never below what it is.

    Raises:
        ConfigError: an event is no Gaussian release, sampled or not.
    """
    composed = identity(value_discretization_interval=COARSE_GRID)
    for event, count in _counted(events):
        composed = composed.compose(_loss_distribution(event).self_compose(count))
    return np.asarray(composed.get_delta_for_epsilon(list(epsilons)), dtype=np.float64)


def fits(
    events: Events,
    *,
    delta: float,
    target_epsilon: float,
    adjacency: Adjacency = "add-or-remove-one",
) -> bool:
    """Whether all ``events`` together cost at most ``target_epsilon``, by :func:`epsilon`.

    Asks the coarse grid first, whose ε is never below; the fine one decides close to the target.
    Part of what fitted before fits: a release less never costs more. So a run whose rounds were
    calibrated, or asked about together, gets its answers at once. And what a part of the releases
    exceeds by far, all of them exceed: with little noise all of them together outgrow memory.

    Raises:
        ConfigError: ``delta`` is outside (0, 1).
    """
    counted = _counted(events)
    budget = (_checked(delta), target_epsilon, adjacency)
    if any(isinstance(event, NonPrivateDpEvent) for event, _ in counted):
        return False
    if _known_to_fit(counted, budget):
        return True
    if any(_delta_alone(event, target_epsilon) > delta for event, _ in counted):
        return False
    fitting = False
    if delta >= _COARSE_DELTA:
        reached = 0.0
        for most in _growing(max((count for _, count in counted), default=0)):
            reached = _epsilon_coarse([(e, min(n, most)) for e, n in counted], delta, adjacency)
            if reached > 1.05 * target_epsilon + 0.05:
                return False
        fitting = reached <= target_epsilon * (1 - ROUNDING)
    if fitting or _epsilon_pld(counted, delta, _GRID, adjacency) <= target_epsilon:
        remember_fit(events, delta=delta, target_epsilon=target_epsilon, adjacency=adjacency)
        return True
    return False


def remember_fit(
    events: Events,
    *,
    delta: float,
    target_epsilon: float,
    adjacency: Adjacency = "add-or-remove-one",
) -> None:
    """Let :func:`fits` answer at once for part of ``events``, which are known to fit."""
    held = _FITTING.setdefault((delta, target_epsilon, adjacency), [])
    most = dict(_counted(events))
    held[:] = [h for h in held if any(count > most.get(event, 0) for event, count in h.items())]
    held.append(most)


def as_one_event(events: Events) -> DpEvent:
    """All ``events`` as one event of dp_accounting's, equal ones composed at once."""
    return ComposedDpEvent([SelfComposedDpEvent(event, count) for event, count in _counted(events)])


def epsilon_rdp(events: Events, *, delta: float) -> float:
    """ε by Rényi DP (Mironov 2017; Mironov et al. 2019): looser, up to 11-fold at small q.

    Raises:
        ConfigError: ``delta`` is outside (0, 1).
    """
    composed = RdpAccountant().compose(as_one_event(events))
    return float(composed.get_epsilon(_checked(delta)))


def epsilon_prv(events: Events, *, delta: float) -> float:
    """ε by Opacus's PRV accountant (Gopi et al. 2021), an upper bound with error up to 0.01.

    Raises:
        ConfigError: ``delta`` is outside (0, 1), or there is no event, or one that is no Gaussian
            release, sampled or not: Opacus can't express those; or it finds no ε at this δ.
    """
    accountant = _prv_accountant()
    for event, count in _counted(events):
        release = _gaussian(event)
        if release is None:
            raise ConfigError(f"the PRV accountant can't express {event}; use PLD")
        accountant.history.append((*release, count))
    if not accountant.history:
        raise ConfigError("the PRV accountant needs at least one event; use PLD")
    _checked(delta)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # takes log(1 − q), also at q = 1
            return float(accountant.get_epsilon(delta))
    except (RuntimeError, ValueError) as error:  # δ next to 0 or 1
        raise ConfigError(f"the PRV accountant can't tell ε at δ = {delta}; use PLD") from error


def _prv_accountant() -> Any:
    """Opacus's PRV accountant, with less memory for the same figure.

    Its grid is some points wider, so that the size has small factors: what comes out is often twice a
    prime, for which a Fourier transform takes three times the time and the memory. A wider grid only
    cuts off less (Gopi et al. 2021, remark 5.6). And its distributions are worked out a piece at a time.
    """
    from opacus.accountants import PRVAccountant  # loads torch
    from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV
    from scipy.fft import next_fast_len

    class InPieces(PoissonSubsampledGaussianPRV):  # type: ignore[misc]
        def cdf(self, t: Any) -> Any:
            if np.size(t) <= _PIECE:
                return super().cdf(t)
            pieces = np.array_split(t, len(t) // _PIECE)
            return np.concatenate([super(InPieces, self).cdf(piece) for piece in pieces])

    class OnFastGrid(PRVAccountant):  # type: ignore[misc]
        def _get_domain(self, *, prvs: list[Any], **settings: Any) -> Domain:
            # The only place that Opacus leaves between making these and reading them.
            prvs[:] = [InPieces(prv.sample_rate, prv.noise_multiplier) for prv in prvs]
            domain = super()._get_domain(prvs=prvs, **settings)
            if domain.size > _PRV_GRID:
                raise ValueError(f"a grid of {domain.size} points")
            half = next_fast_len(domain.size // 2, real=True)
            # On both sides alike: composing takes zero to stay in the middle.
            wider = (half - domain.size // 2) * domain.dt
            return Domain(domain.t_min - wider, domain.t_max + wider, 2 * half)

    return OnFastGrid()


def epsilon_without_amplification(mechanisms: Mapping[Mechanism, int], *, delta: float) -> float:
    """ε of releases, each with how often, if nothing is to be believed about who was sampled.

    A cohort that isn't a Poisson sample may be one of fixed size, where the place of a removed user is
    taken by another: the sum moves by 2C. What is left are Gaussian mechanisms, exactly composed by
    adding up μ² (Dong, Roth & Su 2022, corollary 2), and ε of a μ is :func:`gaussian_mu` inverted.

    Raises:
        ConfigError: ``delta`` is outside (0, 1).
    """
    _checked(delta)
    mu_squared = 0.0
    for mechanism, count in mechanisms.items():
        event = replace(mechanism, sampler="fixed-size").event()
        if mechanism.sampler == "self-selected":
            event = mechanism.event()
        release = _gaussian(event)
        if release is None:
            return math.inf
        mu_squared += count / release[0] ** 2
    mu = math.sqrt(mu_squared)
    if mu == 0 or _gaussian_gap(mu, 0.0, delta) <= 0:
        return 0.0
    # P(loss > ε) for loss ~ N(μ²/2, μ²) is above δ(ε), so this ε is enough.
    most = mu * (mu / 2 - float(ndtri_exp(math.log(delta))))
    return float(brentq(lambda e: _gaussian_gap(mu, e, delta), 0.0, most, rtol=1e-12))


def default_delta(population_size: int) -> float:
    """δ = N^-1.1, below 1/N: the chance that the guarantee fails is less than one user's share.

    Raises:
        ConfigError: ``population_size`` is below 2, where N^-1.1 is no probability below 1.
    """
    if population_size < 2:
        raise ConfigError(
            f"population_size {population_size} is too small for a default delta; set privacy.delta"
        )
    return float(population_size**-1.1)


def gaussian_mu(*, epsilon: float, delta: float) -> float:
    """Largest μ for which a μ-Gaussian-DP mechanism is (ε, δ)-DP.

    Solves δ = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) (Balle & Wang 2018, theorem 8; Dong, Roth & Su 2022,
    corollary 1). One Gaussian release has μ = 1/σ, and μ² adds up over releases: a share of μ² is
    a share of the budget.

    Raises:
        ConfigError: ``epsilon`` is not above 0 and finite, or ``delta`` is outside (0, 1).
    """
    if not 0 < epsilon < math.inf:
        raise ConfigError(f"epsilon must be above 0 and finite, got {epsilon}")
    _checked(delta)

    def gap(mu: float) -> float:
        return _gaussian_gap(mu, epsilon, delta)

    most = 1.0
    while gap(most) < 0:
        most *= 2
    least = most / 2
    while gap(least) > 0:
        least /= 2
    return float(brentq(gap, least, most, xtol=least * 1e-12, rtol=1e-12))


def _gaussian_gap(mu: float, epsilon: float, delta: float) -> float:
    """δ(ε) of a μ-Gaussian-DP mechanism, less ``delta``."""
    outside = log_ndtr(mu / 2 - epsilon / mu)
    return math.exp(outside) - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)) - delta


def _checked(delta: float) -> float:
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be above 0 and below 1, got {delta}")
    return delta


def _gaussian(event: DpEvent) -> tuple[float, float] | None:
    """σ and q of a Gaussian release, sampled or not; None for another event."""
    q, inner = 1.0, event
    if isinstance(event, PoissonSampledDpEvent):
        q, inner = event.sampling_probability, event.event
    return (inner.noise_multiplier, q) if isinstance(inner, GaussianDpEvent) else None


def _delta_alone(event: DpEvent, epsilon: float) -> float:
    """Least δ at which one such release is (``epsilon``, δ)-DP, removing a user; 0 if unknown.

    The loss of outcome x is log(1 − q + q·e^((2x − 1)/2σ²)), so by Neyman and Pearson the worst event is
    {x > t} with ε lost at t (q = 1: Balle & Wang 2018, theorem 8).
    """
    release = _gaussian(event)
    if release is None or release[0] == 0 or release[1] == 0:
        return 0.0
    noise_multiplier, q = release
    log_ratio = epsilon + math.log1p((q - 1) * math.exp(-epsilon))  # log(e^ε − 1 + q)
    t = noise_multiplier**2 * (log_ratio - math.log(q)) + 0.5
    inside = math.exp(log_ratio + log_ndtr(-t / noise_multiplier))
    return q * math.exp(log_ndtr((1 - t) / noise_multiplier)) - inside


def _growing(most: int) -> list[int]:
    """1, 8, 64 … below ``most``, and ``most``."""
    steps = [8**power for power in range(most.bit_length()) if 8**power < most]
    return [*steps, most]


def _epsilon_coarse(
    counted: Sequence[tuple[DpEvent, int]], delta: float, adjacency: Adjacency
) -> float:
    """On the coarse grid, with what one event loses worked out once: a run may ask every round."""
    composed = identity(value_discretization_interval=COARSE_GRID)
    for event, count in counted:
        composed = composed.compose(_loss_distribution(event, adjacency).self_compose(count))
    return float(composed.get_epsilon_for_delta(delta))


def _check_noise(event: DpEvent) -> None:
    """Loss distributions of next to no noise take hours, and their ε means nothing."""
    release = _gaussian(event)
    if release is not None and 0 < release[0] < LEAST_NOISE_MULTIPLIER / 2:
        raise ConfigError(
            f"a noise multiplier of {release[0]:.3g} is next to no noise; lower epsilon, raise "
            "privacy.noise_multiplier, or switch privacy off"
        )


@lru_cache(maxsize=64)
def _loss_distribution(
    event: DpEvent, adjacency: Adjacency = "add-or-remove-one"
) -> PrivacyLossDistribution:
    release = _gaussian(event)
    if release is None:
        raise ConfigError(f"no loss distribution for {event}; use Gaussian releases")
    _check_noise(event)
    noise_multiplier, q = release
    return gaussian_loss(
        noise_multiplier, sampling_probability=q, grid=COARSE_GRID, adjacency=adjacency
    )


_Counted = tuple[tuple[DpEvent, int], ...]


def _counted(events: Events) -> _Counted:
    """Equal events together, in an order that no caller can change: so rounding is the same too."""
    return tuple(sorted(Counter(events).items(), key=repr))


def _known_to_fit(counted: _Counted, budget: _Budget) -> bool:
    held = _FITTING.get(budget, [])
    return any(all(count <= more.get(event, 0) for event, count in counted) for more in held)


@lru_cache(maxsize=256)
def _epsilon_pld(counted: _Counted, delta: float, grid: float, adjacency: Adjacency) -> float:
    composed = identity(value_discretization_interval=grid)
    for event, count in counted:
        _check_noise(event)
        release = _gaussian(event)
        if (
            release is None or release[0] == 0 or release[1] == 0
        ):  # no Gaussian, or no noise, or nobody
            accountant = PLDAccountant(RELATIONS[adjacency], grid)
            return float(accountant.compose(as_one_event(dict(counted))).get_epsilon(delta))
        noise_multiplier, q = release
        one = isinstance(event, GaussianDpEvent)  # many of these are one of less noise
        loss = gaussian_loss(
            noise_multiplier / math.sqrt(count) if one else noise_multiplier,
            sampling_probability=q,
            grid=grid,
            adjacency=adjacency,
        )
        composed = composed.compose(loss if one else loss.self_compose(count))
    return float(composed.get_epsilon_for_delta(delta))
