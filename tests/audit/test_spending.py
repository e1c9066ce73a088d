from collections import Counter
from itertools import pairwise

import pytest

from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.spending import group_releases, spent_along
from fedprofile.audit.verify import verify
from fedprofile.common.accounting import epsilon, epsilon_without_amplification
from fedprofile.common.ledger_entries import Reserve


def groups_of(writer):
    return group_releases(writer.chain()[0])


def test_a_run_is_two_lines(forge):
    first, training = groups_of(forge.honest(rounds=30))
    assert (first.first.task, first.releases) == ("statistics/popularity", 1)
    assert (training.releases, training.first.round, training.last_round) == (30, 1, 30)
    assert training.committed == 30
    assert training.rejected == {"late": 30}
    assert training.cohorts[0] < 50 < training.cohorts[1]
    told = training.to_dict(1.5)
    assert (told["rounds"], told["lines"], told["epsilon_after"]) == ([1, 30], [4, 62], 1.5)


def test_whatever_differs_is_a_line_of_its_own(forge):
    writer = forge.Writer().open()
    louder = forge.mechanism(noise_multiplier=3.0)
    for changes in (
        {"round": 1},
        {"round": 1},  # repeated after a crash: the same line
        {"round": 2},
        {"round": 4},
        {"round": 5, "mechanism": louder},
        {"round": 6, "mechanism": louder, "code_version": "0.2.0"},
        {"round": 7, "mechanism": louder, "code_version": "0.2.0", "run": "other"},
        {"round": None, "task": "statistics/x"},
        {"round": None, "task": "statistics/x"},
    ):
        writer.reserve(**changes)
    assert [group.releases for group in groups_of(writer)] == [3, 1, 1, 1, 1, 2]
    assert all(group.committed == 0 and group.cohorts is None for group in groups_of(writer))


@pytest.mark.usefixtures("inline_accountants")
@pytest.mark.parametrize("believed", [True, False])
def test_spending_grows_to_the_figure_that_stands(forge, tmp_path, believed):
    sizes = None if believed else [50] * 30
    path = forge.honest(rounds=30, sizes=sizes).write(tmp_path / "ledger.jsonl")
    found = verify(find_evidence(path))
    assert found.holds is believed
    groups = group_releases(found.chain)
    spent = spent_along(found.chain, groups, found.cost)
    assert list(spent) == list(range(32))
    assert spent[0] == 0
    assert spent[31] == found.cost.credited
    assert all(low <= high for low, high in pairwise(spent.values()))
    # Half way, by the other road: all at once.
    releases = [e.mechanism for e in found.chain.entries if isinstance(e, Reserve)][:16]
    if believed:
        half = epsilon([m.event() for m in releases], delta=1e-5)
    else:
        half = epsilon_without_amplification(Counter(releases), delta=1e-5)
    assert spent[16] == pytest.approx(half, rel=2e-3)


@pytest.mark.usefixtures("inline_accountants")
def test_the_curve_of_events_of_a_device_is_of_their_neighbours(forge, tmp_path):
    path = forge.events(target_epsilon=60.0).write(tmp_path / "ledger.jsonl")
    found = verify(find_evidence(path))
    spent = spent_along(found.chain, group_releases(found.chain), found.cost)
    assert spent[40] == found.cost.credited
    [step] = {e.mechanism.event() for e in found.chain.entries if isinstance(e, Reserve)}
    half = epsilon({step: 20}, delta=1e-5, adjacency="replace-one")
    assert spent[20] == pytest.approx(half, rel=2e-3)


@pytest.mark.usefixtures("inline_accountants")
def test_thousands_of_releases_are_some_dozens_of_points(forge, tmp_path):
    found = verify(find_evidence(forge.honest(rounds=1_000).write(tmp_path / "ledger.jsonl")))
    spent = spent_along(found.chain, group_releases(found.chain), found.cost)
    assert {0, 1, 1_001} <= spent.keys()
    assert len(spent) <= 83


@pytest.mark.usefixtures("inline_accountants")
def test_an_earlier_ledger_is_where_spending_starts(forge, tmp_path):
    mechanism = forge.mechanism().describe()
    earlier = {
        "ledger": "1" * 64,
        "head": "2" * 64,
        "releases": [{"mechanism": mechanism, "count": 200}],
    }
    found = verify(
        find_evidence(forge.honest(rounds=5, earlier=[earlier]).write(tmp_path / "ledger.jsonl"))
    )
    spent = spent_along(found.chain, group_releases(found.chain), found.cost)
    alone = epsilon({forge.mechanism().event(): 200}, delta=1e-5)
    assert spent[0] == pytest.approx(alone, rel=2e-3)
