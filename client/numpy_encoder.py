"""The shared encoder's forward pass in numpy: what a device needs to keep its profile vector.

The same numbers as ``common/encoder.py``, which has the formulas and their sources, for one device
and one query after all it knows; a test holds the two together. Torch costs 280 MB of memory on a
device, this costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.config import ModelConfig
from ..common.decay import SECONDS_PER_DAY
from ..common.errors import DataError
from .profile import Profile

Array = NDArray[np.float32]
Weights = Mapping[str, Array]

_NORM_EPSILON = np.float32(1e-5)  # of torch's LayerNorm


class NumpyEncoder:
    """From a profile's sums and window to U, for the table to rank with.

    Args:
        config: shape of the encoder.
        weights: name → released weights, as in ``model.safetensors``.
        blocks: column range of each feature block of the public item vectors.
        vectors: float32 [n_items, k], the public item vectors.
        n_types: number of event types.

    Raises:
        DataError: a weight is missing, left over, not float32, or of another shape.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        blocks: Mapping[str, tuple[int, int]],
        vectors: Array,
        n_types: int,
    ) -> None:
        _check(weights, encoder_shapes(config, len(blocks), vectors.shape, n_types))
        self._weights = weights
        self._blocks = tuple(blocks.values())
        self._vectors = vectors
        self._config = config
        bodies = {"mean": self._mean, "gru": self._gru, "transformer": self._transformer}
        self._read = bodies.get(config.encoder)
        self._ids = weights.get("item_ids.weight")

    def __call__(self, profile: Profile) -> Array:
        """U: float32 [k (+ ID dimension) + 1]; the last coordinate, 1, meets log popularity."""
        weights = self._weights
        lengths = np.maximum(np.linalg.norm(profile.sums, axis=1), np.float32(1e-6))
        mixed, *content = (weights["gains.weight"] / lengths) @ profile.sums
        hidden = weights["adapter.weight"] @ mixed
        if self._read is not None and profile.window:
            strengths = np.array([event.weight for event in profile.window], dtype=np.float32)
            hidden = weights["read.weight"] @ self._read(self._tokens(profile), strengths) + hidden
        hidden = gelu(_norm(hidden, weights, "norm"))
        parts = [
            part[start:stop] for part, (start, stop) in zip(content, self._blocks, strict=True)
        ]
        vector = _linear(hidden, weights, "out") + np.concatenate(parts)
        tail = [np.ones(1, dtype=np.float32)]
        if self._ids is not None:
            tail.insert(0, _linear(hidden, weights, "id_out"))
        return np.concatenate([vector, *tail]).astype(np.float32, copy=False)

    def _tokens(self, profile: Profile) -> Array:
        """What the body reads of each event of the window: float32 [T, width]."""
        weights, window = self._weights, profile.window
        items = np.array([event.item for event in window])
        times = np.array([event.time for event in window], dtype=np.int64)
        before = times[0] if profile.before_window is None else profile.before_window
        gaps = np.log1p(np.diff(times, prepend=before) / SECONDS_PER_DAY).astype(np.float32)
        tokens: Array = self._vectors[items] @ weights["adapter.weight"].T
        tokens += gaps[:, None] * weights["gap.weight"][:, 0] + weights["gap.bias"]
        tokens += weights["kind.weight"][[event.type for event in window]]
        if self._ids is not None:
            tokens += self._ids[items] @ weights["id_adapter.weight"].T
        return tokens

    def _mean(self, tokens: Array, strengths: Array) -> Array:
        """As ``MeanEncoder``: the state after the last event, [width]."""
        state: Array = strengths @ tokens / max(strengths.sum(), np.float32(1e-6))
        return state

    def _gru(self, tokens: Array, strengths: Array) -> Array:
        """As ``GRUEncoder``."""
        weights = self._weights
        state: Array = np.zeros(tokens.shape[1], dtype=np.float32)
        for inputs in _linear(tokens, weights, "input_gates"):
            i_reset, i_update, i_new = np.split(inputs, 3)
            s_reset, s_update, s_new = np.split(_linear(state, weights, "state_gates"), 3)
            update = _sigmoid(i_update + s_update)
            new = np.tanh(i_new + _sigmoid(i_reset + s_reset) * s_new)
            state = new + update * (state - new)
        return state

    def _transformer(self, tokens: Array, strengths: Array) -> Array:
        """As ``TransformerEncoder``."""
        weights = self._weights
        for number in range(self._config.layers):
            layer = f"layers.{number}."
            tokens = tokens + self._attend(tokens, layer)
            fed = _linear(_norm(tokens, weights, f"{layer}feed_norm"), weights, f"{layer}widen")
            tokens = tokens + _linear(gelu(fed), weights, f"{layer}narrow")
        last: Array = tokens[-1]
        return last

    def _attend(self, tokens: Array, layer: str) -> Array:
        weights, heads = self._weights, self._config.heads
        normed = _norm(tokens, weights, f"{layer}attention_norm")
        parts = _linear(normed, weights, f"{layer}qkv").reshape(len(tokens), 3, heads, -1)
        query, key, value = parts.transpose(1, 2, 0, 3)
        order = np.arange(len(tokens), dtype=np.float32)
        distance = order[:, None] - order
        slopes = np.exp2(-8 * np.arange(1, heads + 1) / heads).astype(np.float32)
        logits: Array = query @ key.transpose(0, 2, 1) / np.sqrt(np.float32(query.shape[-1]))
        logits -= slopes[:, None, None] * distance
        logits[:, distance < 0] = -np.inf
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = (shares @ value).transpose(1, 0, 2).reshape(tokens.shape)
        return _linear(mixed, weights, f"{layer}project")


def gelu(x: Array) -> Array:
    """x·Φ(x), with erf to 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26): float32 tells no more."""
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = np.reciprocal(1 + np.float32(0.3275911) * z)
    terms = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    series = np.zeros_like(z)
    for term in terms:
        series = (series + np.float32(term)) * t
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    product: Array = x * (1 + erf) * np.float32(0.5)
    return product


def _linear(inputs: Array, weights: Weights, name: str) -> Array:
    product: Array = inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return product


def _norm(inputs: Array, weights: Weights, name: str) -> Array:
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + _NORM_EPSILON)
    normed: Array = centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return normed


def _sigmoid(x: Array) -> Array:
    value: Array = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))
    return value


def encoder_shapes(
    config: ModelConfig, blocks: int, table: tuple[int, ...], n_types: int
) -> dict[str, tuple[int, ...]]:
    """Name → shape of every weight of the encoder."""
    width, (n_items, k) = config.width, table
    shapes: dict[str, tuple[int, ...]] = {
        "adapter.weight": (width, k),
        "gains.weight": (1 + blocks, len(config.half_lives)),
        **_pair("norm", (width,), width),
        **_pair("out", (k, width), k),
    }
    if config.encoder != "dense":
        shapes |= _pair("gap", (width, 1), width)
        shapes |= {"kind.weight": (n_types, width), "read.weight": (width, width)}
    if config.item_ids:
        size = config.item_id_dimension
        shapes |= {"item_ids.weight": (n_items, size), "id_adapter.weight": (width, size)}
        shapes |= _pair("id_out", (size, width), size)
    if config.encoder == "gru":
        for name in ("input_gates", "state_gates"):
            shapes |= _pair(name, (3 * width, width), 3 * width)
    if config.encoder == "transformer":
        for number in range(config.layers):
            layer = f"layers.{number}."
            shapes |= _pair(f"{layer}attention_norm", (width,), width)
            shapes |= _pair(f"{layer}qkv", (3 * width, width), 3 * width)
            shapes |= _pair(f"{layer}project", (width, width), width)
            shapes |= _pair(f"{layer}feed_norm", (width,), width)
            shapes |= _pair(f"{layer}widen", (2 * width, width), 2 * width)
            shapes |= _pair(f"{layer}narrow", (width, 2 * width), width)
    return shapes


def _pair(name: str, weight: tuple[int, ...], bias: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": (bias,)}


def _check(weights: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(set(weights) ^ set(shapes)):
        state = "is missing" if name in shapes else "belongs to no part of this encoder"
        raise DataError(f"model: weight '{name}' {state}; get the model again")
    for name, shape in shapes.items():
        weight = weights[name]
        if weight.shape != shape or weight.dtype != np.float32 or not np.isfinite(weight).all():
            raise DataError(
                f"model: weight '{name}' is {weight.dtype} {weight.shape}, perhaps not finite; it "
                f"must be finite float32 {shape}; get the model again"
            )
