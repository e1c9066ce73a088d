"""The day that statistics count ages back from, held against today before anything is spent on it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from ..common.config import StatisticsConfig
from ..common.errors import ConfigError
from ..common.strength import Statement

AHEAD = 30
"""Days that it may lie in the future: a federation may be made before the day it begins."""

_FIRST = dt.date(1970, 1, 1)


def check_moment(
    statistics: StatisticsConfig, *, today: dt.date, where: str
) -> Iterator[Statement]:
    """What is wrong with ``statistics.as_of`` in spite of which the federation may go on.

    Both days are public: nothing is read off what devices hold.

    Args:
        statistics: of the server, with ``as_of``.
        today: in UTC.
        where: what an error begins with.

    Raises:
        ConfigError: no event can be that old, or all of them would be too old to count.
    """
    as_of = statistics.as_of
    assert as_of is not None, "the configuration asks for it"
    if not statistics.half_lives_days:
        return  # nothing ages
    key = f"{where}statistics.as_of = {as_of}"
    advice = "set it to about the day of the first round"
    if as_of < _FIRST:
        raise ConfigError(
            f"{key}: devices record nothing before 1970, so every event would be of age 0; {advice}"
        )
    ahead = (as_of - today).days
    if ahead > AHEAD:
        raise ConfigError(
            f"{key}: is {ahead:,} days after today ({today}), so that most of what popularity costs is "
            f"spent on events that have faded before they are counted; {advice}, at most {AHEAD} days ahead"
        )
    shortest = min(statistics.half_lives_days)
    if -ahead > shortest:
        yield Statement(
            f"statistics.as_of is {-ahead:,} days ago",
            f"Whatever was done since {as_of} counts as done on that day, so recent popularity, with a "
            f"half-life of {shortest:g} days, can't tell new from old. Nothing has been released yet: "
            f"{advice}.",
            "warn",
        )
