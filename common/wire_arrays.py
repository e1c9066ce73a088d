"""How arrays travel: as bare little-endian numbers.

There is no header to parse, and nothing is ever unpickled. Weights and updates go together as one array
each, for Flower makes two objects of an array and a call of each object; their shapes go beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from .errors import MessageError

Shapes = Mapping[str, tuple[int, ...]]

_FORMAT = "fedprofile.little-endian"  # Flower's ``stype`` of our arrays
_TYPES = {"devices": "<i8", "head": "<i8"}  # all others are <f4
_NUMBERS = "numbers"  # of all weights, or of all arrays of an update, one after another by name


def array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays one by one, name → numbers."""
    record = ArrayRecord()
    for name, array in arrays.items():
        kind = _TYPES.get(name, "<f4")
        data = array.astype(kind, casting="equiv", copy=False).tobytes()
        record[name] = Array(dtype=kind, shape=array.shape, stype=_FORMAT, data=data)
    return record


def numbers(name: str, array: Array) -> NDArray[Any]:
    """Numbers of an array as a writable copy; nothing is allocated but what has arrived.

    Raises:
        MessageError: they aren't of the type that goes with the name, or not as many as the shape says.
    """
    kind = np.dtype(_TYPES.get(name, "<f4"))
    if array.stype != _FORMAT or array.dtype != kind.str:
        raise MessageError(f"'{name}' is not {kind.str} numbers")
    if min(array.shape, default=0) < 0 or len(array.data) != kind.itemsize * math.prod(array.shape):
        raise MessageError(f"'{name}' has {len(array.data)} bytes for {array.shape}")
    return np.frombuffer(array.data, dtype=kind).reshape(array.shape).copy()


def together(arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """All numbers of all ``arrays`` as one."""
    parts = [array.ravel() for _, array in sorted(arrays.items())]
    return array_record({_NUMBERS: np.concatenate(parts)})


def apart(record: ArrayRecord, shapes: Shapes) -> dict[str, NDArray[np.float32]]:
    """Inverse of :func:`together`, in the order of ``shapes``.

    Raises:
        ValueError: the shapes need more numbers, or fewer, or there is another array.
        MessageError: as in :func:`numbers`.
    """
    count = sum(map(math.prod, shapes.values()))
    if set(record) != {_NUMBERS} or record[_NUMBERS].shape != (count,):
        raise ValueError(f"needs {count} numbers")
    found = numbers(_NUMBERS, record[_NUMBERS])
    parts, start = {}, 0
    for name, shape in sorted(shapes.items()):
        stop = start + math.prod(shape)
        parts[name] = found[start:stop].reshape(shape)
        start = stop
    return {name: parts[name] for name in shapes}


def shapes_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    return {name: array.shape for name, array in arrays.items()}


def shapes_text(shapes: Shapes) -> str:
    """Shapes as a task or a receipt names them: equal shapes are equal texts."""
    return json.dumps(dict(sorted(shapes.items())))


def read_shapes(text: object) -> dict[str, tuple[int, ...]]:
    """Inverse of :func:`shapes_text`.

    Raises:
        TypeError: it isn't text that names shapes.
        ValueError: likewise.
    """
    found = json.loads(text) if isinstance(text, str) else None
    if not isinstance(found, dict):
        raise TypeError("names no shapes")
    shapes = {name: tuple(shape) for name, shape in found.items()}
    if any(type(n) is not int or n < 0 for shape in shapes.values() for n in shape):
        raise ValueError("a shape isn't whole numbers of 0 or more")
    return shapes


def digest(arrays: ArrayRecord) -> str:
    """SHA-256 of names, shapes and numbers, so that who signs it signs them, too."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(json.dumps([name, array.dtype, list(array.shape)]).encode())
        found.update(array.data)
    return found.hexdigest()
