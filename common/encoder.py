"""Shared encoders: behaviour in, profile vector U out.

All encoders share the interface of :class:`Encoder` and differ in the *body* that reads the window; the
dense one has none.
U lives in the space of the item vectors, so a candidate is compared by one inner product and the device
needs no network to rank. U is the sum of three parts:

    U = bias + Σ_s gain_s ⊙ d_s + out(GELU(norm(read(state) + mix(d))))

where d_s are the decayed interest sums, L2-normalised; ``gain`` holds one number per time scale and
feature block, ``mix`` one per time scale; ``state`` is the body's reading of the recent window.
``out`` and, without trainable ids, ``read`` start at zero: an untrained encoder is the cosine of the
decayed profile, and training moves away from there by what the devices teach it.

All weights belong to Linear, LayerNorm and Embedding layers and the activation is smooth: per-sample
gradients (Opacus) and training on stacked weights both need the first, and agreement to float precision
the second.

What training leaves out of hidden layers comes in as data, never from torch's random state: devices train
in several threads, and all leave out the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .decay import CONTENT_TEMPERATURE
from .items import ID_BLOCK


class EncoderInputs(NamedTuple):
    """One device (``...`` empty) or a batch of them; windows are padded at their end.

    Attributes:
        vectors: float [..., T, k], item vectors of the window, zero where padded.
        rows: int64 [..., T], row of each item in the trainable ID table (unused without one).
        gaps: float [..., T], log(1 + days) since the event before.
        types: int64 [..., T], event type.
        weights: float [..., T], event weight, 0 where padded.
        positions: int64 [..., Q], number of window events known at each query, 0…T.
        sums: float [..., Q, S, k], decayed interest sums at each query.
    """

    vectors: Tensor
    rows: Tensor
    gaps: Tensor
    types: Tensor
    weights: Tensor
    positions: Tensor
    sums: Tensor


class Encoder(nn.Module):
    """Interface of all encoders; subclasses provide ``_read``, the body, or do without.

    Args:
        config: width, layers, heads and whether items have a trainable vector.
        blocks: column range of each feature block of the item vectors, side by side from 0.
        n_items: rows of the trainable ID table, if any.
        n_types: number of event types.

    Attributes:
        blocks: the feature blocks' column ranges.
        n_types: number of event types.
        places: where numbers can be left out: of what goes into the body, if there is one, of the layer
            before ``out``, and then wherever the body has a place for it.
        reads_window: whether there is a body.
    """

    reads_window = True

    def __init__(
        self, config: ModelConfig, *, blocks: dict[str, tuple[int, int]], n_items: int, n_types: int
    ) -> None:
        super().__init__()
        dimension = max(stop for _, stop in blocks.values())
        width, scales = config.width, len(config.half_lives)
        self.blocks = tuple(blocks.values())
        self.n_types = n_types
        self.places = 1 + self.reads_window
        self.adapter = nn.Linear(dimension, width, bias=False)
        if self.reads_window:
            self.gap = nn.Linear(1, width)
            self.kind = nn.Embedding(n_types, width)
        # Row 0 is `mix`, then one row of `gain` for each block.
        self.gains = nn.Linear(scales, 1 + len(blocks), bias=False)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dimension)
        if self.reads_window:
            self.read = nn.Linear(width, width, bias=False)
        self.item_ids: nn.Embedding | None = None
        if config.item_ids:
            self.item_ids = nn.Embedding(n_items, config.item_id_dimension)
            self.id_adapter = nn.Linear(config.item_id_dimension, width, bias=False)
            self.id_out = nn.Linear(width, config.item_id_dimension)
            # All that leads to `id_out` is of some size: from near zero training wouldn't get away.
            nn.init.normal_(self.item_ids.weight, std=0.3)
            nn.init.zeros_(self.id_out.weight)
            nn.init.zeros_(self.id_out.bias)
        elif self.reads_window:
            nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        nn.init.constant_(self.gains.weight, CONTENT_TEMPERATURE / scales)
        nn.init.constant_(self.gains.weight[0], 1.0 / scales)
        if ID_BLOCK in blocks:
            # What stands in for content tells items apart, and nothing of what goes together.
            nn.init.zeros_(self.gains.weight[1 + list(blocks).index(ID_BLOCK)])
        if self.reads_window:
            nn.init.normal_(self.kind.weight, std=0.02)

    def forward(self, inputs: EncoderInputs, masks: Tensor | None = None) -> Tensor:
        """Profile vectors U, float [..., Q, k] (k + ID dimension with a trainable ID table).

        Args:
            inputs: what the encoder reads.
            masks: float [places, R, width], what the numbers of hidden layers are multiplied by in a step
                of training, R at least T and Q: row r is of the window's event r, or of query r. None:
                nothing is left out, as on a device that asks for its profile.
        """
        # gain·(D/‖D‖) is taken as (gain/‖D‖)·D: the sums are large, and read once this way.
        lengths = torch.linalg.vector_norm(inputs.sums, dim=-1).clamp(min=1e-6)
        gains = self.gains(torch.diag_embed(lengths.reciprocal())).transpose(-1, -2)
        mixed, *content = (gains @ inputs.sums).unbind(dim=-2)
        hidden = self.adapter(mixed)
        if self.reads_window:
            hidden = self.read(self._state(inputs, masks)) + hidden
        hidden = nn.functional.gelu(self.norm(hidden))
        hidden = _masked(hidden, masks, 1 if self.reads_window else 0)
        content = [
            part[..., start:stop] for part, (start, stop) in zip(content, self.blocks, strict=True)
        ]
        profile: Tensor = self.out(hidden) + torch.cat(content, dim=-1)
        if self.item_ids is not None:
            profile = torch.cat([profile, self.id_out(hidden)], dim=-1)
        return profile

    def _state(self, inputs: EncoderInputs, masks: Tensor | None) -> Tensor:
        """The body's reading of what is known at each query, [..., Q, width]."""
        tokens = self.adapter(inputs.vectors) + self.gap(inputs.gaps.unsqueeze(-1))
        tokens = tokens + self.kind(inputs.types)
        if self.item_ids is not None:
            tokens = tokens + self.id_adapter(self.item_ids(inputs.rows))
        read = self._read(_masked(tokens, masks, 0), inputs.weights, masks)
        # Row 0 is the state before any event of the window.
        states = nn.functional.pad(read, (0, 0, 1, 0))
        index = inputs.positions.unsqueeze(-1).expand(*inputs.positions.shape, states.shape[-1])
        return torch.gather(states, -2, index)

    def _read(self, tokens: Tensor, weights: Tensor, masks: Tensor | None) -> Tensor:
        """States after each event of the window: [..., T, width] → [..., T, width], causal.

        ``masks`` are those of :meth:`forward`; a body's own places come after the first two.
        """
        raise NotImplementedError


def _masked(numbers: Tensor, masks: Tensor | None, place: int) -> Tensor:
    """``numbers`` [..., rows, width] of a place without what its mask leaves out.

    Rows are counted from the first: padding comes last, so a device has the same rows in any batch.
    """
    return numbers if masks is None else numbers * masks[place, : numbers.shape[-2]]


class DenseEncoder(Encoder):
    """No body: a hidden layer over the decayed interest sums alone.

    Order within the window doesn't count, and half as many weights are trained: less noise, and where
    people take baskets of goods better lists even without any.
    """

    reads_window = False


class MeanEncoder(Encoder):
    """Running weighted mean of the window: the smallest body, without parameters of its own."""

    def _read(self, tokens: Tensor, weights: Tensor, masks: Tensor | None) -> Tensor:
        total = torch.cumsum(tokens * weights.unsqueeze(-1), dim=-2)
        return total / torch.cumsum(weights, dim=-1).clamp(min=1e-6).unsqueeze(-1)


class GRUEncoder(Encoder):
    """Gated recurrent unit (Cho et al. 2014, eq. 5–8), from Linear layers."""

    def __init__(
        self, config: ModelConfig, *, blocks: dict[str, tuple[int, int]], n_items: int, n_types: int
    ) -> None:
        super().__init__(config, blocks=blocks, n_items=n_items, n_types=n_types)
        self.input_gates = nn.Linear(config.width, 3 * config.width)
        self.state_gates = nn.Linear(config.width, 3 * config.width)

    def _read(self, tokens: Tensor, weights: Tensor, masks: Tensor | None) -> Tensor:
        inputs = self.input_gates(tokens)
        state = torch.zeros_like(tokens[..., 0, :])
        states = []
        for step in range(tokens.shape[-2]):
            i_reset, i_update, i_new = inputs[..., step, :].chunk(3, dim=-1)
            s_reset, s_update, s_new = self.state_gates(state).chunk(3, dim=-1)
            update = torch.sigmoid(i_update + s_update)
            new = torch.tanh(i_new + torch.sigmoid(i_reset + s_reset) * s_new)
            state = update * state + (1 - update) * new
            states.append(state)
        return torch.stack(states, dim=-2)


class TransformerEncoder(Encoder):
    """Causal pre-LN Transformer (Vaswani et al. 2017 §3.2; pre-LN: Xiong et al. 2020).

    Time comes in through the gap features; order through a fixed slope per head on the distance in
    events (ALiBi, Press et al. 2022 §3), which needs no table of positions. Two places of each layer, what
    attention and what feed-forward add, can have numbers left out (Vaswani et al. 2017 §5.4).
    """

    slopes: Tensor

    def __init__(
        self, config: ModelConfig, *, blocks: dict[str, tuple[int, int]], n_items: int, n_types: int
    ) -> None:
        super().__init__(config, blocks=blocks, n_items=n_items, n_types=n_types)
        self.places += 2 * config.layers
        self.layers = nn.ModuleList(
            _Block(config.width, config.heads) for _ in range(config.layers)
        )
        slopes = torch.tensor([2.0 ** (-8.0 * (h + 1) / config.heads) for h in range(config.heads)])
        self.register_buffer("slopes", slopes.reshape(-1, 1, 1), persistent=False)

    def _read(self, tokens: Tensor, weights: Tensor, masks: Tensor | None) -> Tensor:
        order = torch.arange(tokens.shape[-2], device=tokens.device)
        distance = (order.unsqueeze(1) - order).to(tokens.dtype)
        # A later event is hidden, and padding with it, for it comes last.
        bias = (-self.slopes * distance).masked_fill(distance < 0, -torch.inf)
        for number, layer in enumerate(self.layers):
            tokens = layer(tokens, bias, None if masks is None else masks[2 + 2 * number :])
        return tokens


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor, bias: Tensor, masks: Tensor | None) -> Tensor:
        shape = (*tokens.shape[:-1], 3, self.heads, -1)
        parts = self.qkv(self.attention_norm(tokens)).reshape(shape)
        query, key, value = (part.transpose(-2, -3) for part in parts.unbind(dim=-3))
        # Torch's fused kernel wants the mask with every dimension of the query.
        bias = bias.expand(*query.shape[:-1], -1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        tokens = tokens + _masked(self.project(mixed.transpose(-2, -3).flatten(-2)), masks, 0)
        fed: Tensor = self.narrow(nn.functional.gelu(self.widen(self.feed_norm(tokens))))
        return tokens + _masked(fed, masks, 1)


def weigh_block(
    weights: Mapping[str, Tensor], blocks: Mapping[str, tuple[int, int]], name: str, share: float
) -> dict[str, Tensor]:
    """These weights with the gain of one feature block times ``share``.

    Args:
        weights: name → weights of an encoder.
        blocks: its feature blocks, by name and in their order.
        name: of the block.
        share: 1 changes nothing; with 0 the block doesn't count until training brings it back.
    """
    gains = weights["gains.weight"].detach().clone()
    gains[1 + list(blocks).index(name)] *= share
    return {**weights, "gains.weight": gains}


def build_encoder(
    config: ModelConfig,
    *,
    blocks: dict[str, tuple[int, int]],
    n_items: int,
    n_types: int,
    seed: int,
) -> Encoder:
    """The encoder a configuration names, initialised from ``seed`` without touching torch's state."""
    kinds: dict[str, type[Encoder]] = {
        "transformer": TransformerEncoder,
        "gru": GRUEncoder,
        "mean": MeanEncoder,
        "dense": DenseEncoder,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kinds[config.encoder](config, blocks=blocks, n_items=n_items, n_types=n_types)
