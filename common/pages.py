"""Pages that explain: one look for all of them, one file each, which opens offline."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import formatting

_FILTERS = (
    "number",
    "signed",
    "count",
    "scientific",
    "epsilon",
    "printable",
    "share",
    "day",
    "duration",
)


def render_page(template: Path, /, **content: Any) -> str:
    """The page as text: ``template`` lays ``content`` out, on ``page.html.j2``."""
    return _environment(template.parent).get_template(template.name).render(**content)


@cache
def _environment(folder: Path) -> Environment:
    """Keeps what it compiled: that takes longer than to fill it in."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(formatting, name) for name in _FILTERS})
    return environment
