"""The key a device is known to its server by."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ..common.errors import DeviceError
from ..common.files import write_atomically
from .device_folder import DeviceFolder

NodeKey = ec.EllipticCurvePrivateKey
_OTHERS = 0o077  # permission bits of everybody but the owner


def ensure_node_key(folder: DeviceFolder) -> NodeKey:
    """The device's node key, made on first use; ``node.pub`` beside it is what is enrolled.

    Raises:
        DeviceError: the key is there and can't be used.
    """
    if not folder.node_key.exists():
        key = ec.generate_private_key(ec.SECP384R1())  # the curve that Flower's nodes use
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(folder.node_key, pem, mode=0o600)
    key = load_node_key(folder)
    write_atomically(folder.node_public_key, public_pem(key))
    return key


def load_node_key(folder: DeviceFolder) -> NodeKey:
    """The key in ``node.key``.

    Raises:
        DeviceError: it is missing, no such key, or others may read it.
    """
    path = folder.node_key
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError as error:
        raise DeviceError(f"{path}: no key; fedprofile device enroll makes one") from error
    except OSError as error:
        raise DeviceError(f"{path}: can't read the key ({error.strerror})") from error
    if mode & _OTHERS:
        raise DeviceError(
            f"{path}: others may read this key (mode {mode & 0o777:03o}); chmod 600 it"
        )
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise DeviceError(
            f"{path}: no private key; remove it and enrol the device again"
        ) from error
    if not isinstance(key, NodeKey):
        raise DeviceError(f"{path}: not an elliptic-curve key; remove it and enrol again")
    return key


def public_pem(key: NodeKey) -> bytes:
    """PEM of the public half."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
