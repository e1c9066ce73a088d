"""Sections of configuration files: TOML in, validated objects out, unknown keys refused."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from .errors import ConfigError


class Section(BaseModel):
    """A section of a configuration file, or the whole of one; every key has a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """TOML tells true from 1, and 1 from "1"; pydantic would take one for the other."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("true and false are no value here")
        wanted = _without_quotes(kind)
        if wanted and any(isinstance(part, str) for part in _parts(value)):
            raise ValueError(f"must be {wanted}, written without quotes")
        return value


def _without_quotes(kind: Any) -> str | None:
    """What a key of this type holds, in words, where no text is among it."""
    held = get_args(kind) or (kind,)
    if get_origin(kind) is dict:
        held = held[1:]
    if str in held or not {int, float, bool} & {part for part in held if isinstance(part, type)}:
        return None
    if bool in held:
        return "true or false"
    return "numbers" if get_origin(kind) in (tuple, dict) else "a number"


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else (value,)


S = TypeVar("S", bound=Section)


def read_toml(path: Path) -> dict[str, Any]:
    """What ``path`` holds.

    Raises:
        ConfigError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't read the configuration ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error


def validated(kind: type[S], content: Mapping[str, Any], *, where: str, documented: str) -> S:
    """``content`` as a ``kind``.

    Args:
        kind: the section at the top.
        content: parsed TOML.
        where: what messages begin with, such as ``"run.toml: "``.
        documented: the document that lists the keys.

    Raises:
        ConfigError: a key is unknown, or a value is out of range.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = (_explain(fault, kind, documented) for fault in error.errors())
        raise ConfigError(where + "; ".join(faults)) from error


_NO_DATE = frozenset(
    {"date_from_datetime_inexact", "date_from_datetime_parsing", "date_parsing", "date_type"}
)


def _explain(error: Any, kind: type[Section], documented: str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_meant(error['loc'], kind)}; {documented} lists the keys"
    if error["type"] == "model_type":
        return f"{key}: must be a section, written as [{key}] (got {error['input']!r})"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    if error["type"] in _NO_DATE:
        message = "must be a date such as 2024-05-01"
    shown = "" if isinstance(error["input"], dict | BaseModel) else f" (got {error['input']!r})"
    return f"{key}: {message}{shown}" if key else message + shown


def _meant(location: tuple[str | int, ...], kind: type[Section]) -> str:
    """The key that is spelled most like it, if one is."""
    section: Any = kind
    for name in location[:-1]:
        section = section.model_fields[name].annotation
    near = get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f", did you mean '{near[0]}'?" if near else ""
