"""The work to compare engines on, and the usual engine: one resident model, one device after another.

This is how Apple's pfl and Flower's clients train: the model stays in memory, the shared weights are
copied into it for each device, S steps of SGD run, the update is clipped and added up.
"""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fedprofile.client.examples import Examples, build_examples
from fedprofile.client.local_training import LocalTraining, draw_negatives
from fedprofile.common.config import ModelConfig, TrainingConfig
from fedprofile.common.encoder import Encoder, EncoderInputs, build_encoder
from fedprofile.common.histories import Histories

Lengths = Literal["equal", "mixed"]
Size = Literal["reference", "default"]
N_ITEMS, K = 3_000, 128
_REFERENCE = ModelConfig(encoder="transformer", width=64, layers=2, heads=2, window=50)
_STEPS = {"reference": 3, "default": TrainingConfig().local_steps}
_MODELS = {"reference": _REFERENCE, "default": ModelConfig()}


@dataclass(frozen=True, eq=False)
class Workload:
    """Devices and what they train.

    Attributes:
        model: shape of the encoder.
        training: what a device does in a round.
        encoder: architecture and initial weights.
        vectors: float32 [n_items, k].
        prior: float32 [n_items].
        examples: n devices.
        weights: name → shared weights.
    """

    model: ModelConfig
    training: LocalTraining
    encoder: Encoder
    vectors: NDArray[np.float32]
    prior: NDArray[np.float32]
    examples: Examples
    weights: dict[str, NDArray[np.float32]]

    @property
    def devices(self) -> int:
        return len(self.examples.window_offsets) - 1

    @property
    def useful_flops(self) -> float:
        """Multiplications and additions that no engine can leave out, all devices, all steps.

        Per layer 2·rows·in·out forward, the same for the gradient of the weights, and again for that
        of the input where it is needed; attention over what came before only.
        """
        d, k = self.model.width, K
        t = np.diff(self.examples.window_offsets).astype(float)
        q = np.diff(self.examples.query_offsets).astype(float)
        m = np.diff(self.examples.target_offsets).astype(float)
        block = 3 * (8 * t * d**2 + 2 * t * (t + 1) * d + 8 * t * d**2)
        step = (
            4 * t * k * d  # adapter, over the window
            + 12 * q * k * d  # adapter over the sums, and out
            + 8 * q * len(self.model.half_lives) * k  # gains
            + self.model.layers * block
            + 4 * q * k * self.training.negatives
            + 4 * m * k
        )
        return float(self.training.steps * step.sum())


@lru_cache(maxsize=2)
def build_workload(size: Size, lengths: Lengths, devices: int) -> Workload:
    """One event a session; full windows, or log-normal ones with a median of 17 events."""
    model = _MODELS[size]
    rng = np.random.default_rng(0)
    events = np.full(devices, model.window + 1)
    if lengths == "mixed":
        drawn = rng.lognormal(math.log(18), 0.7, size=devices)
        events = np.clip(drawn, 3, model.window + 1).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(events)]).astype(np.int64)
    order = np.arange(offsets[-1]) - np.repeat(offsets[:-1], events)
    histories = Histories(
        offsets=offsets,
        items=rng.integers(0, N_ITEMS, size=len(order)).astype(np.int32),
        times=order * 86_400,
        sessions=order.astype(np.int32),
        weights=np.ones(len(order), dtype=np.float32),
        types=np.zeros(len(order), dtype=np.int16),
    )
    vectors = rng.normal(size=(N_ITEMS, K)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    encoder = build_encoder(model, blocks={"text": (0, K)}, n_items=N_ITEMS, n_types=1, seed=0)
    return Workload(
        model=model,
        training=LocalTraining(
            steps=_STEPS[size], learning_rate=0.1, negatives=128, clip_norm=0.5, seed=0
        ),
        encoder=encoder,
        vectors=vectors,
        prior=np.log(rng.dirichlet(np.ones(N_ITEMS))).astype(np.float32),
        examples=build_examples(
            histories,
            np.arange(devices, dtype=np.uint64),
            vectors=vectors,
            scales=model.scales,
            window=model.window,
            new_targets_only=False,
            seed=0,
        ),
        weights={name: p.detach().numpy().copy() for name, p in encoder.named_parameters()},
    )


class ResidentModel:
    """One model, into which the shared weights are copied for each device."""

    def __init__(self, work: Workload) -> None:
        self._examples, self._training = work.examples, work.training
        self._model = copy.deepcopy(work.encoder)
        self._parameters = list(self._model.parameters())
        self._optimizer = torch.optim.SGD(
            self._parameters, lr=work.training.learning_rate, foreach=True
        )
        self._vectors = torch.from_numpy(work.vectors)
        self._priors = torch.from_numpy(work.prior)
        drawn = draw_negatives(
            n_items=N_ITEMS,
            steps=work.training.steps,
            count=work.training.negatives,
            seed=work.training.seed,
        )
        self._drawn = torch.from_numpy(drawn)
        self._known = work.examples.known[:, drawn.ravel()]

    def clipped_sum(self, weights: list[Tensor], devices: NDArray[np.int64]) -> list[Tensor]:
        """The sum of the devices' clipped updates, a tensor per parameter."""
        total = [torch.zeros_like(w) for w in weights]
        for device in devices:
            self._train(weights, int(device))
            with torch.no_grad():
                update = torch._foreach_sub(weights, self._parameters)
                norm = float(torch.stack(torch._foreach_norm(update)).norm())
                factor = min(1.0, self._training.clip_norm / (norm + 1e-6))
                torch._foreach_add_(total, update, alpha=factor)
        return total

    def _train(self, weights: list[Tensor], device: int) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self._parameters, weights)
        examples = self._examples
        window = slice(*examples.window_offsets[device : device + 2])
        query = slice(*examples.query_offsets[device : device + 2])
        target = slice(*examples.target_offsets[device : device + 2])
        items = torch.from_numpy(examples.window_items[window].astype(np.int64))
        # A batch of one: torch's fused attention wants that dimension.
        inputs = EncoderInputs(
            vectors=self._vectors[items].unsqueeze(0),
            rows=items.unsqueeze(0),
            gaps=torch.from_numpy(examples.window_gaps[window]).unsqueeze(0),
            types=torch.from_numpy(examples.window_types[window].astype(np.int64)).unsqueeze(0),
            weights=torch.from_numpy(examples.window_weights[window]).unsqueeze(0),
            positions=torch.from_numpy(examples.query_positions[query]).unsqueeze(0),
            sums=torch.from_numpy(examples.query_sums[query]).unsqueeze(0),
        )
        queries = torch.from_numpy(examples.target_queries[target])
        targets = torch.from_numpy(examples.target_items[target].astype(np.int64))
        target_vectors, target_priors = self._vectors[targets], self._priors[targets]
        known = torch.from_numpy(self._known[device].toarray()).view(self._drawn.shape)
        offset = math.log(N_ITEMS / self._training.negatives)
        bias = (self._priors[self._drawn] + offset).masked_fill(known, -1e4)
        for step, negatives in enumerate(self._drawn):
            profiles = self._model(inputs)[0]
            logits = torch.addmm(bias[step], profiles, self._vectors[negatives].T)
            rest = torch.logsumexp(logits, dim=-1)[queries]
            score = (profiles[queries] * target_vectors).sum(dim=-1) + target_priors
            self._optimizer.zero_grad(set_to_none=True)
            functional.softplus(rest - score).mean().backward()
            self._optimizer.step()


class ResidentEngine:
    """Resident models, one a thread."""

    def __init__(self, work: Workload, threads: int) -> None:
        self._models = [ResidentModel(work) for _ in range(threads)]
        self._weights = [torch.from_numpy(w) for w in work.weights.values()]
        self._shares = np.array_split(np.arange(work.devices), threads)

    def clipped_sum(self) -> list[NDArray[np.float32]]:
        """The sum over all devices of the workload, an array per parameter."""
        with ThreadPoolExecutor(len(self._models)) as pool:
            parts = pool.map(
                lambda model, share: model.clipped_sum(self._weights, share),
                self._models,
                self._shares,
            )
            return [torch.stack(p).sum(dim=0).numpy() for p in zip(*parts, strict=True)]


def train_node(
    size: Size, lengths: Lengths, devices: int, device: int, weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The clipped update of one of ``devices``, on this process's resident model."""
    model = _node_model(size, lengths, devices)
    update = model.clipped_sum(list(weights.values()), np.array([device]))
    return dict(zip(weights, update, strict=True))


@lru_cache(maxsize=1)
def _node_model(size: Size, lengths: Lengths, devices: int) -> ResidentModel:
    torch.set_num_threads(1)
    return ResidentModel(build_workload(size, lengths, devices))
