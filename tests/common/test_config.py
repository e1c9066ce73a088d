import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedprofile.common.config import RunConfig, load_config
from fedprofile.common.errors import ConfigError


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_everything_has_a_default():
    assert load_config(None) == RunConfig()


def test_options_go_before_the_file_and_none_is_no_option(tmp_path):
    path = write(tmp_path, "seed = 1\n[privacy]\nepsilon = 3.0\nclip_norm = 0.25\n")
    found = load_config(path, {"": {"seed": None}, "privacy": {"epsilon": 2.0, "delta": None}})
    assert (found.seed, found.privacy.epsilon, found.privacy.clip_norm) == (1, 2.0, 0.25)


@given(
    seed=st.none() | st.integers(0, 2**63 - 1),
    path=st.text(st.characters(exclude_categories=["Cs"])),
    half_lives=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=4),
    rounds=st.integers(0, 10**6),
)
def test_toml_holds_the_whole_configuration(tmp_path_factory, seed, path, half_lives, rounds):
    config = RunConfig.model_validate(
        {
            "seed": seed,
            "data": {"path": path, "columns": {"user": path}, "event_weights": {path: -1.5}},
            "model": {"half_lives_days": half_lives},
            "training": {"rounds": rounds},
            "evaluation": {"validation_from": "2011-07-01", "test_from": "2011-08-15"},
        }
    )
    file = tmp_path_factory.mktemp("config") / "config.toml"
    file.write_bytes(config.to_toml().encode())
    again = load_config(file)
    assert again == config
    assert again.digest() == config.digest()


def test_the_digest_covers_what_decides_the_result():
    plain = RunConfig()
    assert RunConfig.model_validate({"engine": {"devices_per_host": 3}}).digest() == plain.digest()
    for section, key, value in (
        ("privacy", "epsilon", 7.9),
        ("training", "rounds", 1),
        ("training", "dropout", 0.1),
        ("data", "path", "other.csv"),
        ("evaluation", "k", 11),
    ):
        assert RunConfig.model_validate({section: {key: value}}).digest() != plain.digest()
    assert RunConfig(seed=0).digest() != plain.digest()


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("privacy", "epsilon", [0, -1, math.nan, math.inf, "x"]),
        ("privacy", "delta", [0, 1, -0.1, math.nan]),
        ("privacy", "clip_norm", [0, math.inf]),
        ("privacy", "noise_multiplier", [0, math.nan]),
        (
            "privacy",
            "split",
            [
                {"popularity": 1.0},
                {"popularity": -0.1},
                {"cooccurrence": 0.2},
                {"popularity": 0, "cooccurrence": 0.2},
                {"popularity": 0.5, "cooccurrence": 0.5},
            ],
        ),
        ("training", "rounds", [-1, 2.5]),
        ("training", "patience", [0, 1.5, True, "2"]),
        ("training", "sampling_probability", [0, 1.01]),
        ("training", "server_momentum", [1.0]),
        ("training", "dropout", [1.0, -0.1, math.nan, "some"]),
        ("statistics", "half_lives_days", [[0], [-1.0], [math.nan]]),
        ("model", "half_lives_days", [[0.0], [math.inf]]),
        ("model", "encoder", ["lstm"]),
        ("evaluation", "validation_quantile", [0.95]),
        ("evaluation", "k", [0]),
        ("data", "minimum_user_events", [0]),
        ("engine", "devices_per_host", [0]),
    ],
)
def test_what_is_out_of_range_is_named(section, key, values):
    for value in values:
        with pytest.raises(ConfigError) as error:
            load_config(None, {section: {key: value}})
        assert section in str(error.value)
        assert key in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epsilon = 1", ["unknown key 'epsilon'"]),
        ("[model]\nlayer = 2\n[privacy]\neps = 1", ["model.layer", "privacy.eps"]),
        ("[data.columns]\nwho = 'x'", ["data.columns.who"]),
        ("data = 3", ["data"]),
        ("[model]\nhalf_lives_days = []\nhalf_lives_events = []", ["model", "at least one"]),
        ("[a", ["TOML"]),
        ("[evaluation]\ntest_from = 2011-08-15", ["validation_from and test_from"]),
        (
            "[evaluation]\nvalidation_from = 2011-08-15\ntest_from = 2011-08-15",
            ["validation_from must be before test_from"],
        ),
    ],
)
def test_a_mistake_in_a_file_names_the_file_and_the_key(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path, {"data": {"path": "x"}})
    for word in (str(path), *words):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_no_text_is_refused_for_no_configuration_could_hold_it():
    path = b"old/\xff.csv".decode("utf8", "surrogateescape")
    with pytest.raises(ConfigError, match=r"path = \"old/.*not UTF-8 text; rename the file"):
        load_config(None, {"data": {"path": path}})


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_config(Path("no.toml"))
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)
    (tmp_path / "run.toml").write_bytes(b"seed = 1 # \xff")
    with pytest.raises(ConfigError, match="TOML"):
        load_config(tmp_path / "run.toml")


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("[privacy.local]\nenabled = true\n", "set privacy.split.popularity = 0"),
        (
            "[privacy]\nsplit.popularity = 0\nenabled = false\n[privacy.local]\nenabled = true\n",
            "keep privacy.enabled = true",
        ),
        (
            "[model]\nitem_ids = true\n[privacy]\nsplit.popularity = 0\n[privacy.local]\nenabled = true\n",
            "set model.item_ids = false",
        ),
        (
            "[training]\nrounds = 0\n[privacy]\nsplit.popularity = 0\n[privacy.local]\nenabled = true\n",
            "training.rounds of 1 or more",
        ),
        ("[privacy.local]\nbatch_size = 17\n", r"at most max_examples \(16\)"),
    ],
)
def test_the_event_level_layer_says_what_it_can_not_be_combined_with(tmp_path, text, advice):
    with pytest.raises(ConfigError, match=advice):
        load_config(write(tmp_path, text))


OPEN = {"privacy": {"enabled": False}, "training": {"patience": 2}}


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"privacy": {"enabled": True}}, r"no ε covers.*--no-privacy"),
        ({"training": {"patience": 2, "rounds": 0}}, r"training\.rounds of 1 or more"),
        ({"evaluation": {"split": "none"}}, "choose another split"),
        ({"evaluation": {"refit": True}}, r"training\.rounds to it and training\.averaging to 0,"),
    ],
)
def test_patience_needs_a_validation_part_that_it_may_look_at(change, advice):
    assert load_config(None, OPEN).training.patience == 2
    with pytest.raises(ConfigError, match=rf"^training\.patience .*{advice}") as refused:
        load_config(None, {**OPEN, **change})
    assert "\n" not in str(refused.value)
    load_config(
        None, {**OPEN, **change, "training": {**change.get("training", {}), "patience": None}}
    )


def test_a_wrong_option_is_not_laid_to_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\n")
    with pytest.raises(ConfigError) as wrong:
        load_config(path, {"privacy": {"epsilon": 0.0}})
    assert str(wrong.value).startswith("privacy.epsilon: ")
    path.write_text("[privacy]\nepsilon = -1\n")
    with pytest.raises(ConfigError, match=r"run\.toml: privacy\.epsilon"):
        load_config(path, {"training": {"rounds": 3}})
    # One option puts the file right, and another one is wrong.
    path.write_text("[training]\npatience = 2\n")
    with pytest.raises(ConfigError, match=r"^training\.patience .*split = 'none'"):
        load_config(path, {"privacy": {"enabled": False}, "evaluation": {"split": "none"}})
    with pytest.raises(ConfigError, match=r"run\.toml: training\.patience .*no ε"):
        load_config(path, {"training": {"rounds": 3}})


@pytest.mark.parametrize("columns", [0, 8])
def test_pairs_of_two_kinds_are_not_released_together(columns):
    with pytest.raises(ValidationError, match="leave one of them unset"):
        RunConfig(statistics={"whole_histories": True, "cooccurrence": columns})
    for alone in ({"whole_histories": True}, {"whole_histories": False, "cooccurrence": columns}):
        assert RunConfig(statistics=alone).statistics.cooccurrence == alone.get("cooccurrence")
