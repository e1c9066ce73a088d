"""Answers and questions as messages of ``edge_v1.proto``, and back, by the names of their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache
from operator import attrgetter
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from ..common.errors import ConfigError

T = TypeVar("T")


class _Composite(NamedTuple):
    """A field of a dataclass that takes more than reading or writing, and how a message holds it.

    ``kind`` is that of a nested dataclass, or of the dataclasses in a list; ``number`` its place.
    """

    name: str
    number: int
    shape: Literal["one", "list", "map"]
    kind: Any
    optional: bool


class _Fields(NamedTuple):
    """The fields of a dataclass, told apart: a list of fifty goes through here for every recommendation.

    ``read`` yields those of a message, or of the dataclass, all at once; ``plain`` are always set.
    """

    read: Callable[[Any], tuple[Any, ...]]
    plain: tuple[str, ...]
    composite: tuple[_Composite, ...]


def to_message(value: Any, message: Any) -> Any:
    """Fill ``message`` with the fields of a dataclass; those that are None stay unset.

    Raises:
        ConfigError: a number is out of range, or a text isn't text.
    """
    kind: Any = type(value)
    _, plain, composite = _fields(kind)
    name = ""
    try:
        for name in plain:
            setattr(message, name, getattr(value, name))
        for name, _, shape, inner, _ in composite:
            content = getattr(value, name)
            if content is None or content == ():
                continue
            if shape == "list":
                _extend(getattr(message, name), content, inner)
            elif shape == "map":
                getattr(message, name).update(content)
            elif inner is None:
                setattr(message, name, content)
            else:
                nested = getattr(message, name)
                nested.SetInParent()  # it is there, even if it is empty
                to_message(content, nested)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    return message


def _extend(repeated: Any, content: tuple[Any, ...], kind: Any) -> None:
    if kind is None:
        repeated.extend(content)
    else:
        for one in content:
            to_message(one, repeated.add())


def from_message(kind: type[T], message: Any) -> T:
    """The dataclass ``kind`` with the fields of ``message``; what is unset is None."""
    made: Any = kind
    read, _, composite = _fields(made)
    values = [*read(message)]
    for name, number, shape, inner, optional in composite:
        content = values[number]
        if shape == "list":
            values[number] = _tuple(content, inner) if content else ()
        elif shape == "map":
            values[number] = dict(content)
        elif optional and not message.HasField(name):
            values[number] = None
        elif inner is not None:
            values[number] = from_message(inner, content)
    return cast(T, made(*values))


def _tuple(content: Any, kind: Any) -> tuple[Any, ...]:
    return tuple(content) if kind is None else tuple([from_message(kind, one) for one in content])


@cache
def _fields(kind: Any) -> _Fields:
    """How a message holds ``kind``, read off its annotations once."""
    hints = get_type_hints(kind)
    plain, composite = [], []
    for number, (name, hint) in enumerate(hints.items()):
        field = _composite(name, number, hint)
        if field is None:
            plain.append(name)
        else:
            composite.append(field)
    first, *others = hints
    # Of a single name, an attrgetter yields no tuple.
    read = attrgetter(first, *others) if others else lambda one: (getattr(one, first),)
    return _Fields(read, tuple(plain), tuple(composite))


def _composite(name: str, number: int, hint: Any) -> _Composite | None:
    choices = get_args(hint)
    optional = type(None) in choices
    if optional:
        hint = next(choice for choice in choices if choice is not type(None))
    if get_origin(hint) is tuple:
        inner = choices[0] if is_dataclass(choices[0]) else None
        return _Composite(name, number, "list", inner, False)
    if get_origin(hint) is Mapping:
        return _Composite(name, number, "map", None, False)
    if is_dataclass(hint) or optional:
        return _Composite(name, number, "one", hint if is_dataclass(hint) else None, optional)
    return None
