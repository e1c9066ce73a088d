import pytest

from fedprofile.audit.compose import compose
from fedprofile.common.accounting import epsilon
from fedprofile.common.earlier import find_earlier
from fedprofile.common.errors import BadEntry, LedgerError
from fedprofile.common.ledger_entries import events_of, read_chain, read_ledger


def plain(earlier):
    releases = [{"mechanism": r.mechanism.describe(), "count": r.count} for r in earlier.releases]
    return {"ledger": earlier.ledger, "head": earlier.head, "releases": releases}


def test_two_runs_cost_less_together_than_added_up(forge, tmp_path):
    a = forge.honest(rounds=10, nonce="a" * 32).write(tmp_path / "a.jsonl")
    folder = tmp_path / "b"
    folder.mkdir()
    b = forge.honest(rounds=20, nonce="b" * 32, delta=1e-6).write(folder / "ledger.jsonl")
    found = compose([a, folder])
    events = [events_of(read_ledger(path)) for path in (a, b)]
    assert found.delta == 1e-6
    assert found.joint == epsilon(events[0] + events[1], delta=1e-6)
    assert [figure for _, figure in found.each] == [epsilon(e, delta=1e-6) for e in events]
    assert max(figure for _, figure in found.each) < found.joint < found.total
    assert found.others == 0
    assert found.exceeded == ()


def test_a_target_that_all_together_are_above_is_told(forge, tmp_path):
    alone = epsilon(events_of(forge.honest(rounds=10).chain()[0].entries), delta=1e-5)
    paths = [
        forge.honest(rounds=10, nonce=name * 32, target_epsilon=target).write(tmp_path / name)
        for name, target in (("a", alone * 1.01), ("b", 8.0), ("c", None))
    ]
    found = compose(paths)
    assert found.exceeded == ((paths[0], alone * 1.01),)
    told = found.to_dict()["above_target"]
    assert told == [{"ledger": str(paths[0]), "target_epsilon": alone * 1.01}]


def test_units_of_two_kinds_are_not_composed(forge, tmp_path):
    a = forge.honest(rounds=2).write(tmp_path / "a")
    b = forge.events(steps=2, population="shop").write(tmp_path / "b")
    with pytest.raises(LedgerError, match=r"within one population|other units"):
        compose([a, b])
    with pytest.raises(LedgerError, match="other units"):
        compose([b])


def test_what_was_cut_off_an_earlier_ledger_stays_spent(forge, tmp_path):
    path = forge.honest(rounds=10).write(tmp_path / "ledger.jsonl", tmp_path / "anchor.json")
    for named in (path, tmp_path):
        assert find_earlier([named], population="shop", population_size=1_000)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
    for named in (path, tmp_path):
        with pytest.raises(LedgerError, match="entries before its anchor"):
            find_earlier([named], population="shop", population_size=1_000)


def test_a_ledger_that_another_names_as_earlier_counts_once(forge, tmp_path):
    a = forge.honest(rounds=10, nonce="a" * 32).write(tmp_path / "a.jsonl")
    known = find_earlier([a], population="shop", population_size=1_000)
    b = forge.honest(rounds=5, nonce="b" * 32, earlier=[plain(e) for e in known])
    b = b.write(tmp_path / "b.jsonl")
    together = compose([a, b])
    assert together.joint == epsilon(events_of(read_ledger(b)), delta=1e-5)
    assert together.others == 0
    alone = compose([b])
    assert (alone.joint, alone.others) == (together.joint, 1)
    assert alone.total < alone.joint


def hearsay(forge, of, count, **changes):
    """What a ledger may say of another one."""
    counted = {"mechanism": forge.mechanism(**changes).describe(), "count": count}
    return [{**of, "releases": [counted]}]


def test_a_ledger_at_hand_counts_by_its_own_lines(forge, tmp_path):
    a = forge.honest(rounds=10, nonce="a" * 32).write(tmp_path / "a.jsonl")
    chain = read_chain(a)
    of_a = {"ledger": chain.identity, "head": chain.head}
    older = {**of_a, "head": chain.entries[5].previous}
    for lie in (
        hearsay(forge, of_a, 51, noise_multiplier=1_000.0),
        hearsay(forge, of_a, 10),
        hearsay(forge, older, 10),
        hearsay(forge, {**of_a, "head": "1" * 64}, 10),
        [{**of_a, "head": "1" * 64, "releases": []}],
    ):
        b = forge.honest(rounds=5, nonce="b" * 32, earlier=lie).write(tmp_path / "b.jsonl")
        for paths in ([a, b], [b, a]):
            with pytest.raises(BadEntry, match="use neither") as refused:
                compose(paths)
            assert (refused.value.path, refused.value.line) == (b, 1)


def test_two_histories_of_a_ledger_are_not_composed(forge, tmp_path):
    a, b = (forge.honest(rounds=2, seed=seed).write(tmp_path / str(seed)) for seed in (0, 1))
    with pytest.raises(BadEntry, match="use neither"):
        find_earlier([a, b], population="shop", population_size=1_000)


def test_of_a_ledger_that_nobody_has_the_most_counts_that_anybody_tells(forge, tmp_path):
    gone = {"ledger": "1" * 64, "head": "2" * 64}
    much, little = forge.mechanism().event(), forge.mechanism(noise_multiplier=1_000.0).event()
    paths = [
        forge.honest(rounds=1, nonce=name * 32, earlier=told).write(tmp_path / name)
        for name, told in (
            ("a", hearsay(forge, gone, 50)),
            ("b", hearsay(forge, gone, 51, noise_multiplier=1_000.0)),
        )
    ]
    for order in (paths, paths[::-1]):
        found = find_earlier(order, population="shop", population_size=1_000)
        [told] = [earlier for earlier in found if earlier.ledger == "1" * 64]
        assert told.events() == {much: 50, little: 51}


def test_what_can_not_be_composed(forge, tmp_path):
    a = forge.honest(rounds=1, nonce="a" * 32).write(tmp_path / "a.jsonl")
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(a.read_bytes())
    with pytest.raises(LedgerError, match="once"):
        compose([a, copy])
    for change in ({"population": "another"}, {"population_size": 2_000}):
        other = forge.honest(rounds=1, nonce="b" * 32, **change).write(tmp_path / "b.jsonl")
        with pytest.raises(LedgerError, match="within one population only"):
            compose([a, other])
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(a.read_bytes().replace(b'"round":1', b'"round":2'))
    with pytest.raises(LedgerError):
        compose([broken])
    with pytest.raises(LedgerError, match="can't read"):
        compose([tmp_path / "none.jsonl"])
