"""A server's folder and keys of devices."""

import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedprofile.common.ledger import Ledger
from fedprofile.common.mechanism import Mechanism
from fedprofile.common.signing import SigningKey
from fedprofile.server.folder import ServerFolder


@pytest.fixture
def server(made_server, tmp_path):
    """A copy of it for one test."""
    path = tmp_path / "server"
    shutil.copytree(made_server.path, path)
    return ServerFolder.open(path)


@pytest.fixture
def mechanism():
    """Of a release with all of three users."""
    return Mechanism(
        clip_norm=0.04, noise_multiplier=4.0, sampling_probability=1.0, population_size=3
    )


@pytest.fixture
def begin_ledger():
    """Begins the ledger of a federation of three users."""

    def begin(path, *, key=None, anchor=None, population="federation"):
        return Ledger.create(
            path,
            signing_key=key or SigningKey.generate(),
            anchor=anchor,
            population=population,
            population_size=3,
            delta=1e-3,
            target_epsilon=8.0,
            randomness="csprng",
            code_version="1",
            config_digest="0" * 64,
        )

    return begin


@pytest.fixture
def public_key():
    """Makes public keys as devices do."""

    def make(curve=ec.SECP384R1, encoding=Encoding.PEM, form=PublicFormat.SubjectPublicKeyInfo):
        return ec.generate_private_key(curve()).public_key().public_bytes(encoding, form)

    return make
