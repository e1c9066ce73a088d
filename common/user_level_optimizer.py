"""The user-level step by Opacus: clip whole client updates, add noise to their sum, step.

To Opacus a stack of client updates is what per-sample gradients are: ``p.grad_sample`` holds
w_global − w_client of each client, so that descent along the mean applies the mean update. Clipping
runs where the updates are (a device host), noise and step where the sums meet (the server). Opacus
draws secure noise only with torchcsprng, which no current Python has, hence the one override.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from .errors import ConfigError, MessageError, ReplyRejected
from .mechanism import Mechanism
from .randomness import NoiseSource

_BLOCK = 1024
"""Numbers whose norm Opacus takes at once. In a longer float32 row small numbers are lost next to a
large one: a million of them slipped past the clip by 0.1 % of C, in blocks by less than 0.0005 %."""


class UserLevelDPOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus ships no types
    """Opacus's ``DPOptimizer`` with noise from a :class:`NoiseSource` and a fixed divisor q·N.

    Wraps any torch optimizer over the shared parameters: SGD makes FedAvg with a server learning
    rate, Adam makes FedAdam (Reddi et al. 2021). The state of the wrapped optimizer outlives the
    wrapper, so a server may wrap it anew each round with that round's mechanism and noise.

    Args:
        optimizer: steps along the noisy mean.
        named_parameters: name → parameter, exactly those of ``optimizer``.
        mechanism: clip norm, noise and divisor.
        noise: stream of the noise.

    Raises:
        ConfigError: ``named_parameters`` are not the parameters of ``optimizer``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        named_parameters: Mapping[str, nn.Parameter],
        mechanism: Mechanism,
        noise: NoiseSource,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip_norm,
            expected_batch_size=mechanism.expected_cohort,
        )
        if {id(p) for p in named_parameters.values()} != {id(p) for p in self.params}:
            raise ConfigError(
                "named_parameters must be exactly the trainable ones of the optimizer"
            )
        # Any: Opacus hangs grad_sample and summed_grad on its parameters.
        self._named_parameters: dict[str, Any] = dict(named_parameters)
        self._mechanism = mechanism
        self._noise = noise

    def add_noise(self) -> None:
        """Put sum + N(0, (σC)²) into ``p.grad``; drawn and added in float64, then rounded once."""
        for p in self.params:
            _check_processed_flag(p.summed_grad)
            noise = self._noise.normal(tuple(p.shape), stddev=self._mechanism.noise_stddev)
            noisy = p.summed_grad.double() + torch.from_numpy(noise).to(p.device)
            p.grad = noisy.to(p.dtype)
            _mark_as_processed(p.summed_grad)

    def step_from_sum(self, summed: Mapping[str, Tensor]) -> None:
        """One step of the wrapped optimizer along (sum + noise) / (q·N).

        An empty cohort is a sum of zeros and steps along noise alone; leaving the step out would
        break the accounting.

        Args:
            summed: name → sum of clipped updates w_global − w_client, shaped like the parameter.

        Raises:
            MessageError: names or shapes differ from the parameters', or a number is not finite.
        """
        self._take(summed)
        self.step()
        self.zero_grad(set_to_none=True)

    def noisy_sum(self, summed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sum + noise, undivided, without a step; arguments and errors as :meth:`step_from_sum`."""
        self._take(summed)
        self.add_noise()
        noisy = {name: p.grad.clone() for name, p in self._named_parameters.items()}
        self.zero_grad(set_to_none=True)
        return noisy

    def _take(self, summed: Mapping[str, Tensor]) -> None:
        if set(summed) != set(self._named_parameters):
            wrong = ", ".join(sorted(set(summed) ^ set(self._named_parameters)))
            raise MessageError(f"sum of updates: missing or unknown parameter {wrong}")
        for name, p in self._named_parameters.items():
            if summed[name].shape != p.shape:
                raise MessageError(
                    f"sum of updates: '{name}' has shape {tuple(summed[name].shape)}, "
                    f"not {tuple(p.shape)}"
                )
            if not torch.isfinite(summed[name]).all():
                raise MessageError(f"sum of updates: '{name}' holds a number that is not finite")
        for name, p in self._named_parameters.items():
            # Opacus adds the clipped sum of grad_sample to summed_grad: of nobody here.
            p.summed_grad = summed[name].detach().to(p.device, copy=True)
            p.grad_sample = p.new_zeros((0, *p.shape))


def clip_and_sum(
    updates: Mapping[str, Tensor], *, clip_norm: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Clip each client's whole update to ``clip_norm`` and add them up, as Opacus does.

    The factor is min(1, C / (norm + 1e-6)), the norm over all parameters together (Abadi et al.
    2016, algorithm 1; McMahan et al. 2018, "flat clipping").

    Args:
        updates: name → stacked updates w_global − w_client, [clients, *parameter shape].
        clip_norm: C > 0; ``inf`` leaves updates as they are.

    Returns:
        name → sum over clients, [*parameter shape], and the norms before clipping, [clients]. The
        norms are raw data: they stay where the updates were made.

    Raises:
        ConfigError: ``clip_norm`` isn't above 0, or parameters disagree on the number of clients.
        ReplyRejected: reason ``non-finite``; an update holds NaN or infinity, or is so large that
            its norm overflows.
    """
    if not clip_norm > 0:
        raise ConfigError(f"clip_norm must be above 0, got {clip_norm}")
    if len({len(stacked) for stacked in updates.values()}) != 1:
        raise ConfigError("stacked updates must have at least one parameter and equal first axes")
    blocks = {
        name: torch.split(stacked.detach().unsqueeze(-1).flatten(1), _BLOCK, dim=1)
        for name, stacked in updates.items()
    }
    columns = [block for split in blocks.values() for block in split]
    norms = torch.stack([block.norm(dim=1) for block in columns]).norm(dim=0)
    broken = (~torch.isfinite(norms)).nonzero().flatten().tolist()
    if broken:
        raise ReplyRejected("non-finite", f"norm of client update {broken[0]} is not finite")
    # Any: Opacus hangs grad_sample and summed_grad on its parameters.
    parameters: list[Any] = [nn.Parameter(block.new_zeros(block.shape[1])) for block in columns]
    optimizer = DPOptimizer(
        SGD(parameters),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    for p, block in zip(parameters, columns, strict=True):
        p.grad_sample = block
    optimizer.clip_and_accumulate()
    summed = iter(p.summed_grad for p in parameters)
    sums = {
        name: torch.cat([next(summed) for _ in split]).view(updates[name].shape[1:])
        for name, split in blocks.items()
    }
    return sums, norms


def release_sum(
    summed: Mapping[str, Tensor], *, mechanism: Mechanism, noise: NoiseSource
) -> dict[str, Tensor]:
    """One-shot release of a sum of clipped contributions: sum + N(0, (σC)²), undivided.

    Args:
        summed: name → sum of contributions, each clipped to ``mechanism.clip_norm`` before.
        mechanism: noise of the release; reserve it in the ledger first.
        noise: stream of the noise.

    Raises:
        MessageError: a number is not finite.
    """
    parameters = {name: nn.Parameter(torch.zeros_like(total)) for name, total in summed.items()}
    optimizer = UserLevelDPOptimizer(
        SGD(parameters.values()), named_parameters=parameters, mechanism=mechanism, noise=noise
    )
    return optimizer.noisy_sum(summed)
