"""Answers and questions as messages of ``edge_v1.proto``, and back, by the names of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

from ..common.errors import ConfigError

T = TypeVar("T")


def to_message(value: Any, message: Any) -> Any:
    """Fill ``message`` with the fields of a dataclass; those that are None stay unset.

    Raises:
        ConfigError: a number is out of range, or a text isn't text.
    """
    kind: Any = type(value)
    for name in _names(kind):
        _fill(message, name, getattr(value, name))
    return message


def _fill(message: Any, name: str, content: Any) -> None:
    if content is None:
        return
    try:
        if is_dataclass(content):
            inner = getattr(message, name)
            inner.SetInParent()  # it is there, even if it is empty
            to_message(content, inner)
        elif isinstance(content, Mapping):
            getattr(message, name).update(content)
        elif not isinstance(content, tuple):
            setattr(message, name, content)
        elif content and is_dataclass(content[0]):
            for one in content:
                to_message(one, getattr(message, name).add())
        else:
            getattr(message, name).extend(content)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {error}") from error


def from_message(kind: type[T], message: Any) -> T:
    """The dataclass ``kind`` with the fields of ``message``; what is unset is None."""
    made: Any = kind
    return cast(T, made(**{n: _read(hint, message, n) for n, hint in _hints(made).items()}))


def _read(hint: Any, message: Any, name: str) -> Any:
    choices: tuple[Any, ...] = get_args(hint)
    content = getattr(message, name)
    if type(None) in choices:
        if not message.HasField(name):
            return None
        inner: Any = next(choice for choice in choices if choice is not type(None))
        return from_message(inner, content) if _nested(inner) else content
    if not choices:
        return content
    if message.DESCRIPTOR.fields_by_name[name].message_type is None:
        return tuple(content)
    inner = choices[0]
    if _nested(inner):
        return tuple(from_message(inner, one) for one in content)
    return dict(content)


def _nested(hint: Any) -> bool:
    return is_dataclass(hint)


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
