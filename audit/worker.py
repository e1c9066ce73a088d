"""The process that an audit leaves its sums to: ``python -m fedprofile.audit.worker``.

Reads a question (JSON, see ``accountants.py``) from standard input and tells each answer, one JSON object
a line, as soon as it is there: so an accountant that takes too long takes no other's answer along.
Opacus's accountant is plain numpy, but its package loads torch; here, where nothing else does, it is
given a stand-in for what it doesn't use.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

if __name__ == "__main__":
    gc.disable()  # before the imports, of which it takes a tenth: this process lives for seconds

from ..common import accounting
from ..common.errors import ConfigError
from ..common.mechanism import Mechanism
from .accountants import ACCOUNTANTS, BROKEN, FINER, MOST, PLD, PRV, RDP, UNAMPLIFIED, Answer
from .cohort_test import check_cohorts

_TURNS = (RDP, UNAMPLIFIED, PRV, PLD, FINER)


def main() -> None:
    """Answer the question on standard input."""
    _spare_torch()
    question = json.load(sys.stdin)
    if question["cohorts"] is not None:
        print(json.dumps({"cohorts": asdict(check_cohorts(**question["cohorts"]))}), flush=True)
    for name, answer in answers(question, ACCOUNTANTS):
        print(json.dumps({name: asdict(answer)}), flush=True)


def answers(question: Mapping[str, Any], names: Iterable[str]) -> Iterator[tuple[str, Answer]]:
    """What the accountants ``names`` say to a question, each as soon as it has."""
    delta, adjacency = question["delta"], question["adjacency"]
    releases: Counter[Mechanism] = Counter()
    for description, count in question["releases"]:
        releases[Mechanism.from_description(description)] += count
    events: Counter[Any] = Counter()
    for mechanism, count in releases.items():
        events[mechanism.event()] += count
    if not events:
        yield from ((name, Answer(0.0)) for name in names)
        return
    rdp = _answer(lambda: accounting.epsilon_rdp(events, delta=delta))
    pld: Callable[[], Answer]
    private = all(mechanism.private for mechanism in releases)
    if private and (rdp.epsilon is None or rdp.epsilon > MOST):
        unbounded = Answer(None, f"ε is above {MOST:,.0f}")
        pld = prv = lambda: unbounded
    else:
        pld = partial(_answer, lambda: accounting.epsilon(events, delta=delta, adjacency=adjacency))
        prv = partial(_answer, lambda: accounting.epsilon_prv(events, delta=delta))

    def finer() -> Answer:
        above = (pld().epsilon or 0.0) - (rdp.epsilon or 0.0)
        if rdp.epsilon is None or not 0 < above <= accounting.rounding(events):
            return Answer(None, "nothing is to be told by it")
        return _answer(lambda: accounting.epsilon_finer(events, delta=delta))

    ask: dict[str, Callable[[], Answer]] = {
        RDP: lambda: rdp,
        UNAMPLIFIED: partial(
            _answer, lambda: accounting.epsilon_without_amplification(releases, delta=delta)
        ),
        PLD: pld,
        PRV: prv,
        FINER: finer,
    }
    if adjacency == "replace-one":
        unknown = Answer(None, "it knows users who are added or removed only")
        ask.update(dict.fromkeys((RDP, UNAMPLIFIED, PRV, FINER), lambda: unknown))
    # One after another: at the same time they would hold twice the memory and win a tenth of a second.
    # PRV before PLD, which leaves more behind than it finds.
    for name in sorted(names, key=_TURNS.index):
        yield name, ask[name]()


def _answer(accountant: Callable[[], float]) -> Answer:
    try:
        return Answer(accountant())
    except ConfigError as error:
        return Answer(None, str(error))
    except ImportError as error:
        return Answer(None, f"not installed ({error.name})")
    except (ArithmeticError, MemoryError, ValueError, RuntimeError):  # numbers nobody would choose
        return Answer(None, BROKEN)


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
