import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedprofile.client import device as module
from fedprofile.client import store as store_module
from fedprofile.client.answers import Candidates, EraseProfileRequest, RecommendRequest
from fedprofile.client.device import Device
from fedprofile.client.interactions import Interaction
from fedprofile.client.model_bundle import install_bundle
from fedprofile.client.profile import build
from fedprofile.client.store import Store, stores_aside
from fedprofile.common.errors import (
    ConfigError,
    DataError,
    DeviceError,
    StoreDamaged,
    StoreError,
    StoreFull,
)

NOW, DAY = 1_750_000_000, 86_400
N_ITEMS = 40


def one(number, item, at, event="view", **more):
    return Interaction(str(number), f"商品{item}", at, event, **more)


def some(count, *, start=0, step=3_600):
    return [
        one(f"n{i}", i * 7 % N_ITEMS, NOW - 30 * DAY + i * step)
        for i in range(start, start + count)
    ]


def rebuilt(device):
    """The profile computed from the stored events alone."""
    history, bundle = device.history()
    return build(
        history,
        table=bundle.public,
        scales=bundle.config.scales,
        window_size=bundle.config.window,
        encode=bundle.encode,
    )


def assert_in_step(device):
    """What is shown follows from the events, in this process and in another."""
    expected = rebuilt(device)
    list_of = {}
    for source in (device, Device(device.folder, clock=lambda: NOW)):
        found = source.profile()
        ids = device.history()[1].served.ids
        np.testing.assert_allclose(found.vector, expected.vector, rtol=1e-3, atol=1e-4)
        sums = [interest.sum for interest in found.interests]
        np.testing.assert_allclose(sums, expected.sums, rtol=1e-3, atol=1e-4)
        assert dict(found.tags) == pytest.approx(dict(expected.tags), rel=1e-3)
        weights = dict(zip((ids[i] for i in expected.items), expected.frequencies, strict=True))
        assert dict(found.frequencies) == pytest.approx(weights, rel=1e-3)
        assert [e.item for e in found.recent] == [ids[e.item] for e in expected.window]
        assert (found.events, found.updated_at) == (expected.n_events, expected.updated_at)
        ranked = source.recommend(RecommendRequest(top_k=N_ITEMS)).items
        list_of[source] = {item.item: item.score for item in ranked}
        source.close()
    # Scores that were kept from before would show.
    lists = list(list_of.values())
    assert lists[0] == pytest.approx(lists[1], rel=1e-3, abs=1e-4)


# --- recording


def test_an_event_changes_the_profile_and_the_ranking_at_once(make_device):
    device = make_device()
    before = device.recommend(RecommendRequest(top_k=N_ITEMS))
    answer = device.record([one(1, 3, NOW)])
    assert (answer.recorded, answer.repeated, answer.unlearned) == (1, 0, 0)
    after = device.recommend(RecommendRequest(top_k=N_ITEMS))
    assert {i.item for i in before.items} - {i.item for i in after.items} == {"商品3"}
    assert [i.score for i in before.items][:5] != [i.score for i in after.items][:5]
    assert device.profile().recent[0].item == "商品3"
    assert_in_step(device)


def test_a_retry_is_not_recorded_twice(make_device):
    device = make_device()
    device.record([one(1, 3, NOW), one(2, 4, NOW)])
    shown = device.profile()
    answer = device.record([one(2, 4, NOW), one(1, 3, NOW), one(1, 3, NOW)])
    assert (answer.recorded, answer.repeated) == (0, 3)
    assert device.profile() == shown


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, N_ITEMS + 3),  # some are in no table
            st.integers(0, 40),
            st.sampled_from(["view", "purchase", "impression", "nonsense"]),
            st.sampled_from([None, None, 1.0, 5.0, 0.2]),
        ),
        max_size=40,
    ),
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
)
def test_whatever_comes_in_whatever_order_the_profile_follows_from_the_events(
    make_device, events, batches
):
    device = make_device(
        f"d{time.time_ns()}", events={"weights": {"Purchase": 5.0, "impression": 0.0}}
    )
    rows = [
        one(i, item, NOW - day * DAY, event, value=value)
        for i, (item, day, event, value) in enumerate(events)
    ]
    start, recorded, unlearned = 0, 0, 0
    while start < len(rows):
        size = batches[start % len(batches)]
        answer = device.record(rows[start : start + size])
        recorded, unlearned = recorded + answer.recorded, unlearned + answer.unlearned
        start += size
    assert recorded == len(rows)
    learned = [item < N_ITEMS and event in ("view", "purchase") for item, _, event, _ in events]
    assert unlearned == len(rows) - sum(learned)
    assert_in_step(device)


def test_a_batch_is_recorded_whole_or_not_at_all(make_device):
    device = make_device()
    with pytest.raises(DataError, match="event 2: no item"):
        device.record([one(1, 3, NOW), replace(one(2, 4, NOW), item="")])
    assert device.status().events == 0


_steps = st.lists(
    st.tuples(
        st.sampled_from(["one", "other", "both at once", "erase", "fail"]),
        st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0, 100.0]), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(_steps)
def test_the_median_is_that_of_what_is_stored_whoever_stored_it(make_device, steps):
    """It is kept from call to call, and others record, erase and fail meanwhile."""
    device = make_device(f"d{time.monotonic_ns()}")
    stored, expected = [], []  # (item, value) and the strengths of what is left
    with Device(device.folder, clock=lambda: NOW) as other:
        for number, (step, values) in enumerate(steps):
            if step == "erase":
                device.erase(EraseProfileRequest(item="商品1"))
                left = [k for k, (item, _) in enumerate(stored) if item != 1]
                stored, expected = [stored[k] for k in left], [expected[k] for k in left]
                continue
            events = [
                one(f"{number}-{k}", k % 2, NOW - 9, value=value) for k, value in enumerate(values)
            ]
            if step == "fail":
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("fedprofile.client.profile_keeper.save_profile", fails)
                    with pytest.raises(DataError):
                        device.record(events)
                continue
            recorder = other if step == "other" else device
            recorder.record(events)
            for k, value in enumerate(values):
                stored.append((k % 2, value))
                middle = float(np.median(np.log1p([value for _, value in stored])))
                expected.append(np.log1p(value) / middle)
        with device._opened() as store:
            found = [row[0] for row in store.query("SELECT strength FROM events ORDER BY seq")]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def fails(*_):
    raise DataError("it fails")


def test_values_count_relative_to_the_owners_own_median(make_device):
    device = make_device()
    for number, value in enumerate([3.0, 3.0, 3.0, 15.0, None]):
        device.record([one(number, number, NOW + number, value=value)])
    weights = [event.weight for event in device.profile().recent]
    assert weights[:3] == pytest.approx([1, 1, 1])
    # 15 among 3, 3, 3: the median of log1p is log 4.
    assert weights[3] == pytest.approx(np.log(16) / np.log(4))
    assert weights[4] == 1


def test_what_the_model_does_not_know_is_kept_for_one_that_does(
    make_device, bundle_writer, tmp_path
):
    device = make_device()
    answer = device.record([one(1, 45, NOW), one(2, 3, NOW), one(3, 3, NOW, "zoom")])
    assert (answer.recorded, answer.unlearned) == (3, 2)
    assert device.profile().events == 1
    bundle_writer(tmp_path / "later", n_items=50, event_types=("purchase", "view", "zoom"))
    install_bundle(device.folder, tmp_path / "later")
    assert device.profile().events == 3
    assert_in_step(device)


def test_with_one_type_known_an_event_without_a_type_is_of_that_type(
    make_device, bundle_writer, tmp_path
):
    bundle_writer(tmp_path / "plain", event_types=("interaction",))
    device = make_device(model=tmp_path / "plain")
    assert device.record([one(1, 3, NOW, "")]).unlearned == 0
    assert make_device("two").record([one(1, 3, NOW, "")]).unlearned == 1


def test_without_a_model_events_are_kept(make_device, run_folder):
    device = make_device(model=None)
    assert device.record(some(5)).unlearned == 5
    for question in (device.profile, lambda: device.recommend(RecommendRequest(top_k=3))):
        with pytest.raises(DeviceError, match="no model yet"):
            question()
    install_bundle(device.folder, run_folder)
    assert device.profile().events == 5
    # Back without, and with it again: nothing of the time between is missing.
    (device.folder.models / "current").unlink()
    device.record(some(3, start=5))
    install_bundle(device.folder, run_folder)
    assert device.profile().events == 8
    assert_in_step(device)


def test_a_damaged_model_does_not_keep_the_owner_from_recording(make_device):
    device = make_device()
    device.record(some(2))
    path = next(device.folder.models.glob("*/model.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    device = Device(device.folder, clock=lambda: NOW)
    assert device.record(some(1, start=2)).recorded == 1
    with pytest.raises(DataError, match="the weights aren't those the run wrote"):
        device.profile()
    assert device.erase(EraseProfileRequest(item="商品0")).erased == 1
    device.close()


def unreadable(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0"),
        lambda path: path.write_bytes(b"../models/" + path.read_bytes()),
        lambda path: path.write_bytes(b"x" * 5_000),
        unreadable,
    ],
)
def test_a_model_whose_name_is_lost_does_not_keep_the_owner_from_recording(
    make_device, run_folder, spoil
):
    device = make_device()
    device.record(some(2))
    current = device.folder.models / "current"
    spoil(current)
    assert device.record(some(1, start=2)).recorded == 1
    for question in (device.profile, lambda: device.recommend(RecommendRequest(top_k=3))):
        with pytest.raises(DataError, match=r"models/current: names no model; install one"):
            question()
    assert device.status().model is None
    assert device.erase(EraseProfileRequest(item="商品0")).erased == 1
    if current.is_dir():
        current.rmdir()
    install_bundle(device.folder, run_folder)
    assert device.profile().events == 2
    assert_in_step(device)


def test_two_processes_see_what_the_other_did(make_device):
    device = make_device()
    other = Device(device.folder, clock=lambda: NOW)
    device.record(some(3))
    assert other.profile().events == 3
    other.record(some(2, start=3))
    assert device.record(some(1, start=5)).recorded == 1
    assert device.profile().events == other.profile().events == 6
    assert_in_step(device)
    other.close()


@pytest.mark.parametrize(
    ("meanwhile", "left"),
    [
        (lambda other: other.erase(EraseProfileRequest(item="商品7")), 3),
        (lambda other: other.record(some(2, start=3)), 6),
        (lambda other: other.record(some(40, start=3)), 44),
    ],
)
def test_what_another_process_commits_while_a_recording_waits_is_not_overwritten(
    make_device, monkeypatch, meanwhile, left
):
    device = make_device()
    other = Device(device.folder, clock=lambda: NOW)
    device.record(some(3))
    device.recommend(RecommendRequest(top_k=3))
    other.status()
    begun, waiting = Store.transaction, [True]

    def after_the_other(store):
        if store is device._store and waiting:
            waiting.clear()
            meanwhile(other)
        return begun(store)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "transaction", after_the_other)
        assert device.record([one("last", 30, NOW)]).recorded == 1
    assert device.profile().events == other.profile().events == left
    assert_in_step(device)
    other.close()


def test_sessions_end_where_named_or_after_a_pause(make_device):
    device = make_device(events={"session_gap_minutes": 10})
    at = [0, 60, 661, 700, 701, 5_000]
    names = [None, None, None, "a", "a", "a"]
    device.record(
        [
            one(i, i, NOW + t, session=name)
            for i, (t, name) in enumerate(zip(at, names, strict=True))
        ]
    )
    assert device.history()[0].sessions.tolist() == [0, 0, 1, 2, 2, 2]


# --- recommending


def test_ids_are_compared_in_composed_form(make_device, bundle_writer, tmp_path):
    bundle_writer(tmp_path / "run", ids=[f"caf\u00e9-{i}" for i in range(N_ITEMS)])
    device = make_device(model=tmp_path / "run")
    answer = device.record([Interaction("a", " cafe\u0301-3 ", NOW, "view")])
    assert answer.unlearned == 0
    chosen = Candidates(("cafe\u0301-4", "caf\u00e9-5"))
    assert device.recommend(RecommendRequest(chosen, top_k=9)).unknown_candidates == 0
    assert device.erase(EraseProfileRequest(item="cafe\u0301-3")).erased == 1


def test_lists_have_an_end(make_device, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LIST", 5)
    device = make_device()
    assert len(device.recommend(RecommendRequest(threshold=-1e9)).items) == 5
    with pytest.raises(ConfigError, match="6 items of a list; at most 5"):
        device.recommend(RecommendRequest(top_k=6))


def test_candidates_top_k_threshold_and_reasons(make_device):
    device = make_device()
    device.record(some(12))
    every = device.recommend(RecommendRequest(top_k=99, include_seen=True))
    assert len(every.items) == N_ITEMS
    assert sum(i.score for i in every.items) == pytest.approx(1, abs=1e-4)
    some_items = Candidates(("商品1", "商品2", "unheard of", "商品3"))
    found = device.recommend(RecommendRequest(some_items, top_k=2, include_seen=True, explain=True))
    assert len(found.items) == 2
    assert found.unknown_candidates == 1
    assert {i.item for i in found.items} <= set(some_items.items)
    assert any(i.events for i in found.items)
    assert all(0 < t.share <= 1 for i in found.items for t in i.tags)
    ranked = device.recommend(RecommendRequest(top_k=99))
    cut = device.recommend(RecommendRequest(threshold=ranked.items[4].score))
    assert cut.items == ranked.items[:5]
    assert device.recommend(RecommendRequest(Candidates(()), top_k=3)).items == ()


@pytest.mark.parametrize(
    "request_",
    [
        RecommendRequest(),
        RecommendRequest(top_k=3, threshold=1.0),
        RecommendRequest(top_k=0),
        RecommendRequest(threshold=float("nan")),
    ],
)
def test_unclear_questions_are_refused(make_device, request_):
    with pytest.raises(ConfigError):
        make_device().recommend(request_)


# --- erasing, keeping, exporting


def test_forgetting_an_item_leaves_the_profile_of_one_who_never_met_it(make_device):
    device, other = make_device(), make_device("other")
    device.record(some(20))
    other.record([event for event in some(20) if event.item != "商品7"])
    answer = device.erase(EraseProfileRequest(item="商品7"))
    assert (answer.erased, answer.left) == (1, 19)
    assert device.profile().vector == pytest.approx(other.profile().vector, rel=1e-3, abs=1e-4)
    assert "商品7" not in device.profile().frequencies
    assert_in_step(device)


def test_forgotten_bytes_are_in_no_page_of_the_store(make_device, decrypted):
    device = make_device()
    device.record(some(60))
    device.record([one("secret-id", "geheim", NOW, "view", session="secret-session")])

    def found():
        key = bytes.fromhex(device.folder.store_key.read_text())
        content = decrypted(device.folder.store, key)
        return [
            word for word in ("geheim", "secret-id", "secret-session") if word.encode() in content
        ]

    assert len(found()) == 3
    assert device.erase(EraseProfileRequest(item="商品geheim")).erased == 1
    assert found() == []
    device.close()
    assert found() == []
    content = b"".join(f.read_bytes() for f in device.folder.path.rglob("*") if f.is_file())
    assert b"geheim" not in content


def test_forgetting_a_period(make_device):
    device = make_device()
    device.record(some(20))
    cut = some(20)[8].time
    assert device.erase(EraseProfileRequest(before=cut)).erased == 8
    assert device.status().oldest == cut
    assert_in_step(device)


def test_forgetting_everything_replaces_the_key_and_takes_consent_back(make_device):
    device = make_device()
    device.record(some(20))
    device.declare("language", "fr")
    device.set_consent(True)
    key = device.folder.store_key.read_bytes()
    damaged = device.folder.path / "store.db.damaged-20200101T000000"
    damaged.write_bytes(b"old")
    (device.folder.outbox / "reply").write_bytes(b"made of the events")
    assert device.erase(EraseProfileRequest(everything=True)).erased == 20
    assert device.folder.store_key.read_bytes() != key
    assert not damaged.exists()
    assert not list(device.folder.outbox.iterdir())
    status = device.status()
    assert (status.events, status.consent) == (0, False)
    assert device.profile().declared == {}
    assert not any(device.profile().frequencies)
    assert device.record(some(1)).recorded == 1


def test_forgetting_everything_works_without_the_key(make_device):
    device = make_device()
    device.record(some(3))
    device.close()
    device.folder.store_key.unlink()
    with pytest.raises(DeviceError, match="key of the store is missing"):
        device.status()
    device.erase(EraseProfileRequest(everything=True))
    assert device.status().events == 0


@pytest.mark.parametrize(
    "request_",
    [EraseProfileRequest(), EraseProfileRequest(item="a", before=3)],
)
def test_erasing_wants_exactly_one_thing(make_device, request_):
    with pytest.raises(ConfigError, match="exactly one"):
        make_device().erase(request_)


def test_an_erasure_that_is_cut_off_is_finished_by_the_next_call(make_device, monkeypatch):
    device = make_device()
    device.record(some(20))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "scrub", lambda store: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            device.erase(EraseProfileRequest(before=NOW))
    scrubbed = []
    scrub = Store.scrub
    monkeypatch.setattr(Store, "scrub", lambda store: scrubbed.append(scrub(store)))
    again = Device(device.folder, clock=lambda: NOW)
    assert again.status().events == 0
    assert len(scrubbed) == 1
    again.close()
    again.status()
    assert len(scrubbed) == 1
    again.close()


def test_a_reader_delays_the_overwriting_and_nothing_else(make_device, monkeypatch, decrypted):
    monkeypatch.setattr(store_module, "_SETUP", (*store_module._SETUP, "PRAGMA busy_timeout = 10"))
    now = [NOW]
    device = make_device(clock=lambda: now[0])
    device.record(some(20))
    key = bytes.fromhex(device.folder.store_key.read_text())
    reader = Store.open(device.folder.store, key)
    reader.query("BEGIN")
    reader.query("SELECT count(*) FROM events")
    with pytest.raises(StoreError, match="another process reads"):
        device.erase(EraseProfileRequest(item="商品7"))
    assert device.record(some(1, start=20)).recorded == 1
    assert "商品7" not in device.profile().frequencies
    assert "商品7".encode() in decrypted(device.folder.store, key)
    reader.close()
    now[0] += 61
    device.status()
    assert "商品7".encode() not in decrypted(device.folder.store, key)


def test_an_outbox_that_is_gone_is_made_anew(make_device):
    device = make_device()
    device.record(some(20))
    device.folder.outbox.rmdir()
    assert device.erase(EraseProfileRequest(item="商品7")).erased == 1
    assert device.folder.outbox.stat().st_mode & 0o777 == 0o700
    assert Device(device.folder, clock=lambda: NOW).status().events == 19


def test_answers_that_cannot_be_deleted_delay_the_overwriting_and_nothing_else(
    make_device, decrypted
):
    device = make_device()
    device.record(some(20))
    stray = device.folder.outbox / "stray"
    stray.mkdir()
    with pytest.raises(DeviceError, match=r"can't be deleted .*stray"):
        device.erase(EraseProfileRequest(item="商品7"))
    device.close()
    device = Device(device.folder, clock=lambda: NOW)
    assert device.record(some(1, start=20)).recorded == 1
    assert "商品7" not in device.profile().frequencies
    stray.rmdir()
    device.close()
    assert device.status().events == 20
    device.close()
    key = bytes.fromhex(device.folder.store_key.read_text())
    assert "商品7".encode() not in decrypted(device.folder.store, key)


def test_retention_by_age_and_by_number(make_device):
    now = [NOW]
    device = make_device(clock=lambda: now[0], store={"retention_days": 20})
    device.record(some(10, step=DAY))  # 30 to 21 days old, from a log of old
    device.record(some(10, start=10, step=DAY))
    now[0] += DAY
    assert device.status().events == 9
    assert_in_step(device)
    few = make_device("few", store={"retention_events": 5})
    few.record(some(12))
    few.close()
    assert few.status().events == 5
    assert few.status().oldest == some(12)[7].time


def test_the_export_holds_everything(make_device):
    device = make_device()
    device.record([*some(2_300, step=60), one("x", 99, NOW, value=2.5, session="s")])
    device.declare("言語", "日本語")
    device.set_consent(True)
    export = json.loads("".join(device.export()))
    assert len(export["events"]) == 2_301
    assert export["events"][-1]["item"] == "商品99"
    assert export["events"][-1]["value"] == 2.5
    assert export["declared"] == {"言語": "日本語"}
    assert export["consent"] == {"on": True, "since": NOW}
    assert export["profile"]["events"] == 2_300
    assert export["configuration"]["name"] == "device"
    empty = make_device("empty", model=None)
    assert json.loads("".join(empty.export()))["events"] == []


def test_declared_data_is_stated_and_taken_back(make_device):
    device = make_device()
    device.declare("language", "fr")
    device.declare("age band", "30-39")
    device.declare("language", "de")
    assert device.profile().declared == {"age band": "30-39", "language": "de"}
    device.declare("age band", "")
    assert Device(device.folder).profile().declared == {"language": "de"}
    for name, value in ((" ", "x"), ("x" * 300, "y"), ("x", "\udcff")):
        with pytest.raises(DataError, match="declared data"):
            device.declare(name, value)


def test_consent_and_pause_are_off_until_they_are_set(make_device):
    device = make_device()
    status = device.status()
    assert (status.consent, status.consent_since, status.paused) == (False, None, False)
    device.set_consent(True)
    device.set_paused(True)
    status = Device(device.folder).status()
    assert (status.consent, status.consent_since, status.paused) == (True, NOW, True)
    device.set_consent(False)
    assert not device.status().consent


# --- faults


def test_a_damaged_store_is_set_aside_the_owner_told_and_a_fresh_one_begun(make_device):
    device = make_device()
    device.record(some(5))
    device.set_consent(True)
    device.close()
    content = bytearray(device.folder.store.read_bytes())
    content[5_000] ^= 8
    device.folder.store.write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"set aside as store\.db\.damaged-"):
        device.recommend(RecommendRequest(top_k=3))
    status = device.status()
    assert (status.events, status.consent) == (0, False)
    assert list(status.set_aside) == [f.name for f in stores_aside(device.folder.store)]
    assert device.record(some(2)).recorded == 2


def test_on_a_full_disk_recording_fails_reading_and_erasing_go_on(make_device, monkeypatch):
    device = make_device()
    device.record(some(30))
    device.status()
    store = device._store
    room = store.query("PRAGMA page_count")[0][0] + 1
    store.query(f"PRAGMA max_page_count = {room}")
    with pytest.raises(StoreFull):
        device.record(some(3_000, start=30, step=60))
    kept = device.status().events
    assert kept == 30
    assert_in_step(device)

    # The ballast makes room for erasing: without it no page is left.
    ballast = device.folder.ballast
    assert ballast.stat().st_size >= 1 << 20
    transaction = Store.transaction

    def full_with_ballast(store):
        if ballast.exists():
            raise StoreFull("the disk is full")
        return transaction(store)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "transaction", full_with_ballast)
        with pytest.raises(StoreFull):
            device.record(some(1, start=5_000, step=60))
        assert device.erase(EraseProfileRequest(before=some(10)[9].time)).erased == 9
    assert device.status().events == kept - 9
    assert ballast.exists()


FILLED = """
import os, sys
from pathlib import Path
from fedprofile.client.answers import EraseProfileRequest, RecommendRequest
from fedprofile.client.device import Device
from fedprofile.client.device_config import DeviceConfig
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.interactions import Interaction
from fedprofile.client.model_bundle import install_bundle

disk = Path(sys.argv[1])
folder = DeviceFolder.create(disk / "device", DeviceConfig(name="full"))
install_bundle(folder, Path(sys.argv[4]))
device = Device(folder)
device.record([Interaction(str(i), f"商品{i % 40}", 1000 + i) for i in range(500)])
device.close()
filling = os.open(disk / "filling", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filling, bytes(4096))
except OSError:
    pass
assert device.status().events == 500
assert len(device.recommend(RecommendRequest(top_k=3, include_seen=True)).items) == 3
assert device.erase(EraseProfileRequest(before=1100)).erased == 100
device.set_consent(True)
device.close()
assert device.status().consent and device.status().events == 400
"""


def test_on_a_disk_without_a_free_byte_reading_and_erasing_go_on(on_tiny_disk, run_folder):
    on_tiny_disk(FILLED, run_folder, size="4m")


CHILD = """
import sys
from pathlib import Path
from fedprofile.client.device import Device
from fedprofile.client.device_folder import DeviceFolder
from fedprofile.client.interactions import Interaction

device = Device(DeviceFolder.open(Path(sys.argv[1])))
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    item = f"商品{number * 7 % 40}"
    device.record([Interaction(f"e{number}", item, 1_600_000_000 + number * 60, "view")])
    print(number, flush=True)  # acknowledged
    number += 1
"""


def test_killed_at_any_moment_nothing_acknowledged_is_lost(make_device):
    device = make_device()
    device.status()
    device.close()
    draw, start = random.Random(5), 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(device.folder.path), str(start)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.01, 0.25))
        child.kill()
        child.wait()
        acknowledged = [int(line) for line in child.stdout.read().split()]
        export = json.loads("".join(device.export()))
        stored = [int(event["id"][1:]) for event in export["events"]]
        assert stored == list(range(len(stored)))  # whole, once each, in order
        assert len(stored) >= start + len(acknowledged)
        assert len(stored) <= start + len(acknowledged) + 1  # at most one was under way
        start = len(stored)
        assert_in_step(device)
    assert start > 5


def test_a_device_loads_nothing_heavy(make_device):
    device = make_device()
    device.record(some(3))
    device.close()
    heavy = ["torch", "flwr", "opacus", "scipy", "sklearn", "polars", "grpc", "matplotlib"]
    program = f"""
import sys
from fedprofile.common.cli import main

for command in (["recommend"], ["record", "--item", "商品1"], ["profile"], ["status"]):
    sys.argv = ["fedprofile", "device", command[0], {str(device.folder.path)!r}, *command[1:]]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0
print([name for name in {heavy} if name in sys.modules])
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_busy_device_says_so(make_device, monkeypatch):
    device = make_device()
    monkeypatch.setattr(module, "_WAIT", 0.01)
    import threading

    held, done = threading.Event(), threading.Event()

    def hold():
        with device._lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    with pytest.raises(StoreError, match="busy"):
        device.status()
    done.set()
    thread.join()


def test_the_folder_can_be_moved(make_device, tmp_path):
    device = make_device()
    device.record(some(3))
    device.close()
    moved = tmp_path / "elsewhere"
    shutil.move(device.folder.path, moved)
    again = Device(type(device.folder).open(moved))
    assert again.status().events == 3
    again.close()
