"""From the noisy popularity release to log-popularity priors: post-processing, free of ε."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV


@dataclass(frozen=True, eq=False)
class ItemPriors:
    """Log popularity of every item, adding up to one as probabilities.

    Attributes:
        long_run: float32 [n_items], over all time. Training uses it: the encoder then learns what
            popularity doesn't explain, in sessions old and new.
        current: float32 [n_items], the even mixture over all time scales. Ranking uses it: people
            choose among what is sought now.
    """

    long_run: NDArray[np.float32]
    current: NDArray[np.float32]


def item_priors(
    noisy: NDArray[np.float64], *, stddev: float, vectors: NDArray[np.float32]
) -> ItemPriors:
    """Denoise by empirical Bayes towards what public features predict.

    For a scale with noisy sums y, ridge prediction m from the item vectors and noise variance s², the
    spread of true values about m is t² = max(var(y − m) − s², 0), and the posterior mean is
    m + (y − m)·t²/(t² + s²) (Efron & Morris 1973, §2).

    Args:
        noisy: float [1 + time scales, n_items], the release.
        stddev: of its noise; 0 leaves the sums as they are, and so does a single item.
        vectors: float32 [n_items, k], public.
    """
    rates = []
    for sums in noisy:
        exact = stddev == 0 or len(sums) == 1
        estimate = sums if exact else _shrunk(sums, stddev, vectors)
        positive = estimate[estimate > 0]
        # No item is impossible: a floor at the low end of what is seen, or within the noise.
        lowest = np.quantile(positive, 0.05) if len(positive) else 1.0
        rate = np.maximum(estimate, max(lowest, 0.3 * stddev))
        rates.append(rate / rate.sum())
    return ItemPriors(
        long_run=np.log(rates[0]).astype(np.float32),
        current=np.log(np.mean(rates, axis=0)).astype(np.float32),
    )


def _shrunk(
    sums: NDArray[np.float64], stddev: float, vectors: NDArray[np.float32]
) -> NDArray[np.float64]:
    ridge = RidgeCV(alphas=np.logspace(-1, 3, 9)).fit(vectors, sums)
    predicted = ridge.predict(vectors)
    spread = max(float(np.var(sums - predicted)) - stddev**2, 0.0)
    posterior: NDArray[np.float64] = predicted + (sums - predicted) * spread / (spread + stddev**2)
    return posterior
