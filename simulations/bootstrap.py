"""Percentile bootstrap intervals over users (Efron & Tibshirani 1993, §13.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from .metrics import RankMetrics

_AT_ONCE = 2_000_000  # numbers held while resampling


@dataclass(frozen=True)
class Interval:
    """A mean over users with the interval it would stay in under other draws of users.

    Attributes:
        mean: NaN where there were no users.
        low: lower end, NaN where fewer than two users or no resamples were to be had.
        high: upper end, likewise.
    """

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """``mean``, ``low``, ``high``; None where unknown, as JSON has no NaN."""
        return {k: None if np.isnan(v) else v for k, v in vars(self).items()}


def bootstrap_interval(
    values: NDArray[np.float64], *, samples: int, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the mean of one value per user.

    Args:
        values: float [p].
        samples: resamples; 0 gives the mean alone.
        level: coverage of the interval.
        seed: of the resampling; it's not a secret.
    """
    if len(values) == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    if len(values) == 1 or samples == 0:
        return Interval(mean, np.nan, np.nan)
    ends = bootstrap(
        (values,),
        np.mean,
        n_resamples=samples,
        batch=max(1, _AT_ONCE // len(values)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(ends.low), float(ends.high))


def paired_difference(
    ours: RankMetrics,
    theirs: RankMetrics,
    metric: str = "ndcg",
    *,
    samples: int,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean difference ``ours - theirs`` of one metric over the same users.

    Args:
        ours: metrics of one model.
        theirs: metrics of another on the same targets and view.
        metric: name of a per-user column of :class:`~.metrics.RankMetrics`.
        samples: resamples of users; a user's two values stay together.
        level: coverage of the interval.
        seed: of the resampling.

    Raises:
        ValueError: the two were measured on different users.
    """
    if not np.array_equal(ours.users, theirs.users):
        raise ValueError("a paired difference needs both models measured on the same users")
    difference = getattr(ours, metric) - getattr(theirs, metric)
    return bootstrap_interval(difference, samples=samples, level=level, seed=seed)


def crossed_interval(
    values: NDArray[np.float64], *, samples: int, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the mean over runs and users, both of which might have been others.

    Runs and users are resampled independently of each other, and every run was measured on every
    user: the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1:2). Its variance is that
    of users plus that of runs; what is particular to a run on a user counts up to three times
    (McCullagh 2000, Bernoulli 6:2), so it errs on the wide side there. Of few runs it knows little, as
    any method does. One run gives the interval over users alone.

    Args:
        values: float [runs, p], one row for each run.
        samples: resamples; 0 gives the mean alone.
        level: coverage of the interval.
        seed: of the resampling; it's not a secret.
    """
    runs, users = values.shape
    if runs == 1:
        return bootstrap_interval(values[0], samples=samples, level=level, seed=seed)
    if users == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    if users == 1 or samples == 0:
        return Interval(mean, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, _AT_ONCE // users)
    for start in range(0, samples, step):
        n = min(step, samples - start)
        of_users = rng.multinomial(users, np.full(users, 1 / users), size=n) / users
        of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), size=n) / runs
        means[start : start + n] = ((of_users @ values.T) * of_runs).sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # A constant times weights that sum to one may miss it by a rounding.
    return Interval(mean, min(float(low), mean), max(float(high), mean))
