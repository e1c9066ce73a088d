import fcntl
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedprofile.client import edge_v1_pb2, edge_v1_pb2_grpc, edge_v1_stubs
from fedprofile.client.answers import (
    Candidates,
    EraseProfileRequest,
    RecommendRequest,
    RecordEventsResponse,
)
from fedprofile.client.api import SERVICE, ProfileServer, _Service
from fedprofile.client.api_client import DeviceClient
from fedprofile.client.api_limits import LONGEST_LIST, MOST_CANDIDATES, MOST_EVENTS
from fedprofile.client.connect import connect
from fedprofile.client.device import Device
from fedprofile.client.interactions import Interaction
from fedprofile.client.service_lock import is_served
from fedprofile.common.errors import (
    ConfigError,
    DataError,
    DeviceError,
    StoreDamaged,
    StoreError,
    StoreFull,
)

NOW = 1_750_000_000


def some(count, start=0):
    return [
        Interaction(f"n{i}", f"商品{i * 7 % 40}", NOW - 10**6 + i * 60, "view")
        for i in range(start, start + count)
    ]


@pytest.fixture
def served(make_device):
    """A served device, and a client of it."""
    device = make_device()
    with ProfileServer(device), connect(device.folder.path) as client:
        assert isinstance(client, DeviceClient)
        yield device, client


@pytest.fixture
def stub(served):
    device, _ = served
    with grpc.insecure_channel(f"unix:{device.folder.socket}") as channel:
        yield edge_v1_pb2_grpc.ProfileServiceStub(channel)


def code_of(call):
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code(), error.value.details()


def test_the_service_answers_as_the_device_does(served):
    device, client = served
    assert client.record(some(30)) == RecordEventsResponse(recorded=30)
    assert client.record(some(31)).repeated == 30
    client.declare("言語", "日本語")
    assert client.profile() == device.profile()
    assert client.profile().declared == {"言語": "日本語"}
    for question in (
        RecommendRequest(top_k=7, explain=True),
        RecommendRequest(threshold=0.5),
        RecommendRequest(Candidates(("商品1", "商品2", "?")), top_k=2, include_seen=True),
        RecommendRequest(Candidates(()), top_k=2),
        RecommendRequest(top_k=7, explain=True, strategy="content"),
        RecommendRequest(threshold=0.5, include_seen=True, strategy="neural"),
        RecommendRequest(top_k=7, strategy="hybrid"),
    ):
        here, there = device.recommend(question), client.recommend(question)
        assert there == here
    client.set_consent(True)
    client.set_paused(True)
    status = client.status()
    assert (status.consent, status.paused, status.service) == (True, True, True)
    assert "".join(client.export()) == "".join(device.export())
    assert client.erase(EraseProfileRequest(item="商品7")).erased == 1
    assert client.erase(EraseProfileRequest(before=NOW - 10**6 + 300)).erased == 4
    assert client.erase(EraseProfileRequest(everything=True)).erased == 26
    status = client.status()
    assert (status.events, status.consent, status.oldest) == (0, False, None)
    assert client.profile() == device.profile()


def test_an_application_chooses_the_strategy_by_name(served, stub):
    pb = edge_v1_pb2
    served[1].record(some(30))

    def listed(**asked):
        return [one.item for one in stub.Recommend(pb.RecommendRequest(top_k=40, **asked)).items]

    unasked = listed()
    assert listed(strategy="hybrid") == listed(strategy="") == unasked
    assert len({tuple(listed(strategy=name)) for name in ("content", "neural", "hybrid")}) == 3
    for name, expected in (
        ("popular", grpc.StatusCode.INVALID_ARGUMENT),
        ("sequential", grpc.StatusCode.FAILED_PRECONDITION),  # nothing of the kind in this model
    ):
        question = pb.RecommendRequest(top_k=1, strategy=name)
        code, detail = code_of(lambda question=question: stub.Recommend(question))
        assert code is expected
        assert name in detail


def test_thousands_of_events_go_in_parts(served):
    _, client = served
    assert client.record(some(2_500)).recorded == 2_500
    assert client.record([]).recorded == 0
    assert client.status().events == 2_500


def test_errors_keep_their_kind_and_words(served, monkeypatch):
    _, client = served
    with pytest.raises(DataError, match="event 2: no item"):
        client.record([*some(1), Interaction("x", " ", NOW)])
    with pytest.raises(DataError, match="top_k or a finite threshold"):
        client.recommend(RecommendRequest())
    with pytest.raises(ConfigError):
        client.recommend(RecommendRequest(top_k=-1))
    with pytest.raises(DataError, match="strategy 'popular': there is no such"):
        client.recommend(RecommendRequest(top_k=1, strategy="popular"))
    with pytest.raises(DeviceError, match="ask for content or neural or hybrid"):
        client.recommend(RecommendRequest(top_k=1, strategy="sequential"))
    with pytest.raises(ConfigError):
        client.declare("\udcff", "x")
    for error in (
        StoreFull("the disk is full"),
        StoreDamaged("set aside"),
        StoreError("in use"),
        DeviceError("no model yet"),
    ):

        def fail(*_, error=error, **__):
            raise error

        for name, call in (
            ("record", lambda: client.record(some(1))),
            ("export", lambda: list(client.export())),
        ):
            monkeypatch.setattr(Device, name, fail)
            with pytest.raises(type(error), match=str(error)) as found:
                call()
            assert type(found.value) is type(error)


def test_what_is_too_much_is_refused(stub):
    pb = edge_v1_pb2
    events = [pb.Interaction(id=str(i), item="a", time=1) for i in range(MOST_EVENTS + 1)]
    code, detail = code_of(lambda: stub.RecordEvents(pb.RecordEventsRequest(events=events)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "1,001 events; at most 1,000" in detail
    for top_k in (0, LONGEST_LIST + 1):
        request = pb.RecordEventsRequest(events=events[:1], change_top_k=top_k)
        code, _ = code_of(lambda request=request: stub.RecordEvents(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert stub.GetStatus(pb.GetStatusRequest()).events == 0
    items = pb.Candidates(items=["a"] * (MOST_CANDIDATES + 1))
    question = pb.RecommendRequest(candidates=items, top_k=1)
    assert code_of(lambda: stub.Recommend(question))[0] is grpc.StatusCode.INVALID_ARGUMENT
    long = pb.RecommendRequest(top_k=LONGEST_LIST + 1)
    assert code_of(lambda: stub.Recommend(long))[0] is grpc.StatusCode.INVALID_ARGUMENT
    huge = pb.RecommendRequest(candidates=pb.Candidates(items=["x" * 10_000_000]), top_k=1)
    assert code_of(lambda: stub.Recommend(huge))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_unclear_event_is_refused_whole(stub, served):
    pb = edge_v1_pb2
    for wrong in (
        pb.Interaction(item="a", time=1),
        pb.Interaction(id="x", time=1),
        pb.Interaction(id="x", item="a", time=-5),
        pb.Interaction(id="x", item="a", time=1, value=float("nan")),
        pb.Interaction(id="x", item="a" * 1_000, time=1),
    ):
        events = [pb.Interaction(id="good", item="a", time=1), wrong]
        code, _ = code_of(
            lambda events=events: stub.RecordEvents(pb.RecordEventsRequest(events=events))
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert served[0].status().events == 0


def test_a_deadline_ends_a_call_and_what_comes_too_late_is_not_done(stub, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    recommend = Device.recommend

    def slow(self, request):
        entered.set()
        go_on.wait(60)
        return recommend(self, request)

    monkeypatch.setattr(Device, "recommend", slow)
    question = edge_v1_pb2.RecommendRequest(top_k=1)
    started = time.monotonic()
    code, _ = code_of(lambda: stub.Recommend(question, timeout=0.3))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 30  # of the minute it would take
    go_on.set()


def test_what_waited_past_its_deadline_is_not_done(served, stub, monkeypatch):
    device, _ = served
    event = edge_v1_pb2.Interaction(id="late", item="商品1", time=NOW, event="view")
    request = edge_v1_pb2.RecordEventsRequest(events=[event])
    arrived, over = threading.Event(), threading.Event()
    answered = _Service._answered

    def watched(service, context, answer):
        context.add_callback(over.set)
        arrived.set()
        return answered(service, context, answer)

    monkeypatch.setattr(_Service, "_answered", watched)
    with device.turn():
        code, _ = code_of(lambda: stub.RecordEvents(request, timeout=0.3))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        # The service learns a moment later than the one who asked.
        assert not arrived.is_set() or over.wait(30)
    for _ in range(3):  # it had its turn by then
        assert stub.GetStatus(edge_v1_pb2.GetStatusRequest(), timeout=10).events == 0


def test_exports_that_nobody_reads_hold_up_no_other_call(served, stub):
    served[1].record(some(3_000))  # more than a stream takes before somebody reads it
    exports = [stub.ExportProfile(edge_v1_pb2.ExportProfileRequest()) for _ in range(2)]
    for export in exports:
        next(export)
    other = stub.ExportProfile(edge_v1_pb2.ExportProfileRequest())
    code, _ = code_of(lambda: list(other))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    for _ in range(6):
        assert stub.GetStatus(edge_v1_pb2.GetStatusRequest(), timeout=10).events >= 3_000
    for export in exports:
        export.cancel()


def test_health_is_told_and_nobody_else_can_reach_the_socket(served):
    device, _ = served
    socket = device.folder.socket
    assert socket.stat().st_mode & 0o077 == 0
    assert socket.parent.stat().st_mode & 0o077 == 0
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_socket_that_others_may_reach_is_refused(make_device):
    device = make_device()
    device.folder.run.chmod(0o755)
    with pytest.raises(DeviceError, match="others may reach the socket"):
        ProfileServer(device).start()
    assert not is_served(device.folder)


def test_one_process_at_a_time_runs_a_device(served):
    device, client = served
    with pytest.raises(DeviceError, match="another process runs this device"):
        ProfileServer(Device(device.folder)).start()
    assert client.status().service


def asked_meanwhile(monkeypatch, question):
    """Has the next look at the lock of a device meet ``question``, and returns its answers."""
    take, answers = fcntl.flock, []

    def take_then_ask(file, kind):
        take(file, kind)
        monkeypatch.setattr(fcntl, "flock", take)
        answers.append(question())

    monkeypatch.setattr(fcntl, "flock", take_then_ask)
    return answers


def test_two_who_ask_at_once_whether_a_device_is_served_are_told_the_truth(
    make_device, monkeypatch
):
    folder = make_device().folder
    folder.service_lock.touch()
    answers = asked_meanwhile(monkeypatch, lambda: is_served(folder))
    assert not is_served(folder)
    assert answers == [False]


def test_who_only_asks_does_not_keep_a_device_from_being_run(make_device, monkeypatch):
    device = make_device()
    device.folder.service_lock.touch()
    server = ProfileServer(device)
    starting = threading.Thread(target=server.start)

    def start():
        starting.start()
        starting.join(0.1)

    asked_meanwhile(monkeypatch, start)
    is_served(device.folder)
    starting.join()
    assert is_served(device.folder)
    server.stop()


def test_after_a_stop_commands_open_the_store_themselves(make_device):
    device = make_device()
    server = ProfileServer(device)
    server.start()
    assert is_served(device.folder)
    server.stop()
    assert not is_served(device.folder)
    assert not device.folder.socket.exists()
    with connect(device.folder.path) as direct:
        assert isinstance(direct, Device)
        assert direct.record(some(1)).recorded == 1
    server.start()
    server.stop()


def test_the_socket_of_a_killed_process_is_no_obstacle(make_device):
    device = make_device()
    device.folder.socket.touch()
    with connect(device.folder.path) as direct:
        assert isinstance(direct, Device)
    with ProfileServer(device), connect(device.folder.path) as client:
        assert client.status().service


def test_a_process_that_does_not_answer_is_told(make_device):
    folder = make_device().folder
    with (
        DeviceClient(folder, patience=0.2) as client,
        pytest.raises(DeviceError, match="doesn't answer"),
    ):
        client.status()


def test_a_long_socket_name_is_told(make_device):
    device = make_device(api={"socket": f"run/{'d' * 100}"})
    with pytest.raises(DeviceError, match=r"too long for a Unix socket.*api\.socket"):
        ProfileServer(device).start()


def test_many_at_once(served):
    device, _ = served
    failed = []

    def work(number):
        try:
            with connect(device.folder.path) as client:
                for step in range(5):
                    client.record(some(3, start=1_000 * number + 3 * step))
                    client.recommend(RecommendRequest(top_k=5))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert device.status().events == 6 * 15


def test_the_stubs_are_those_of_the_definition(tmp_path):
    edge_v1_stubs.write_stubs(tmp_path)
    here = edge_v1_stubs.PROTO.parent
    made = {file.name for file in tmp_path.iterdir()}
    assert made == {"edge_v1_pb2.py", "edge_v1_pb2.pyi", "edge_v1_pb2_grpc.py"}
    for name in made:
        assert (tmp_path / name).read_text() == (here / name).read_text(), (
            f"run python -m fedprofile.client.edge_v1_stubs: {name} is out of date"
        )
