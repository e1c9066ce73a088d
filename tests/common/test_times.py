import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.times import read_time


@given(
    st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(9999, 1, 1)),
    st.sampled_from("T "),
    st.integers(-14 * 4, 14 * 4).map(lambda quarters: dt.timedelta(minutes=15 * quarters)),
)
def test_every_moment_is_read_as_the_standard_library_writes_it(moment, between, offset):
    zoned = moment.replace(tzinfo=dt.timezone(offset))
    seconds = int(zoned.replace(microsecond=0).timestamp())
    assert read_time(zoned.isoformat(between)) == seconds
    assert read_time(zoned.strftime("%Y%m%dT%H%M%S%z")) == seconds


@pytest.mark.parametrize(("offset", "hours"), [("+02", 2), ("-0930", -9.5), (" +05:45", 5.75)])
def test_offsets_of_any_length(offset, hours):
    assert read_time("2024-03-20 14:44:28" + offset) == 1_710_945_868 - hours * 3_600


def test_eight_digits_are_a_day():
    assert read_time("20240320") == read_time("20240320.0") == read_time("2024-03-20")


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
def test_an_epoch_tells_its_unit_by_its_size(unit):
    assert read_time(str(1_717_175_100 * unit)) == 1_717_175_100


NO_TIMES = (
    "|inf|1e300|1_000|٣|24-05-31|2024-02-30|2024-05-31 24:30|2024-05-31 125|2024-05-31 12:00:60|"
    "0000-01-01|2024-05-31+02|May 31, 2024|20241399|20240531.5"
)


@pytest.mark.parametrize("text", NO_TIMES.split("|"))
def test_what_is_no_time(text):
    assert read_time(text) is None
