"""A server and devices as processes on loopback, among nodes that lie, repeat themselves and come late.

All of it happens in the same two rounds. What must hold: the honest device is counted, a reply that is none
is refused for what it is, who shouldn't be in is kept out, and nobody pays twice.
"""

import contextlib
import datetime as dt
import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, Message
from safetensors.numpy import load_file

from fedprofile.audit.ledgers import find_evidence
from fedprofile.audit.verify import verify
from fedprofile.client.fleet import Fleet
from fedprofile.client.node_keys import public_pem
from fedprofile.common.accounting import epsilon
from fedprofile.common.errors import DeviceError, NotAdmitted
from fedprofile.common.ledger_entries import Commit, Reserve
from fedprofile.common.messages import RELEASE, hosting_reply, read_train_task, update_reply
from fedprofile.common.signing import SigningKey
from fedprofile.common.updates import ClippedUpdate
from fedprofile.server.admission import apply_enrolment
from fedprofile.server.enrolment import Enrolment
from fedprofile.simulations import loopback as loopback_module
from fedprofile.simulations.loopback import Loopback, entries_of, wait_for

# The federation is run once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hostile")]

HONEST, DAMAGED, MISLED, AHEAD, BEHIND = range(5)  # devices
DAY = 86_400
PATIENCE = 240  # seconds for what takes a few where nothing else runs
ROUND = 35.0  # that round 1 lasts, for one answer comes too late; an honest one takes seven


def numbers(n, *, kind="<f4", shape=None, stype="fedprofile.little-endian", data=None):
    """An array as honest devices send it, but for what is given."""
    return Array(dtype=kind, shape=shape or (n,), stype=stype, data=data or bytes(4 * n))


def filled(n, value):
    return numbers(n, data=np.full(n, value, dtype="<f4").tobytes())


# A header that names more bytes than there are, of brackets that a parser would go down into.
CRAFTED = b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535
# What is sent in place of n numbers, and what it is refused as.
FORGED = {
    "nan": (lambda n: {"numbers": filled(n, np.nan)}, "non-finite"),
    "infinity": (lambda n: {"numbers": filled(n, np.inf)}, "non-finite"),
    "huge": (lambda n: {"numbers": filled(n, 1e30)}, "norm"),
    "shape": (lambda n: {"numbers": numbers(n, shape=(1,))}, "shape"),
    "more": (lambda n: {"numbers": numbers(n), "more": numbers(n)}, "shape"),
    "float64": (lambda n: {"numbers": numbers(n, kind="<f8", data=bytes(8 * n))}, "malformed"),
    "header": (lambda n: {"numbers": numbers(n, stype="numpy.ndarray", data=CRAFTED)}, "malformed"),
}
OTHERS = ("twice", "late", "revoked")
STRANGER = "stranger"

ONLINE = 3 + len(FORGED) + len(OTHERS)  # in round 2 the stranger stands in for who is revoked
SETTINGS = {
    "federation": {
        "round_timeout_seconds": ROUND,
        "population_size": 5 + len(FORGED) + len(OTHERS) + 1,
        "quorum": ONLINE,
        "release_every": 0,
    },
    "privacy": {"split": {"popularity": 0.0}},
    "training": {"rounds": 2},
}

UNASKED = "train: consent: the owner hasn't agreed"

# The clock by which calls are signed. gRPC and TLS read the system's, which stays right.
SKEWED = """
import datetime
right = datetime.datetime
class Kind(type):
    def __instancecheck__(cls, found):
        return isinstance(found, right)
class Skewed(right, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return right.now(tz) + datetime.timedelta(seconds={ahead})
datetime.datetime = Skewed
from fedprofile.common.cli import main
main()
"""


class Hostile:
    """A node that speaks as a device does, through the same client, and answers as its kind has it.

    Attributes:
        kept: a reply for each round that it was asked in, sent or not.
    """

    def __init__(self, kind, server):
        self.kind = kind
        self.kept = []
        self._key = ec.generate_private_key(ec.SECP384R1())
        address = f"127.0.0.1:{server.config.federation.port}"
        self.fleet = Fleet(address, ca=server.ca, key=self._key)
        self._beaten = -math.inf

    def enrol(self, server):
        size = server.config.federation.population_size
        pem = public_pem(self._key)
        Enrolment(server.devices, population_size=size).enrol(self.kind, pem, source=self.kind)

    def turn(self):
        """Come online, stay so, and answer what there is."""
        if not self.fleet.number:
            with contextlib.suppress(DeviceError):  # the server isn't up, or hasn't let it in yet
                self.fleet.activate()
            return
        if time.monotonic() - self._beaten > 5:
            assert self.fleet.beat()
            self._beaten = time.monotonic()
        message = self.fleet.pull()
        if message is None:
            return
        if message.metadata.message_type == RELEASE:
            self.fleet.push(hosting_reply(message, first=0, count=1))
        else:
            self._answer(message)

    def _answer(self, message):
        task = read_train_task(message)
        arrays = {name: np.full(w.shape, 1e-6, np.float32) for name, w in task.weights.items()}
        update = ClippedUpdate(arrays, devices=1, clip_norm=task.clip_norm)
        reply = update_reply(message, task.binding, update)
        if self.kind in FORGED:
            forge, _ = FORGED[self.kind]
            record = reply.content["update"]
            for name, array in forge(record["numbers"].shape[0]).items():
                record[name] = array
        self.kept.append(reply)
        if len(self.kept) == 1 and self.kind in ("late", "revoked"):
            return
        if len(self.kept) == 2 and self.kind == "twice":
            reply = Message(self.kept[0].content, reply_to=message)  # what was sent in round 1
        self.fleet.push(reply)
        if self.kind == "twice":
            self.fleet.push(reply)


class Line:
    """What a device reaches its server by: a port of loopback that leads to another, until it is cut."""

    def __init__(self, port):
        self._to = ("127.0.0.1", port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        self._whole = threading.Event()
        self._whole.set()
        self._open = []
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self):
        self._whole.clear()
        for end in self._open:
            hang_up(end)

    def mend(self):
        self._whole.set()

    def close(self):
        hang_up(self._door)
        self.cut()

    def _serve(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._door.accept()
                try:
                    far = socket.create_connection(self._to)
                except ConnectionRefusedError:  # the server isn't up yet
                    near.close()
                    continue
                self._open += (near, far)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source, sink):
        with contextlib.suppress(OSError):  # either end hung up
            while self._whole.is_set() and (data := source.recv(1 << 16)):
                sink.sendall(data)
        hang_up(source)
        hang_up(sink)


def hang_up(end):
    with contextlib.suppress(OSError):  # it is down already
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class Story:
    """The federation and who is in it, and what happens in it, in that order.

    Attributes:
        nodes: by kind; ``crowd``: those that take part just now.
        line: by which the honest device reaches the server.
        refused: by name, what was said to who tried what should fail.
        first_run, flipped, status: of the device with a flipped bit in its store: how its first run ended,
            the store as it was then, and what its owner was told while the second one ran.
        open_while_cut: whether round 2 still ran when the honest device's answer was made and couldn't go;
            ``came_back``: what that device had told by the end of the round.
        standing: what ``server run`` told at its end.
    """

    def __init__(self, folder):
        self.loopback = Loopback(folder, devices=5, settings=SETTINGS)
        self.server = self.loopback.server
        self.nodes = {kind: Hostile(kind, self.server) for kind in (*FORGED, *OTHERS, STRANGER)}
        for kind in (*FORGED, *OTHERS):
            self.nodes[kind].enrol(self.server)
        self.crowd = [self.nodes[kind] for kind in (*FORGED, *OTHERS)]
        self.line = Line(self.server.config.federation.port)
        self.refused = {}
        self._looked = -math.inf

    def wait(self, happens, what):
        """Until ``happens``; whoever is hostile takes part meanwhile."""

        def look():
            if time.monotonic() - self._looked < 0.25:
                return False
            for node in self.crowd:
                node.turn()
            self._looked = time.monotonic()
            return happens()

        wait_for(look, timeout=PATIENCE, what=what)

    def play(self):
        with self.loopback, contextlib.closing(self.line):
            self._begin()
            self._round_1()
            self._between()
            self._round_2()
            self._end()

    def _begin(self):
        self.flipped = flip_a_bit(self.loopback.device(DAMAGED).store)
        change_facts(self.loopback.device(MISLED), signing_key=SigningKey.generate().public_key)
        change_facts(self.loopback.device(HONEST), address=self.line.address)
        self.loopback.start_server()
        self.loopback.start_device(HONEST)
        self.loopback.start_device(MISLED)
        self.first_run = self._command("run", DAMAGED)
        self.loopback.start_device(DAMAGED)
        self.wait(lambda: len(self.reserved()) == 1, "round 1")

    def _round_1(self):
        # Who takes part when the round begins, and may no longer when its answer is made.
        revoked = self.nodes["revoked"]
        self.wait(lambda: revoked.kept, "a task for who will be revoked")
        self.crowd.remove(revoked)
        Enrolment(self.server.devices, population_size=99).revoke("revoked")
        apply_enrolment(self.server)
        self.refuse("revoked", lambda: revoked.fleet.push(revoked.kept[0]))
        self.refuse(STRANGER, self.nodes[STRANGER].fleet.activate)
        # Once the honest device has done its part, the machine has time for more processes.
        self.wait(lambda: sent(self.loopback.device(HONEST)), "the answer of the honest device")
        for number, ahead in ((AHEAD, DAY), (BEHIND, -DAY)):
            self._start_skewed(number, ahead)
        for number in (AHEAD, BEHIND):
            self.wait(lambda number=number: "set it" in self.log(number), "a word on the clock")
            self.loopback.stop(f"device-{number}")
        self.status = json.loads(self._command("status", DAMAGED, "--json").stdout)
        self.wait(lambda: len(self.committed()) == 1, "the end of round 1")

    def _start_skewed(self, number, ahead):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loopback_module, "_COMMAND", SKEWED.format(ahead=ahead))
            self.loopback.start_device(number)

    def _command(self, name, number, *options):
        """``fedprofile device NAME`` as a process of its own, to its end."""
        path = str(self.loopback.device(number).path)
        command = [sys.executable, "-c", loopback_module._COMMAND, "device", name, path, *options]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )

    def _between(self):
        """Round 2 waits for one more node, so this is done before it begins."""
        late, stranger = self.nodes["late"], self.nodes[STRANGER]
        with contextlib.suppress(DeviceError):  # refused or not, nobody waits for it
            late.fleet.push(late.kept[0])
        stranger.enrol(self.server)
        apply_enrolment(self.server)
        self.crowd.append(stranger)
        self.wait(lambda: len(self.reserved()) == 2, "round 2")

    def _round_2(self):
        name = f"device-{HONEST}"
        self.wait(lambda: self.loopback.has_part(name, "client.fit"), "training in round 2")
        before = self.losses()
        self.line.cut()
        # Twice: it has tried again meanwhile. And its answer is made, and waits.
        self.wait(lambda: self.losses() >= before + 2, "a device that can't reach its server")
        self.wait(lambda: waiting(self.loopback.device(HONEST)), "an answer that can't be sent")
        self.open_while_cut = len(self.reserved()) > len(self.committed())
        self.line.mend()
        self.wait(lambda: len(self.committed()) == 2, "the end of round 2")
        self.came_back = self.log(HONEST)

    def _end(self):
        self.wait(lambda: self.noted("delivered"), "the model to be handed out")
        self.standing = self.loopback.wait_finished(PATIENCE)

    def refuse(self, name, call):
        try:
            call()
            self.refused[name] = None
        except DeviceError as error:
            self.refused[name] = error

    def noted(self, event):
        """What the server's journal has of ``event``."""
        return [entry for entry in self.loopback.journal() if entry["event"] == event]

    def reserved(self):
        return [e for e in entries_of(self.server.ledger) if isinstance(e, Reserve)]

    def committed(self):
        return [e for e in entries_of(self.server.ledger) if isinstance(e, Commit)]

    def charged(self, number):
        """Releases of the server that a device has paid for."""
        entries = entries_of(self.loopback.device(number).ledger)
        return [entry.answers for entry in entries if isinstance(entry, Reserve)]

    def log(self, number):
        return self.loopback.output(f"device-{number}").read_text(encoding="utf-8")

    def losses(self):
        """How often the honest device has told that its server is out of reach."""
        return self.log(HONEST).count(f"client.node: {self.line.address}: ")


def flip_a_bit(store):
    content = bytearray(store.read_bytes())
    content[len(content) // 2] ^= 1
    store.write_bytes(content)
    return bytes(content)


def change_facts(device, **changes):
    facts = json.loads(device.server_facts.read_bytes())
    device.server_facts.write_text(json.dumps({**facts, **changes}), encoding="utf-8")


def sent(device):
    return list(device.outbox.glob("*.sent"))


def waiting(device):
    return list(device.outbox.glob("*.reply"))


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    story = Story(tmp_path_factory.mktemp("hostile"))
    story.play()
    return story


def test_each_forged_reply_is_refused_for_what_it_is_and_the_honest_device_is_counted(story):
    forged = Counter(reason for _, reason in FORGED.values())
    declined = {"declined-consent": 1, "declined-signature": 1}  # without its store; misled
    first, second = story.committed()
    # Neither the late one nor the revoked one, nor the two whose clocks are off.
    assert first.rejected == {**forged, **declined, "no-reply": 4}
    assert second.rejected == {**forged, **declined, "no-reply": 2, "stale": 1}
    # The honest device with: who answers well but twice; who was late before, and who was let in.
    assert [first.replies_counted, second.replies_counted] == [2, 3]
    assert story.charged(HONEST) == [entry.sequence for entry in story.reserved()]


def test_a_reply_counts_once_however_often_and_whenever_it_comes(story):
    sent = {kind: len(story.nodes[kind].kept) for kind in ("twice", "late")}
    assert sent == {"twice": 2, "late": 2}
    rounds = story.noted("round")
    assert [entry["trained"] for entry in rounds] == [2, 3]
    # The second of two never gets as far as the round, nor does one to an instruction of another round.
    assert [entry["ignored"] for entry in rounds] == [{}, {}]


@pytest.mark.parametrize("kind", ["revoked", STRANGER])
def test_who_is_not_enrolled_or_no_longer_is_refused_by_the_server_that_runs(story, kind):
    assert isinstance(story.refused[kind], NotAdmitted)
    assert "enrolled or revoked" in str(story.refused[kind])


def test_a_stranger_takes_part_once_it_is_enrolled(story):
    """So it was kept out for that, and for nothing else."""
    assert len(story.nodes[STRANGER].kept) == 1
    assert len(story.nodes["revoked"].kept) == 1


@pytest.mark.usefixtures("inline_accountants")
def test_nobody_gets_epsilon_back_and_the_audit_finds_nothing(story):
    reserved = story.reserved()
    delta = entries_of(story.server.ledger)[0].delta
    events = [entry.mechanism.event() for entry in reserved]
    spent = [epsilon(events[:count], delta=delta) for count in (1, 2)]
    told = [entry["epsilon"] for entry in story.noted("round")]
    assert told == pytest.approx(spent)
    assert spent[0] < spent[1] == pytest.approx(story.standing["epsilon"])
    assert story.standing["stopped"] == "completed"
    findings = verify(find_evidence(story.server.path)).findings
    assert [finding for finding in findings if finding.outcome == "fails"] == []


def test_no_forged_number_reaches_the_model(story):
    for entry in story.noted("round"):
        assert entry["update_norm"] < 10 * entry["noise_norm"]  # and isn't NaN
    released = max(story.server.releases.glob("0*")) / "model.safetensors"
    assert all(np.isfinite(weights).all() for weights in load_file(released).values())


def test_the_model_is_handed_to_all_who_are_there_but_for_whom_another_key_is_trusted(story):
    """Also to the one whose owner agrees to nothing: it takes part in no round, and ranks."""
    [delivered] = story.noted("delivered")
    [finished] = story.noted("finished")
    assert delivered["devices"] == 12
    waited = [dt.datetime.fromisoformat(e["time"]) for e in (finished, delivered)]
    assert (waited[1] - waited[0]).total_seconds() < 60  # as long as for one that says nothing


def test_a_damaged_store_is_told_and_set_aside_and_the_device_goes_on_without(story):
    assert story.first_run.returncode == 2
    assert "the store is damaged" in story.first_run.stderr
    device = story.loopback.device(DAMAGED)
    (aside,) = device.path.glob("store.db.damaged-*")
    assert aside.name in story.first_run.stderr
    assert aside.read_bytes() == story.flipped
    # The owner is asked anew before anything is learned.
    assert story.status["set_aside"] == [aside.name]
    assert (story.status["service"], story.status["events"]) == (True, 0)
    assert story.status["consent"] is False
    assert story.log(DAMAGED).count(UNASKED) == 2
    assert story.charged(DAMAGED) == []
    assert (device.models / "manifest.json").exists()


def test_a_device_that_is_cut_off_comes_back_with_its_answer(story):
    assert story.open_while_cut
    told, address = story.came_back, story.line.address
    assert told.rindex(f"connected to {address}") > told.rindex(f"client.node: {address}: ")
    # It answered both rounds and paid for each once.
    assert story.charged(HONEST) == [entry.sequence for entry in story.reserved()]
    assert story.committed()[1].rejected["no-reply"] == 2  # the two whose clocks are off
    assert not waiting(story.loopback.device(HONEST))
    assert (story.loopback.device(HONEST).models / "manifest.json").exists()


@pytest.mark.parametrize(("number", "word"), [(AHEAD, "ahead of"), (BEHIND, "behind")])
def test_a_clock_that_is_a_day_off_is_called_so_and_costs_nothing(story, number, word):
    (off,) = {
        round(int(seconds), -2)
        for seconds in re.findall(rf"its clock is (\d+) s {word} the server's", story.log(number))
    }
    assert off == DAY
    assert "connected to" not in story.log(number)
    assert story.charged(number) == []


def test_a_task_that_the_trusted_key_did_not_sign_is_refused_and_costs_nothing(story):
    told = story.log(MISLED)
    assert told.count("train: signature: the task isn't signed with the server's key") == 2
    assert story.charged(MISLED) == []
    # Nor is a model of that server's put to use.
    assert "query.release: signature" in told
    assert not (story.loopback.device(MISLED).models / "manifest.json").exists()
