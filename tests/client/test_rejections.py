import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedprofile.client import profile_keeper, records
from fedprofile.client.answers import Candidates, EraseProfileRequest, RecommendRequest
from fedprofile.client.api import ProfileServer
from fedprofile.client.connect import connect
from fedprofile.client.device import Device
from fedprofile.client.interactions import Interaction
from fedprofile.client.model_bundle import install_bundle
from fedprofile.client.rejections import Signs
from fedprofile.common.errors import DataError

NOW, DAY = 1_750_000_000, 86_400
N_ITEMS = 40
ALL = tuple(f"商品{item}" for item in range(N_ITEMS))
EVERY_LIST = {
    "new": RecommendRequest(top_k=N_ITEMS),
    "with what was seen": RecommendRequest(top_k=N_ITEMS, include_seen=True),
    "candidates": RecommendRequest(Candidates(ALL), top_k=N_ITEMS),
    "candidates, seen": RecommendRequest(Candidates(ALL), top_k=N_ITEMS, include_seen=True),
    "threshold": RecommendRequest(threshold=-1e9),
    "threshold, seen": RecommendRequest(threshold=-1.0, include_seen=True),
    "various": RecommendRequest(top_k=N_ITEMS, diversity=0.3),
    "calibrated": RecommendRequest(top_k=N_ITEMS, calibration=0.3, include_seen=True),
}


def one(number, item, event, at=NOW):
    return Interaction(str(number), f"商品{item}", at, event)


def listed(device, request=EVERY_LIST["with what was seen"]):
    return {int(found.item[2:]) for found in device.recommend(request).items}


def out(device):
    return set(range(N_ITEMS)) - listed(device)


@pytest.mark.parametrize("request_", EVERY_LIST.values(), ids=list(EVERY_LIST))
def test_what_was_turned_down_is_in_no_list(make_device, request_):
    device = make_device()
    device.record([one(n, n, "view") for n in range(3)])
    before = listed(device, request_)
    assert {7, 30} <= before
    device.record([one("a", 7, "skip"), one("b", 30, " Dislike")])
    assert listed(device, request_) == before - {7, 30}
    device.record([one("c", 7, "impression", NOW + 1)])  # says nothing
    assert listed(device, request_) == before - {7, 30}
    met = {7} if request_.include_seen else set()
    device.record([one("d", 7, "view", NOW + 2)])  # met now, so in lists of what was seen alone
    assert listed(device, request_) == before - {7, 30} | met


def test_scores_of_the_others_stay_as_they_are(make_device):
    device = make_device()
    device.record([one(n, n, "view") for n in range(3)])
    for request in EVERY_LIST.values():
        if request.diversity or request.calibration:
            continue  # scaled by the range of the pool
        device.erase(EraseProfileRequest(item="商品7"))
        before = [(i.item, i.score) for i in device.recommend(request).items if i.item != "商品7"]
        device.record([one("a", 7, "skip")])
        assert [(i.item, i.score) for i in device.recommend(request).items] == before


def test_what_was_met_and_turned_down_later_comes_back_when_it_is_met_again(make_device):
    device = make_device()
    device.record([one("a", 3, "view", NOW - 9)])
    assert 3 not in out(device)
    profile = device.profile()
    device.record([one("b", 3, "hide", NOW - 8)])
    assert out(device) == {3}
    assert device.profile() == profile  # nothing is learned from it
    device.record([one("c", 3, "purchase", NOW - 7)])
    assert out(device) == set()
    device.record([one("late", 3, "skip", NOW - 8)])
    assert out(device) == set()


def test_of_one_time_the_event_that_was_recorded_last_counts(make_device):
    device = make_device()
    device.record([one("a", 3, "view"), one("b", 3, "skip"), one("c", 4, "skip")])
    assert out(device) == {3, 4}
    device.record([one("d", 4, "view")])
    assert out(device) == {3}


def test_candidates_that_were_turned_down_are_counted_and_not_unknown(make_device):
    device = make_device()
    device.record([one("a", 3, "skip"), one("b", 5, "skip")])
    asked = RecommendRequest(Candidates(("商品3", "商品4", "unheard of")), top_k=9)
    found = device.recommend(asked)
    assert [one.item for one in found.items] == ["商品4"]
    assert (found.unknown_candidates, found.rejected_candidates) == (1, 1)
    assert device.recommend(RecommendRequest(top_k=9)).rejected_candidates == 0


def test_the_owners_weights_go_before_the_public_names(make_device):
    device = make_device(events={"weights": {"zap": -0.5, "Skip": 2.0, "peek": 0.0}})
    device.record([one("a", 3, "zap"), one("b", 4, "skip"), one("c", 5, "ban"), one("d", 6, "zap")])
    device.record([one("e", 3, "peek", NOW + 1), one("f", 6, "skip", NOW + 1)])
    assert out(device) == {3, 5}


def test_what_a_model_learned_from_turns_nothing_down(make_device, bundle_writer, tmp_path):
    """Data whose returns weigh something trains a model that knows returns; the device takes them alike."""
    bundle_writer(tmp_path / "run", event_types=("purchase", "return"))
    device = make_device(model=tmp_path / "run")
    device.record([one("a", 3, "return"), one("b", 4, "skip")])
    assert out(device) == {4}
    assert device.profile().events == 1
    signs = Signs.of({"return": -1.0}, learned=("purchase", "return"))
    assert "return" in signs.rejecting


def test_it_survives_restarts_and_is_forgotten_with_its_events(make_device):
    device = make_device()
    device.record([one("a", 3, "skip", NOW - 5 * DAY), one("b", 4, "skip"), one("c", 5, "skip")])
    device.record([one("d", 5, "view", NOW - 9 * DAY)])
    assert out(device) == {3, 4, 5}
    with Device(device.folder, clock=lambda: NOW) as again:
        assert out(again) == {3, 4, 5}
    device.erase(EraseProfileRequest(item="商品4"))
    assert out(device) == {3, 5}
    device.erase(EraseProfileRequest(before=NOW - DAY))
    assert out(device) == {5}
    device.erase(EraseProfileRequest(everything=True))
    assert out(device) == set()


def test_events_before_there_was_a_model_count(make_device, run_folder):
    device = make_device(model=None)
    device.record([one("a", 3, "skip")])
    install_bundle(device.folder, run_folder)
    assert out(device) == {3}


def test_another_process_is_heard(make_device):
    device = make_device()
    with Device(device.folder, clock=lambda: NOW) as other:
        assert out(device) == out(other) == set()
        other.record([one("a", 3, "skip")])
        assert out(device) == {3}
        device.record([one("b", 3, "view"), one("c", 4, "skip")])
        assert out(device) == out(other) == {4}


def test_what_was_not_stored_turns_nothing_down(make_device, monkeypatch):
    device = make_device()
    assert out(device) == set()

    def fails(*_):
        raise DataError("it fails")

    with monkeypatch.context() as patch:
        patch.setattr(profile_keeper, "save_profile", fails)
        with pytest.raises(DataError):
            device.record([one("a", 3, "skip"), one("b", 4, "view")])
    assert out(device) == set()
    device.record([one("b", 4, "skip")])
    assert out(device) == {4}


def test_recording_asks_the_store_only_where_an_item_may_come_or_go(make_device, monkeypatch):
    device = make_device()
    device.record([one("a", 3, "skip")])
    assert out(device) == {3}
    asked = []

    def watched(store, item, neutral):
        asked.append(item)
        return records.last_type(store, item, neutral)

    monkeypatch.setattr("fedprofile.client.rejections.last_type", watched)
    device.record([one(n, n, "view", NOW + n) for n in range(10, 20)])
    device.record([one("b", 3, "skip", NOW + 20), one("c", 3, "impression", NOW + 21)])
    device.record([one("d", 3, "view", NOW + 22), one("e", 4, "skip", NOW + 22)])
    assert out(device) == {4}
    assert asked == []
    device.record([one("f", 5, "skip"), one("g", 4, "view", NOW - 1)])  # both come late
    assert out(device) == {4, 5}
    assert asked == ["商品5", "商品4"]


def test_the_service_leaves_out_what_the_device_does(make_device):
    here, there = make_device("here"), make_device("there")
    steps = [
        [one("a", 3, "view"), one("b", 4, "skip")],
        [one("c", 3, "dislike", NOW + 1)],
        [one("d", 4, "purchase", NOW + 2)],
    ]
    expected = [{4}, {3, 4}, {3}]
    with ProfileServer(there), connect(there.folder.path) as client:
        for events, gone in zip(steps, expected, strict=True):
            assert client.record(events, change_top_k=5) == here.record(events, change_top_k=5)
            assert out(client) == gone
            for request in EVERY_LIST.values():
                assert client.recommend(request) == here.recommend(request)
        client.erase(EraseProfileRequest(item="商品3"))
        assert out(client) == set()


_WEIGHTS = {"view": 1, "purchase": 5, "skip": -1, "ban": -1, "impression": 0, "nonsense": 1}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([0, 1, 2, N_ITEMS + 1]),  # the last is in no table
                st.integers(0, 5),  # days ago, so that many come late and many at once
                st.sampled_from(sorted(_WEIGHTS)),
                st.sampled_from(["device", "device", "other"]),
            ),
            min_size=1,
            max_size=5,
        ),
        max_size=8,
    )
)
def test_an_item_is_out_exactly_if_its_last_event_that_says_anything_turns_it_down(
    make_device, batches
):
    device = make_device(f"d{time.monotonic_ns()}")
    stored = []  # (time, order of recording, item, weight)
    with Device(device.folder, clock=lambda: NOW) as other:
        for number, batch in enumerate(batches):
            rows = []
            for place, (item, day, event, _) in enumerate(batch):
                at = NOW - day * DAY
                rows.append(one(f"{number}-{place}", item, event, at))
                if _WEIGHTS[event]:
                    stored.append((at, len(stored), item, _WEIGHTS[event]))
            (other if batch[0][3] == "other" else device).record(rows)
            last = {item: weight for _, _, item, weight in sorted(stored)}
            expected = {item for item, weight in last.items() if weight < 0 and item < N_ITEMS}
            assert out(device) == expected
            with Device(device.folder, clock=lambda: NOW) as anew:
                assert out(anew) == expected


def test_a_rejection_is_in_nothing_that_is_trained_on(make_device):
    device = make_device()
    device.record([one(n, n, "view", NOW + n) for n in range(3)])
    before, _ = device.history()
    device.record([one("a", 1, "skip", NOW + 9)])
    after, _ = device.history()
    for name in ("items", "times", "weights", "types"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
