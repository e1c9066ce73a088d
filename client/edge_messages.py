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
        if content is None or content == ():
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
    # A list of fifty is read for every recommendation: plain fields go straight through.
    values = [getattr(message, field.name) for field in _fields(made)]
    for number, field in _composite(made):
        if field.optional and not message.HasField(field.name):
            values[number] = None
        elif field.shape != "one":
            values[number] = _read(field, values[number])
        elif field.kind is not None:
            values[number] = from_message(field.kind, values[number])
    return cast(T, made(*values))


def _read(field: _Field, content: Any) -> Any:
    if field.shape == "map":
        return dict(content)
    if field.kind is None or not content:
        return tuple(content)
    return tuple([from_message(field.kind, one) for one in content])


@cache
def _fields(kind: Any) -> tuple[_Field, ...]:
    """How a message holds ``kind``, read off its annotations once."""
    return tuple(_field(name, hint) for name, hint in get_type_hints(kind).items())


@cache
def _composite(kind: Any) -> tuple[tuple[int, _Field], ...]:
    """The fields of ``kind`` that take more than reading, each with its place."""
    return tuple(
        (number, field)
        for number, field in enumerate(_fields(kind))
        if field.shape != "one" or field.kind is not None or field.optional
    )


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
