"""The key of a device's store: 32 random bytes in a file of mode 0600, or in the OS keyring.

Destroying the key erases the store, whatever the disk keeps of it.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Protocol

from ..common.errors import DeviceError
from ..common.files import sync_folder, write_atomically
from .device_folder import DeviceFolder

_BYTES = 32
_OTHERS = 0o077  # permission bits of everybody but the owner
_SERVICE = "fedprofile"


class StoreKey(Protocol):
    """Where a key is kept."""

    def create(self) -> bytes:
        """A new key, kept from now on in place of any other."""

    def load(self) -> bytes | None:
        """The key that is kept, if there is one.

        Raises:
            DeviceError: it can't be read, or others may read it.
        """

    def destroy(self) -> None:
        """Keep it no longer."""


def find_key(folder: DeviceFolder) -> StoreKey:
    """Where the configuration says that the key is."""
    entry = folder.config.store.keyring
    return KeyFile(folder.store_key) if entry is None else KeyringKey(entry)


class KeyFile:
    """A key in a file.

    Args:
        path: the file; 64 hexadecimal digits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> bytes:
        """See :class:`StoreKey`."""
        key = secrets.token_bytes(_BYTES)
        write_atomically(self._path, key.hex().encode(), mode=0o600)
        return key

    def load(self) -> bytes | None:
        """See :class:`StoreKey`."""
        try:
            mode, text = self._path.stat().st_mode, self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DeviceError(
                f"{self._path}: can't read the store's key ({error.strerror}); check whose it is"
            ) from error
        if mode & _OTHERS:
            raise DeviceError(
                f"{self._path}: others may read the store's key (mode {mode & 0o777:03o}); "
                "chmod 600 it"
            )
        return _parse(text.decode("ascii", "replace"), str(self._path))

    def destroy(self) -> None:
        """See :class:`StoreKey`."""
        if self._path.exists():
            size = self._path.stat().st_size
            # Where the file system writes in place, this reaches the bytes themselves.
            with self._path.open("r+b", buffering=0) as file:
                file.write(bytes(size))
            self._path.unlink()
            sync_folder(self._path.parent)


class KeyringKey:
    """A key in the OS keyring.

    Args:
        entry: its name there.

    Raises:
        DeviceError: the ``keyring`` package is missing.
    """

    def __init__(self, entry: str) -> None:
        try:
            import keyring
        except ImportError as error:
            raise DeviceError(
                "the store's key is in the OS keyring, which needs the package keyring: "
                "pip install 'fedprofile[keyring]'"
            ) from error
        self._keyring: Any = keyring
        self._entry = entry

    def create(self) -> bytes:
        """See :class:`StoreKey`."""
        key = secrets.token_bytes(_BYTES)
        self._ask("set_password", _SERVICE, self._entry, key.hex())
        return key

    def load(self) -> bytes | None:
        """See :class:`StoreKey`."""
        text = self._ask("get_password", _SERVICE, self._entry)
        if text is None:
            return None
        return _parse(str(text), f"OS keyring, entry '{self._entry}'")

    def destroy(self) -> None:
        """See :class:`StoreKey`."""
        if self._ask("get_password", _SERVICE, self._entry) is not None:
            self._ask("delete_password", _SERVICE, self._entry)

    def _ask(self, method: str, *arguments: str) -> Any:
        try:
            return getattr(self._keyring, method)(*arguments)
        except self._keyring.errors.KeyringError as error:
            raise DeviceError(
                f"OS keyring: {error or type(error).__name__}; unlock it, or keep the key in a "
                "file (leave store.keyring unset)"
            ) from error


def _parse(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != _BYTES:
        raise DeviceError(f"{where}: no key of a store ({2 * _BYTES} hexadecimal digits)")
    return key
