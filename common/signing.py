"""Ed25519 keys that sign ledgers (RFC 8032), so that a ledger shows who wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from .errors import LedgerError
from .files import write_atomically

_OTHERS = 0o077  # permission bits of everybody but the owner


class SigningKey:
    """A private key; its public half is what auditors know the writer by.

    Make one with :meth:`create`, :meth:`load` or, for a ledger that nobody will read,
    :meth:`generate`.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> Self:
        """A new key that is kept nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new key, kept in ``path``: PEM (PKCS #8), for its owner's eyes only (mode 0600).

        Raises:
            LedgerError: ``path`` exists or can't be written.
        """
        if path.exists():
            raise LedgerError(f"{path}: exists already; use that key or name another file")
        key = cls.generate()
        content = key._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            write_atomically(path, content, mode=0o600)
        except OSError as error:
            raise LedgerError(f"{path}: can't write the signing key ({error.strerror})") from error
        return key

    @classmethod
    def load(cls, path: Path) -> Self:
        """The key in ``path``.

        Raises:
            LedgerError: the file is missing, no Ed25519 key, or others may read it.
        """
        try:
            mode, content = path.stat().st_mode, path.read_bytes()
        except OSError as error:
            raise LedgerError(f"{path}: can't read the signing key ({error.strerror})") from error
        if mode & _OTHERS:
            raise LedgerError(
                f"{path}: others may read this signing key (mode {mode & 0o777:03o}); whoever has "
                "read it can forge ledgers: make a new one, or chmod 600 it if nobody has"
            )
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError) as error:
            raise LedgerError(f"{path}: no signing key (PEM without password)") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise LedgerError(f"{path}: not an Ed25519 key; make one of that kind")
        return cls(key)

    @property
    def public_key(self) -> str:
        """The public key: 32 bytes as hex."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()

    def sign(self, content: bytes) -> str:
        """Signature of ``content``: 64 bytes as hex."""
        return self._key.sign(content).hex()


def signature_holds(content: bytes, *, signature: str, public_key: str) -> bool:
    """Whether the holder of ``public_key`` (hex) signed ``content``; False for anything malformed."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), content)
    except (ValueError, InvalidSignature):
        return False
    return True


def read_public_key(text: str) -> str:
    """A public key as hex, from hex or from the name of a PEM file.

    Raises:
        LedgerError: it is neither 64 hexadecimal digits nor a PEM file with an Ed25519 public key.
    """
    try:
        if len(bytes.fromhex(text)) == 32:
            return text.lower()
    except ValueError:
        pass  # a file, then
    try:
        key = load_pem_public_key(Path(text).read_bytes())
    except OSError as error:
        raise LedgerError(
            f"{text}: neither 64 hexadecimal digits nor a file that can be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise LedgerError(f"{text}: no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise LedgerError(f"{text}: not an Ed25519 key")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
