"""How well an attack tells members from others: area under the ROC curve, and hits at few false alarms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta, rankdata

from ..common.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A figure between 0 and 1 with its interval.

    Attributes:
        value: the figure.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Attack:
    """What an attack reached.

    Attributes:
        members: users who took part.
        others: users who didn't.
        auc: chance that a member scores above another user; 0.5 is a coin.
        true_positive_rate: members found at the largest threshold that ``false_positive_rate`` allows.
        false_positive_rate: others who may be taken for members.
        false_positives: how many others that is: where it is 0, every other user is below the threshold.
        level: coverage of the intervals.
    """

    members: int
    others: int
    auc: Rate
    true_positive_rate: Rate
    false_positive_rate: float
    false_positives: int
    level: float


def measure_attack(
    *,
    members: NDArray[np.float64],
    others: NDArray[np.float64],
    false_positive_rate: float = 0.001,
    level: float = 0.95,
) -> Attack:
    """AUC and true-positive rate of scores that are higher for members.

    Low false-positive rates are what counts: an attack that is sure of a few is worse than one that is a
    bit better than a coin for everybody (Carlini et al. 2022, §III).

    Args:
        members: float [m], scores of members.
        others: float [n], scores of users of the same distribution who weren't.
        false_positive_rate: at which the true-positive rate is read.
        level: coverage of the intervals.

    Raises:
        ConfigError: a set has fewer than 2 users, or holds a number that is not finite.
    """
    for name, scores in (("members", members), ("other users", others)):
        if len(scores) < 2 or not np.isfinite(scores).all():
            raise ConfigError(
                f"{len(scores)} {name}: an attack is measured on 2 or more with finite scores"
            )
    allowed = math.floor(false_positive_rate * len(others))
    threshold = np.sort(others)[-1 - allowed]
    found = int((members > threshold).sum())
    return Attack(
        members=len(members),
        others=len(others),
        auc=_auc(members, others, level),
        true_positive_rate=clopper_pearson(found, len(members), level=level),
        false_positive_rate=false_positive_rate,
        false_positives=allowed,
        level=level,
    )


def clopper_pearson(successes: int, trials: int, *, level: float) -> Rate:
    """Exact interval of a binomial rate (Clopper & Pearson 1934)."""
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return Rate(value=successes / trials, low=float(low), high=float(high))


def _auc(members: NDArray[np.float64], others: NDArray[np.float64], level: float) -> Rate:
    """Area with the interval of DeLong, DeLong & Clarke-Pearson (1988); ties count half."""
    m, n = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    beaten = (ranks[:m] - rankdata(members)) / n  # of the others, by each member
    losing = 1 - (ranks[m:] - rankdata(others)) / m  # to members, each other user
    area = float(beaten.mean())
    spread = math.sqrt(beaten.var(ddof=1) / m + losing.var(ddof=1) / n)
    reach = float(ndtri((1 + level) / 2)) * spread
    return Rate(value=area, low=max(0.0, area - reach), high=min(1.0, area + reach))
