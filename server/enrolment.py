"""Who may take part: devices by number, name and public key.

A device keeps its number for good, also after it is revoked: numbers are what cohorts are drawn from, and
a second device under an old number would share the first one's budget.
"""

from __future__ import annotations

import fcntl
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)
from pydantic import TypeAdapter, ValidationError

from ..common.errors import ServerError
from ..common.files import write_atomically

_LONGEST_NAME = 64


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """A device that was enrolled.

    Attributes:
        number: its place in the population, from 0.
        name: what the operator calls it.
        public_key: PEM (SubjectPublicKeyInfo) of its node key.
        enrolled: when, UTC, ISO 8601.
        revoked: when, None while it may take part.
    """

    number: int
    name: str
    public_key: str
    enrolled: str
    revoked: str | None = None


_DEVICES = TypeAdapter(tuple[Enrolled, ...])


class Enrolment:
    """The enrolled devices of a server, in a file.

    Args:
        path: ``devices.json``.
        population_size: N, the most devices there may ever be.
    """

    def __init__(self, path: Path, *, population_size: int) -> None:
        self._path = path
        self._population_size = population_size

    def devices(self) -> tuple[Enrolled, ...]:
        """All that were ever enrolled, by number.

        Raises:
            ServerError: the file can't be read.
        """
        try:
            return _DEVICES.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            raise ServerError(f"{self._path}: can't read who is enrolled; put it back") from error

    def active(self) -> tuple[Enrolled, ...]:
        """Those that may take part."""
        return tuple(device for device in self.devices() if device.revoked is None)

    def enrol(self, name: str, public_key: bytes, *, source: str) -> Enrolled:
        """Admit a device.

        Args:
            name: a new one.
            public_key: PEM or OpenSSH.
            source: what messages call the key.

        Raises:
            ServerError: name or key are taken or no good, or the population is complete.
        """
        if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise ServerError(
                f"{name!r}: not a name; use 1 to {_LONGEST_NAME} printable characters"
            )
        key = _read_key(public_key, source)
        with self._locked():
            devices = self.devices()
            for device in devices:
                if device.name == name:
                    raise ServerError(f"{name}: a device of that name is enrolled; choose another")
                if device.public_key == key:
                    raise ServerError(
                        f"{source}: is the key of {device.name}, "
                        f"{'revoked' if device.revoked else 'enrolled'}; make a new one on the device"
                    )
            if len(devices) >= self._population_size:
                raise ServerError(
                    f"the population is declared as {self._population_size} devices and complete; "
                    "budget and noise are for that many"
                )
            found = Enrolled(number=len(devices), name=name, public_key=key, enrolled=_now())
            self._write((*devices, found))
        return found

    def revoke(self, name: str) -> Enrolled:
        """Shut a device out; it keeps its number.

        Raises:
            ServerError: there is none of that name, or it is revoked.
        """
        with self._locked():
            devices = self.devices()
            found = next((device for device in devices if device.name == name), None)
            if found is None:
                names = ", ".join(device.name for device in devices if not device.revoked)
                raise ServerError(f"{name}: no such device; enrolled are: {names or 'none'}")
            if found.revoked:
                raise ServerError(f"{name}: revoked already, on {found.revoked}")
            gone = replace(found, revoked=_now())
            self._write(tuple(gone if device is found else device for device in devices))
        return gone

    def _write(self, devices: tuple[Enrolled, ...]) -> None:
        text = json.dumps([asdict(device) for device in devices], indent=1, ensure_ascii=False)
        write_atomically(self._path, text.encode(), mode=0o600)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class AdmittedKeys:
    """Keys that may take part, as a call names them; the file is read again when it changes.

    Args:
        enrolment: who may.
        path: its file.
    """

    def __init__(self, enrolment: Enrolment, path: Path) -> None:
        self._enrolment = enrolment
        self._path = path
        self._read: tuple[int, int] | None = None
        self._names: frozenset[bytes] = frozenset()

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is the base64 of an admitted key's PEM.

        Raises:
            ServerError: the file can't be read.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        if (version := (found.st_ino, found.st_mtime_ns)) != self._read:
            active = self._enrolment.active()
            self._names = frozenset(b64encode(device.public_key.encode()) for device in active)
            self._read = version
        return name in self._names


def _read_key(content: bytes, source: str) -> str:
    """PEM of an elliptic-curve key.

    Raises:
        ServerError: it is none.
    """
    load = load_ssh_public_key if content.startswith(b"ecdsa-") else load_pem_public_key
    try:
        key = load(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ServerError(
            f"{source}: no public key; give the node.pub that fedprofile device enroll made"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ServerError(
            f"{source}: not an elliptic-curve key; fedprofile device enroll makes one"
        )
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
