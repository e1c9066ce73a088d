"""Which code ran: the release, and a fingerprint that tells builds of a release apart."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

_PACKAGES = ("audit", "client", "common", "server", "simulations")
_CODE = (".cpp", ".h", ".py")
_DIGITS = 12


@lru_cache(maxsize=1)
def code_version() -> str:
    """``0.1.0+1f2e3d4c5b6a``: the release, and what :func:`fingerprint` says of its packages.

    Whoever has the same files gets the same, installed or from a checkout, so an auditor can tell
    whether a ledger is of the build that was looked at. What is installed beside it isn't in there.
    """
    release = importlib.metadata.version("fedprofile")
    return f"{release}+{fingerprint(folder for name in _PACKAGES for folder in _folders(name))}"


def fingerprint(folders: Iterable[Path]) -> str:
    """First 12 hex digits of the SHA-256 over path and content of all code in ``folders``."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in _CODE):
            name = path.relative_to(folder.parent).as_posix().encode()
            content = path.read_bytes().replace(b"\r\n", b"\n")  # as a checkout may have them
            digest.update(b"%d %s %d " % (len(name), name, len(content)) + content)
    return digest.hexdigest()[:_DIGITS]


def _folders(name: str) -> list[Path]:
    found = importlib.util.find_spec(f"fedprofile.{name}")
    places = found.submodule_search_locations if found else None
    return [Path(place) for place in places or ()]
