"""Event-level differential privacy on the device: DP-SGD by Opacus, against the server itself.

The user-level guarantee trusts the server to add noise. Here the device adds noise of its own to
every local step (Abadi et al. 2016, algorithm 1), so that what it sends tells little of any one event,
whoever reads it. The user-level clip and the server's noise stay as they are on top.

What an *example* is decides what is protected. An event that appears in k examples has k times the
sensitivity, and in a history it appears everywhere: as a target, in later windows, in all later sums. So
time is cut into periods, each period is learnt from by itself, as if the device knew nothing else, and an
event is in one example only. A device has n slots, n public; the period that starts p·seconds after
1970 goes into slot p mod n, and a slot holds its newest period with events. An event more or
less, or another in the same period, or all events of a period, change the content of one slot and so
move the sum of clipped gradients by at most 2C. That is the neighbouring relation ``replace-one``, and
the one that is accounted for. An event that is moved to another period changes two slots.

Coins are tossed for all n slots, whether there is anything in them, and a step is taken whatever they
show: how much a device has recorded shows neither in the number of steps nor in their noise.

What a step leaves out of hidden layers (:mod:`.dropout`) follows from the public seed alone, so that a
gradient is still one slot's own, and 2C the most that its content moves the sum by.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.optim import SGD

from ..common.config import ModelConfig
from ..common.encoder import Encoder, EncoderInputs
from ..common.errors import ConfigError, ReplyRejected
from ..common.histories import Histories
from ..common.items import ItemTable
from ..common.mechanism import Mechanism
from ..common.messages import TrainTask
from ..common.randomness import NoiseSource
from ..common.updates import ClippedUpdate
from ..common.user_level_optimizer import UserLevelDPOptimizer, clip_and_sum
from .batches import Batch, Cohort, Negatives
from .dropout import Masks, draw_masks
from .examples import build_examples
from .lifetime import BudgetOf, no_budget
from .local_training import draw_negatives, next_item_losses

_SAME = 1e-3
"""Relative difference of two ways to one gradient, in float32; a use that hooks miss is all of it."""

Losses = Callable[[Tensor, Batch, Negatives], Tensor]


@dataclass(frozen=True, kw_only=True)
class EventPrivacy:
    """What a device does to hide single events, all of it public and fixed for its lifetime.

    Attributes:
        mechanism: of one local step: C bounds an example's gradient, N = n is the number of slots, q the
            chance of a slot to be in a batch, q·n what the sum is divided by.
        period_seconds: length of a period.

    Raises:
        ConfigError: the mechanism has no noise, or its sampler isn't Poisson.
    """

    mechanism: Mechanism
    period_seconds: int

    def __post_init__(self) -> None:
        if not self.mechanism.private or self.mechanism.sampler != "poisson":
            raise ConfigError("privacy.local needs noise and Poisson batches")

    def slots(
        self, histories: Histories, keys: NDArray[np.uint64]
    ) -> tuple[Histories, NDArray[np.uint64]]:
        """The n slots of each device, as if each were a device, and their keys.

        All events weigh the same: a weight that is relative to the owner's other events would carry
        them from one slot to another.
        """
        n = self.mechanism.population_size
        period = histories.times // self.period_seconds
        slot = histories.devices * n + period % n
        newest = np.full(histories.n_devices * n, np.iinfo(np.int64).min)
        np.maximum.at(newest, slot, period)
        rows = np.flatnonzero(period == newest[slot])
        rows = rows[np.argsort(slot[rows], kind="stable")]
        counts = np.bincount(slot[rows], minlength=len(newest))
        columns = {f.name: getattr(histories, f.name)[rows] for f in fields(Histories)[1:]}
        columns["weights"] = np.ones(len(rows), dtype=np.float32)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        own = np.tile(np.arange(n, dtype=np.uint64), histories.n_devices)
        return Histories(offsets=offsets, **columns), np.repeat(keys, n) ^ own


class PrivateTrainer:
    """Trains devices one after the other, each by DP-SGD over its slots.

    Hooks take the gradients of single examples, and they know one set of weights; so devices can't
    share a batch as in :class:`~fedprofile.client.local_training.Trainer`.

    Args:
        encoder: gives the architecture; its own weights are not changed.
        table: the public item table.
        model: window and time scales of the encoder.
        privacy: clip, noise and slots.
        randomness: the device's coins and noise; of many devices, each has a stream of its own.
        budget_of: device → its event-level lifetime budget.

    Raises:
        ConfigError: gradients of single examples of this encoder would be wrong.
    """

    def __init__(
        self,
        encoder: Encoder,
        table: ItemTable,
        model: ModelConfig,
        *,
        privacy: EventPrivacy,
        randomness: NoiseSource,
        budget_of: BudgetOf = no_budget,
    ) -> None:
        check_gradients(encoder)
        self._encoder = encoder
        self._model = model
        self._vectors = table.vectors
        self._randomness = randomness
        self._hooked = _hooked(copy.deepcopy(encoder))
        # Any: Opacus hangs grad_sample and summed_grad on its parameters.
        self._parameters: dict[str, Any] = {
            name.removeprefix("_module."): p for name, p in self._hooked.named_parameters()
        }
        self.privacy = privacy
        self.budget_of = budget_of

    def clipped_sum(
        self, histories: Histories, keys: NDArray[np.uint64], task: TrainTask
    ) -> ClippedUpdate:
        """The sum of the devices' updates (w_before − w_after), each clipped as a whole.

        Args:
            histories: n devices.
            keys: uint64 [n], each device's own.
            task: what they are asked.
        """
        total = {name: np.zeros(w.shape, dtype=np.float64) for name, w in task.weights.items()}
        for device in range(histories.n_devices):
            update = self._update(histories.device(device), keys[device : device + 1], task)
            try:
                sums, _ = clip_and_sum(
                    {name: u.unsqueeze(0) for name, u in update.items()}, clip_norm=task.clip_norm
                )
            except ReplyRejected:
                continue  # diverged: it contributes nothing
            for name, value in sums.items():
                total[name] += value.numpy()
        return ClippedUpdate(
            arrays={name: value.astype(np.float32) for name, value in total.items()},
            devices=histories.n_devices,
            clip_norm=task.clip_norm,
        )

    def _update(
        self, history: Histories, keys: NDArray[np.uint64], task: TrainTask
    ) -> dict[str, Tensor]:
        """Unclipped update of one device."""
        # By round: a repeated one repeats its coins where they are seeded, and never where they aren't.
        stream = self._randomness.child(f"round/{task.binding.round}/{keys[0]:016x}")
        coins, mechanism = stream.child("coins"), self.privacy.mechanism
        cohort, useful = self._cohort(history, keys, task)
        masks = draw_masks(
            self._encoder,
            rows=cohort.longest,
            steps=task.steps,
            share=task.dropout,
            seed=task.seed,
        )
        start = {name: torch.from_numpy(task.weights[name]) for name in self._parameters}
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.copy_(start[name])
        optimizer = UserLevelDPOptimizer(
            SGD(self._parameters.values(), lr=task.learning_rate),
            named_parameters=self._parameters,
            mechanism=mechanism,
            noise=stream.child("noise"),
        )
        for step in range(task.steps):
            drawn = coins.poisson_sample(
                population_size=mechanism.population_size,
                probability=mechanism.sampling_probability,
            )
            self._take_gradients(cohort, drawn[useful[drawn]], step, masks)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {name: start[name] - p.detach() for name, p in self._parameters.items()}

    def _cohort(
        self, history: Histories, keys: NDArray[np.uint64], task: TrainTask
    ) -> tuple[Cohort, NDArray[np.bool_]]:
        """The device's slots, and which of them there is something to learn from (bool [n])."""
        slots, slot_keys = self.privacy.slots(history, keys)
        examples = build_examples(
            slots,
            slot_keys,
            vectors=self._vectors,
            scales=self._model.scales,
            window=self._model.window,
            new_targets_only=task.new_targets_only,
            seed=task.seed,
        )
        drawn = draw_negatives(
            n_items=len(self._vectors), steps=task.steps, count=task.negatives, seed=task.seed
        )
        cohort = Cohort(examples, torch.from_numpy(task.prior), drawn)
        return cohort, np.diff(examples.target_offsets) > 0

    def _take_gradients(
        self, cohort: Cohort, slots: NDArray[np.int64], step: int, masks: Masks
    ) -> None:
        """Leave the gradient of each of ``slots`` in ``p.grad_sample``, perhaps of none."""
        if not len(slots):
            for p in self._parameters.values():
                p.grad_sample = p.new_zeros((0, *p.shape))
            return
        batch, _, negatives = cohort.batch(slots)
        losses = _losses(self._hooked(batch.inputs, masks[step]), batch, negatives[step])
        _backward(losses)
        finite = torch.stack(
            [p.grad_sample.flatten(1).isfinite().all(dim=1) for p in self._parameters.values()]
        ).all(dim=0)
        if not finite.all():
            for p in self._parameters.values():
                p.grad_sample[~finite] = 0.0


def check_gradients(encoder: Encoder, losses: Losses | None = None) -> None:
    """Refuse an encoder or a loss for which a clipped gradient is not that of one example.

    Hooks see what goes through a layer. They miss weights that are used in any other way, such as
    ``h @ embedding.weight.T``, and ``padding_idx``; batch norm and in-batch negatives mix examples, so that
    no gradient is one example's own. So, with made-up numbers, gradients by hooks are compared with
    those of each example alone by plain autograd.

    Args:
        encoder: to be checked, left as it is.
        losses: profiles, batch and negatives → loss of each example; None: that of this program.

    Raises:
        ConfigError: with the trap it fell into.
    """
    if encoder.item_ids is not None:
        raise ConfigError(
            "privacy.local: a trainable ID table also scores items by its own weights (tied weights), "
            "which gradients of single examples miss; set model.item_ids = false"
        )
    losses = losses or _losses
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        plain = copy.deepcopy(encoder).train()
        for p in plain.parameters():
            nn.init.normal_(p, std=0.3)  # weights of zero would hide what comes before them
        inputs, batch, negatives = _made_up(encoder)
        hooked = _hooked(copy.deepcopy(plain))
        each = [
            _gradients(plain, losses, _only(inputs, i), _only(batch, i), _only_bias(negatives, i))
            for i in range(len(inputs.gaps))
        ]
        together = _gradients(plain, losses, inputs, batch, negatives)
        _backward(losses(hooked(inputs), batch, negatives))
    for name, _ in plain.named_parameters():
        alone = torch.stack([gradients[name] for gradients in each])
        scale = float(alone.norm()) + 1e-6
        if float((alone.sum(dim=0) - together[name]).norm()) > _SAME * scale:
            raise ConfigError(
                f"privacy.local: at '{name}' the gradient of one example depends on the others in "
                "the batch; leave out batch norm and negatives taken from the batch"
            )
        by_hooks = dict(hooked.named_parameters())[f"_module.{name}"].grad_sample
        if by_hooks is None or float((by_hooks - alone).norm()) > _SAME * scale:
            raise ConfigError(
                f"privacy.local: gradients of single examples are wrong at '{name}': its weights are "
                "used outside their layer (tied weights, padding_idx); tie them through a layer of "
                "their own, or score with frozen vectors"
            )


def _losses(profiles: Tensor, batch: Batch, negatives: Negatives) -> Tensor:
    return next_item_losses(profiles, batch, negatives, None)


def _hooked(encoder: Encoder) -> GradSampleModule:
    try:
        return GradSampleModule(encoder.train(), loss_reduction="sum", strict=True)
    except NotImplementedError as error:
        why = " ".join(str(error).split())
        raise ConfigError(
            f"privacy.local: gradients of single examples can't be taken ({why:.200}); build the "
            "encoder from Linear, LayerNorm and Embedding"
        ) from error


def _backward(losses: Tensor) -> None:
    """Let the hooks take the gradient of each of ``losses``."""
    with warnings.catch_warnings():
        # The first layers read data, and data needs no gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        torch.autograd.backward(losses.sum())


def _gradients(
    encoder: Encoder, losses: Losses, inputs: EncoderInputs, batch: Batch, negatives: Negatives
) -> dict[str, Tensor]:
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    total = losses(encoder(inputs), batch, negatives).sum()
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else gradient
        for name, p, gradient in zip(names, parameters, found, strict=True)
    }


def _made_up(encoder: Encoder) -> tuple[EncoderInputs, Batch, Negatives]:
    """Three examples of four events, two queries and three targets, and five negatives."""
    n, events, queries, targets, k = 3, 4, 2, 3, encoder.adapter.in_features
    inputs = EncoderInputs(
        vectors=torch.randn(n, events, k),
        rows=torch.zeros(n, events, dtype=torch.int64),
        gaps=torch.rand(n, events),
        types=torch.randint(encoder.n_types, (n, events)),
        weights=torch.ones(n, events),
        positions=torch.tensor([[1, events]]).expand(n, queries),
        sums=torch.randn(n, queries, encoder.gains.in_features, k),
    )
    batch = Batch(
        inputs=inputs,
        target_queries=torch.randint(queries, (n, targets)),
        target_vectors=torch.randn(n, targets, k),
        target_rows=torch.zeros(n, targets, dtype=torch.int64),
        target_priors=torch.zeros(n, targets),
        target_weights=torch.full((n, targets), 1 / targets),
    )
    negatives = Negatives(torch.randn(5, k), torch.zeros(5, dtype=torch.int64), torch.zeros(n, 5))
    return inputs, batch, negatives


def _only(values: Any, example: int) -> Any:
    """A tuple of tensors with one of the examples."""
    return type(values)(
        *(
            _only(value, example) if isinstance(value, tuple) else value[example : example + 1]
            for value in values
        )
    )


def _only_bias(negatives: Negatives, example: int) -> Negatives:
    return negatives._replace(bias=negatives.bias[example : example + 1])
