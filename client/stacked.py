"""Layers over stacked weights: row c of the input meets the weights of device c.

One batched matrix product does for all devices what a linear layer does for one. Inside
:class:`StackedWeights` a module is called as usual, with weights that have a leading device dimension;
the weights of linear layers are held as [C, in, out], the layout in which neither their product nor
their gradient has to be copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..common.errors import ConfigError


class StackedWeights(TorchFunctionMode):
    """Within this context linear, layer-norm and embedding layers take stacked weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _LAYERS.get(func, func)(*args, **(kwargs or {}))


def linear_weights(module: nn.Module) -> set[str]:
    """Names of the parameters that are held transposed.

    Raises:
        ConfigError: the module has a layer that can't be stacked.
    """
    names = set()
    for path, layer in module.named_modules():
        own = [name for name, _ in layer.named_parameters(recurse=False)]
        if own and not isinstance(layer, nn.Linear | nn.LayerNorm | nn.Embedding):
            raise ConfigError(
                f"encoder layer '{path}' ({type(layer).__name__}) can't be trained in a batch of "
                "devices; build it from Linear, LayerNorm and Embedding"
            )
        if isinstance(layer, nn.Linear):
            names.add(f"{path}.weight")
    return names


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[C, …, in] × [C, in, out] + [C, out] → [C, …, out]."""
    rows = inputs.unsqueeze(1) if inputs.dim() == 2 else inputs.flatten(1, -2)
    product = rows @ weight if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
    return product.view(*inputs.shape[:-1], weight.shape[-1])


def _layer_norm(
    inputs: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Normalised over the last dimension, then scaled by [C, width] and shifted by [C, width]."""
    ones = (1,) * (inputs.dim() - 2)
    normalised = functional.layer_norm(inputs, shape, eps=eps)
    return torch.addcmul(
        bias.view(len(bias), *ones, -1), normalised, weight.view(len(weight), *ones, -1)
    )


def stacked_embedding(rows: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
    """Rows [C, …] of tables [C, n, width] → [C, …, width]."""
    devices, n, width = weight.shape
    first = torch.arange(0, devices * n, n).view(-1, *(1,) * (rows.dim() - 1))
    return functional.embedding(rows + first, weight.reshape(devices * n, width))


_LAYERS: dict[Any, Callable[..., Tensor]] = {
    functional.linear: _linear,
    functional.layer_norm: _layer_norm,
    functional.embedding: stacked_embedding,
}
