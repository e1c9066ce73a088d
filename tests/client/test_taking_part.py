"""What a device checks before it works for a server, and what it keeps of what it answered."""

import datetime as dt
import json
import os

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from fedprofile.client.conditions import Conditions, read_conditions
from fedprofile.client.device_config import PolicyConfig
from fedprofile.client.diary import Diary
from fedprofile.client.fleet import encode
from fedprofile.client.outbox import Outbox, name_of
from fedprofile.client.policy import check_conditions, check_promise
from fedprofile.common.errors import REFUSALS, TaskRefused
from fedprofile.common.messages import (
    Binding,
    PopularityTask,
    check_signature,
    popularity_message,
    refusal,
    update_reply,
)
from fedprofile.common.signing import SigningKey
from fedprofile.common.updates import ClippedUpdate

BINDING = Binding(run="r", round=0, release=1, items="i")
TODAY = dt.date(2026, 5, 1)


def asking(binding=BINDING, **named):
    task = PopularityTask(
        binding=binding,
        devices=np.arange(1),
        clip_norm=1.0,
        noise_multiplier=2.0,
        half_lives_days=(),
        now=0,
    )
    return popularity_message(9, task, **named)


def reply(message, value=0.5):
    arrays = {"popularity": np.full((2, 3), value / 10, dtype=np.float32)}
    return update_reply(message, BINDING, ClippedUpdate(arrays, devices=1, clip_norm=1.0))


def refused(call, *arguments, **named):
    with pytest.raises(TaskRefused) as error:
        call(*arguments, **named)
    assert error.value.reason in REFUSALS
    return error.value.reason


def test_what_the_system_does_not_tell_holds_nobody_back():
    check_conditions(PolicyConfig(), Conditions())


def test_conditions_the_owner_does_not_want_are_refused():
    for conditions, reason in (
        (Conditions(on_power=False), "power"),
        (Conditions(battery=0.29), "battery"),
        (Conditions(idle=False), "idle"),
        (Conditions(metered=True), "metered"),
    ):
        assert refused(check_conditions, PolicyConfig(), conditions) == reason
    relaxed = PolicyConfig(power=False, idle=False, unmetered=False, minimum_battery=0)
    check_conditions(relaxed, Conditions(on_power=False, battery=0.0, idle=False, metered=True))


@given(noise=st.floats(0, 10), clip=st.floats(1e-6, 10))
def test_a_promise_is_kept_to_the_letter(noise, clip):
    policy = PolicyConfig(minimum_noise_multiplier=0.7, maximum_clip_norm=0.3)
    if noise >= 0.7 and clip <= 0.3:
        check_promise(policy, clip_norm=clip, noise_multiplier=noise)
    else:
        reason = refused(check_promise, policy, clip_norm=clip, noise_multiplier=noise)
        assert reason == ("noise" if noise < 0.7 else "clip")


def test_an_unbounded_update_is_never_agreed_to():
    policy = PolicyConfig(minimum_noise_multiplier=0, maximum_clip_norm=1e9)
    assert refused(check_promise, policy, clip_norm=float("inf"), noise_multiplier=1.0) == "clip"


def supply(folder, name, **values):
    (folder / name).mkdir()
    for key, value in values.items():
        (folder / name / key).write_text(f"{value}\n")


def test_power_is_read_off_the_system(tmp_path):
    assert read_conditions(tmp_path).on_power is None  # a desktop tells nothing
    supply(tmp_path, "AC", type="Mains", online=0)
    assert read_conditions(tmp_path).on_power is None  # without a battery it must be powered
    supply(tmp_path, "BAT0", type="Battery", capacity=42)
    supply(tmp_path, "mouse", type="Battery", capacity=3, scope="Device")
    found = read_conditions(tmp_path)
    assert (found.on_power, found.battery) == (False, 0.42)
    (tmp_path / "AC" / "online").write_text("1\n")
    assert read_conditions(tmp_path).on_power is True


def test_idle_is_a_load_below_half_a_core_each(tmp_path, monkeypatch):
    cores = os.cpu_count() or 1
    for load, idle in ((0.49 * cores, True), (0.51 * cores, False)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 9.0, 9.0))
        assert read_conditions(tmp_path).idle is idle


def test_rounds_a_day_are_counted_across_restarts(tmp_path):
    path = tmp_path / "diary.json"
    for release in (1, 2):
        diary = Diary.read(path).begun("r", release, today=TODAY, rounds_per_day=2)
        diary.write(path)
    with pytest.raises(TaskRefused, match="quota"):
        Diary.read(path).begun("r", 3, today=TODAY, rounds_per_day=2)
    tomorrow = TODAY + dt.timedelta(days=1)
    assert Diary.read(path).begun("r", 3, today=tomorrow, rounds_per_day=2).rounds == 1
    assert refused(Diary().begun, "r", 1, today=TODAY, rounds_per_day=0) == "quota"


def test_a_release_is_never_begun_twice(tmp_path):
    diary = Diary().begun("r", 5, today=TODAY, rounds_per_day=9)
    for release in (5, 4, 0):
        assert refused(diary.begun, "r", release, today=TODAY, rounds_per_day=9) == "stale"
    assert diary.begun("other", 0, today=TODAY, rounds_per_day=9).releases == {"r": 5, "other": 0}
    assert diary.begun("r", 6, today=TODAY, rounds_per_day=9).releases == {"r": 6}


def test_a_damaged_diary_is_an_empty_one(tmp_path):
    path = tmp_path / "diary.json"
    for junk in (b"", b"{", b"[]", b'{"rounds": -1}'):
        path.write_bytes(junk)
        assert Diary.read(path) == Diary()


@pytest.mark.usefixtures("grid_of_nobody")
class TestSignature:
    key = SigningKey.generate()

    def test_the_server_is_known_by_its_key(self):
        check_signature(asking(sign=self.key.sign), public_key=self.key.public_key)

    def test_all_else_is_refused(self):
        other = SigningKey.generate()
        changed = asking(sign=self.key.sign)
        settings = json.loads(changed.content["task"]["settings"])
        weaker = json.dumps({**settings, "noise_multiplier": 9.0})
        changed.content["task"]["settings"] = weaker
        malformed = asking(sign=self.key.sign)
        malformed.content["task"] = ConfigRecord({"settings": 3, "signature": "x"})
        for message in (asking(), asking(sign=other.sign), changed, malformed):
            assert refused(check_signature, message, public_key=self.key.public_key) == "signature"


@pytest.mark.usefixtures("grid_of_nobody")
class TestOutbox:
    @pytest.fixture
    def outbox(self, tmp_path):
        return Outbox(tmp_path)

    def test_the_same_bytes_go_out_after_a_crash(self, outbox, tmp_path):
        made = reply(asking())
        outbox.store("a", made)
        ((path, waiting),) = Outbox(tmp_path).waiting()
        assert encode(waiting) == encode(made)
        assert path.stat().st_mode & 0o077 == 0

    def test_to_the_same_question_again_the_answer_is_the_old_one(self, outbox):
        name = name_of(BINDING)
        outbox.store(name, reply(asking(), value=0.5))
        ((path, _),) = outbox.waiting()
        again = outbox.answer(name, asking())
        data = again.content["update"]["numbers"].data
        assert np.frombuffer(data, dtype="<f4")[0] == np.float32(0.05)
        outbox.sent(path)
        assert outbox.answer(name, asking()).error.reason == "stale"
        assert outbox.waiting() == []
        assert (
            outbox.answer(name_of(Binding(run="r", round=0, release=2, items="i")), asking())
            is None
        )

    def test_a_refusal_is_an_answer_too(self, outbox):
        outbox.store("a", refusal(asking(), TaskRefused("consent", "not agreed")))
        ((_, waiting),) = outbox.waiting()
        assert waiting.error.reason == "consent"
        for _ in range(2):
            assert outbox.answer("a", asking()).error.reason == "consent"
            for path, _ in outbox.waiting():
                outbox.sent(path)

    def test_what_was_withdrawn_is_gone(self, outbox, tmp_path):
        outbox.store("a", reply(asking()))
        ((path, _),) = outbox.waiting()
        outbox.withdraw(path)
        assert list(tmp_path.iterdir()) == []

    def test_a_damaged_reply_is_set_aside_and_the_others_go_out(self, outbox, tmp_path):
        outbox.store("a", reply(asking()))
        outbox.store("b", reply(asking()))
        (tmp_path / "a.reply").write_bytes(b"\xff" * 40)
        assert [path.name for path, _ in outbox.waiting()] == ["b.reply"]
        assert (tmp_path / "a.damaged").exists()

    def test_few_sent_replies_are_kept(self, outbox, tmp_path):
        for number in range(12):
            outbox.store(f"{number}", reply(asking()))
            ((path, _),) = outbox.waiting()
            outbox.sent(path)
        assert len(list(tmp_path.glob("*.sent"))) == 8
