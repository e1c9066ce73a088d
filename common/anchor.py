"""The head of a ledger, published in a second place: what a ledger can't show by itself is its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Self

from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

from .errors import LedgerError
from .files import write_atomically
from .ledger_entries import Chain, Hash, Signature, canonical, explain
from .signing import SigningKey, signature_holds


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """How far a ledger had come.

    Attributes:
        ledger: SHA-256 of its first line.
        sequence: number of its last entry then.
        head: SHA-256 of that entry's line.
        time: when it was written, UTC, ISO 8601; information only.
        signature: hex, of the other values in canonical JSON, by the ledger's key.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    ledger: Hash
    sequence: NonNegativeInt
    head: Hash
    time: str
    signature: Signature

    @classmethod
    def publish(
        cls, path: Path, *, ledger: str, sequence: int, head: str, signing_key: SigningKey
    ) -> Self:
        """Replace the anchor in ``path``, durably.

        Raises:
            OSError: the folder is missing or the disk is full; the old anchor stays.
        """
        time = datetime.now(UTC).isoformat(timespec="seconds")
        values = {"ledger": ledger, "sequence": sequence, "head": head, "time": time}
        signature = signing_key.sign(canonical(values))
        anchor = cls(ledger=ledger, sequence=sequence, head=head, time=time, signature=signature)
        write_atomically(path, canonical(asdict(anchor)) + b"\n")
        return anchor

    @classmethod
    def read(cls, path: Path) -> Anchor:
        """The anchor in ``path``; its signature is not looked at.

        Raises:
            LedgerError: it can't be read, or is no anchor.
        """
        try:
            return _ANCHOR.validate_json(path.read_bytes())
        except OSError as error:
            raise LedgerError(f"{path}: can't read the anchor ({error.strerror})") from error
        except ValidationError as error:
            raise LedgerError(f"{path}: not an anchor ({explain(error)})") from error

    def signed_by(self, public_key: str) -> bool:
        """Whether the signature is that of ``public_key`` (hex)."""
        values = asdict(self)
        signature = values.pop("signature")
        return signature_holds(canonical(values), signature=signature, public_key=public_key)


def is_behind(path: Path, ledger: Path, chain: Chain) -> bool:
    """Whether the anchor in ``path`` is one entry behind: a crash leaves that, and a ledger just begun.

    Args:
        path: of the anchor.
        ledger: the file, for messages.
        chain: what it holds.

    Raises:
        LedgerError: the anchor is anywhere else than there or at the head.
    """
    last = chain.entries[-1]
    if not path.exists():
        if last.sequence:
            raise LedgerError(f"{path}: the anchor of {ledger} is missing; put it back")
        return True
    anchor = Anchor.read(path)
    if anchor.ledger != chain.identity or not anchor.signed_by(chain.opening.public_key):
        raise LedgerError(f"{path}: isn't the anchor of {ledger}; name that one")
    if anchor.sequence > last.sequence:
        raise LedgerError(
            f"{ledger}: ends {anchor.sequence - last.sequence} entries before its anchor {path}; put "
            "back the whole ledger, for what was spent stays spent"
        )
    if (anchor.sequence, anchor.head) == (last.sequence, chain.head):
        return False
    if (anchor.sequence, anchor.head) == (last.sequence - 1, last.previous):
        return True
    raise LedgerError(
        f"{path}: doesn't fit {ledger}, neither its end nor the entry before; put back the two as "
        "they were"
    )


_ANCHOR = TypeAdapter(Anchor)
