"""Certificates that devices accept for this server and nothing else, renewed in time."""

import datetime as dt
import socket
import ssl
import threading

import pytest
from cryptography import x509

from fedprofile.common.errors import ServerError
from fedprofile.server.folder import ServerFolder
from fedprofile.server.pki import ensure_certificate


def handshake(server, *, ca, name="127.0.0.1"):
    """A TLS connection on loopback; the peer's protocol version."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.certificate, server.certificate_key)

    def accept():
        connection, _ = listener.accept()
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    trusting = ssl.create_default_context(cafile=str(ca))
    try:
        with (
            socket.create_connection(listener.getsockname()) as raw,
            trusting.wrap_socket(raw, server_hostname=name) as secure,
        ):
            return secure.version()
    finally:
        thread.join()
        listener.close()


def test_the_authority_vouches_for_the_server_by_its_address(server):
    assert handshake(server, ca=server.ca) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, ca=server.ca, name="example.org")


def test_another_authority_vouches_for_nothing(server):
    certificate = server.certificate.read_bytes()
    server.certificate.unlink()
    ensure_certificate(server)
    assert server.certificate.read_bytes() != certificate
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, ca=server.certificate)


@pytest.mark.parametrize("trouble", ["expires", "renamed", "key of another", "missing"])
def test_a_certificate_is_renewed_where_it_would_fail(server, trouble, monkeypatch):
    before = server.certificate.read_bytes()
    if trouble == "expires":
        left = dt.timedelta(days=10_000)
        monkeypatch.setattr("fedprofile.server.pki._RENEWED_BEFORE", left)
    elif trouble == "renamed":
        text = server.config_file.read_text().replace("127.0.0.1", "federation.example.org")
        server.config_file.write_text(text)
    elif trouble == "key of another":
        server.certificate_key.write_bytes(server.ca_key.read_bytes())
    else:
        server.certificate_key.unlink()
    ensure_certificate(ServerFolder.open(server.path))
    after = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    assert server.certificate.read_bytes() != before
    names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if trouble == "renamed":
        assert names.get_values_for_type(x509.DNSName) == ["federation.example.org"]
    assert server.certificate_key.stat().st_mode & 0o077 == 0


def test_a_good_certificate_stays(server):
    before = server.certificate.read_bytes()
    ensure_certificate(server)
    assert server.certificate.read_bytes() == before


def test_a_lost_authority_is_named(server):
    server.ca_key.write_text("nothing")
    server.certificate.unlink()
    with pytest.raises(ServerError, match=r"ca\.crt: can't use the authority"):
        ensure_certificate(server)
