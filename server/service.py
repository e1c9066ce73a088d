"""The ServerApp of a deployment, as a process: resumes the federation, runs it, releases what comes out.

It may be killed at any moment: the ledger has what was spent, the checkpoint what it led to, and the next
start goes on from there with a Flower run of its own, so that replies to the old one are refused.

``python -m fedprofile.server.service DIR`` runs it; ``fedprofile server run`` starts it again when it dies.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NoReturn

import httpx
from flwr.app import Message
from flwr.supercore.run import RunNotRunningException
from safetensors.torch import load_file
from torch import Tensor

from ..common.code_version import code_version
from ..common.encoder import Encoder, build_encoder
from ..common.errors import FedprofileError, ReplyRejected, ServerFull
from ..common.items import ItemTable
from ..common.ledger import Ledger
from ..common.ledger_entries import Earlier, Reserve, read_ledger
from ..common.messages import CooccurrenceTask, Release, read_hosting, release_message
from ..common.randomness import NoiseSource
from ..common.signing import SigningKey
from ..common.stopping import stopped_by_signals
from .admission import admit
from .app import Federation
from .attendance import Attendance
from .budget import BudgetPlan
from .crashes import check_crashes
from .enrolment import Enrolment
from .folder import ServerFolder
from .journal import keep_journal, note
from .lifetimes import plan_federation
from .link import Link, LinkGrid, LinkLost, ReplySize
from .metrics import Metrics
from .releases import Releases
from .room import check_room, of_the_disk
from .spent_before import is_begun, spent_before
from .split import Sizes
from .statistics import ItemStatistics
from .strategy import RoundRecord
from .supervisor import CANT_WRITE, FINAL, TRY_AGAIN, follow_parent

_LINK_TIMEOUT = 60.0  # for the SuperLink to come up
_DELIVERY_TIMEOUT = 60.0
_TAKEN_A_SECOND = 5e6  # bytes of replies: half of what two cores took, with the devices beside them
_GATHERING = 30.0
_POLL = 0.5


class Stopped(Exception):
    """The operator asked for it."""


class Service:
    """A federation over enrolled devices.

    Args:
        folder: of the server.
        stop: set when the operator wants it to end; a round that runs gets a moment to finish.
    """

    def __init__(self, folder: ServerFolder, stop: threading.Event) -> None:
        self._folder = folder
        self._stop = stop
        self._config = folder.config
        federation = self._config.federation
        self._enrolment = Enrolment(folder.devices, population_size=federation.population_size)
        self._key = SigningKey.load(folder.signing_key)
        self._releases = Releases(folder, self._key)
        self._metrics = Metrics(federation.metrics_port)
        self._hosts: dict[int, range] = {}
        self._last_start = 0.0
        self._noted = ""  # hash of the model that was released last

    def run(self) -> None:
        """Run to the last round that the budget allows, release the model, hand it out.

        Raises:
            FedprofileError: the folder can't be used, no release fits the budget, or the last ones were
                all lost in crashes.
            Stopped: the operator asked for it.
        """
        config = self._config
        # 1. What the federation is: configuration, items, budget. The same after every restart.
        table = ItemTable.load(self._folder.items)
        encoder = self._encoder(table)
        earlier = spent_before(self._folder.path, self._folder.ledger, config.federation)
        plan = plan_federation(
            config,
            sizes=Sizes.of(encoder, config.statistics, table),
            earlier=sum((other.events() for other in earlier), Counter()),
            made=read_ledger(self._folder.ledger) if is_begun(self._folder.ledger) else (),
        )
        with self._open_ledger(plan, earlier) as ledger:
            self._metrics.follow(ledger.entries, epsilon=ledger.epsilon_spent())
            if ledger.stopped is None:
                check_crashes(self._folder, ledger.entries)
            self._serve(plan, table, encoder, ledger)

    def _encoder(self, table: ItemTable) -> Encoder:
        """The shared encoder as every device's bundle has it."""
        config = self._config
        encoder = build_encoder(
            config.model,
            blocks=table.blocks,
            n_items=table.n_items,
            n_types=len(config.federation.event_types),
            seed=0,
        )
        encoder.load_state_dict(load_file(self._folder.model))
        return encoder

    def _serve(self, plan: BudgetPlan, table: ItemTable, encoder: Encoder, ledger: Ledger) -> None:
        with Link(self._folder.socket) as link:
            # 2. A Flower run of its own; what an earlier one still awaits is refused from now on.
            link.wait(_LINK_TIMEOUT)
            grid = link.begin(stop=self._stop, largest=self._largest_reply(plan, table))
            try:
                if ledger.stopped is None:
                    self._train(plan, table, encoder, ledger, link, grid)
                # 3. Hand out the model, also one that was finished before.
                self._gather(link)
                self._deliver(grid)
            except BaseException as error:
                grid.finish(details=type(error).__name__)
                raise
            grid.finish()

    def _largest_reply(self, plan: BudgetPlan, table: ItemTable) -> ReplySize:
        """An update, or statistics: nothing that a device sends has more."""
        weights = [weight.numel() for weight in load_file(self._folder.model).values()]
        popularity = (1 + len(self._config.statistics.half_lives_days)) * table.n_items
        head = CooccurrenceTask.largest_head(whole=table.whole, numbers=self._most_numbers)
        compared = min(head, table.n_items) if plan.cooccurrence else 0
        pairs = CooccurrenceTask.numbers(compared, whole=table.whole)
        return ReplySize.of([*weights, popularity, pairs])

    @property
    def _most_numbers(self) -> int:
        """That a device may be asked for of pairs, so that what all send at once is taken in time."""
        federation = self._config.federation
        most = _TAKEN_A_SECOND * federation.round_timeout_seconds
        return int(most / (4 * federation.population_size))

    def _train(
        self,
        plan: BudgetPlan,
        table: ItemTable,
        encoder: Encoder,
        ledger: Ledger,
        link: Link,
        grid: LinkGrid,
    ) -> None:
        config = self._config
        as_of = config.statistics.as_of
        assert as_of is not None, "the configuration asks for it"
        attendance = Attendance()

        def on_round(
            record: RoundRecord, weights: dict[str, Tensor], statistics: ItemStatistics
        ) -> None:
            epsilon = ledger.epsilon_spent()
            self._metrics.follow(ledger.entries, epsilon=epsilon)
            self._metrics.took(record.seconds)
            note("round", **vars(record), epsilon=epsilon if config.privacy.enabled else None)
            self._publish(record.round, weights, statistics, table, ledger)
            attendance.after(record)
            every = config.federation.release_every
            if every and record.round % every == 0:
                self._deliver(grid)

        def before_round() -> None:
            # Statistics are over, or a crash was paid for.
            self._metrics.follow(ledger.entries, epsilon=ledger.epsilon_spent())
            self._ready(link)

        federation = Federation(
            run=config.federation.name,
            config=config.run(),
            plan=plan,
            encoder=encoder,
            table=table,
            ledger=ledger,
            randomness=NoiseSource.csprng(),
            checkpoints=self._folder.checkpoints,
            now=_midnight(as_of),
            on_round=on_round,
            hosts=lambda _: self._hosts,
            before_round=before_round,
            sign=self._key.sign,
            reply_timeout=config.federation.round_timeout_seconds,
            most_numbers=self._most_numbers,
        )
        federation.run(grid)
        result = federation.result
        assert result is not None, "a federation that raises nothing has a result"
        self._publish(result.checkpoint.round, result.weights, result.statistics, table, ledger)
        ledger.stop(reason=result.stopped or "completed")
        note("finished", reason=result.stopped or "completed", rounds=result.checkpoint.round)

    def _open_ledger(self, plan: BudgetPlan, earlier: tuple[Earlier, ...] = ()) -> Ledger:
        version = code_version()
        path, anchor = self._folder.ledger, self._folder.anchor
        if is_begun(path):
            return Ledger.open(path, signing_key=self._key, anchor=anchor, code_version=version)
        path.unlink(missing_ok=True)  # what a kill left of the first line
        federation = self._config.federation
        return Ledger.create(
            path,
            signing_key=self._key,
            anchor=anchor,
            population=federation.name,
            population_size=federation.population_size,
            delta=plan.delta,
            target_epsilon=plan.target_epsilon,
            randomness="csprng",
            code_version=version,
            config_digest=self._config.run().digest(),
            earlier=earlier,
        )

    def _ready(self, link: Link) -> None:
        """Before a round costs anything: enough devices, not before its time, and room for its results.

        Raises:
            Stopped: the operator asked for it.
            ServerFull: the disk is full; nothing was charged.
        """
        federation = self._config.federation
        told = False
        while True:
            if self._stop.is_set():
                raise Stopped
            online = self._refresh(link)
            early = self._last_start + federation.round_interval_seconds > time.monotonic()
            if online >= federation.quorum and not early:
                break
            if not told and not early:
                note("waiting", online=online, quorum=federation.quorum)
                told = True
            self._stop.wait(_POLL)
        check_room(self._folder)
        self._last_start = time.monotonic()

    def _gather(self, link: Link) -> None:
        """Give devices a moment to come online, where the server has only just started."""
        deadline = time.monotonic() + _GATHERING
        while self._refresh(link) < self._config.federation.quorum:
            if self._stop.wait(_POLL) or time.monotonic() > deadline:
                return

    def _refresh(self, link: Link) -> int:
        """Bring the SuperLink's nodes in line with who is enrolled; returns how many are online."""
        admitted = admit(self._enrolment, link)
        self._hosts.clear()
        self._hosts.update({node.number: range(d.number, d.number + 1) for d, node in admitted})
        online = sum(node.online for _, node in admitted)
        self._metrics.online(online)
        return online

    def _publish(
        self,
        number: int,
        weights: dict[str, Tensor],
        statistics: ItemStatistics,
        table: ItemTable,
        ledger: Ledger,
    ) -> None:
        reserved = [entry.sequence for entry in ledger.entries if isinstance(entry, Reserve)]
        manifest = self._releases.publish(
            round=number,
            release=reserved[-1] if reserved else 0,
            weights={name: weight.numpy() for name, weight in weights.items()},
            statistics=statistics,
            table=table,
            ledger=ledger,
        )
        if manifest.model != self._noted:
            note("release", round=number, model=manifest.model, epsilon=manifest.epsilon)
            self._noted = manifest.model

    def _deliver(self, grid: LinkGrid) -> None:
        release: Release | None = self._releases.load()
        if release is None:
            return
        messages = [release_message(node, release) for node in self._hosts]
        replies = grid.send_and_receive(messages, timeout=_DELIVERY_TIMEOUT)
        note("delivered", devices=sum(map(_took_it, replies)), enrolled=len(messages))


def _took_it(reply: Message) -> bool:
    try:
        read_hosting(reply)
    except ReplyRejected:
        return False
    return True


def _midnight(day: date) -> int:
    """Its start, seconds since 1970 UTC."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def main() -> None:
    """Run the service of the folder named on the command line; exit code 0 when all is done."""
    folder = ServerFolder.open(Path(sys.argv[1]))
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    keep_journal(folder.log)
    follow_parent()
    with stopped_by_signals() as stop:
        try:
            Service(folder, stop).run()
        except Stopped:
            note("stopped")
            sys.exit(TRY_AGAIN)
        except (LinkLost, httpx.HTTPError, RunNotRunningException) as error:
            note("failed", error=type(error).__name__)
            print(f"error: {error}", file=sys.stderr)
            sys.exit(TRY_AGAIN)
        except (FedprofileError, OSError) as error:
            _fail(error)


def _fail(error: FedprofileError | OSError) -> NoReturn:
    """End over an error of ours, with the code that says whether another try is worth a release."""
    found = of_the_disk(error) or error
    code = 1
    if isinstance(found, FedprofileError):
        code = CANT_WRITE if isinstance(found, ServerFull) else FINAL
    note("failed", error=type(found).__name__)
    with contextlib.suppress(OSError):  # its log is on the same disk
        print(f"error: {found}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
