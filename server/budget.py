"""How the privacy budget of a run is spread over its releases, before any of them is made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..common.accounting import default_delta, epsilon, fits, gaussian_mu
from ..common.calibration import calibrate_noise_multiplier
from ..common.config import PrivacyConfig, SplitConfig, TrainingConfig
from ..common.errors import BudgetError
from ..common.mechanism import Mechanism
from .cooccurrence import head_size, vectors_size
from .split import (
    LEAST_SHARE,
    Sizes,
    Split,
    cooccurrence_signal,
    popularity_signal,
    split,
    training_signal,
)

if TYPE_CHECKING:
    from dp_accounting import DpEvent

STATISTICS_CLIP = 1.0  # of popularity in units of one discovery just now; the other is scaled to it
_TRIFLE = 1e-4
_MOST_EXPONENT = 500.0  # e to it is a float, and more than any budget


@dataclass(frozen=True)
class BudgetPlan:
    """The releases of a run.

    Attributes:
        delta: δ of the guarantee.
        target_epsilon: None without privacy.
        popularity: the one-shot release; None where it gets no share.
        cooccurrence: the one after it; None where nothing is released of it.
        training: every round.
        split: of μ²; None where there is nothing to share.
    """

    delta: float
    target_epsilon: float | None
    popularity: Mechanism | None
    training: Mechanism
    split: Split | None = None
    cooccurrence: Mechanism | None = None


def plan_budget(
    privacy: PrivacyConfig,
    training: TrainingConfig,
    *,
    population_size: int,
    sizes: Sizes,
    earlier: Mapping[DpEvent, int] | None = None,
) -> BudgetPlan:
    """Noise of every release, so that with ``earlier`` ones they cost at most ``privacy.epsilon``.

    The statistics get their shares of μ² in the sense of Gaussian DP (Dong, Roth & Su 2022, corollary
    2: μ² adds up), by :mod:`.split` where none are set; what the exact accountant leaves is the rounds'.

    Raises:
        BudgetError: the releases, or with a given noise the first round, don't fit, or nothing is
            left of the budget.
        ConfigError: the population is too small for a default δ.
    """
    rate = training.rate(population_size)

    def mechanism(clip: float, noise: float, q: float) -> Mechanism:
        return Mechanism(
            clip_norm=clip,
            noise_multiplier=noise,
            sampling_probability=q,
            population_size=population_size,
        )

    delta = privacy.delta if privacy.delta is not None else default_delta(population_size)
    if not privacy.enabled:
        return BudgetPlan(
            delta,
            None,
            mechanism(STATISTICS_CLIP, 0.0, 1.0),
            mechanism(math.inf, 0.0, rate),
            cooccurrence=mechanism(STATISTICS_CLIP, 0.0, 1.0) if sizes.cooccurrence else None,
        )

    spent = Counter(earlier or {})
    used = epsilon(spent, delta=delta)
    if used >= privacy.epsilon:
        raise BudgetError(
            f"earlier releases on this population cost ε = {used:.4g} of {privacy.epsilon:g}: nothing "
            "is left; raise epsilon",
            epsilon_reached=used,
        )

    def calibrated(q: float, rounds: int) -> float:
        return calibrate_noise_multiplier(
            target_epsilon=privacy.epsilon,
            delta=delta,
            sampling_probability=q,
            rounds=rounds,
            prior_events=spent,
        )

    left = gaussian_mu(epsilon=privacy.epsilon, delta=delta) ** 2
    if used:
        left -= gaussian_mu(epsilon=used, delta=delta) ** 2

    def planned(*, cooccurrence: bool) -> Split:
        return _planned(
            replace(sizes, cooccurrence=cooccurrence),
            privacy,
            training,
            mu=math.sqrt(left),
            population_size=population_size,
        )

    def released(share: float, whole: float) -> Mechanism | None:
        """What has this share of the cost of one release with noise ``whole``: it adds up by 1/σ²."""
        return mechanism(STATISTICS_CLIP, whole / math.sqrt(share), 1.0) if share else None

    whole = 1 / math.sqrt(left) if training.rounds else calibrated(1.0, 1)
    given = _given(privacy.split, sizes)
    parts = given or planned(cooccurrence=sizes.cooccurrence)
    if not training.rounds:
        parts = parts.everything
    second = released(parts.cooccurrence, whole)
    if second and not head_size(sizes.n_items, second):
        # It isn't worth a release: what was meant for it goes to the others.
        parts = replace(given, cooccurrence=0.0) if given else planned(cooccurrence=False)
        if not training.rounds:
            parts = parts.everything
    popularity, cooccurrence = (released(w, whole) for w in (parts.popularity, parts.cooccurrence))

    if not training.rounds:
        # Priced on a grid, two releases may cost a trifle more than the one they make up.
        while cooccurrence and not fits(
            spent + _events(popularity, cooccurrence),
            delta=delta,
            target_epsilon=privacy.epsilon,
        ):
            whole *= 1 + _TRIFLE
            popularity, cooccurrence = (
                released(w, whole) for w in (parts.popularity, parts.cooccurrence)
            )
        never = mechanism(privacy.clip_norm, privacy.noise_multiplier or 1.0, rate)
        return BudgetPlan(delta, privacy.epsilon, popularity, never, parts, cooccurrence)
    spent += _events(popularity, cooccurrence)
    if privacy.noise_multiplier is None:
        every_round = mechanism(privacy.clip_norm, calibrated(rate, training.rounds), rate)
    else:
        every_round = mechanism(privacy.clip_norm, privacy.noise_multiplier, rate)
        _check_rounds(every_round, training.rounds, spent, delta, privacy.epsilon)
    return BudgetPlan(delta, privacy.epsilon, popularity, every_round, parts, cooccurrence)


def compares(privacy: PrivacyConfig, *, n_items: int, population_size: int) -> bool:
    """Whether the budget could pay for a release of co-occurrence that compares items enough.

    Raises:
        ConfigError: the population is too small for a default δ.
    """
    if not privacy.enabled:
        return True
    if privacy.split.popularity is not None and not privacy.split.cooccurrence:
        return False
    delta = privacy.delta if privacy.delta is not None else default_delta(population_size)
    mu = gaussian_mu(epsilon=privacy.epsilon, delta=delta)
    return head_size(n_items, _once(mu, population_size)) > 0


def _given(configured: SplitConfig, sizes: Sizes) -> Split | None:
    if configured.popularity is None:
        return None
    both = configured.cooccurrence if sizes.cooccurrence else 0.0
    return Split(configured.popularity, both or 0.0)


def _events(*mechanisms: Mechanism | None) -> Counter[DpEvent]:
    return Counter(made.event() for made in mechanisms if made is not None)


def _once(mu: float, population_size: int) -> Mechanism:
    """A statistic that is released with all of ``mu``."""
    return Mechanism(
        clip_norm=STATISTICS_CLIP,
        noise_multiplier=1 / mu,
        sampling_probability=1.0,
        population_size=population_size,
    )


def _planned(
    sizes: Sizes,
    privacy: PrivacyConfig,
    training: TrainingConfig,
    *,
    mu: float,
    population_size: int,
) -> Split:
    """By signals to noise of each release alone with the whole μ; rounds of a given noise come first.

    R rounds at a rate q have μ² = q²·R·(e^(1/σ²) − 1) by the central limit (Bu, Dong, Long & Su 2020,
    theorem 5), close to q²·R/σ² where there is noise to speak of.
    """
    once = _once(mu, population_size)
    rate, rounds = training.rate(population_size), training.rounds
    head = head_size(sizes.n_items, once, whole=sizes.whole) if sizes.cooccurrence else 0
    found = split(
        popularity=popularity_signal(
            sizes, noise_multiplier=once.noise_multiplier, population_size=population_size
        ),
        cooccurrence=cooccurrence_signal(vectors_size(head, once), once) if head else None,
        training=training_signal(
            sizes,
            noise_multiplier=rate * math.sqrt(rounds) / mu,
            expected_cohort=rate * population_size,
            rounds=rounds,
        )
        if rounds
        else None,
    )
    if privacy.noise_multiplier is None or not rounds:
        return found
    exponent = min(privacy.noise_multiplier**-2, _MOST_EXPONENT)
    taken = rate**2 * rounds * math.expm1(exponent) / mu**2
    return found.within(max(1 - taken, LEAST_SHARE))


def _check_rounds(
    every_round: Mechanism,
    rounds: int,
    spent: Counter[DpEvent],
    delta: float,
    target_epsilon: float,
) -> None:
    """Without a first round nothing is worth releasing; a later one may end the run early."""
    event = every_round.event()
    if fits(spent + Counter({event: rounds}), delta=delta, target_epsilon=target_epsilon):
        return  # answered once for all rounds; each is charged when it comes
    events = spent + Counter([event])
    if not fits(events, delta=delta, target_epsilon=target_epsilon):
        # The fine grid takes minutes for the loss distributions of little noise.
        reached = epsilon(events, delta=delta, coarse=True)
        raise BudgetError(
            f"privacy.noise_multiplier = {every_round.noise_multiplier:g} brings ε to {reached:.4g} with "
            f"the first round, above the target of {target_epsilon:g}; raise one of the two",
            epsilon_reached=reached,
        )
