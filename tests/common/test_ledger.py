import hashlib
import json
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprofile.common.accounting import epsilon
from fedprofile.common.anchor import Anchor
from fedprofile.common.errors import BudgetError, ConfigError, LedgerError
from fedprofile.common.ledger import Ledger, find_earlier
from fedprofile.common.ledger_entries import (
    FIRST,
    Commit,
    Open,
    Reserve,
    Stop,
    events_of,
    read_chain,
    read_ledger,
    signed_by,
)
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.signing import SigningKey

DELTA = 1e-5
KEY = SigningKey.generate()


def mechanism(**changes):
    values = {
        "clip_norm": 0.5,
        "noise_multiplier": 4.0,
        "sampling_probability": 1.0,
        "population_size": 6_000,
    }
    return Mechanism(**{**values, **changes})


def create(path, *, target_epsilon=2.0, **changes):
    values = {
        "signing_key": KEY,
        "population": "shop",
        "population_size": 6_000,
        "delta": DELTA,
        "target_epsilon": target_epsilon,
        "randomness": "csprng",
        "code_version": "0.1.0",
        "config_digest": "c0ffee",
    }
    return Ledger.create(path, **{**values, **changes})


def reopen(path, **changes):
    return Ledger.open(path, **{"signing_key": KEY, "code_version": "0.1.1", **changes})


def commit(ledger, release, **changes):
    values = {"cohort_size": 12, "replies_counted": 11, "rejected": {"late": 1}}
    ledger.commit(release, **{**values, "model_after": "after", **changes})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def finished(path):
    """Open, two releases of which one is committed, stop: five lines."""
    with create(path) as ledger:
        commit(ledger, ledger.reserve(task="statistics/popularity", mechanism=mechanism()))
        ledger.reserve(task="training", mechanism=mechanism(), round=0, model_before="before")
        ledger.stop(reason="all rounds done")
    return path


def test_what_was_written_is_read_back(finished):
    opening, first, done, second, stop = read_ledger(finished)
    assert isinstance(opening, Open)
    assert (opening.population_size, opening.delta, opening.target_epsilon) == (6_000, DELTA, 2.0)
    assert (opening.unit, opening.adjacency) == ("user", "add-or-remove-one")
    assert (opening.randomness, opening.code_version, opening.config_digest) == (
        "csprng",
        "0.1.0",
        "c0ffee",
    )
    assert isinstance(first, Reserve)
    assert (first.task, first.round, first.model_before) == ("statistics/popularity", None, None)
    assert first.mechanism == mechanism()
    assert isinstance(done, Commit)
    assert (done.release, done.cohort_size, done.replies_counted) == (first.sequence, 12, 11)
    assert (done.rejected, done.model_after) == ({"late": 1}, "after")
    assert isinstance(second, Reserve)
    assert (second.task, second.round, second.model_before) == ("training", 0, "before")
    assert isinstance(stop, Stop)
    assert (stop.reason, stop.epsilon) == ("all rounds done", None)
    assert [e.sequence for e in (opening, first, done, second, stop)] == [0, 1, 2, 3, 4]


def test_whole_numbers_are_as_good_as_any(path):
    with create(path, target_epsilon=2) as ledger:
        ledger.reserve(task="training", mechanism=mechanism(clip_norm=1, sampling_probability=1))
    opening, reserve = read_ledger(path)
    assert (opening.target_epsilon, reserve.mechanism.clip_norm) == (2.0, 1)
    reopen(path).close()


def test_lines_are_canonical_json_chained_by_sha256(finished):
    previous = FIRST
    for line in finished.read_bytes().splitlines():
        content = json.loads(line)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert canonical.encode() == line
        assert content["previous"] == previous
        previous = hashlib.sha256(line).hexdigest()
    with reopen(finished) as ledger:
        assert ledger.head == previous


def test_spent_counts_every_reservation_and_equals_dp_accounting(path):
    rounds = mechanism(noise_multiplier=1.2, sampling_probability=0.05)
    with create(path, target_epsilon=None) as ledger:
        assert ledger.epsilon_spent() == 0
        ledger.reserve(task="statistics/popularity", mechanism=mechanism())
        for number in range(4):
            release = ledger.reserve(task="training", mechanism=rounds, round=number)
            if number % 2:
                commit(ledger, release)
        reference = PLDAccountant()
        reference.compose(GaussianDpEvent(4.0))
        reference.compose(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.2)), 4)
        assert ledger.epsilon_spent() == pytest.approx(reference.get_epsilon(DELTA), abs=1e-3)
        assert [entry.round for entry in ledger.pending()] == [None, 0, 2]


def test_release_beyond_the_budget_is_refused_before_it_is_written(path):
    one, two = (epsilon([GaussianDpEvent(4.0)] * n, delta=DELTA) for n in (1, 2))
    with create(path, target_epsilon=(one + two) / 2) as ledger:
        commit(ledger, ledger.reserve(task="training", mechanism=mechanism(), round=0))
        before = path.read_bytes()
        with pytest.raises(BudgetError, match=r"training, round 1, would bring ε to") as refused:
            ledger.reserve(task="training", mechanism=mechanism(), round=1)
        assert refused.value.epsilon_reached == two
        assert path.read_bytes() == before
        assert ledger.epsilon_spent() == one
        assert ledger.pending() == ()
        ledger.stop(reason="budget", epsilon=refused.value.epsilon_reached)
    assert read_ledger(path)[-1].epsilon == two


def test_budget_may_be_spent_to_the_last_digit(path):
    exact = epsilon([GaussianDpEvent(4.0)] * 2, delta=DELTA)
    with create(path, target_epsilon=exact) as ledger:
        for number in range(2):
            ledger.reserve(task="training", mechanism=mechanism(), round=number)
        assert ledger.epsilon_spent() == exact


def test_crash_between_reserve_and_commit_charges_and_is_told(path):
    if (process := os.fork()) == 0:
        create(path).reserve(task="training", mechanism=mechanism(), round=0)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    with reopen(path) as ledger:
        assert ledger.epsilon_spent() == epsilon([GaussianDpEvent(4.0)], delta=DELTA)
        (pending,) = ledger.pending()
        assert (pending.task, pending.round) == ("training", 0)
        ledger.reserve(task="training", mechanism=mechanism(), round=0)  # again: charged again
        assert ledger.epsilon_spent() == epsilon([GaussianDpEvent(4.0)] * 2, delta=DELTA)


def test_every_cut_of_the_last_line_is_mended(finished):
    whole = finished.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in range(start, len(whole)):
        finished.write_bytes(whole[:cut])
        assert len(read_ledger(finished)) == 4
        assert finished.read_bytes() == whole[:cut]  # a reader changes nothing
        with reopen(finished) as ledger:
            assert ledger.torn_bytes == cut - start
            assert ledger.stopped is None
        assert finished.read_bytes() == whole[:start]


def test_torn_tail_of_zeros_is_mended(finished):
    finished.write_bytes(finished.read_bytes() + bytes(100))
    with reopen(finished) as ledger:
        assert ledger.torn_bytes == 100
        assert len(ledger.entries) == 5


def test_ledger_goes_on_after_a_torn_line(path):
    with create(path) as ledger:
        ledger.reserve(task="training", mechanism=mechanism(), round=0)
    path.write_bytes(path.read_bytes()[:-5])
    with reopen(path) as ledger:
        assert ledger.pending() == ()
        commit(ledger, ledger.reserve(task="training", mechanism=mechanism(), round=0))
    assert [entry.kind for entry in read_ledger(path)] == ["open", "reserve", "commit"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    with create(path) as ledger:
        commit(ledger, ledger.reserve(task="training", mechanism=mechanism(), round=0))
        ledger.reserve(task="training", mechanism=mechanism(), round=1)
    content = bytearray(path.read_bytes())
    last_line = content.rstrip(b"\n").rfind(b"\n") + 1
    # The last line is fixed by nothing but the head, which an auditor keeps elsewhere.
    position = data.draw(st.integers(0, last_line - 2))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with pytest.raises(LedgerError, match="line"):
        read_ledger(path)


def swap(lines):
    lines[1], lines[2] = lines[2], lines[1]


def drop_first(lines):
    del lines[0]


def drop_middle(lines):
    del lines[2]


def repeat(lines):
    lines.append(lines[-1])


def space(lines):
    lines[-1] = lines[-1].replace(b'":', b'": ', 1)


def garbage(lines):
    lines[-1] = b"hello"


def not_an_object(lines):
    lines[-1] = b"[]"


def carriage_return(lines):
    lines[-1] += b"\r"


def blank(lines):
    lines.insert(2, b"")


@pytest.mark.parametrize(
    "damage",
    [swap, drop_first, drop_middle, repeat, space, garbage, not_an_object, carriage_return, blank],
)
def test_damage_is_refused_with_its_line(finished, damage):
    lines = finished.read_bytes().splitlines()
    damage(lines)
    finished.write_bytes(b"\n".join(lines) + b"\n")
    for reading in (read_ledger, reopen):
        with pytest.raises(LedgerError, match=r"ledger\.jsonl: line \d"):
            reading(finished)


def forge(path, *changes):
    """Rewrite the ledger with changed entries and a chain that holds."""
    previous, lines = FIRST, []
    for sequence, content in enumerate(changes):
        content = {**content, "sequence": sequence, "previous": previous}
        line = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        previous = hashlib.sha256(line).hexdigest()
        lines.append(line)
    path.write_bytes(b"\n".join(lines) + b"\n")


def test_entries_out_of_order_or_out_of_range_are_refused(finished):
    opening, first, done, second, stop = map(json.loads, finished.read_bytes().splitlines())
    forge(finished, opening, first, done, second, stop)
    assert len(read_ledger(finished)) == 5
    for entries, message in [
        ([first], "'open' entry must come first"),
        ([opening, opening], "'open' entry must come first"),
        ([opening, stop, first], "stopped"),
        ([opening, first, done, done], "release 1 isn't pending"),
        ([opening, first, {**done, "release": 0}], "release 0 isn't pending"),
        ([{**opening, "delta": 0.0}], "delta"),
        ([{**opening, "unit": "household"}], "unit"),
        ([{**opening, "version": 1}], "version 1; this program reads version 2"),
        ([{**opening, "surprise": 1}], "surprise"),
        ([opening, {**first, "kind": "refund"}], "refund"),
        ([opening, {**first, "mechanism": {"clip_norm": 1.0}}], "mechanism"),
        ([opening, first, {**done, "cohort_size": -1}], "cohort_size"),
        ([opening, first, {**done, "cohort_size": "12"}], "cohort_size"),
    ]:
        forge(finished, *entries)
        with pytest.raises(LedgerError, match=message):
            read_ledger(finished)


def test_a_ledger_is_never_overwritten(finished):
    before = finished.read_bytes()
    with pytest.raises(LedgerError, match="exists already"):
        create(finished)
    assert finished.read_bytes() == before


def test_missing_empty_and_unfinished_files_say_so(path):
    for reading in (read_ledger, reopen):
        with pytest.raises(LedgerError, match=r"can't (read|open)"):
            reading(path)
    for content in (b"", b'{"kind":"op'):
        path.write_bytes(content)
        for reading in (read_ledger, reopen):
            with pytest.raises(LedgerError, match="no complete entry"):
                reading(path)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("key", "value"),
    [("population_size", 0), ("delta", 1.0), ("target_epsilon", -1.0), ("randomness", "dice")],
)
def test_values_out_of_range_leave_no_file(path, key, value):
    with pytest.raises(ConfigError, match=key):
        create(path, **{key: value})
    assert not path.exists()


def test_one_writer_at_a_time_and_any_number_of_readers(path):
    with create(path) as ledger:
        ledger.reserve(task="training", mechanism=mechanism(), round=0)
        with pytest.raises(LedgerError, match="another process"):
            reopen(path)
        assert len(read_ledger(path)) == 2
        commit(ledger, 1)
    with reopen(path):
        pass


def test_commit_needs_a_pending_release(path):
    with create(path) as ledger:
        release = ledger.reserve(task="training", mechanism=mechanism(), round=0)
        commit(ledger, release)
        for number in (release, 0, 99):
            with pytest.raises(LedgerError, match=f"release {number} isn't pending"):
                commit(ledger, number)
        assert len(ledger.entries) == 3


def test_nothing_follows_a_stop(path):
    with create(path) as ledger:
        release = ledger.reserve(task="training", mechanism=mechanism(), round=0)
        ledger.stop(reason="stopped by hand")
        assert ledger.stopped is not None
    with reopen(path) as ledger:
        assert ledger.stopped is not None
        for attempt in (
            lambda: ledger.reserve(task="training", mechanism=mechanism(), round=1),
            lambda: commit(ledger, release),
            lambda: ledger.stop(reason="again"),
        ):
            with pytest.raises(LedgerError, match="stopped"):
                attempt()


def test_mechanism_of_another_population_is_refused(path):
    with create(path) as ledger, pytest.raises(ConfigError, match="60000 users"):
        ledger.reserve(task="training", mechanism=mechanism(population_size=60_000))


def test_without_privacy_releases_are_recorded_and_cost_everything(path):
    open_release = mechanism(clip_norm=math.inf, noise_multiplier=0.0)
    with create(path, target_epsilon=None, randomness="seeded") as ledger:
        commit(ledger, ledger.reserve(task="training", mechanism=open_release, round=0))
        assert ledger.epsilon_spent() == math.inf
        ledger.stop(reason="all rounds done", epsilon=ledger.epsilon_spent())
    _, reserve, _, stop = read_ledger(path)
    assert reserve.mechanism == open_release
    assert stop.epsilon is None


def test_a_budget_admits_no_release_without_noise(path):
    with create(path) as ledger, pytest.raises(BudgetError, match="ε to inf"):
        ledger.reserve(task="training", mechanism=mechanism(noise_multiplier=0.0))


def test_any_text_survives(path):
    text = "訓練/тест \u2028\x85 \"'\\ \t 🐇"
    with create(path, code_version=text) as ledger:
        commit(ledger, ledger.reserve(task=text, mechanism=mechanism()), rejected={text: 3})
    opening, reserve, done = read_ledger(path)
    assert (opening.code_version, reserve.task, done.rejected) == (text, text, {text: 3})


def test_each_append_is_synced_before_it_returns(path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda d: (synced.append(len(path.read_bytes().splitlines())), real(d))
    )
    with create(path) as ledger:
        release = ledger.reserve(task="training", mechanism=mechanism(), round=0)
        assert max(synced) == 2
        commit(ledger, release)
        assert max(synced) == 3


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_failed_append_closes_the_ledger_and_can_be_mended(path, monkeypatch, call):
    ledger = create(path)
    real = os.write

    def full(descriptor, content=b""):
        if call == "write":
            real(descriptor, content[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(LedgerError, match="No space left"):
        ledger.reserve(task="training", mechanism=mechanism(), round=0)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="closed"):
        ledger.reserve(task="training", mechanism=mechanism(), round=0)
    with reopen(path) as ledger:
        # A line that reached the disk whole is charged; nothing was done on it, but who knows.
        assert len(ledger.pending()) == (1 if call == "fsync" else 0)
        assert ledger.torn_bytes == (20 if call == "write" else 0)


def test_short_write_is_no_success(path, monkeypatch):
    ledger, real = create(path), os.write
    monkeypatch.setattr(os, "write", lambda d, content: real(d, content[:-1]))
    with pytest.raises(LedgerError, match="bytes written"):
        ledger.reserve(task="training", mechanism=mechanism(), round=0)
    monkeypatch.undo()
    with reopen(path) as ledger:
        assert ledger.torn_bytes > 0


def test_interrupt_in_an_append_leaves_no_second_entry_of_the_same_number(path, monkeypatch):
    ledger = create(path)

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ledger.reserve(task="training", mechanism=mechanism(), round=0)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="closed"):
        ledger.stop(reason="interrupted")
    assert len(read_ledger(path)) == 2


def test_ledger_loads_neither_torch_nor_flower():
    code = (
        "import sys; import fedprofile.common.ledger; "
        "print([m for m in ('torch', 'opacus', 'flwr') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# --- signatures, anchor, several ledgers ---------------------------------------------------------


def test_every_entry_is_signed_and_named_by_what_wrote_it(path):
    with create(path) as ledger:
        commit(ledger, ledger.reserve(task="training", mechanism=mechanism(), run="夏", round=1))
    with reopen(path) as ledger:
        ledger.reserve(task="training", mechanism=mechanism(), run="夏", round=2)
    entries = read_ledger(path)
    assert entries[0].public_key == KEY.public_key
    for line, entry in zip(path.read_bytes().splitlines(), entries, strict=True):
        content = json.loads(line)
        signature = bytes.fromhex(content.pop("signature"))
        unsigned = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY.public_key))
        public.verify(signature, unsigned.encode())  # raises where it doesn't hold
        assert signed_by(entry, KEY.public_key)
        assert not signed_by(entry, SigningKey.generate().public_key)
    reserves = [entry for entry in entries if isinstance(entry, Reserve)]
    assert [entry.code_version for entry in reserves] == ["0.1.0", "0.1.1"]
    assert {(entry.run, entry.divisor, entry.weighting) for entry in reserves} == {
        ("夏", 6_000.0, "equal")
    }


def test_a_ledger_goes_on_with_its_own_key_only(path):
    create(path).close()
    with pytest.raises(LedgerError, match="another key"):
        reopen(path, signing_key=SigningKey.generate())


def test_a_chain_rebuilt_without_the_key_is_refused(finished):
    opening, *_, second, stop = map(json.loads, finished.read_bytes().splitlines())
    forge(finished, opening, second, stop)  # a release less: its budget would be free again
    assert len(read_ledger(finished)) == 3
    with pytest.raises(LedgerError, match="last line isn't signed"):
        reopen(finished)


@pytest.fixture
def anchor(tmp_path):
    return tmp_path / "elsewhere.json"


def test_the_head_is_published_after_every_entry(path, anchor):
    with create(path, anchor=anchor) as ledger:
        for number in (1, 2, 3):
            found = Anchor.read(anchor)
            assert (found.head, found.sequence) == (ledger.head, len(ledger.entries) - 1)
            assert found.ledger == hashlib.sha256(path.read_bytes().splitlines()[0]).hexdigest()
            assert found.signed_by(KEY.public_key)
            ledger.reserve(task="training", mechanism=mechanism(), round=number)
    content = json.loads(anchor.read_bytes())
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert anchor.read_bytes() == canonical + b"\n"
    forged = {**content, "sequence": 0}
    anchor.write_text(json.dumps(forged))
    assert not Anchor.read(anchor).signed_by(KEY.public_key)


def test_a_ledger_that_is_shorter_than_its_anchor_does_not_go_on(path, anchor):
    with create(path, anchor=anchor) as ledger:
        for number in (1, 2, 3):
            ledger.reserve(task="training", mechanism=mechanism(), round=number)
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in (1, 2, 3):
        path.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(LedgerError, match=f"ends {4 - kept} entries before its anchor"):
            reopen(path, anchor=anchor)
        assert path.read_bytes() == b"".join(lines[:kept])
    path.write_bytes(b"".join(lines))
    reopen(path, anchor=anchor).close()


def test_an_anchor_is_brought_up_to_date_by_one_entry_and_no_more(path, anchor):
    states = []
    with create(path, anchor=anchor) as ledger:
        for number in (1, 2, 3):
            states.append(anchor.read_bytes())
            ledger.reserve(task="training", mechanism=mechanism(), round=number)
    states.append(anchor.read_bytes())
    for state in (b"", b"{}", states[0], states[1]):
        anchor.write_bytes(state)
        with pytest.raises(LedgerError, match="anchor"):
            reopen(path, anchor=anchor)
        assert anchor.read_bytes() == state
    anchor.unlink()
    with pytest.raises(LedgerError, match="is missing"):
        reopen(path, anchor=anchor)
    anchor.write_bytes(states[2])
    with reopen(path, anchor=anchor) as ledger:
        assert Anchor.read(anchor).head == ledger.head


def test_a_ledger_that_died_before_its_first_anchor_goes_on(path, anchor):
    create(path).close()
    with reopen(path, anchor=anchor) as ledger:
        assert Anchor.read(anchor).head == ledger.head


def test_the_anchor_of_another_ledger_is_refused(path, anchor, tmp_path):
    create(path, anchor=anchor).close()
    other = tmp_path / "other.jsonl"
    with pytest.raises(LedgerError, match="anchors a ledger already"):
        create(other, anchor=anchor)
    assert not other.exists()
    create(other).close()
    with pytest.raises(LedgerError, match="isn't the anchor of"):
        reopen(other, anchor=anchor)


def test_a_line_whose_anchor_failed_is_charged_and_the_ledger_closed(path, anchor, monkeypatch):
    ledger = create(path, anchor=anchor)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedprofile.common.anchor.write_atomically", full)
    with pytest.raises(LedgerError, match="No space left"):
        ledger.reserve(task="training", mechanism=mechanism(), round=0)
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="closed"):
        ledger.reserve(task="training", mechanism=mechanism(), round=0)
    with reopen(path, anchor=anchor) as ledger:
        assert len(ledger.pending()) == 1


def test_earlier_ledgers_count_toward_the_budget_and_are_told(path, tmp_path):
    before = tmp_path / "before.jsonl"
    with create(before) as ledger:
        for number in (1, 2):
            ledger.reserve(task="training", mechanism=mechanism(), round=number)
    earlier = find_earlier([before], population="shop", population_size=6_000)
    two, three = (epsilon([GaussianDpEvent(4.0)] * n, delta=DELTA) for n in (2, 3))
    with create(path, target_epsilon=three, earlier=earlier) as ledger:
        assert ledger.epsilon_spent() == two
        ledger.reserve(task="training", mechanism=mechanism(), round=1)
        with pytest.raises(BudgetError) as refused:
            ledger.reserve(task="training", mechanism=mechanism(), round=2)
    assert refused.value.epsilon_reached > three
    with reopen(path) as ledger:
        assert ledger.epsilon_spent() == three
    chain = read_chain(path)
    assert chain.opening.earlier[0].head == read_chain(before).head
    assert events_of(chain.entries) == {GaussianDpEvent(4.0): 3}


def test_a_ledger_named_directly_and_through_another_counts_once(path, tmp_path):
    first, second = tmp_path / "first.jsonl", tmp_path / "second"
    second.mkdir()
    with create(first) as ledger:
        ledger.reserve(task="training", mechanism=mechanism(), round=1)
        known = find_earlier([first], population="shop", population_size=6_000)
        ledger.reserve(task="training", mechanism=mechanism(), round=2)
    with create(second / "ledger.jsonl", earlier=known) as ledger:
        ledger.reserve(task="training", mechanism=mechanism(noise_multiplier=8.0), round=1)
    for paths in ([first, second], [second, first], [second, first, first]):
        found = find_earlier(paths, population="shop", population_size=6_000)
        events = sum((earlier.events() for earlier in found), Counter())
        # The first has grown since the second was opened.
        assert events == {GaussianDpEvent(4.0): 2, GaussianDpEvent(8.0): 1}


@pytest.mark.parametrize("change", [{"population": "other"}, {"population_size": 7}])
def test_budgets_of_different_populations_are_not_added(path, change):
    create(path).close()
    with pytest.raises(LedgerError, match="within one population only"):
        find_earlier([path], **{"population": "shop", "population_size": 6_000, **change})


def test_an_earlier_ledger_that_was_forged_is_refused(finished):
    opening, *_, second, _ = map(json.loads, finished.read_bytes().splitlines())
    forge(finished, opening, second)
    with pytest.raises(LedgerError, match="isn't signed"):
        find_earlier([finished], population="shop", population_size=6_000)


def test_figures_of_other_units_do_not_add_up(tmp_path):
    path = tmp_path / "events.jsonl"
    with Ledger.create(
        path,
        signing_key=SigningKey.generate(),
        population="town",
        population_size=8,
        delta=1e-5,
        target_epsilon=None,
        randomness="csprng",
        code_version="test",
        config_digest="",
        unit="event",
    ) as ledger:
        assert (ledger.opening.unit, ledger.opening.adjacency) == ("event", "replace-one")
    with pytest.raises(LedgerError, match="other units don't add up"):
        find_earlier([path], population="town", population_size=8)
