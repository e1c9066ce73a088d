"""Local training of a Transformer by native code, one device at a time.

``native_step.cpp`` holds the arithmetic. Here the arrays of a round are laid out for it, as ragged as
they come. A call lets go of Python's lock, so that threads train at the same time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_char_p, c_float, c_int64
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.encoder import Encoder, TransformerEncoder
from .batches import KNOWN_LOGIT, Cohort
from .native_build import native_library

_LAYOUT: dict[str, Any] = {
    # The encoder.
    "size": c_int64,
    "width": c_int64,
    "dimension": c_int64,
    "heads": c_int64,
    "layers": c_int64,
    "scales": c_int64,
    "blocks": c_int64,
    "kinds": c_int64,
    "weights": c_int64,
    "names": c_char_p,
    "offsets": np.int64,
    "shared": np.float32,
    "slopes": np.float32,
    "bounds": np.int64,
    # The examples.
    "items": c_int64,
    "vectors": np.float32,
    "priors": np.float32,
    "window_offsets": np.int64,
    "window_items": np.int32,
    "window_gaps": np.float32,
    "window_types": np.int16,
    "query_offsets": np.int64,
    "query_positions": np.int64,
    "query_sums": np.float32,
    "target_offsets": np.int64,
    "target_queries": np.int64,
    "target_items": np.int32,
    "known_offsets": np.int64,
    "known_places": np.int32,
    # The training.
    "steps": c_int64,
    "negatives": c_int64,
    "negative_columns": np.float32,
    "negative_rows": np.float32,
    "negative_bias": np.float32,
    "rate": c_float,
    "epsilon": c_float,
    "known_logit": c_float,
}
"""``Task`` of native_step.cpp, field by field: type of a number, or of the numbers in an array."""


def _is_array(kind: type) -> bool:
    return issubclass(kind, np.generic)


class _Task(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p if _is_array(kind) else kind) for n, kind in _LAYOUT.items()]


def has_native_step(encoder: Encoder) -> TypeGuard[TransformerEncoder]:
    """Whether there is native code for this encoder: a Transformer without a trainable ID table."""
    return type(encoder) is TransformerEncoder and encoder.item_ids is None


class NativeRound:
    """What a cohort trains in a round, ready for the native step.

    Args:
        encoder: gives the architecture; one that :func:`has_native_step`.
        weights: name → the shared weights, those of linear layers [in, out].
        cohort: the devices.
        learning_rate: of the local SGD.

    Raises:
        ConfigError: there is no C++ compiler, or it fails.
        RuntimeError: vectors or sums of the examples have other dimensions than the encoder.
    """

    def __init__(
        self,
        encoder: TransformerEncoder,
        weights: Mapping[str, Tensor],
        cohort: Cohort,
        *,
        learning_rate: float,
    ) -> None:
        self._train: Any = native_library().native_train
        self._train.restype = c_char_p
        self._shapes = {name: w.shape for name, w in weights.items()}
        self._offsets = np.cumsum([0, *(w.numel() for w in weights.values())])
        examples = cohort.examples
        drawn = cohort.vectors[torch.from_numpy(cohort.drawn)]
        width, dimension = encoder.adapter.weight.shape
        scales = encoder.gains.in_features
        if examples.query_sums.shape[1:] != (scales, dimension) or drawn.shape[2] != dimension:
            raise RuntimeError("native training step: examples aren't of the encoder's dimensions")
        fields = {
            "size": ctypes.sizeof(_Task),
            "width": width,
            "dimension": dimension,
            "heads": len(encoder.slopes),
            "layers": len(encoder.layers),
            "scales": scales,
            "blocks": len(encoder.blocks),
            "kinds": encoder.n_types,
            "weights": self._offsets[-1],
            "names": " ".join(weights).encode(),
            "offsets": self._offsets,
            "shared": torch.cat([w.flatten() for w in weights.values()]).numpy(),
            "slopes": encoder.slopes.numpy(),
            "bounds": np.array(encoder.blocks),
            "items": min(len(examples.vectors), len(cohort.priors)),
            "vectors": examples.vectors,
            "priors": cohort.priors.numpy(),
            "known_offsets": cohort.known.indptr,
            "known_places": cohort.known.indices,
            "steps": len(drawn),
            "negatives": drawn.shape[1],
            "negative_columns": drawn.transpose(1, 2).numpy(),
            "negative_rows": drawn.numpy(),
            "negative_bias": cohort.negative_bias.numpy(),
            "rate": learning_rate,
            "epsilon": encoder.norm.eps,
            "known_logit": KNOWN_LOGIT,
        }
        # Held here, too: the native side knows their addresses only.
        self._arrays: dict[str, NDArray[Any]] = {}
        self._task = _Task()
        for name, kind in _LAYOUT.items():
            value = fields[name] if name in fields else getattr(examples, name)
            if _is_array(kind):
                self._arrays[name] = np.ascontiguousarray(value, dtype=kind)
                value = self._arrays[name].ctypes.data
            setattr(self._task, name, value)

    def updates(self, devices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Unclipped updates of devices with something to learn, [C, *shape] each.

        They are parts of one array, [C, all weights].

        Raises:
            RuntimeError: the weights aren't those of the encoder, or examples lead out of its tables.
        """
        devices = np.ascontiguousarray(devices, dtype=np.int64)
        found = torch.empty(len(devices), int(self._offsets[-1]), dtype=torch.float32)
        wrong = self._train(
            ctypes.byref(self._task),
            ctypes.c_void_p(devices.ctypes.data),
            c_int64(len(devices)),
            ctypes.c_void_p(found.data_ptr()),
        )
        if wrong:
            raise RuntimeError(f"native training step: {wrong.decode()}")
        parts = torch.split(found, np.diff(self._offsets).tolist(), dim=1)
        return {
            name: part.view(len(devices), *shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
