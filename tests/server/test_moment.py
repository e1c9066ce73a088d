"""The day of the statistics, held against today."""

import datetime as dt

import pytest

from fedprofile.common.config import StatisticsConfig
from fedprofile.common.errors import ConfigError
from fedprofile.server.moment import AHEAD, check_moment

TODAY = dt.date(2026, 6, 1)


def checked(days, half_lives_days=(14.0, 45.0)):
    statistics = StatisticsConfig(
        as_of=TODAY + dt.timedelta(days=days), half_lives_days=half_lives_days
    )
    return list(check_moment(statistics, today=TODAY, where="server.toml: "))


@pytest.mark.parametrize("days", [0, 1, AHEAD, -14])
def test_about_today_goes_without_a_word(days):
    assert checked(days) == []


def test_a_day_that_lies_back_is_warned_of_where_recent_popularity_is_asked_for():
    (warning,) = checked(-15)
    assert warning.level == "warn"
    assert "15 days ago" in warning.title
    assert "half-life of 14 days" in warning.text


@pytest.mark.parametrize("days", [-25_000, -15, 27_000])
def test_where_nothing_ages_any_day_will_do(days):
    assert checked(days, half_lives_days=()) == []


@pytest.mark.parametrize("days", [AHEAD + 1, 27_000, -25_000])
def test_a_day_that_would_spend_the_budget_on_nothing_is_refused(days):
    with pytest.raises(ConfigError, match=r"^server\.toml: statistics\.as_of = .*the first round"):
        checked(days)
