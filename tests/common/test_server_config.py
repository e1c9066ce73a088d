"""``server.toml``: what is checked, and what decides the result."""

import datetime as dt
from pathlib import Path

import pytest

from fedprofile.common.errors import ConfigError
from fedprofile.common.sections import validated
from fedprofile.common.server_config import ServerConfig, load_server_config
from fedprofile.server.server_config_docs import server_configuration_markdown

AS_OF = {"statistics": {"as_of": dt.date(2026, 1, 1)}}


def make(**sections):
    return validated(ServerConfig, {**AS_OF, **sections}, where="", documented="x")


def test_it_reads_what_it_writes(tmp_path):
    config = make(federation={"name": "店", "listen": "0.0.0.0"}, privacy={"epsilon": 2.5})
    path = tmp_path / "server.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert load_server_config(path) == config


def test_where_devices_meet_does_not_decide_the_result():
    one, other = make(), make(federation={"port": 1234, "quorum": 3, "metrics_port": 9})
    assert one.run().digest() == other.run().digest()
    for change in ({"training": {"rounds": 7}}, {"privacy": {"epsilon": 1.0}}):
        assert make(**change).run().digest() != one.run().digest()
    assert make(federation={"name": "b"}).run().digest() != one.run().digest()


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"quorum": 5, "population_size": 4}, "quorum"),
        ({"port": 9443, "metrics_port": 9443}, "metrics_port"),
        ({"event_types": ["view", "view"]}, "twice"),
        ({"event_types": []}, "event_types"),
        ({"port": 70_000}, "port"),
        ({"round_timeout_seconds": 0}, "round_timeout_seconds"),
    ],
)
def test_what_cannot_be_is_refused(section, why):
    with pytest.raises(ConfigError, match=why):
        make(federation=section)


def test_a_moment_for_the_statistics_must_be_set():
    with pytest.raises(ConfigError, match="as_of"):
        validated(ServerConfig, {}, where="", documented="x")


def test_a_server_has_nothing_to_stop_by():
    for enabled in (True, False):
        with pytest.raises(ConfigError, match=r"^training\.patience is for simulations"):
            make(training={"patience": 1}, privacy={"enabled": enabled})


def test_the_document_is_up_to_date():
    document = Path(__file__).parents[2] / "docs" / "server-configuration.md"
    assert document.read_text(encoding="utf-8") == server_configuration_markdown(), (
        "run: python -m fedprofile.server.server_config_docs > docs/server-configuration.md"
    )


def test_what_devices_do_not_offer_is_refused():
    local = {"split": {"popularity": 0.0}, "local": {"enabled": True}}
    with pytest.raises(ConfigError, match="for simulations"):
        make(privacy=local)
