"""What may leave a device.

The type is the privacy boundary: the encoder of messages accepts a :class:`ClippedUpdate` and nothing
else, so raw gradients, losses, counts and profiles have no way onto the wire. An update that breaks
its own bound can't be made, neither on a device nor by a server that reads one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ReplyRejected

_SLACK = 1e-4  # relative; rounding of a float32 sum of clipped contributions


@dataclass(frozen=True, eq=False)
class ClippedUpdate:
    """A sum of contributions, one per device, each of L2 norm ≤ ``clip_norm`` over all arrays.

    Attributes:
        arrays: name → float32 array.
        devices: how many devices are in the sum; those that contribute zero count too.
        clip_norm: the bound that was applied; inf in a run without privacy.

    Raises:
        ReplyRejected: reason ``non-finite`` or ``norm``: the sum can't be one of ``devices``
            contributions within the bound.
    """

    arrays: dict[str, NDArray[np.float32]]
    devices: int
    clip_norm: float

    def __post_init__(self) -> None:
        norm = self.norm
        if not np.isfinite(norm):
            raise ReplyRejected("non-finite", "holds NaN or infinity")
        bound = self.devices * self.clip_norm if self.devices else 0.0
        if not norm <= bound * (1 + _SLACK):
            raise ReplyRejected(
                "norm", f"{norm:.3g} for {self.devices} devices of {self.clip_norm}"
            )

    @property
    def norm(self) -> float:
        """L2 norm over all arrays; at most ``devices · clip_norm``."""
        squares = sum(float(np.square(a, dtype=np.float64).sum()) for a in self.arrays.values())
        return float(np.sqrt(squares))
