"""A device's lifetime budget: charged once for each release, whatever happens in between."""

import math
from dataclasses import replace

import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant

from fedprofile.client.lifetime import LifetimeBudget, Terms, promised
from fedprofile.common.errors import BudgetError, ConfigError, LedgerError, MessageError
from fedprofile.common.ledger_entries import Commit, Reserve, read_ledger
from fedprofile.common.messages import Binding

DELTA = 1e-6
TERMS = Terms(
    population="town",
    target_epsilon=6.0,
    delta=DELTA,
    randomness="csprng",
    code_version="test",
    config_digest="policy",
)
MECHANISM = promised(clip_norm=0.5, noise_multiplier=2.0)


def binding(release, **changes):
    values = {"run": "r", "round": 1, "release": release, "items": "table", "model": "a" * 64}
    return Binding(**{**values, **changes})


def charge(path, release, *, terms=TERMS, mechanism=MECHANISM, times=1, **changes):
    """In a process of its own, as far as the file can tell."""
    with LifetimeBudget.open(path, terms=terms) as budget:
        return budget.charge(
            task="training",
            binding=binding(release, **changes),
            mechanism=mechanism,
            times=times,
        )


def answer(path, release, **changes):
    paid = charge(path, release, **changes)
    with LifetimeBudget.open(path, terms=changes.get("terms", TERMS)) as budget:
        budget.commit(paid)
    return paid


def spent(path):
    with LifetimeBudget.open(path, terms=TERMS) as budget:
        return budget.epsilon_spent()


def reserves(path):
    return [entry for entry in read_ledger(path) if isinstance(entry, Reserve)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "device" / "ledger.jsonl"


def test_epsilon_is_that_of_all_answers_over_restarts_runs_and_models(path):
    answer(path, 1)
    answer(path, 3, round=2, model="b" * 64)
    answer(path, 1, run="another", model="c" * 64)
    independent = PLDAccountant().compose(GaussianDpEvent(2.0), 3).get_epsilon(DELTA)
    assert spent(path) == pytest.approx(independent, rel=1e-9)
    entries = read_ledger(path)
    assert [e.kind for e in entries] == ["open", *["reserve", "commit"] * 3]
    assert [(e.run, e.round, e.answers) for e in reserves(path)] == [
        ("r", 1, 1),
        ("r", 2, 3),
        ("another", 1, 1),
    ]
    assert entries[0].population_size == 1


def test_one_shot_statistics_are_named_as_the_server_names_them(path):
    with LifetimeBudget.open(path, terms=TERMS) as budget:
        budget.charge(
            task="statistics/popularity",
            binding=binding(1, round=0, model=""),
            mechanism=MECHANISM,
        )
    [entry] = reserves(path)
    assert (entry.task, entry.round, entry.model_before) == ("statistics/popularity", None, None)


def test_the_answer_that_would_exceed_the_limit_is_refused_with_the_figure(path):
    def after(releases):
        return PLDAccountant().compose(GaussianDpEvent(2.0), releases).get_epsilon(DELTA)

    made = next(n for n in range(2, 20) if after(n + 1) > 6)
    for release in range(made):
        answer(path, release, run=f"run {release}", model=f"{release:064x}")
    with pytest.raises(BudgetError, match="over its lifetime, above the 6") as refused:
        charge(path, made)
    assert refused.value.epsilon_reached == pytest.approx(after(made + 1), rel=1e-3)
    assert len(reserves(path)) == made > 1
    # More noise still fits, and what was answered before is no new release.
    charge(path, 99, mechanism=promised(clip_norm=0.5, noise_multiplier=50.0))
    assert charge(path, 0, run="run 0", model=f"{0:064x}").answered


def test_no_noise_costs_everything(path):
    open_sum = promised(clip_norm=math.inf, noise_multiplier=0.0)
    with pytest.raises(BudgetError) as refused:
        charge(path, 1, mechanism=open_sum)
    assert refused.value.epsilon_reached == math.inf


def test_asked_again_after_a_crash_nothing_more_is_charged(path):
    first = charge(path, 1)
    assert not first.answered
    assert not first.repeated
    again = charge(path, 1)  # killed before the reply was stored: nothing got out
    assert again == replace(first, repeated=True)
    with LifetimeBudget.open(path, terms=TERMS) as budget:
        budget.commit(again)
    once_more = charge(path, 1)  # the reply got lost
    assert once_more.answered
    assert once_more.releases == first.releases
    assert len(reserves(path)) == 1


def test_a_round_repeated_as_another_release_is_another_charge(path):
    assert answer(path, 1) != answer(path, 2)
    assert len(reserves(path)) == 2


def test_killed_between_the_charges_of_one_answer_the_rest_is_charged(path):
    charge(path, 1, times=2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    paid = charge(path, 1, times=2)
    assert len(set(paid.releases)) == 2
    assert len(reserves(path)) == 2
    with LifetimeBudget.open(path, terms=TERMS) as budget:
        budget.commit(paid)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert charge(path, 1, times=2).answered  # what was committed at all was made


def test_all_releases_of_an_answer_fit_or_none_is_charged(path):
    with pytest.raises(BudgetError):
        charge(path, 1, times=100)
    assert reserves(path) == []


def test_the_server_can_not_change_its_promise(path):
    charge(path, 1)
    with pytest.raises(MessageError, match="must not change"):
        charge(path, 1, mechanism=promised(clip_norm=0.5, noise_multiplier=1.0))


@pytest.mark.parametrize("left", [0, 1, 100])
def test_killed_while_it_begins_a_device_begins_again(path, left):
    charge(path, 1)
    path.write_bytes(path.read_bytes()[:left])
    assert not charge(path, 1).answered
    assert len(reserves(path)) == 1


def test_the_limit_may_fall_and_not_rise(path):
    answer(path, 1)
    lower = replace(TERMS, target_epsilon=1.0)
    with pytest.raises(BudgetError, match="above the 1 that"):
        charge(path, 2, terms=lower)
    for limit in (7.0, None):
        with pytest.raises(ConfigError, match="lowered but not raised"):
            charge(path, 2, terms=replace(TERMS, target_epsilon=limit))


@pytest.mark.parametrize(
    "changes", [{"population": "city"}, {"delta": 1e-5}, {"unit": "event"}, {"population_size": 9}]
)
def test_a_ledger_is_kept_on_its_terms(path, changes):
    charge(path, 1)
    with pytest.raises(ConfigError, match=f"was started with {next(iter(changes))}"):
        charge(path, 2, terms=replace(TERMS, **changes))


def test_without_a_limit_all_is_recorded(path):
    terms = replace(TERMS, target_epsilon=None)
    charge(path, 1, terms=terms, mechanism=promised(clip_norm=math.inf, noise_multiplier=0.0))
    with LifetimeBudget.open(path, terms=terms) as budget:
        assert budget.epsilon_spent() == math.inf


def test_one_writer_at_a_time_and_keys_for_the_owner_alone(path):
    with (
        LifetimeBudget.open(path, terms=TERMS),
        pytest.raises(LedgerError, match="another process"),
    ):
        LifetimeBudget.open(path, terms=TERMS)
    assert path.with_suffix(".pem").stat().st_mode & 0o777 == 0o600


def test_batches_of_events_are_not_counted_where_others_may_read(path):
    terms = replace(TERMS, unit="event", population_size=40)
    mechanism = replace(MECHANISM, population_size=40, sampler="poisson", sampling_probability=0.2)
    with LifetimeBudget.open(path, terms=terms) as budget:
        budget.commit(budget.charge(task="training", binding=binding(1), mechanism=mechanism))
    [commit] = [entry for entry in read_ledger(path) if isinstance(entry, Commit)]
    assert (commit.cohort_size, commit.replies_counted) == (0, 0)
