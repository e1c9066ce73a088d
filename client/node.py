"""The resident part of a device: asks its server for work, checks it, and has it done.

One thread and no torch. What it answers with is on disk before it is sent; training happens in a short
process (:mod:`.fit`) that may die without harm. What was declined is answered with a word that says why.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import Protocol

import numpy as np
from flwr.app import Message

from ..common.errors import (
    DataError,
    DeviceError,
    FedprofileError,
    MessageError,
    NotAdmitted,
    NotTaken,
    RunOver,
    TaskRefused,
    Unreachable,
)
from ..common.items import COOCCURRENCE_BLOCK
from ..common.messages import (
    RELEASE,
    TASKS,
    Binding,
    StatisticsTask,
    TrainTask,
    check_signature,
    holds_update,
    hosting_reply,
    read_release,
    read_task,
    refusal,
)
from ..common.server_bundle import ServerBundle
from ..common.weights import hash_of_weights
from .conditions import Conditions, read_conditions
from .device_folder import DeviceFolder
from .diary import Diary
from .fleet import HEARTBEAT, Fleet, encode
from .model_delivery import keep_release
from .node_keys import load_node_key
from .outbox import Outbox, name_of
from .policy import check_conditions, check_promise
from .withdrawal import forget_mark, undisturbed

_log = logging.getLogger(__name__)
_BEAT = 0.7 * HEARTBEAT
_TICK = 0.2  # seconds between looks at a process that trains
_LONGEST_FIT = 1800.0
_PAUSES = (1.0, 60.0)  # seconds between tries to connect, first and longest
_METERED_FOR = 60.0  # seconds until that is asked again
_SHUT_OUT = 5.0  # where more than the network is in the way, at first


class Owner(Protocol):
    """What the owner has decided; asked anew each time."""

    def consents(self) -> bool:
        """Whether the device may take part at all."""
        ...

    def paused(self) -> bool:
        """Whether it shall not for now."""
        ...


class Node:
    """A device in its federation.

    Args:
        folder: of the device.
        owner: what its owner decided.
        conditions: reads power, use and network.
        poll: seconds between questions for work, on average.
    """

    def __init__(
        self,
        folder: DeviceFolder,
        owner: Owner,
        *,
        conditions: Callable[[], Conditions] = read_conditions,
        poll: float = 1.0,
    ) -> None:
        self._folder = folder
        self._owner = owner
        self._conditions = conditions
        self._poll = poll
        self._load_server()
        self._outbox = Outbox(folder.outbox)
        self._diary = folder.diary
        self._fit: _Fit | None = None
        self._connected = math.inf  # when the present connection was made
        self._metered = -math.inf  # when the network was found to be so

    def _load_server(self) -> None:
        """What the owner has joined; read anew for every connection, for it may be another by then."""
        self._joined = self._read_joined()
        self._bundle = ServerBundle.load(self._folder.server)
        self._key = load_node_key(self._folder)

    def _read_joined(self) -> bytes | None:
        try:
            return self._folder.server_facts.read_bytes()
        except FileNotFoundError:
            return None

    def run(self, stop: Event) -> None:
        """Take part until ``stop`` is set; connections that break are made again."""
        pause = _PAUSES[0]
        while not stop.is_set():
            self._connected = math.inf
            try:
                self._session(stop)
            except Unreachable as error:
                _log.warning("%s", error)
            except (FedprofileError, OSError) as error:  # shut out, a full disk, a store in use
                _log.error("%s", error)
                pause = max(pause, _SHUT_OUT)
            except Exception as error:  # nothing that a server sends may end taking part for good
                # The type alone: what it says may hold what was sent.
                _log.error("unexpected %s; connecting again", type(error).__name__)
                pause = max(pause, _SHUT_OUT)
            # A connection that held for longer starts the pauses anew; a server that takes devices in and
            # dies, over and over, doesn't.
            if time.monotonic() - self._connected > pause:
                pause = _PAUSES[0]
            # Jitter: devices that lost the same server don't come back as one.
            self._rest(stop, pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _PAUSES[1])
        if self._fit is not None:
            self._fit.kill()

    def _rest(self, stop: Event, seconds: float) -> None:
        """Wait, without a connection; what trains goes on, and ends where the owner no longer wants it."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not stop.is_set():
            try:
                self._tend_fit()
            except Exception as error:  # a full disk, a store in use, and as in `run`
                known = isinstance(error, FedprofileError | OSError)
                _log.error("%s", error if known else f"unexpected {type(error).__name__}")
                stop.wait(min(left, _SHUT_OUT))
            else:
                stop.wait(left if self._fit is None else min(left, _TICK))

    def _session(self, stop: Event) -> None:
        """One connection, until it breaks.

        Raises:
            Unreachable: it broke.
            NotAdmitted: the server doesn't let this device in, or no longer.
        """
        self._load_server()
        fleet = Fleet(self._bundle.facts.address, ca=self._bundle.ca, key=self._key)
        try:
            diary = Diary.read(self._diary)
            fleet.activate(known_as=diary.node)
            if fleet.number != diary.node:
                replace(diary, node=fleet.number).write(self._diary)
            _log.info("connected to %s", self._bundle.facts.address)
            beaten = self._connected = time.monotonic()
            while not stop.is_set():
                if self._left():
                    _log.warning("another server was joined: leaving this one")
                    return
                if time.monotonic() - beaten > _BEAT:
                    if not fleet.beat():
                        raise NotAdmitted(f"{self._bundle.facts.address}: doesn't know this node")
                    beaten = time.monotonic()
                self._tend_fit()
                self._hand_over(fleet)
                if self._fit is not None:
                    stop.wait(_TICK)
                    continue
                if not self._receive(fleet):
                    stop.wait(self._poll * random.uniform(0.5, 1.5))
        finally:
            fleet.close()

    def _receive(self, fleet: Fleet) -> bool:
        """Take the next message, if any, and answer it or have it answered."""
        try:
            message = fleet.pull()
        except (MessageError, RunOver) as error:
            _log.warning("a message is left out: %s", error)
            return True
        if message is None:
            return False
        kind = message.metadata.message_type
        # Hashed, for it becomes the name of a file, and the server chose it.
        name = hashlib.sha256(message.metadata.message_id.encode()).hexdigest()[:32]
        try:
            if kind in TASKS:
                task = self._read(message)
                name = name_of(task.binding)
                self._begin(name, task.binding, message, task)
            elif kind == RELEASE:
                reply = self._keep(message)
                self._outbox.store(name, reply)
            else:
                raise MessageError(f"'{kind}' is nothing this device does")
        except FedprofileError as error:
            _log.warning("%s: %s", kind, error)
            self._outbox.store(name, refusal(message, error))
        return True

    def _read(self, message: Message) -> StatisticsTask | TrainTask:
        """The task of a message, if it is the server's and about what this device holds.

        Raises:
            TaskRefused: it isn't signed, or the weights aren't those that were signed.
            MessageError: it can't be read, or is about another federation or item table.
        """
        facts = self._bundle.facts
        check_signature(message, public_key=facts.signing_key)
        task = read_task(message)
        if task.binding.run != facts.federation or task.binding.items != facts.items:
            raise MessageError("the task is about another federation or item table")
        if isinstance(task, TrainTask):
            if hash_of_weights(task.weights) != task.binding.model:
                raise TaskRefused("model", "the weights aren't those that were signed")
            items = self._bundle.items
            known = task.vectors
            if known.shape != (items.n_items, items.width_of(COOCCURRENCE_BLOCK)):
                raise MessageError("the vectors of the task aren't of this item table")
            if not (np.isfinite(known).all() and np.isfinite(task.prior).all()):
                raise MessageError("the task holds numbers that aren't finite")
        return task

    def _begin(
        self, name: str, binding: Binding, message: Message, task: StatisticsTask | TrainTask
    ) -> None:
        """Answer as before where this was answered before; else check, and begin.

        Raises:
            TaskRefused: the owner doesn't want it.
        """
        with undisturbed(self._folder):
            made = self._outbox.answer(name, message)
            if made is not None:
                self._outbox.store(name, made)
                return
        policy = self._folder.config.policy
        self._check_owner()
        check_conditions(policy, self._conditions())
        check_promise(policy, clip_norm=task.clip_norm, noise_multiplier=task.noise_multiplier)
        today = dt.datetime.now(dt.UTC).date()
        Diary.read(self._diary).begun(
            self._bundle.facts.signing_key,
            binding.release,
            today=today,
            rounds_per_day=policy.rounds_per_day,
        ).write(self._diary)
        self._fit = _Fit(self._folder, name, message)

    def _check_owner(self) -> None:
        if not self._agrees():
            raise TaskRefused("consent", "the owner hasn't agreed")
        if self._owner.paused():
            raise TaskRefused("paused", "the owner has paused it")

    def _left(self) -> bool:
        """Whether another server was joined since; what this one asked for is dropped then."""
        if self._read_joined() == self._joined:
            return False
        if self._fit is not None:
            self._fit.kill()
            forget_mark(self._folder, self._fit.name)
            self._fit = None
        return True

    def _agrees(self) -> bool:
        """Whether the owner agrees to take part: always with the server that was joined last."""
        return self._owner.consents() and not self._left()

    def _tend_fit(self) -> None:
        """See to the process that trains: end it where the owner no longer wants it."""
        if self._fit is None or self._left():
            return
        fit = self._fit
        try:
            self._check_owner()
            if fit.running():
                if fit.seconds < _LONGEST_FIT:
                    return
                raise TaskRefused("failed", f"training took longer than {_LONGEST_FIT:.0f} s")
            made = self._outbox.answer(fit.name, fit.instruction)
            if made is None:
                raise TaskRefused("failed", f"training ended with code {fit.code}")
            what = "declined after" if made.has_error() else "trained for"
            _log.info("round %s: %s %.1f s", fit.instruction.metadata.group_id, what, fit.seconds)
        except TaskRefused as error:
            fit.kill()
            # It may have answered in its last moment; what is on disk stands.
            if self._outbox.answer(fit.name, fit.instruction) is None:
                _log.warning("%s", error)
                self._outbox.store(fit.name, refusal(fit.instruction, error))
        forget_mark(self._folder, fit.name)
        self._fit = None

    def _hand_over(self, fleet: Fleet) -> None:
        """Send what waits; a reply that the server no longer wants is done with too.

        One that it broke off stays and is offered again: a server that is done with the round wants
        nothing of it then, and any other takes the rest.

        Raises:
            Unreachable: it waits on.
        """
        with undisturbed(self._folder):
            waiting = self._outbox.waiting()
        for path, reply in waiting:
            if self._fit is not None and path.stem == self._fit.name:
                continue  # not committed yet
            if holds_update(reply):
                if not self._agrees():
                    # Agreed when it was made, and no longer: it stays.
                    self._outbox.withdraw(path)
                    continue
                if self._holds_back():
                    continue
            if not path.exists():  # erased since it was read
                continue
            try:
                fleet.push(reply)
            except RunOver as error:
                _log.warning("nobody waits for a reply: %s", error)
            except NotTaken as error:
                _log.warning("%s; it is kept and offered again", error)
                Diary.read(self._diary).broken_off().write(self._diary)
                continue
            with undisturbed(self._folder):
                self._outbox.sent(path)

    def _holds_back(self) -> bool:
        """Whether an update that waits has to wait on: the owner paused, or every byte costs now."""
        if self._owner.paused():
            return True
        if not self._folder.config.policy.unmetered:
            return False
        # Asking takes a process, and what waits is looked at every second.
        if time.monotonic() - self._metered < _METERED_FOR:
            return True
        metered = bool(self._conditions().metered)
        self._metered = time.monotonic() if metered else -math.inf
        return metered

    def _keep(self, message: Message) -> Message:
        """Keep a released model.

        Raises:
            MessageError: it isn't signed by the server, or older than the one in use.
        """
        try:
            name = keep_release(self._folder, self._bundle, read_release(message))
        except (DataError, DeviceError) as error:
            raise MessageError(f"a released model can't be kept: {error}") from error
        _log.info("model %s is in use", name)
        return hosting_reply(message, first=0, count=1)


class _Fit:
    """A process that makes the answer to one instruction and leaves it in the outbox."""

    def __init__(self, folder: DeviceFolder, name: str, instruction: Message) -> None:
        self.name = name
        self.instruction = instruction
        self.code: int | None = None
        self._began = time.monotonic()
        task = folder.run / "task.bin"
        task.write_bytes(encode(instruction))
        try:
            with task.open("rb") as source, folder.fit_log.open("wb") as sink:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", f"{__package__}.fit", str(folder.path)],
                    stdin=source,
                    stdout=sink,
                    stderr=sink,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
        finally:
            task.unlink()  # it has the open file; nothing of the round stays on disk

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def running(self) -> bool:
        """Whether it still works."""
        self.code = self._process.poll()
        return self.code is None

    def kill(self) -> None:
        """End it."""
        if self.running():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
