import pytest

from fedprofile.audit.forecast import _most
from fedprofile.audit.forecast import forecast as forecast_of
from fedprofile.audit.ledgers import Evidence
from fedprofile.audit.verify import verify
from fedprofile.common.accounting import epsilon
from fedprofile.common.errors import ConfigError, LedgerError
from fedprofile.common.ledger_entries import events_of, read_chain, read_ledger
from fedprofile.common.mechanism import Mechanism


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def forecast(path, **named):
    return forecast_of(read_chain(path), ledger=path, **named)


def test_rounds_left_are_those_that_fit_and_not_one_more(forge, path):
    forge.honest(rounds=20, target_epsilon=1.5).write(path)
    found = forecast(path)
    entries = read_ledger(path)
    events, training = events_of(entries), entries[-2].mechanism.event()

    def after(number):
        return epsilon([*events.elements(), *[training] * number], delta=1e-5)

    assert found.spent == after(0)
    assert after(found.rounds_left) <= 1.5 < after(found.rounds_left + 1)
    assert dict(found.after)[found.rounds_left] == after(found.rounds_left)
    assert [number for number, _ in found.after][:2] == [1, 10]


def test_asked_for_a_budget_and_for_rounds(forge, path):
    forge.honest(rounds=20, target_epsilon=None).write(path)
    found = forecast(path, rounds=[5, 50])
    assert (found.target, found.rounds_left) == (None, None)
    assert [number for number, _ in found.after] == [5, 50]
    assert found.spent < found.after[0][1] < found.after[1][1]
    assert forecast(path, target=found.spent / 2).rounds_left == 0
    assert forecast(path, target=found.after[0][1]).rounds_left == 5


def test_nothing_to_forecast_from(forge, path):
    forge.honest(rounds=0).write(path)
    with pytest.raises(LedgerError, match="no round yet"):
        forecast(path)
    open_noise = Mechanism(
        clip_norm=1.0, noise_multiplier=0.0, sampling_probability=0.1, population_size=1_000
    )
    writer = forge.honest(rounds=1, target_epsilon=None)
    writer.reserve(open_noise, round=2)
    writer.write(path)
    with pytest.raises(LedgerError, match="no noise"):
        forecast(path)
    forge.honest(rounds=1).write(path)
    for target in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="epsilon"):
            forecast(path, target=target)
    for rounds in ([0], [10**9]):
        with pytest.raises(ConfigError, match="rounds"):
            forecast(path, rounds=rounds)


def test_events_of_a_device_cost_what_verify_says(forge, path, inline_accountants):
    """Two events that replace each other move a sum by twice the clip."""
    forge.events(target_epsilon=60.0).write(path)
    found, cost = forecast(path, rounds=[10]), verify(Evidence(path, None, None)).cost
    assert found.spent == cost.credited
    events = events_of(read_ledger(path))
    assert found.spent > 1.5 * epsilon(events, delta=1e-5)
    [step] = events
    assert found.after == ((10, epsilon({step: 50}, delta=1e-5, adjacency="replace-one")),)
    assert found.rounds == "local steps"


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 1_000, 999_999, 1_000_000, 2_000_000])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_search_finds_the_last_that_fits(most, power):
    asked = []

    def figure(number):
        asked.append(number)
        return (number / 1e6) ** power

    target = ((most + 0.5) / 1e6) ** power
    assert _most(figure, target, start=1) == min(most, 1_000_000)
    assert len(asked) < 120
