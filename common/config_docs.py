"""``docs/configuration.md``, made from the configuration itself so that the two can't differ.

``python -m fedprofile.common.config_docs > docs/configuration.md`` brings it up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .config import RunConfig
from .sections import Section

_INTRODUCTION = """\
# Configuration

<!-- Made by `python -m fedprofile.common.config_docs > docs/configuration.md`; a test compares. -->

`fedprofile simulate --config FILE` reads a TOML file. Every key is optional, options of the command line
override the file, and an unknown key is an error. The `config.toml` of a run folder holds all keys as
they were used, so it is an example of the whole, and running it again is repeating the run.
"""

_LIMITS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
}


def configuration_markdown() -> str:
    """The whole document."""
    return keys_markdown(RunConfig, _INTRODUCTION)


def keys_markdown(kind: type[Section], introduction: str) -> str:
    """A document of all keys of a configuration file, below ``introduction``."""
    schema = kind.model_json_schema()
    return "\n".join([introduction, *_section("", schema, schema["$defs"])]) + "\n"


def _section(path: str, section: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """A table of the section's own keys, then the sections within it."""
    inner = {
        key: p["$ref"].rpartition("/")[2] for key, p in section["properties"].items() if "$ref" in p
    }
    yield f"## {f'`[{path}]`' if path else 'Top level'}\n"
    if path:
        yield f"{section['description']}\n"
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key, value in section["properties"].items():
        if key not in inner:
            meaning = _cell(value.get("description", ""))
            yield f"| `{key}` | {_cell(_values(value))} | {_cell(_default(value))} | {meaning} |"
    yield ""
    for key, name in inner.items():
        yield from _section(f"{path}.{key}" if path else key, known[name], known)


def _values(value: Mapping[str, Any]) -> str:
    """What may stand there: type and range, or the choices."""
    if "anyOf" in value:  # an optional key: one type, or unset
        return _values(next(kind for kind in value["anyOf"] if kind["type"] != "null"))
    if "enum" in value:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in value["enum"])
    if value["type"] == "array":
        return f"list of {_values(value['items'])}s"
    if value["type"] == "object":
        return f"table of {_values(value['additionalProperties'])}s"
    kind = value.get("format") or _TYPES[value["type"]]
    limits = [f"{sign} {value[name]}" for name, sign in _LIMITS.items() if name in value]
    return " ".join([kind, " and ".join(limits)]).strip()


def _default(value: Mapping[str, Any]) -> str:
    if "default" not in value and value.get("type") != "object":
        return "required"
    default = value.get("default", {})  # a table without one is empty
    return "unset" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(configuration_markdown())
