"""What an audit has to calculate, in a process of its own.

ε by three accountants, and the test of cohort sizes. All of it needs scipy, which takes longer to load than
a ledger to read: so both happen at once. And what a hostile ledger makes an accountant do (numbers
that take hours or all memory) ends with that process, not with the audit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from ..common.mechanism import Adjacency, Mechanism
from .cohort_test import CohortTest

PLD, PRV, RDP, UNAMPLIFIED, FINER = ACCOUNTANTS = ("pld", "prv", "rdp", "unamplified", "finer")
"""The last is PLD once more, where its grid's rounding may be why it is above RDP."""
BROKEN = "it broke down"
PATIENCE = 300.0  # seconds
MOST = 1_000.0
"""ε by Rényi DP above which no other accountant is asked: it would need memory without bound."""
_FRUGAL = {
    # No linear algebra here, for which numpy would set memory aside for every core.
    "OMP_NUM_THREADS": "1",
    # glibc would raise this by itself, and keep arrays for later that are done with.
    "MALLOC_MMAP_THRESHOLD_": "1048576",
}


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """What :func:`~fedprofile.audit.cohort_test.check_cohorts` is asked: its arguments."""

    sizes: Sequence[int]
    probabilities: Sequence[float]
    population_size: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What an accountant says.

    Attributes:
        epsilon: ε, perhaps infinite; None where it can't tell.
        why: why it can't.
    """

    epsilon: float | None
    why: str = ""


@dataclass(frozen=True)
class Answers:
    """What came back.

    Attributes:
        epsilon: accountant → its answer, of all :data:`ACCOUNTANTS`.
        cohorts: the outcome of the test; None where it wasn't asked for, or broke down.
    """

    epsilon: Mapping[str, Answer]
    cohorts: CohortTest | None


class Accountants:
    """A process that starts at once and is asked once; a context manager that doesn't leave it behind."""

    def __init__(self) -> None:
        self._worker = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **_FRUGAL},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.kill()
        self._worker.communicate()

    def ask(
        self,
        releases: Mapping[Mechanism, int],
        *,
        delta: float,
        adjacency: Adjacency,
        cohorts: Cohorts | None,
    ) -> Answers:
        """What the accountants say.

        Args:
            releases: each mechanism with how often it was reserved.
            delta: δ.
            adjacency: what makes two data sets neighbours.
            cohorts: sizes to test, None: there are none.
        """
        question = json.dumps(
            {
                "releases": [[made.describe(), count] for made, count in releases.items()],
                "delta": delta,
                "adjacency": adjacency,
                "cohorts": vars(cohorts) if cohorts else None,
            }
        )
        why = BROKEN
        try:
            told, _ = self._worker.communicate(question, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            why = "it takes too long"
            self._worker.kill()
            told, _ = self._worker.communicate()  # by those who were quicker
        found = {
            name: content
            for line in told.splitlines()
            for name, content in json.loads(line).items()
        }
        test = found.pop("cohorts", None)
        silent = dict.fromkeys(ACCOUNTANTS, Answer(None, why))
        answered = {name: Answer(**content) for name, content in found.items()}
        return Answers({**silent, **answered}, CohortTest(**test) if test else None)
