"""One release of the user-level Gaussian mechanism: clip, noise and accounting in one object.

A release adds up what users contribute, each user's whole contribution clipped to L2 norm C, and
adds N(0, (σC)²) to every coordinate. Two populations are neighbours if one has one user more
(add-or-remove-one), so the sum moves by at most C. The clip, the noise and the accounting event are
read off the same object, so they can't drift apart.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import ConfigError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Adjacency = Literal["add-or-remove-one", "replace-one"]
"""What neighbouring populations differ in.

``add-or-remove-one``: one has somebody more. ``replace-one``: the content of one is another, or there is
none, in a population whose size says nothing: a change that moves a clipped sum by up to 2C.
"""

Sampler = Literal["poisson", "fixed-size", "self-selected"]
"""How the cohort of a release comes about.

``poisson``: each user independently with probability q, by secret coins; amplification is claimed.
``fixed-size``: exactly q·N users without replacement; none is claimed.
``self-selected``: users take part for reasons of their own, openly; none is claimed.
"""

MOST_NOISE = 1e12
"""Next to it nothing is left of any update; far beyond, accountants overflow."""

Randomness = Literal["csprng", "seeded"]
"""Where coins and noise come from: ``common/randomness.py`` has what they mean, and loads scipy."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """Clipped sum over a cohort plus Gaussian noise, divided by a public constant.

    Attributes:
        clip_norm: C > 0, bound on the L2 norm of one user's whole contribution; ``inf`` (no clip)
            only without noise.
        noise_multiplier: σ in [0, 10¹²]; 0 makes the release non-private.
        sampling_probability: q in (0, 1], chance of a user to be in the cohort; 1 takes everyone.
        population_size: N in [1, 2⁵³), users that could be sampled; public.
        sampler: how the cohort is drawn.

    Raises:
        ConfigError: a value is out of range, or noise is asked for without a clip.
    """

    clip_norm: float
    noise_multiplier: float
    sampling_probability: float
    population_size: int
    sampler: Sampler = "poisson"

    def __post_init__(self) -> None:
        if not (0 < self.clip_norm <= sys.float_info.max or self.clip_norm == math.inf):
            raise ConfigError(f"clip_norm must be above 0, got {self.clip_norm}")
        if not 0 <= self.noise_multiplier <= MOST_NOISE:
            raise ConfigError(
                f"noise_multiplier must be 0 to {MOST_NOISE:g}, got {self.noise_multiplier}"
            )
        if self.noise_multiplier > 0 and math.isinf(self.clip_norm):
            raise ConfigError("clip_norm must be finite where noise_multiplier is above 0")
        if not 0 < self.sampling_probability <= 1:
            raise ConfigError(
                f"sampling_probability must be in (0, 1], got {self.sampling_probability}"
            )
        if not isinstance(self.population_size, int) or not 1 <= self.population_size < 2**53:
            raise ConfigError(
                "population_size must be a whole number of 1 or more, below 2^53, "
                f"got {self.population_size!r}"
            )
        if self.sampler not in get_args(Sampler):
            raise ConfigError(
                f"sampler must be one of {', '.join(get_args(Sampler))}, got '{self.sampler}'"
            )

    @property
    def private(self) -> bool:
        """Whether the release costs a finite ε."""
        return self.noise_multiplier > 0

    @property
    def noise_stddev(self) -> float:
        """σ·C, standard deviation of the noise on each coordinate of the sum."""
        return self.noise_multiplier * self.clip_norm if self.private else 0.0

    @property
    def expected_cohort(self) -> float:
        """q·N, the divisor of the sum: a constant, whoever was sampled and whoever replied."""
        return self.sampling_probability * self.population_size

    def event(self) -> DpEvent:
        """What one such release is to dp_accounting, neighbours by add-or-remove-one.

        Amplification needs independent, secret coins: Poisson sampling (Abadi et al. 2016, §3.1).
        A fixed-size cohort fills the place of a removed user with another one, which moves the sum
        by up to 2C: without amplification it is a Gaussian mechanism of half the noise multiplier.
        """
        from dp_accounting import GaussianDpEvent, NonPrivateDpEvent, PoissonSampledDpEvent

        if not self.private:
            return NonPrivateDpEvent()
        if self.sampling_probability == 1 or self.sampler == "self-selected":
            return GaussianDpEvent(self.noise_multiplier)
        if self.sampler == "fixed-size":
            return GaussianDpEvent(self.noise_multiplier / 2)
        return PoissonSampledDpEvent(
            self.sampling_probability, GaussianDpEvent(self.noise_multiplier)
        )

    def describe(self) -> dict[str, Any]:
        """The mechanism as JSON values, for the ledger; an infinite clip norm is None."""
        description = dict(vars(self))  # a ledger has thousands: asdict() copies deeply
        if math.isinf(self.clip_norm):
            description["clip_norm"] = None
        return description

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Mechanism:
        """Inverse of :meth:`describe`.

        Raises:
            ConfigError: a key is missing or unknown, or a value is out of range or of another type.
        """
        names = {field.name for field in fields(cls)}
        if set(description) != names:
            wrong = ", ".join(sorted(names.symmetric_difference(description)))
            raise ConfigError(f"description of a mechanism: missing or unknown key {wrong}")
        values = dict(description)
        if values["clip_norm"] is None:
            values["clip_norm"] = math.inf
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"description of a mechanism: {error}") from error
