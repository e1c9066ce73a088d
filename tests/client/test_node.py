"""A device in its federation: what it does with tasks and models, whoever sends them and whatever dies."""

import datetime as dt
import hashlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from safetensors.numpy import load_file

from fedprofile.client import fit as fit_module
from fedprofile.client import node as node_module
from fedprofile.client.answers import EraseProfileRequest
from fedprofile.client.conditions import Conditions
from fedprofile.client.device import Device
from fedprofile.client.device_config import PolicyConfig
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.diary import Diary
from fedprofile.client.fit import answer
from fedprofile.client.lifetime import LifetimeBudget
from fedprofile.client.model_bundle import current_name
from fedprofile.client.model_delivery import join_server, keep_release
from fedprofile.client.node import Node
from fedprofile.client.outbox import Outbox
from fedprofile.client.withdrawal import withdraw_answers
from fedprofile.common.errors import (
    BudgetError,
    DataError,
    DeviceError,
    MessageError,
    NotAdmitted,
    NotTaken,
    RunOver,
    StoreError,
    TaskRefused,
    Unreachable,
)
from fedprofile.common.ledger_entries import Commit, Reserve, read_ledger
from fedprofile.common.messages import (
    Binding,
    Release,
    TrainTask,
    read_hosting,
    read_update,
    release_message,
    train_message,
)
from fedprofile.common.releases import Manifest
from fedprofile.common.server_bundle import ServerBundle, write_bundle
from fedprofile.common.signing import SigningKey
from fedprofile.common.weights import hash_of_weights
from fedprofile.simulations.loopback import Loopback

pytestmark = pytest.mark.usefixtures("grid_of_nobody")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Loopback(tmp_path_factory.mktemp("made"), devices=2)


@pytest.fixture
def device(made, tmp_path):
    """A device of its own for each test."""
    import shutil

    shutil.copytree(made.folder / "0", tmp_path / "0")
    return DeviceFolder.open(tmp_path / "0")


@pytest.fixture
def key(made):
    return SigningKey.load(made.server.signing_key)


@pytest.fixture
def bundle(device):
    return ServerBundle.load(device.server)


class Owner:
    """Agrees, until told otherwise."""

    def __init__(self):
        self.agrees, self.rests = True, False

    def consents(self):
        return self.agrees

    def paused(self):
        return self.rests


class FakeFleet:
    """Hands out messages, takes replies, and fails on request."""

    def __init__(self, *messages):
        self.messages, self.pushed, self.number, self.fails = list(messages), [], 7, None

    def pull(self):
        return self.messages.pop(0) if self.messages else None

    def push(self, reply):
        if self.fails:
            raise self.fails
        self.pushed.append(reply)

    def beat(self):
        return True


@pytest.fixture
def node(device, monkeypatch):
    """A node whose training is done in this process."""

    class Fit:
        def __init__(self, folder, name, instruction):
            self.name, self.instruction, self.code, self.seconds = name, instruction, 0, 0.1
            self.made = folder.path / "made"
            self.made.write_text(str(int(self.made.read_text()) + 1) if self.made.exists() else "1")
            answer(folder, instruction)

        def running(self):
            return False

        def kill(self):
            pass

    monkeypatch.setattr(node_module, "_Fit", Fit)
    return Node(device, Owner(), conditions=Conditions)


def work(node, fleet):
    """Until there is nothing left to do; what was sent."""
    node._hand_over(fleet)
    while node._receive(fleet):
        node._tend_fit()
        node._hand_over(fleet)
    return fleet.pushed


def task_of(bundle, *, release=5, sign=None, number=7, **changes):
    weights = load_file(bundle.model)
    facts = bundle.facts
    values = {
        "binding": Binding(
            run=facts.federation,
            round=release,
            release=release,
            items=facts.items,
            model=hash_of_weights(weights),
        ),
        "devices": np.array([3]),
        "weights": weights,
        "prior": np.zeros(bundle.items.n_items, dtype=np.float32),
        "vectors": np.zeros((bundle.items.n_items, 0), dtype=np.float32),
        "steps": 1,
        "learning_rate": 0.5,
        "negatives": 4,
        "dropout": 0.0,
        "new_targets_only": True,
        "clip_norm": 0.2,
        "noise_multiplier": 4.0,
        "seed": 3,
    }
    task = TrainTask(**{**values, **changes})
    message = train_message(number, task, sign=sign)
    message.metadata.__dict__["_message_id"] = f"{release:064d}"
    return message, task


def reasons(replies):
    return [reply.error.reason if reply.has_error() else "update" for reply in replies]


def charged(device):
    entries = read_ledger(device.ledger) if device.ledger.exists() else ()
    return [entry.answers for entry in entries if isinstance(entry, Reserve)]


def test_a_task_is_trained_paid_for_and_answered(node, device, bundle, key):
    message, task = task_of(bundle, sign=key.sign)
    (reply,) = work(node, FakeFleet(message))
    shapes = {name: weight.shape for name, weight in task.weights.items()}
    update = read_update(reply, binding=task.binding, shapes=shapes)
    assert update.devices == 1
    assert 0 < update.norm <= 0.2 * 1.0001
    assert charged(device) == [5]
    assert sum(isinstance(entry, Commit) for entry in read_ledger(device.ledger)) == 1


def test_a_task_that_leaves_something_out_is_trained_so(node, device, bundle, key):
    updates = []
    for release, share in ((5, 0.0), (6, 0.5)):
        message, task = task_of(bundle, release=release, sign=key.sign, dropout=share)
        reply = work(node, FakeFleet(message))[-1]
        shapes = {name: weight.shape for name, weight in task.weights.items()}
        update = read_update(reply, binding=task.binding, shapes=shapes)
        updates.append(np.concatenate([update.arrays[n].ravel() for n in sorted(update.arrays)]))
    whole, some = updates
    assert np.linalg.norm(whole - some) > 0.01 * np.linalg.norm(whole) > 0


def test_a_task_that_leaves_out_everything_is_refused_before_it_is_paid_for(
    node, device, bundle, key
):
    message, _ = task_of(bundle, sign=key.sign, dropout=1.0)
    assert reasons(work(node, FakeFleet(message))) == ["MessageError"]
    assert charged(device) == []


def test_asked_again_before_it_was_sent_the_answer_is_the_old_one(node, device, bundle, key):
    first, _ = task_of(bundle, sign=key.sign)
    again, _ = task_of(bundle, sign=key.sign)
    again.metadata.__dict__["_message_id"] = "f" * 64
    fleet = FakeFleet(first, again)
    node._receive(fleet)
    node._tend_fit()
    ((_, one),) = node._outbox.waiting()
    node._receive(fleet)
    node._hand_over(fleet)
    (two,) = fleet.pushed
    assert (device.path / "made").read_text() == "1"
    assert two.metadata.reply_to_message_id == "f" * 64
    for name, array in one.content["update"].items():
        assert array.data == two.content["update"][name].data
    assert charged(device) == [5]


def test_asked_again_after_it_was_sent_it_makes_no_other(node, device, bundle, key):
    messages = [task_of(bundle, sign=key.sign)[0] for _ in range(2)]
    assert reasons(work(node, FakeFleet(*messages))) == ["update", "stale"]
    assert (device.path / "made").read_text() == "1"
    assert charged(device) == [5]


def test_of_a_reply_that_was_sent_nothing_is_kept(node, device, bundle, key):
    work(node, FakeFleet(task_of(bundle, sign=key.sign)[0]))
    (sent,) = device.outbox.glob("*.sent")
    assert sent.stat().st_size == 0


def test_what_was_made_of_erased_events_is_never_sent(node, device, bundle, key):
    fleet = FakeFleet(task_of(bundle, sign=key.sign)[0])
    fleet.fails = Unreachable("gone")
    with pytest.raises(Unreachable):
        work(node, fleet)
    device.fit_log.write_bytes(b"...")
    with Device(device) as opened:
        opened.erase(EraseProfileRequest(before=1))
    assert list(device.outbox.iterdir()) == [device.diary]
    assert not device.fit_log.exists()
    again = task_of(bundle, sign=key.sign)[0]
    assert reasons(work(node, FakeFleet(again))) == ["stale"]
    assert charged(device) == [5]


@pytest.mark.parametrize("everything", [False, True])
def test_erasing_reaches_an_answer_in_the_making(
    node, device, bundle, key, monkeypatch, everything
):
    train = fit_module._by_the_client_app

    def interrupted(folder, *arguments):
        reply = train(folder, *arguments)
        with Device(folder) as opened:
            chosen = {"everything": True} if everything else {"before": 1}
            opened.erase(EraseProfileRequest(**chosen))
        return reply

    monkeypatch.setattr(fit_module, "_by_the_client_app", interrupted)
    replies = work(node, FakeFleet(task_of(bundle, sign=key.sign)[0]))
    assert reasons(replies) == ["failed"]
    assert charged(device) == [5]
    assert not any(isinstance(entry, Commit) for entry in read_ledger(device.ledger))


def test_a_fit_that_is_killed_before_it_commits_is_not_repeated(device, bundle, key, monkeypatch):
    """The answer may have gone out, and its copy and the diary with it."""
    message, _ = task_of(bundle, sign=key.sign)

    def killed(self, charge):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LifetimeBudget, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            answer(device, message)
    for path in device.outbox.iterdir():
        path.unlink()
    answer(device, message)
    ((_, reply),) = Outbox(device.outbox).waiting()
    assert reasons([reply]) == ["stale"]
    assert charged(device) == [5]


def test_forgetting_everything_keeps_the_diary(node, device, bundle, key):
    work(node, FakeFleet(task_of(bundle, sign=key.sign)[0]))
    before = Diary.read(device.diary)
    with Device(device) as opened:
        opened.erase(EraseProfileRequest(everything=True))
    assert before.releases
    assert Diary.read(device.diary) == before
    again = task_of(bundle, sign=key.sign)[0]
    assert reasons(work(node, FakeFleet(again)))[-1] == "stale"
    assert (device.path / "made").read_text() == "1"


def test_an_answer_waits_for_the_process_that_makes_it(node, bundle, key):
    fleet = FakeFleet(task_of(bundle, sign=key.sign)[0])
    node._receive(fleet)
    node._hand_over(fleet)
    assert fleet.pushed == []
    node._tend_fit()
    node._hand_over(fleet)
    assert reasons(fleet.pushed) == ["update"]


def test_an_answer_that_is_kept_no_longer_is_not_made_again(node, device, bundle, key):
    message, _ = task_of(bundle, sign=key.sign)
    work(node, FakeFleet(message))
    for path in device.outbox.iterdir():
        path.unlink()  # as on a disk that was put back
    again, _ = task_of(bundle, sign=key.sign)
    assert reasons(work(node, FakeFleet(again))) == ["stale"]
    assert charged(device) == [5]


def test_a_crash_before_sending_sends_the_same_bytes(node, device, bundle, key):
    message, _ = task_of(bundle, sign=key.sign)
    fleet = FakeFleet(message)
    fleet.fails = Unreachable("gone")
    with pytest.raises(Unreachable):
        work(node, fleet)
    ((_, kept),) = Outbox(device.outbox).waiting()
    (sent,) = work(Node(device, Owner(), conditions=Conditions), FakeFleet())
    assert sent.object_id == kept.object_id
    assert charged(device) == [5]


def test_a_reply_that_nobody_waits_for_is_done_with(node, device, bundle, key):
    message, _ = task_of(bundle, sign=key.sign)
    fleet = FakeFleet(message)
    fleet.fails = RunOver("over")
    assert work(node, fleet) == []
    assert Outbox(device.outbox).waiting() == []
    fleet.fails = NotAdmitted("revoked")
    fleet.messages.append(task_of(bundle, release=6, sign=key.sign)[0])
    with pytest.raises(NotAdmitted):
        work(node, fleet)
    assert len(Outbox(device.outbox).waiting()) == 1


def test_a_reply_that_is_broken_off_is_kept_and_holds_up_no_other(node, device, bundle, key):
    messages = [task_of(bundle, release=number, sign=key.sign)[0] for number in (5, 6)]
    fleet = FakeFleet(*messages)
    fleet.fails = NotTaken("broke off a reply")
    work(node, fleet)
    kept = [reply.object_id for _, reply in Outbox(device.outbox).waiting()]
    assert len(kept) == 2  # the second task was taken and answered, too
    assert Diary.read(device.diary).broken == 3  # the first reply was offered twice
    fleet.fails = None
    sent = work(Node(device, Owner(), conditions=Conditions), fleet)
    assert [reply.object_id for reply in sent] == kept
    assert reasons(sent) == ["update", "update"]
    assert (device.path / "made").read_text() == "2"
    assert charged(device) == [5, 6]


def test_what_is_not_the_servers_or_not_wanted_is_declined_by_a_word(node, device, bundle, key):
    def other_weights(task_weights):
        return {name: weight + 1 for name, weight in task_weights.items()}

    stranger = SigningKey.generate().sign
    weights = load_file(bundle.model)
    cases = [
        (task_of(bundle, release=1), "signature"),
        (task_of(bundle, release=2, sign=stranger), "signature"),
        (task_of(bundle, release=3, sign=key.sign, weights=other_weights(weights)), "model"),
        (task_of(bundle, release=4, sign=key.sign, noise_multiplier=0.1), "noise"),
        (task_of(bundle, release=5, sign=key.sign, clip_norm=5.0), "clip"),
        (task_of(bundle, release=6, sign=key.sign, clip_norm=float("inf")), "clip"),
    ]
    replies = work(node, FakeFleet(*(message for (message, _), _ in cases)))
    assert reasons(replies) == [word for _, word in cases]
    assert charged(device) == []
    assert not (device.path / "made").exists()


def test_numbers_that_fit_no_item_are_refused_before_anything_is_paid(node, device, bundle, key):
    n_items = bundle.items.n_items
    holes = np.full(n_items, np.nan, dtype=np.float32)
    cases = [
        {"vectors": np.zeros((n_items, 3), dtype=np.float32)},  # this table has no room for any
        {"vectors": np.zeros((n_items - 1, 0), dtype=np.float32)},
        {"prior": holes},
    ]
    messages = [
        task_of(bundle, release=number, sign=key.sign, **case)[0]
        for number, case in enumerate(cases, 1)
    ]
    assert reasons(work(node, FakeFleet(*messages))) == ["MessageError"] * 3
    assert charged(device) == []


def test_a_task_of_another_federation_or_kind_is_an_error(node, bundle, key):
    _, task = task_of(bundle)
    elsewhere = replace(task, binding=replace(task.binding, run="elsewhere"))
    items = replace(task, binding=replace(task.binding, items="0" * 64))
    messages = [train_message(7, other, sign=key.sign) for other in (elsewhere, items)]
    messages += [
        Message(RecordDict(), dst_node_id=7, message_type=kind)
        for kind in ("query.hosting", "evaluate", "query.release", "train")
    ]
    for number, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = f"../../{number}/\0…"
    found = reasons(work(node, FakeFleet(*messages)))
    assert found == ["MessageError"] * 5 + ["signature"]


def test_the_owner_decides_and_is_asked_each_time(node, device, bundle, key):
    owner = node._owner
    for release, change, word in ((1, "agrees", "consent"), (2, "rests", "paused")):
        setattr(owner, change, not getattr(owner, change))
        message, _ = task_of(bundle, release=release, sign=key.sign)
        assert reasons(work(node, FakeFleet(message)))[-1:] == [word]
        setattr(owner, change, not getattr(owner, change))
    message, _ = task_of(bundle, release=3, sign=key.sign)
    assert reasons(work(node, FakeFleet(message))) == ["update"]


def test_an_update_stays_when_the_owner_no_longer_agrees(node, device, bundle, key):
    message, _ = task_of(bundle, sign=key.sign)
    fleet = FakeFleet(message)
    fleet.fails = Unreachable("gone")
    with pytest.raises(Unreachable):
        work(node, fleet)
    node._owner.agrees = False
    fleet.fails = None
    assert work(node, fleet) == []
    assert Outbox(device.outbox).waiting() == []


@pytest.mark.parametrize("held_back", ["paused", "metered"])
def test_an_update_waits_while_the_owner_would_not_have_it_sent(
    node, device, bundle, key, held_back, monkeypatch
):
    monkeypatch.setattr(node_module, "_METERED_FOR", 0.0)
    message, _ = task_of(bundle, sign=key.sign)
    fleet = FakeFleet(message)
    fleet.fails = Unreachable("gone")
    with pytest.raises(Unreachable):
        work(node, fleet)
    fleet.fails = None
    if held_back == "paused":
        node._owner.rests = True
    else:
        node._conditions = lambda: Conditions(metered=True)
    later, _ = task_of(bundle, release=2, sign=key.sign)
    fleet.messages.append(later)
    assert reasons(work(node, fleet)) == [held_back]  # that word goes out, the update doesn't
    assert len(Outbox(device.outbox).waiting()) == 1
    node._owner.rests, node._conditions = False, Conditions
    assert reasons(work(node, fleet))[1:] == ["update"]


def test_erasing_meets_a_reply_that_is_being_sent(node, device, bundle, key, monkeypatch):
    message, _ = task_of(bundle, sign=key.sign)
    fleet = FakeFleet(message)
    fleet.fails = Unreachable("gone")
    with pytest.raises(Unreachable):
        work(node, fleet)
    listed = Path.iterdir

    def sent_meanwhile(path):
        files = list(listed(path))
        for file in files:
            if file.suffix == ".reply":
                file.unlink()
        return iter(files)

    monkeypatch.setattr(Path, "iterdir", sent_meanwhile)
    withdraw_answers(device)


def test_rounds_a_day_and_releases_are_counted(device, bundle, key, node):
    text = device.config_file.read_text().replace("rounds_per_day = 1000", "rounds_per_day = 1")
    device.config_file.write_text(text)
    limited = Node(DeviceFolder.open(device.path), Owner(), conditions=Conditions)
    messages = [task_of(bundle, release=number, sign=key.sign)[0] for number in (5, 6)]
    assert reasons(work(limited, FakeFleet(*messages))) == ["update", "quota"]
    today = dt.datetime.now(dt.UTC).date().isoformat()
    diary = Diary.read(device.outbox / "diary.json")
    assert (diary.day, diary.rounds) == (today, 1)
    older, _ = task_of(bundle, release=4, sign=key.sign)
    assert reasons(work(limited, FakeFleet(older))) == ["stale"]


def test_a_spent_lifetime_is_declined(device, bundle, key, node):
    policy = PolicyConfig(idle=False, power=False, lifetime_epsilon=1.0).lifetime_epsilon
    text = device.config_file.read_text().replace(
        "lifetime_epsilon = 30.0", f"lifetime_epsilon = {policy}"
    )
    device.config_file.write_text(text)
    spent = Node(DeviceFolder.open(device.path), Owner(), conditions=Conditions)
    message, _ = task_of(bundle, sign=key.sign, noise_multiplier=1.0)
    assert reasons(work(spent, FakeFleet(message))) == [BudgetError.__name__]
    assert charged(device) == []


def test_a_task_that_names_others_too_is_refused(node, device, bundle, key):
    message, _ = task_of(bundle, sign=key.sign, devices=np.array([3, 4]))
    with pytest.raises(MessageError, match="here is one"):
        answer(device, message)


def test_training_that_dies_is_told(device, bundle, key, monkeypatch):
    class Dead:
        seconds, code = 1.0, -9

        def __init__(self, folder, name, instruction):
            self.name, self.instruction = name, instruction

        def running(self):
            return False

        def kill(self):
            pass

    monkeypatch.setattr(node_module, "_Fit", Dead)
    message, _ = task_of(bundle, sign=key.sign)
    replies = work(Node(device, Owner(), conditions=Conditions), FakeFleet(message))
    assert reasons(replies) == ["failed"]


def test_training_ends_when_the_owner_changes_their_mind(device, bundle, key, monkeypatch):
    ended = threading.Event()

    class Endless:
        seconds, code = 1.0, None

        def __init__(self, folder, name, instruction):
            self.name, self.instruction = name, instruction

        def running(self):
            return not ended.is_set()

        def kill(self):
            ended.set()

    monkeypatch.setattr(node_module, "_Fit", Endless)
    node = Node(device, Owner(), conditions=Conditions)
    fleet = FakeFleet(task_of(bundle, sign=key.sign)[0])
    node._receive(fleet)
    node._tend_fit()
    assert not ended.is_set()
    node._owner.rests = True
    node._tend_fit()
    assert ended.is_set()
    node._hand_over(fleet)
    assert reasons(fleet.pushed) == ["paused"]


def release_of(bundle, key, *, number=5, round_=2, value=0.25, **changes):
    from safetensors.numpy import save

    weights = {name: weight + np.float32(value) for name, weight in load_file(bundle.model).items()}
    from safetensors import safe_open

    with safe_open(bundle.model, framework="np") as file:
        metadata = file.metadata()
    model = save(weights, {**metadata, "hash": hash_of_weights(weights)})
    popularity = np.full(bundle.items.n_items, -1.0, dtype="<f4").tobytes()
    values = {
        "federation": bundle.facts.federation,
        "round": round_,
        "release": number,
        "model": hashlib.sha256(model).hexdigest(),
        "statistics": hashlib.sha256(popularity).hexdigest(),
        "weights": hash_of_weights(weights),
        "parent": None,
        "items": bundle.facts.items,
        "epsilon": 1.0,
        "delta": 1e-3,
        "time": "2026-05-01T00:00:00+00:00",
    }
    manifest = Manifest(**{**values, **changes}).signed(key)
    return Release(manifest.to_json(), model, popularity)


def test_a_released_model_is_put_to_use(node, device, bundle, key):
    before = current_name(device)
    message = release_message(7, release_of(bundle, key))
    message.metadata.__dict__["_message_id"] = "a" * 64
    (reply,) = work(node, FakeFleet(message))
    assert len(read_hosting(reply)) == 1
    assert current_name(device) != before
    with Device(device) as opened:
        assert opened.status().learned == 12  # the profile is kept, by the new encoder


def test_a_model_is_taken_without_consent_and_said_to_be(device, bundle, key):
    """Nothing of the owner is in the answer, and the server would wait for it."""
    owner = Owner()
    owner.agrees = False
    message = release_message(7, release_of(bundle, key))
    message.metadata.__dict__["_message_id"] = "a" * 64
    node = Node(device, owner, conditions=Conditions)
    (reply,) = work(node, FakeFleet(message))
    assert len(read_hosting(reply)) == 1


def test_a_model_that_is_not_the_servers_or_old_changes_nothing(device, bundle, key):
    keep_release(device, bundle, release_of(bundle, key, number=9, round_=4))
    before = current_name(device)
    good = release_of(bundle, key, number=10, round_=5, value=0.5)
    cases = [
        (release_of(bundle, SigningKey.generate()), "signature"),
        (replace(good, manifest="{}"), "signature"),
        (replace(good, model=good.model + b"x"), "model"),
        (replace(good, statistics=good.statistics[4:]), "model"),
        (release_of(bundle, key, federation="other"), "model"),
        (release_of(bundle, key, items="0" * 64), "model"),
        (release_of(bundle, key, number=8, round_=3), "stale"),
    ]
    for release, word in cases:
        with pytest.raises(TaskRefused) as error:
            keep_release(device, bundle, release)
        assert error.value.reason == word
        assert current_name(device) == before
    junk = b"not a model"
    digest = hashlib.sha256(junk).hexdigest()
    signed = release_of(bundle, key, number=11, round_=6, model=digest)
    with pytest.raises(DataError):
        keep_release(device, bundle, replace(signed, model=junk))
    assert current_name(device) == before
    assert keep_release(device, bundle, good) != before


def test_a_popularity_of_other_items_is_declined(node, device, bundle, key):
    before = current_name(device)
    for popularity in (b"", b"\0" * 3, b"\0" * (4 * bundle.items.n_items + 4)):
        digest = hashlib.sha256(popularity).hexdigest()
        release = replace(release_of(bundle, key, statistics=digest), statistics=popularity)
        message = release_message(7, release)
        message.metadata.__dict__["_message_id"] = digest
        assert reasons(work(node, FakeFleet(message))) == ["MessageError"]
    assert current_name(device) == before


def test_another_server_begins_anew_and_asks_for_consent_again(node, device, bundle, key, tmp_path):
    def joined(signing_key):
        write_bundle(
            tmp_path / "other.zip",
            facts=bundle.facts.model_copy(update={"signing_key": signing_key.public_key}),
            ca=bundle.ca.read_bytes(),
            items=(bundle.folder / "items.safetensors").read_bytes(),
            model=bundle.model.read_bytes(),
        )
        return join_server(device, tmp_path / "other.zip")

    def consents():
        with Device(device) as opened:
            return opened.status().consent

    keep_release(device, bundle, release_of(bundle, key, number=9, round_=4))
    fleet = FakeFleet(task_of(bundle, sign=key.sign)[0])
    fleet.fails = Unreachable("gone")
    with pytest.raises(Unreachable):
        work(node, fleet)
    joined(key)
    assert consents()
    assert len(node._outbox.waiting()) == 1
    other = SigningKey.generate()
    new = joined(other)
    assert not consents()
    assert list(device.outbox.iterdir()) == [device.diary]
    keep_release(device, new, release_of(new, other, number=2, round_=1))
    moved = Node(device, Owner(), conditions=Conditions)
    assert reasons(work(moved, FakeFleet(task_of(new, release=2, sign=other.sign)[0]))) == [
        "update"
    ]


def test_a_ledger_for_life_takes_no_other_federation(node, device, bundle, key, tmp_path):
    work(node, FakeFleet(task_of(bundle, sign=key.sign)[0]))
    write_bundle(
        tmp_path / "other.zip",
        facts=bundle.facts.model_copy(update={"federation": "other"}),
        ca=bundle.ca.read_bytes(),
        items=(bundle.folder / "items.safetensors").read_bytes(),
        model=bundle.model.read_bytes(),
    )
    with pytest.raises(DeviceError, match="can't count for 'other'"):
        join_server(device, tmp_path / "other.zip")
    assert ServerBundle.load(device.server).facts.federation == bundle.facts.federation
    device.ledger.unlink()  # nothing given yet
    join_server(device, tmp_path / "other.zip")
    assert ServerBundle.load(device.server).facts.federation == "other"


def test_a_server_whose_encoder_cannot_be_used_replaces_nothing(device, bundle, tmp_path):
    write_bundle(
        tmp_path / "bad.zip",
        facts=bundle.facts.model_copy(update={"signing_key": "0" * 64}),
        ca=b"other",
        items=(bundle.folder / "items.safetensors").read_bytes(),
        model=b"no model",
    )
    before, model = bundle.ca.read_bytes(), current_name(device)
    with pytest.raises(DataError):
        join_server(device, tmp_path / "bad.zip")
    assert bundle.ca.read_bytes() == before
    assert ServerBundle.load(device.server).facts == bundle.facts
    assert current_name(device) == model


def test_a_full_disk_and_a_store_in_use_end_no_node(device, bundle, key, monkeypatch):
    """What goes wrong in one session is tried again in the next, until the owner ends it."""
    node = Node(device, Owner(), conditions=Conditions)
    stop, sessions = threading.Event(), []
    troubles = [
        OSError(28, "No space left on device"),
        StoreError("busy"),
        Unreachable("away"),
        NotAdmitted("revoked"),
        TypeError("a task of other types"),
        ValueError("no number of a whole array"),
    ]

    def session(self, stop):
        sessions.append(1)
        if not troubles:
            stop.set()
            return
        raise troubles.pop(0)

    monkeypatch.setattr(Node, "_session", session)
    monkeypatch.setattr(node_module, "_PAUSES", (0.001, 0.002))
    monkeypatch.setattr(node_module, "_SHUT_OUT", 0.001)
    node.run(stop)
    assert len(sessions) == 7


def join_another(device):
    facts = json.loads(device.server_facts.read_bytes())
    other = {**facts, "signing_key": SigningKey.generate().public_key, "address": "127.0.0.1:9"}
    device.server_facts.write_text(json.dumps(other), encoding="utf-8")


def test_what_is_agreed_to_is_the_server_that_was_joined_last(node, device, bundle, key):
    """A process that runs meanwhile knows the one before: its tasks are no longer answered."""
    fleet = FakeFleet(*(task_of(bundle, release=n, sign=key.sign)[0] for n in (1, 2)))
    fleet.fails = Unreachable("gone")
    with pytest.raises(Unreachable):
        work(node, fleet)
    join_another(device)
    fleet.fails = None
    assert reasons(work(node, fleet)) == ["consent"]  # the update that waited isn't sent either
    assert charged(device) == [1]
    node._load_server()
    assert node._bundle.facts.address == "127.0.0.1:9"
    assert node._agrees()


@pytest.fixture
def killed(monkeypatch):
    """Training goes on until it is killed; the names of what was."""
    killed = []

    class Endless(node_module._Fit):
        def __init__(self, folder, name, instruction):
            self.name, self.instruction, self.code, self.seconds = name, instruction, None, 1.0

        def running(self):
            return True

        def kill(self):
            killed.append(self.name)

    monkeypatch.setattr(node_module, "_Fit", Endless)
    return killed


def test_training_for_a_server_that_was_left_ends_without_an_answer(
    node, device, bundle, key, killed
):
    node._receive(FakeFleet(task_of(bundle, sign=key.sign)[0]))
    node._tend_fit()
    assert killed == []
    join_another(device)
    node._tend_fit()
    assert len(killed) == 1
    assert node._fit is None
    assert Outbox(device.outbox).waiting() == []


def test_training_ends_where_its_owner_has_enough_of_it_also_without_a_connection(
    node, bundle, key, killed
):
    """The server is out of reach for half an hour; the process would go on until then."""
    node._receive(FakeFleet(task_of(bundle, sign=key.sign)[0]))
    waits = []

    class Stop:
        def is_set(self):
            return len(waits) == 5

        def wait(self, seconds):
            waits.append(seconds)
            node._owner.rests = len(waits) >= 3

    node._rest(Stop(), 1800.0)
    assert len(killed) == 1
    assert max(waits[:3]) < 1  # looked at again and again; then there is nothing to look at
    assert min(waits[3:]) > 1700
    assert reasons(work(node, FakeFleet())) == ["paused"]


def test_pauses_begin_anew_after_a_connection_that_held(node, monkeypatch):
    """Held for longer than the pause that would follow, that is; None: no connection was made."""
    lives = [None] * 4 + [5.0, 40.0, 0.5, 0.5, 30.0] + [None] * 7
    now, pauses = 1000.0, []

    class Stop:
        def is_set(self):
            return len(pauses) == len(lives)

        def wait(self, seconds):
            nonlocal now
            pauses.append(seconds)
            now += seconds

    def session(stop):
        nonlocal now
        life = lives[len(pauses)]
        if life is not None:
            node._connected, now = now, now + life
        raise Unreachable("gone")

    monkeypatch.setattr(node, "_session", session)
    monkeypatch.setattr(node_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(node_module.random, "uniform", lambda low, high: (low + high) / 2)
    node.run(Stop())
    assert pauses == [1, 2, 4, 8, 16, 1, 2, 4, 1, 2, 4, 8, 16, 32, 60, 60]
