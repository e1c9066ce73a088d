"""The Flower ServerApp: find the hosts, release statistics, train in private rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray
from torch import Tensor

from ..common.config import RunConfig
from ..common.encoder import Encoder
from ..common.errors import BudgetError, ConfigError, ReplyRejected, RunFolderError
from ..common.items import COOCCURRENCE_BLOCK, ItemTable
from ..common.ledger import Ledger
from ..common.ledger_entries import Reserve
from ..common.mechanism import Mechanism
from ..common.messages import (
    Binding,
    CooccurrenceTask,
    PopularityTask,
    Sign,
    cooccurrence_message,
    hosting_query,
    popularity_message,
    read_hosting,
)
from ..common.randomness import NoiseSource
from ..common.user_level_optimizer import release_sum
from .budget import BudgetPlan
from .checkpoint import Checkpoint
from .cohorts import check_coverage, sample_cohort, split_by_host
from .cooccurrence import head_of, head_size
from .popularity import ItemPriors, item_priors
from .relations import item_relations
from .statistics import ItemStatistics
from .strategy import PrivateAveraging, RoundRecord
from .validation import add_up

_NODES_TIMEOUT = 60.0  # for all nodes to turn up
_ANSWER_TIMEOUT = (
    600.0  # for those that did to say what they host; a fresh process loads torch first
)
_REPLY_TIMEOUT = 3600.0  # for a round
_POLL = 0.5

OnStatistic = Callable[[str, Mapping[str, Tensor]], None]
"""Takes the name of a one-shot release and its noisy sum."""

Enough = Callable[[Checkpoint, ItemStatistics], str | None]
"""Takes where a run stands between rounds; tells why it ends there, None where it goes on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FederationResult:
    """What a federation leads to.

    Attributes:
        weights: the released weights: the average of the last rounds.
        statistics: what was released of the items.
        checkpoint: the state after the last round.
        stopped: why it ended before its last round, None where it didn't.
    """

    weights: dict[str, Tensor]
    statistics: ItemStatistics
    checkpoint: Checkpoint
    stopped: str | None


class Federation:
    """A run of the server, from the hosts' first reply to the last round.

    Args:
        run: name of the run.
        config: training and statistics.
        plan: noise of every release.
        encoder: the untrained shared encoder.
        table: the public item table.
        ledger: of this population.
        randomness: secret coins and noise.
        checkpoints: folder of the checkpoints.
        now: moment of the statistics, seconds since 1970 UTC, public.
        on_round: called after each round with its record, the weights so far and the statistics.
        enough: asked with the checkpoint and the statistics, wherever the run stands between rounds;
            one that goes on is asked again, for a kill may have come before the answer. What it
            answers is why no further round is made; None to make one.
        on_statistic: called with the name and the noisy sum of each statistic; of co-occurrence, a
            checkpoint keeps only the vectors that follow from it.
        hosts: finds node → its devices; unset: the nodes are asked, until they host everybody.
        before_round: called before a round costs anything; it may wait.
        sign: signs the tasks, for devices that ask for it.
        reply_timeout: seconds that a round waits for replies.
        most_numbers: that a device is asked for of pairs, which limits the items compared.

    Attributes:
        result: set when the run has ended.
    """

    def __init__(
        self,
        *,
        run: str,
        config: RunConfig,
        plan: BudgetPlan,
        encoder: Encoder,
        table: ItemTable,
        ledger: Ledger,
        randomness: NoiseSource,
        checkpoints: Path,
        now: int,
        on_round: Callable[[RoundRecord, dict[str, Tensor], ItemStatistics], None],
        enough: Enough = lambda *_: None,
        on_statistic: OnStatistic = lambda *_: None,
        hosts: Callable[[Grid], Mapping[int, range]] | None = None,
        before_round: Callable[[], None] = lambda: None,
        sign: Sign | None = None,
        reply_timeout: float = _REPLY_TIMEOUT,
        most_numbers: int = CooccurrenceTask.most_numbers,
    ) -> None:
        self.result: FederationResult | None = None
        self._stopped: str | None = None
        self._run = run
        self._config = config
        self._plan = plan
        self._encoder = encoder
        self._table = table
        self._ledger = ledger
        self._randomness = randomness
        self._checkpoints = checkpoints
        self._now = now
        self._on_round = on_round
        self._enough = enough
        self._on_statistic = on_statistic
        self._hosts = hosts or partial(find_hosts, population_size=plan.training.population_size)
        self._before_round = before_round
        self._sign = sign
        self._reply_timeout = reply_timeout
        self._most_numbers = most_numbers

    def run(self, grid: Grid) -> None:
        """Run to the end, to where it is enough, or to the last round the budget allows; sets ``result``.

        Raises:
            BudgetError: not even the first release fits.
            ConfigError: the nodes don't host the population.
            RunFolderError: the checkpoint belongs to another configuration or ledger.
        """
        # 1. Find the hosts, and which devices each of them speaks for.
        hosts = self._hosts(grid)
        # 2. Go on where a checkpoint stands, or release the statistics first.
        checkpoint = self._with_statistics(grid, hosts)
        statistics = self._statistics(checkpoint)
        # 3. Train in private rounds.
        strategy = PrivateAveraging(
            run=self._run,
            training=self._config.training,
            mechanism=self._plan.training,
            ledger=self._ledger,
            randomness=self._randomness,
            hosts=hosts,
            statistics=statistics,
            checkpoint=checkpoint,
            folder=self._checkpoints,
            on_round=lambda record, weights: self._on_round(record, weights, statistics),
            enough=lambda checkpoint: self._enough(checkpoint, statistics),
            before_round=self._before_round,
            sign=self._sign,
        )
        strategy.start(grid, timeout=self._reply_timeout)
        # 4. Release the average of the last rounds: post-processing, free of ε.
        last = strategy.checkpoint
        weights = last.weights
        if last.averaged:
            weights = {name: total / last.averaged for name, total in last.average.items()}
        self.result = FederationResult(
            weights=weights,
            statistics=statistics,
            checkpoint=last,
            stopped=strategy.stopped or self._stopped,
        )

    def _with_statistics(self, grid: Grid, hosts: Mapping[int, range]) -> Checkpoint:
        """The latest checkpoint, from which training goes on; each release is saved, then confirmed."""
        checkpoint = Checkpoint.latest(
            self._checkpoints,
            config_digest=self._config.digest(),
            items=self._table.content_hash,
        )
        if checkpoint is None:
            checkpoint = self._popularity(grid, hosts, self._start())
            checkpoint.save(self._checkpoints)
        self._confirm(checkpoint)
        if self._plan.cooccurrence is None or checkpoint.vectors is not None or checkpoint.round:
            return checkpoint
        try:
            checkpoint = self._cooccurrence(grid, hosts, checkpoint, self._plan.cooccurrence)
        except BudgetError as error:
            self._stopped = str(error)  # crashes ate it; what is there is a result
            return checkpoint
        checkpoint.save(self._checkpoints)
        self._confirm(checkpoint)
        return checkpoint

    def _start(self) -> Checkpoint:
        """The untrained encoder, before anything was released."""
        return Checkpoint(
            round=0,
            config_digest=self._config.digest(),
            items=self._table.content_hash,
            release=None,
            weights={n: p.detach().clone() for n, p in self._encoder.named_parameters()},
            popularity=torch.zeros(self._popularity_shape, dtype=torch.float64),
        )

    def _popularity(
        self, grid: Grid, hosts: Mapping[int, range], checkpoint: Checkpoint
    ) -> Checkpoint:
        """Release popularity, where it gets a share of the budget."""
        mechanism = self._plan.popularity
        if mechanism is None:
            return checkpoint
        task = partial(
            PopularityTask,
            half_lives_days=self._config.statistics.half_lives_days,
            now=self._now,
        )
        release, noisy, record = self._release(
            grid,
            hosts,
            mechanism,
            name=PopularityTask.name,
            message=lambda node, **common: popularity_message(
                node, task(**common), sign=self._sign
            ),
            shape={"popularity": self._popularity_shape},
        )
        return replace(
            checkpoint, release=release, popularity=noisy["popularity"], rounds=(record,)
        )

    def _cooccurrence(
        self,
        grid: Grid,
        hosts: Mapping[int, range],
        checkpoint: Checkpoint,
        mechanism: Mechanism,
    ) -> Checkpoint:
        """Release which of the most popular items are taken together, close by or in whole histories."""
        known, whole = self._statistics(checkpoint), self._table.whole
        size = min(
            head_size(self._table.n_items, mechanism, whole=whole),
            CooccurrenceTask.largest_head(whole=whole, numbers=self._most_numbers),
        )
        head = head_of(known.long_run, size)
        task = partial(CooccurrenceTask, head=head)
        release, noisy, record = self._release(
            grid,
            hosts,
            mechanism,
            name=CooccurrenceTask.name,
            message=lambda node, **common: cooccurrence_message(
                node, task(**common), sign=self._sign
            ),
            shape={"cooccurrence": (CooccurrenceTask.numbers(len(head), whole=whole),)},
        )
        relations = item_relations(
            noisy["cooccurrence"].numpy(),
            table=self._table,
            head=head,
            priors=ItemPriors(known.long_run, known.current),
            mechanism=mechanism,
            devices=record["trained"],
        )
        told = replace(
            checkpoint,
            release=release,
            vectors=torch.from_numpy(relations.vectors),
            successors=relations.successors,
            beyond_content=relations.beyond_content,
            rounds=(*checkpoint.rounds, record),
        )
        weights = self._statistics(told).begin(checkpoint.weights, self._table)
        return replace(told, weights=weights)

    def _release(
        self,
        grid: Grid,
        hosts: Mapping[int, range],
        mechanism: Mechanism,
        *,
        name: str,
        message: Callable[..., Message],
        shape: dict[str, tuple[int, ...]],
    ) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        """One statistic of all devices: its number in the ledger, the noisy sum, and its record."""
        # 1. Reserve.
        self._before_round()
        release = self._ledger.reserve(task=name, mechanism=mechanism, run=self._run)
        # 2. Ask every sampled device, through its host.
        randomness = self._randomness.child(name)
        cohort = sample_cohort(mechanism, coins=randomness.child("cohort"))
        by_host = split_by_host(cohort, hosts)
        binding = Binding(run=self._run, round=0, release=release, items=self._table.content_hash)
        messages = (
            message(
                node,
                binding=binding,
                devices=devices,
                clip_norm=mechanism.clip_norm,
                noise_multiplier=mechanism.noise_multiplier,
            )
            for node, devices in by_host.items()
        )
        replies = grid.send_and_receive(messages, timeout=self._reply_timeout)
        # 3. Validate, add up, add noise.
        tally = add_up(
            replies,
            asked={node: len(devices) for node, devices in by_host.items()},
            binding=binding,
            shapes=shape,
            clip_norm=mechanism.clip_norm,
        )
        summed = {name: torch.from_numpy(total) for name, total in tally.total.items()}
        noisy = release_sum(summed, mechanism=mechanism, noise=randomness.child("noise"))
        self._on_statistic(name, noisy)
        record = {
            "round": 0,
            "sampled": len(cohort),
            "trained": tally.devices,
            "rejected": tally.rejected,
            "ignored": tally.ignored,
        }
        return release, noisy, record

    def _confirm(self, checkpoint: Checkpoint) -> None:
        """Commit the release that a checkpoint proves was made, late where a crash left it open.

        Raises:
            RunFolderError: the ledger doesn't know of it, so what it cost isn't charged there.
        """
        if checkpoint.release is None:
            return
        known = {e.sequence: e for e in self._ledger.entries if isinstance(e, Reserve)}
        reserved = known.get(checkpoint.release)
        if reserved is None or (reserved.round or 0) != checkpoint.round:
            raise RunFolderError(
                f"{self._checkpoints}: the checkpoint of round {checkpoint.round} isn't in the "
                "ledger; put back the ledger of this run, or choose another --out"
            )
        if reserved in self._ledger.pending():
            last = checkpoint.rounds[-1]
            self._ledger.commit(
                checkpoint.release,
                cohort_size=last["sampled"],
                replies_counted=last["trained"],
                rejected=last["rejected"],
                model_after=checkpoint.led_to,
            )

    @property
    def _popularity_shape(self) -> tuple[int, int]:
        return 1 + len(self._config.statistics.half_lives_days), self._table.n_items

    def _statistics(self, checkpoint: Checkpoint) -> ItemStatistics:
        """What the releases so far tell, denoised."""
        n_items = self._table.n_items
        vectors = np.zeros((n_items, self._table.width_of(COOCCURRENCE_BLOCK)), dtype=np.float32)
        if checkpoint.vectors is not None:
            vectors = checkpoint.vectors.numpy()
        mechanism = self._plan.popularity
        if mechanism is None:
            flat = np.full(n_items, -np.log(n_items), dtype=np.float32)
            priors = ItemPriors(long_run=flat, current=flat)
        else:
            noisy: NDArray[np.float64] = checkpoint.popularity.numpy()
            priors = item_priors(noisy, stddev=mechanism.noise_stddev)
        return ItemStatistics(
            **priors._asdict(),
            vectors=vectors,
            successors=checkpoint.successors,
            beyond_content=checkpoint.beyond_content,
        )


def build_server_app(federation: Federation) -> ServerApp:
    """The ServerApp that runs ``federation`` on whatever grid Flower hands it."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001  # Flower's signature
        federation.run(grid)

    return app


def find_hosts(
    grid: Grid, *, population_size: int, timeout: float = _NODES_TIMEOUT
) -> dict[int, range]:
    """Node → its devices, ascending, once the nodes together host the whole population.

    Raises:
        ConfigError: they don't after ``timeout`` seconds, or a node's answer is none.
    """
    deadline = time.monotonic() + timeout
    while True:
        queries = [hosting_query(node) for node in sorted(grid.get_node_ids())]
        replies = grid.send_and_receive(queries, timeout=_ANSWER_TIMEOUT) if queries else []
        found = {reply.metadata.src_node_id: _hosting(reply) for reply in replies}
        hosts = dict(sorted(found.items(), key=lambda host: host[1].start))
        try:
            check_coverage(hosts, population_size=population_size)
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL)
        else:
            return hosts


def _hosting(reply: Message) -> range:
    try:
        return read_hosting(reply)
    except ReplyRejected as error:
        node = reply.metadata.src_node_id
        raise ConfigError(f"node {node} doesn't say which devices it hosts ({error})") from error
