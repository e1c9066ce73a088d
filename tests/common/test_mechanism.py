import json
import math
import subprocess
import sys

import pytest
from dp_accounting import GaussianDpEvent, NonPrivateDpEvent, PoissonSampledDpEvent
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.common.errors import ConfigError
from fedprofile.common.mechanism import Mechanism


def mechanism(**changes):
    values = {
        "clip_norm": 0.5,
        "noise_multiplier": 1.2,
        "sampling_probability": 0.1,
        "population_size": 6000,
    }
    return Mechanism(**{**values, **changes})


def test_event_claims_amplification_for_poisson_sampling_only():
    assert mechanism().event() == PoissonSampledDpEvent(0.1, GaussianDpEvent(1.2))
    assert mechanism(sampler="self-selected").event() == GaussianDpEvent(1.2)
    assert mechanism(sampling_probability=1.0).event() == GaussianDpEvent(1.2)


def test_fixed_size_cohort_counts_the_user_who_moves_up():
    # A removed user's place is taken by another: the sum moves by 2C, not C.
    assert mechanism(sampler="fixed-size").event() == GaussianDpEvent(0.6)
    everyone = mechanism(sampler="fixed-size", sampling_probability=1.0)
    assert everyone.event() == GaussianDpEvent(1.2)


def test_without_noise_nothing_is_private():
    for clip_norm in (0.5, math.inf):
        open_release = mechanism(clip_norm=clip_norm, noise_multiplier=0.0)
        assert open_release.event() == NonPrivateDpEvent()
        assert open_release.noise_stddev == 0.0
        assert not open_release.private


def test_noise_and_divisor_come_from_constants():
    assert mechanism().noise_stddev == pytest.approx(0.6)
    assert mechanism().expected_cohort == pytest.approx(600)
    assert mechanism(sampling_probability=0.0001).expected_cohort == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("clip_norm", math.nan),
        ("clip_norm", math.inf),  # with noise
        ("clip_norm", 10**400),  # beyond every float, though a whole number
        ("noise_multiplier", -0.1),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", math.inf),
        ("noise_multiplier", 10**400),
        ("sampling_probability", 0.0),
        ("sampling_probability", 1.1),
        ("sampling_probability", math.nan),
        ("population_size", 0),
        ("population_size", 10.5),
        ("population_size", 2**53),
        ("sampler", "shuffle"),
    ],
)
def test_values_out_of_range_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key):
        mechanism(**{key: value})


@given(
    clip_norm=st.floats(1e-6, 1e6),
    noise_multiplier=st.floats(0, 1e6),
    sampling_probability=st.floats(1e-9, 1),
    population_size=st.integers(1, 10**9),
    sampler=st.sampled_from(["poisson", "fixed-size", "self-selected"]),
)
def test_description_survives_json(**values):
    original = Mechanism(**values)
    described = json.loads(json.dumps(original.describe(), allow_nan=False))
    assert Mechanism.from_description(described) == original


def test_infinite_clip_survives_json():
    original = mechanism(clip_norm=math.inf, noise_multiplier=0.0)
    described = json.loads(json.dumps(original.describe(), allow_nan=False))
    assert Mechanism.from_description(described) == original


@pytest.mark.parametrize(
    "damage", [{"clip_norm": "0.5"}, {"extra": 1}, {"population_size": None}, {"sampler": 3}]
)
def test_damaged_description_is_refused(damage):
    with pytest.raises(ConfigError):
        Mechanism.from_description({**mechanism().describe(), **damage})


def test_privacy_core_of_a_device_loads_no_heavy_library():
    code = (
        "import sys; import fedprofile.common.mechanism; "
        "print([m for m in ('torch', 'opacus', 'flwr', 'dp_accounting') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
