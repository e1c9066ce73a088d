"""ε recomputed by three accountants, in processes of their own.

They run side by side while the ledger is read, and what a hostile ledger makes them do (numbers that
take hours or all memory) ends with them, not with the audit. Opacus's accountant is plain numpy, but its
package loads torch; in a process where nothing else does, it is given a stand-in for what it doesn't use.

``python -m fedprofile.audit.accountants prv`` reads a request as JSON from standard input.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ..common.errors import ConfigError
from ..common.mechanism import Adjacency, Mechanism

PLD, PRV, RDP, UNAMPLIFIED = "pld", "prv", "rdp", "unamplified"
_WORKERS = ((RDP, UNAMPLIFIED, PLD), (PRV,))  # side by side; in this order within a worker
_PATIENCE = 300.0  # seconds
_MOST = 1_000.0  # ε by RDP; the others would need memory without bound to say the same


@dataclass(frozen=True)
class Answer:
    """What an accountant says.

    Attributes:
        epsilon: ε, perhaps infinite; None where it can't tell.
        why: why it can't.
    """

    epsilon: float | None
    why: str = ""


class Accountants:
    """Workers that start at once and are asked once; a context manager that leaves none behind."""

    def __init__(self) -> None:
        self._workers = [
            subprocess.Popen(
                [sys.executable, "-m", __name__, *names],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for names in _WORKERS
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()

    def ask(
        self,
        releases: Mapping[Mechanism, int],
        *,
        delta: float,
        adjacency: Adjacency = "add-or-remove-one",
    ) -> dict[str, Answer]:
        """Accountant → ε at ``delta`` of ``releases``, each with how often it was made."""
        described = [[mechanism.describe(), count] for mechanism, count in releases.items()]
        request = json.dumps({"releases": described, "delta": delta, "adjacency": adjacency})
        answers = {}
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(request)
            worker.stdin.close()
            worker.stdin = None  # closed; communicate() would flush it
        for worker, names in zip(self._workers, _WORKERS, strict=True):
            try:
                shown, _ = worker.communicate(timeout=_PATIENCE)
                found: dict[str, Any] = json.loads(shown)
                answers.update({name: Answer(**found[name]) for name in names})
            except subprocess.TimeoutExpired:
                answers.update(dict.fromkeys(names, Answer(None, "it takes too long")))
            except ValueError:
                answers.update(dict.fromkeys(names, Answer(None, "it broke down")))
        return answers


def main() -> None:
    """Answer the request on standard input."""
    names = sys.argv[1:]
    if PRV in names:
        _spare_torch()
    importlib.import_module("..common.accounting", __package__)  # while the ledger is being read
    sys.stdout.write(json.dumps(answer(json.load(sys.stdin), names)))


def answer(request: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the accountants ``names`` say to a request: fields of :class:`Answer` by name."""
    from ..common import accounting

    delta, adjacency = request["delta"], request["adjacency"]
    releases: Counter[Mechanism] = Counter()
    for description, count in request["releases"]:
        releases[Mechanism.from_description(description)] += count
    events: Counter[Any] = Counter()
    for mechanism, count in releases.items():
        events[mechanism.event()] += count
    accountants: dict[str, Callable[[], float]] = {
        PLD: lambda: accounting.epsilon(events, delta=delta, adjacency=adjacency),
        PRV: lambda: accounting.epsilon_prv(events, delta=delta),
        RDP: lambda: accounting.epsilon_rdp(events, delta=delta),
        UNAMPLIFIED: lambda: accounting.epsilon_without_amplification(releases, delta=delta),
    }
    private = all(mechanism.private for mechanism in releases)
    bound = accounting.epsilon_rdp(events, delta=delta) if private else math.inf
    answers: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in (PLD, PRV) and private and bound > _MOST:
            answers[name] = {"epsilon": None, "why": f"ε is above {_MOST:,.0f}"}
            continue
        if adjacency == "replace-one" and name != PLD:
            answers[name] = {"epsilon": None, "why": "it knows users who are added or removed only"}
            continue
        try:
            answers[name] = {"epsilon": accountants[name]() if events else 0.0}
        except ConfigError as error:
            answers[name] = {"epsilon": None, "why": str(error)}
        except ImportError as error:
            answers[name] = {"epsilon": None, "why": f"not installed ({error.name})"}
    return answers


def _spare_torch() -> None:
    """Let ``opacus.accountants`` load without its optimizers, which only torch can."""
    found = importlib.util.find_spec("opacus")
    if found is None or found.submodule_search_locations is None:
        return
    package, optimizers = types.ModuleType("opacus"), types.ModuleType("opacus.optimizers")
    package.__path__ = list(found.submodule_search_locations)
    optimizers.DPOptimizer = object  # type: ignore[attr-defined]
    sys.modules.update({"opacus": package, "opacus.optimizers": optimizers})


if __name__ == "__main__":
    main()
