"""How much an (ε, δ) guarantee says, in one word and in sentences: the same on every page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .formatting import count, scientific

STRONG_EPSILON = 1.0
"""Up to it an ε is commonly held to be strong (NIST SP 800-226 on the privacy parameter ε)."""
WEAK_EPSILON = 10.0
"""Above it an ε says hardly more than "not in clear" (ibid.; docs/sharp-edges.md)."""
WEAK_DELTA = 1e-3
"""Above it a guarantee that may fail with probability δ is none to speak of."""

Level = Literal["good", "note", "warn", "bad"]


@dataclass(frozen=True)
class Statement:
    """A heading and a sentence or two.

    Attributes:
        title: what it is about.
        text: the statement.
        level: ``bad`` where nobody is protected, ``warn`` where care is needed, else ``note``.
    """

    title: str
    text: str
    level: Level = "note"


def strength(epsilon: float | None, *, delta: float, population_size: int) -> Level:
    """``good`` only where ε and δ are small; ``bad`` where ε is infinite (None or inf).

    Args:
        epsilon: ε, None for infinite, as JSON has it.
        delta: δ.
        population_size: N, which δ must stay below 1/N of.
    """
    if epsilon is None or not math.isfinite(epsilon):
        return "bad"
    if any(weaknesses(epsilon, delta=delta, population_size=population_size)):
        return "warn"
    return "good" if epsilon <= STRONG_EPSILON else "note"


def weaknesses(epsilon: float, *, delta: float, population_size: int) -> Iterator[Statement]:
    """What makes a finite ``epsilon`` say little; nothing where it says something."""
    if epsilon > WEAK_EPSILON:
        yield Statement(
            "A weak guarantee",
            f"ε above {WEAK_EPSILON:.0f} says hardly more than that data was not in clear.",
            "warn",
        )
    if delta * population_size >= 1:
        yield Statement(
            "δ is too large",
            f"δ = {scientific(delta)} is not below 1/N: a mechanism that publishes a random user's data "
            "in clear would satisfy it. Set privacy.delta below 1/N.",
            "warn",
        )
    elif delta > WEAK_DELTA:
        yield Statement(
            "δ is too large",
            f"δ = {scientific(delta)}: where the guarantee may fail outright with such a chance it says "
            f"little. {count(population_size)} users are few; have more, or set privacy.delta lower.",
            "warn",
        )
