"""Sections of configuration files: TOML in, validated objects out, unknown keys refused."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from .errors import ConfigError


class Section(BaseModel):
    """A section of a configuration file, or the whole of one; every key has a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """TOML tells true from 1; pydantic would take one for the other."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("true and false are no value here")
        return value


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
