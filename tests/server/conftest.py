"""A server's folder, made once: it takes a second."""

import datetime as dt
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedprofile.common.config import (
    ItemsConfig,
    ModelConfig,
    PrivacyConfig,
    StatisticsConfig,
    TrainingConfig,
)
from fedprofile.server.folder import ServerFolder
from fedprofile.server.server_config import FederationConfig, ServerConfig
from fedprofile.server.setup import create_server
from fedprofile.simulations.loopback import free_port


@pytest.fixture(scope="session")
def made_server(tmp_path_factory):
    config = ServerConfig(
        federation=FederationConfig(population_size=3, port=free_port()),
        items=ItemsConfig(dimension=8),
        statistics=StatisticsConfig(as_of=dt.date(2026, 1, 1)),
        model=ModelConfig(encoder="mean", width=4, heads=1, window=4),
        training=TrainingConfig(rounds=2, sampling_probability=1.0),
        privacy=PrivacyConfig(delta=1e-3, noise_multiplier=4.0),
    )
    return create_server(tmp_path_factory.mktemp("made") / "server", config, items=None)


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
