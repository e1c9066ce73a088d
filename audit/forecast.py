"""What is left of a budget: how many more rounds, and what more rounds would cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError, LedgerError
from ..common.ledger_entries import Chain, Reserve, Unit, events_of
from ..common.mechanism import Mechanism
from .bounded import Bounded, epsilon_within

_HORIZON = 1_000_000  # rounds; beyond it a forecast says nothing
_TABLE = (1, 10, 100, 1_000)


@dataclass(frozen=True)
class Forecast:
    """The future at the setting of the last release of training.

    Attributes:
        mechanism: that setting.
        unit: of the ledger; where it isn't the user, its rounds are a device's local steps.
        delta: δ.
        spent: ε so far.
        target: the budget the forecast is against; None where there is none.
        rounds_left: that fit into ``target``; None without one.
        beyond: whether ``rounds_left`` is where the search ended, not the budget.
        after: (more rounds, ε after them).
    """

    mechanism: Mechanism
    unit: Unit
    delta: float
    spent: float
    target: float | None
    rounds_left: int | None
    beyond: bool
    after: tuple[tuple[int, float], ...]

    @property
    def rounds(self) -> str:
        """What to call what is counted."""
        return "rounds" if self.unit == "user" else "local steps"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready content; infinite figures are None."""
        content = asdict(self)
        content["mechanism"] = self.mechanism.describe()
        content["spent"] = self.spent if math.isfinite(self.spent) else None
        content["after"] = [
            {"rounds": r, "epsilon": e if math.isfinite(e) else None} for r, e in self.after
        ]
        return content


def forecast(
    chain: Chain,
    *,
    ledger: Path,
    target: float | None = None,
    rounds: Sequence[int] = (),
    spent: float | None = None,
) -> Forecast:
    """What is left according to a ledger.

    Args:
        chain: its entries.
        ledger: where it was, for messages.
        target: ε to forecast against; None: the ledger's own.
        rounds: numbers of further rounds to tell ε after; () for a table of powers of ten that fit.
        spent: ε so far, where it is known; None to compute it.

    Raises:
        LedgerError: it has no private round yet, or what it cost can't be worked out.
        ConfigError: ``target`` or a number of rounds is out of range.
    """
    if target is not None and not 0 < target < math.inf:
        raise ConfigError(f"epsilon must be above 0 and finite, got {target}")
    if any(number < 1 or number > _HORIZON for number in rounds):
        raise ConfigError(f"rounds must be 1 to {_HORIZON:,}")
    reserved = [e for e in chain.entries if isinstance(e, Reserve) and e.round is not None]
    if not reserved:
        raise LedgerError(f"{ledger}: has no round yet, so there is no setting to forecast from")
    mechanism = reserved[-1].mechanism
    if not all(e.mechanism.private for e in chain.entries if isinstance(e, Reserve)):
        raise LedgerError(f"{ledger}: a release has no noise: ε is infinite, nothing is left")
    target = target if target is not None else chain.opening.target_epsilon
    with Bounded(_work_out) as ask:
        return ask(chain, mechanism, target, rounds, spent)


def _work_out(
    chain: Chain,
    mechanism: Mechanism,
    target: float | None,
    rounds: Sequence[int],
    spent: float | None,
) -> Forecast:
    opening, events = chain.opening, events_of(chain.entries)
    of = partial(epsilon_within, delta=opening.delta, adjacency=opening.adjacency)

    def after(number: int, coarse: bool = False) -> float:
        more = Counter({mechanism.event(): number})
        return of(events + more, coarse=coarse)

    left = None
    if target is not None:
        # Whatever fits on the coarse grid fits, and the fine one adds a few rounds to that.
        near = _most(lambda number: after(number, coarse=True), target, start=1)
        left = _most(after, target, start=near + 1, step=1 + near // 500)
    shown = rounds or [n for n in _TABLE if left is None or n <= left]
    if left and not rounds and left not in shown and left < _HORIZON:
        shown = [*shown, left]
    return Forecast(
        mechanism=mechanism,
        unit=opening.unit,
        delta=opening.delta,
        spent=of(events) if spent is None else spent,
        target=target,
        rounds_left=left,
        beyond=left == _HORIZON,
        after=tuple((number, after(number)) for number in shown),
    )


def _most(figure: Callable[[int], float], target: float, *, start: int, step: int = 1) -> int:
    """The largest number ≥ ``start`` − 1, which fits, up to the horizon with ``figure`` ≤ ``target``.

    Doubles ``step`` until a number doesn't fit. ``figure`` rises, and nearly on a straight line: so the
    next guess between one that fits and one that doesn't is where the line through the two meets the
    target.
    """
    low = start - 1
    while True:
        high = min(low + step, _HORIZON)
        if high == low:
            return low
        above = figure(high)
        if above > target:
            break
        low, step = high, 2 * step
    below = figure(low) if low else 0.0
    while high - low > 1:
        share = (target - below) / (above - below) if math.isfinite(above) else 0.5
        guess = min(max(low + int(share * (high - low)), low + 1), high - 1)
        found = figure(guess)
        if found > target:
            high, above = guess, found
            # The answer is mostly next to the guess, and then this tells so at once.
            if high - low > 1 and (just_below := figure(high - 1)) <= target:
                low, below = high - 1, just_below
        else:
            low, below = guess, found
            if high - low > 1 and (just_above := figure(low + 1)) > target:
                high, above = low + 1, just_above
    return low
