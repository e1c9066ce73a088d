"""What may leave a device.

The type is the privacy boundary: the encoder of messages accepts a :class:`ClippedUpdate` and nothing
else, so raw gradients, losses, counts and profiles have no way onto the wire.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ClippedUpdate:
    """A sum of contributions, one per device, each of L2 norm ≤ ``clip_norm`` over all arrays.

    Attributes:
        arrays: name → float32 array.
        devices: how many devices are in the sum; those that contribute zero count too.
        clip_norm: the bound that was applied; inf in a run without privacy.
    """

    arrays: dict[str, NDArray[np.float32]]
    devices: int
    clip_norm: float

    @property
    def norm(self) -> float:
        """L2 norm over all arrays; at most ``devices · clip_norm``."""
        squares = sum(float(np.square(a, dtype=np.float64).sum()) for a in self.arrays.values())
        return float(np.sqrt(squares))
