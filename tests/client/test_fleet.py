"""The connection to a server that is there and isn't."""

import socket
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.node_pb2 import Node

from fedprofile.client import fleet as module
from fedprofile.client.fleet import Fleet
from fedprofile.common.errors import Unreachable
from fedprofile.simulations.loopback import Loopback


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Loopback(tmp_path_factory.mktemp("made"), devices=1).server.ca


def test_a_line_that_swallows_everything_is_given_up_and_not_said_goodbye_over(
    authority, monkeypatch
):
    """It takes connections and what is sent, and nothing ever comes back."""
    monkeypatch.setattr(module, "_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as door:
        address = f"127.0.0.1:{door.getsockname()[1]}"
        fleet = Fleet(address, ca=authority, key=ec.generate_private_key(ec.SECP384R1()))
        fleet._node = Node(node_id=7)  # it was online before
        with pytest.raises(Unreachable, match=address):
            fleet.pull()
        monkeypatch.setattr(fleet._client, "DeactivateNode", lambda _: pytest.fail("said goodbye"))
        started = time.monotonic()
        fleet.close()
        assert time.monotonic() - started < 0.4
