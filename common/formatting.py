"""Figures as a reader wants them: grouped, rounded, and honest about what is unknown."""

from __future__ import annotations

import datetime as dt
import math
import unicodedata
from typing import TypeGuard

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_HIDDEN = ("Cc", "Cs", "Cn", "Zl", "Zp")
_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 4) -> str:
    """``0.0654``; a dash where it is unknown (None or NaN)."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None) -> str:
    """``+0.0123`` or ``−0.0123``."""
    return f"+{number(value)}" if known(value) and value > 0 else number(value)


def count(value: float | None) -> str:
    """``896,392``."""
    return number(value, 0)


def scientific(value: float | None) -> str:
    """``7.10 × 10⁻⁵``, and plain from 0.01 to 10,000."""
    if not known(value) or value == 0 or 0.01 <= abs(value) < 10_000:
        return number(value, 3)
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def epsilon(value: float | None) -> str:
    """``1.999``, ``1.0 × 10⁻⁴``; ∞ for None, which is how JSON has it.

    Rounded up, for it is quoted as a bound: 1.9984 is not below 1.998.
    """
    if value is None or not known(value) or value <= 0:
        return "∞" if value is None else number(value, 3)
    digits = 3 if value >= 0.01 else 1 - math.floor(math.log10(value))
    # A millionth of the last digit is what floats lose, not what was spent.
    up = math.ceil(value * 10**digits - 1e-6) / 10**digits
    if digits == 3:
        return number(up, 3)
    mantissa, exponent = f"{up:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def factor(epsilon: float) -> str:
    """e^ε, the factor that ε stands for: ``7.37``, ``2.20 × 10⁴``."""
    value = math.exp(min(epsilon, 700.0))  # beyond that a float overflows, and nothing is promised
    return number(value, 0 if value >= 100 else 2) if value < 1e6 else scientific(value)


def printable(text: str, most: int = 120) -> str:
    """Text of strangers, to be shown: at most so long, and nothing that hides or turns what follows.

    Control characters, and those that change the direction of writing, become ``�``.
    """
    shown = "".join(
        "\ufffd" if unicodedata.category(letter) in _HIDDEN or letter in _TURNING else letter
        for letter in text[: most + 1]
    )
    return shown if len(shown) <= most else shown[:most] + "…"


def share(part: float | None, whole: float | None) -> str:
    """``97.5 %``, a dash where either is unknown or the whole is nothing."""
    if not known(part) or not known(whole) or whole == 0:
        return "–"
    percent = 100 * part / whole
    return "< 0.1 %" if 0 < percent < 0.1 else f"{number(percent, 1)} %"


def day(seconds: int) -> str:
    """Seconds since 1970-01-01 UTC as a date."""
    return (dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)).date().isoformat()


def duration(seconds: float | None) -> str:
    """``1 min 42 s``."""
    if not known(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
