"""Answers and questions as messages of ``edge_v1.proto``, and back, by the names of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

from ..common.errors import ConfigError

T = TypeVar("T")


class _Field(NamedTuple):
    """A field of a dataclass: what it is called, and how a message holds it.

    ``kind`` is that of a nested dataclass, or of the dataclasses in a list.
    """

    name: str
    shape: Literal["one", "list", "map"]
    kind: Any
    optional: bool


def to_message(value: Any, message: Any) -> Any:
    """Fill ``message`` with the fields of a dataclass; those that are None stay unset.

    Raises:
        ConfigError: a number is out of range, or a text isn't text.
    """
    kind: Any = type(value)
    for field in _fields(kind):
        content = getattr(value, field.name)
        if content is None:
            continue
        try:
            if field.shape == "list":
                _extend(getattr(message, field.name), content, field.kind)
            elif field.shape == "map":
                getattr(message, field.name).update(content)
            elif field.kind is None:
                setattr(message, field.name, content)
            else:
                inner = getattr(message, field.name)
                inner.SetInParent()  # it is there, even if it is empty
                to_message(content, inner)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{field.name}: {error}") from error
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
    return cast(T, made(**{field.name: _read(field, message) for field in _fields(made)}))


def _read(field: _Field, message: Any) -> Any:
    if field.optional and not message.HasField(field.name):
        return None
    content = getattr(message, field.name)
    if field.shape == "map":
        return dict(content)
    if field.shape == "list":
        if field.kind is None or not content:
            return tuple(content)
        return tuple([from_message(field.kind, one) for one in content])
    return content if field.kind is None else from_message(field.kind, content)


@cache
def _fields(kind: Any) -> tuple[_Field, ...]:
    """How a message holds ``kind``, read off its annotations once."""
    return tuple(_field(name, hint) for name, hint in get_type_hints(kind).items())


def _field(name: str, hint: Any) -> _Field:
    choices = get_args(hint)
    optional = type(None) in choices
    if optional:
        hint = next(choice for choice in choices if choice is not type(None))
    if get_origin(hint) is tuple:
        inner = choices[0]
        return _Field(name, "list", inner if is_dataclass(inner) else None, False)
    if get_origin(hint) is Mapping:
        return _Field(name, "map", None, False)
    return _Field(name, "one", hint if is_dataclass(hint) else None, optional)
