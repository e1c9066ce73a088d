"""A server's folder and keys of devices."""

import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedprofile.server.folder import ServerFolder


@pytest.fixture
def server(made_server, tmp_path):
    """A copy of it for one test."""
    path = tmp_path / "server"
    shutil.copytree(made_server.path, path)
    return ServerFolder.open(path)


@pytest.fixture
def public_key():
    """Makes public keys as devices do."""

    def make(curve=ec.SECP384R1, encoding=Encoding.PEM, form=PublicFormat.SubjectPublicKeyInfo):
        return ec.generate_private_key(curve()).public_key().public_bytes(encoding, form)

    return make
