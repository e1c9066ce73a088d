"""The federation's own certificate authority: devices trust it for this server, and nothing else."""

from __future__ import annotations

import datetime as dt
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..common.errors import ServerError
from ..common.files import write_atomically
from .folder import ServerFolder

_AUTHORITY_DAYS = 3650
_CERTIFICATE_DAYS = 397
_RENEWED_BEFORE = dt.timedelta(days=60)
_SKEW = dt.timedelta(hours=1)  # clocks of devices may be behind


def create_authority(folder: ServerFolder) -> None:
    """Make ``ca.key`` and ``ca.crt``."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"fedprofile {folder.config.federation.name}")
    certificate = (
        _builder(name, name, key.public_key(), days=_AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    write_atomically(folder.ca_key, _pem(key), mode=0o600)
    write_atomically(folder.ca, certificate.public_bytes(Encoding.PEM))


def ensure_certificate(folder: ServerFolder) -> None:
    """Make ``server.key`` and ``server.crt`` where they are missing, expire soon or name another host.

    Raises:
        ServerError: the authority's key or certificate can't be read.
    """
    host = folder.config.federation.host
    try:
        if folder.certificate.is_file() and folder.certificate_key.is_file():
            current = x509.load_pem_x509_certificate(folder.certificate.read_bytes())
            left = current.not_valid_after_utc - dt.datetime.now(dt.UTC)
            names = current.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            key = load_pem_private_key(folder.certificate_key.read_bytes(), password=None)
            # A crash may have left a new key beside the old certificate.
            fits = key.public_key() == current.public_key()
            if fits and left > _RENEWED_BEFORE and _alternative(host) in names:
                return
        authority = x509.load_pem_x509_certificate(folder.ca.read_bytes())
        authority_key = load_pem_private_key(folder.ca_key.read_bytes(), password=None)
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise ServerError(f"{folder.ca}: can't use the authority ({error}); put it back") from error
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise ServerError(f"{folder.ca_key}: not an elliptic-curve key; put back the one of init")
    fresh = ec.generate_private_key(ec.SECP384R1())
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _builder(_name(host[:64]), authority.subject, fresh.public_key(), days=_CERTIFICATE_DAYS)
        .add_extension(x509.SubjectAlternativeName([_alternative(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    write_atomically(folder.certificate_key, _pem(fresh), mode=0o600)
    write_atomically(folder.certificate, certificate.public_bytes(Encoding.PEM))


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
