"""The manifest of a released model: what it is, what it cost, what it comes from, and who says so."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Self

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)

from .errors import MessageError
from .ledger_entries import Hash, canonical
from .signing import SigningKey, signature_holds

LARGEST_MANIFEST = 1 << 14  # bytes


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is said of a released model.

    Attributes:
        federation: name of the run.
        round: rounds that led to it.
        release: the ledger's number of the last release in it; releases of a ledger only grow.
        model: SHA-256 of the model file.
        statistics: SHA-256 of what was released of the items, see :class:`.messages.Release`.
        weights: hash of the weights in it, as the ledger names them where no average was taken.
        parent: SHA-256 of the model file released before; None for the first.
        items: hash of the item table.
        epsilon: user-level ε spent until then; None without privacy.
        delta: δ at which it is stated.
        time: UTC, ISO 8601.
        signature: hex, of all else in canonical JSON, by the server's key.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    federation: str
    round: NonNegativeInt
    release: NonNegativeInt
    model: Hash
    statistics: Hash
    weights: Hash
    parent: Hash | None
    items: Hash
    epsilon: NonNegativeFloat | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    time: str
    signature: str = ""

    def signed(self, key: SigningKey) -> Self:
        """This manifest, signed."""
        return type(self)(**{**asdict(self), "signature": key.sign(self._content())})

    def to_json(self) -> str:
        """As :meth:`read` takes it."""
        return canonical(asdict(self)).decode()

    @classmethod
    def read(cls, text: str, *, public_key: str) -> Manifest:
        """The manifest in ``text``, if the holder of ``public_key`` (hex) signed it.

        Raises:
            MessageError: it is none, or not signed with that key.
        """
        if len(text) > LARGEST_MANIFEST:
            raise MessageError("the manifest of a release is too long")
        try:
            manifest = _MANIFEST.validate_json(text)
        except (ValueError, ValidationError) as error:
            raise MessageError("the manifest of a release can't be read") from error
        if not signature_holds(
            manifest._content(), signature=manifest.signature, public_key=public_key
        ):
            raise MessageError("the manifest of a release isn't signed with the server's key")
        return manifest

    def describes(self, model: bytes, statistics: bytes) -> bool:
        """Whether these are what the manifest is about."""
        found = [hashlib.sha256(content).hexdigest() for content in (model, statistics)]
        return found == [self.model, self.statistics]

    def _content(self) -> bytes:
        values = asdict(self)
        del values["signature"]
        return canonical(values)


_MANIFEST = TypeAdapter(Manifest)
