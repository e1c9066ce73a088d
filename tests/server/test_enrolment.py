"""Who may take part: numbers that stay, keys that count once, and what is refused."""

from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedprofile.common.errors import ServerError
from fedprofile.server.enrolment import AdmittedKeys, Enrolment


@pytest.fixture
def enrolment(tmp_path):
    return Enrolment(tmp_path / "devices.json", population_size=3)


def test_numbers_follow_the_order_and_survive_revoking(enrolment, public_key):
    for name in ("till-1", "収銀機 2"):
        enrolment.enrol(name, public_key(), source="node.pub")
    gone = enrolment.revoke("till-1")
    third = enrolment.enrol("till-3", public_key(), source="node.pub")
    assert (gone.number, third.number) == (0, 2)
    assert [device.name for device in enrolment.active()] == ["収銀機 2", "till-3"]
    assert [device.number for device in enrolment.devices()] == [0, 1, 2]


def test_a_key_is_the_same_whichever_way_it_is_written(enrolment, public_key):
    key = public_key(encoding=Encoding.OpenSSH, form=PublicFormat.OpenSSH)
    found = enrolment.enrol("a", key, source="a.pub")
    assert found.public_key.startswith("-----BEGIN PUBLIC KEY-----")
    with pytest.raises(ServerError, match="is the key of a, enrolled"):
        enrolment.enrol("b", found.public_key.encode(), source="b.pub")


def test_what_is_no_device_is_refused_in_a_word(enrolment, public_key):
    enrolment.enrol("a", public_key(), source="a.pub")
    edwards = Ed25519PrivateKey.generate().public_key()
    other = edwards.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, key, why in (
        ("a", public_key(), "name is enrolled"),
        ("", public_key(), "not a name"),
        ("x" * 65, public_key(), "not a name"),
        ("line\nbreak", public_key(), "not a name"),
        ("b", b"nonsense", "no public key"),
        ("b", other, "not an elliptic-curve key"),
    ):
        with pytest.raises(ServerError, match=why):
            enrolment.enrol(name, key, source="b.pub")
    with pytest.raises(ServerError, match=r"no such device; enrolled are: a$"):
        enrolment.revoke("b")
    enrolment.revoke("a")
    with pytest.raises(ServerError, match="revoked already"):
        enrolment.revoke("a")


def test_a_revoked_key_does_not_come_back(enrolment, public_key):
    key = public_key()
    enrolment.enrol("a", key, source="a.pub")
    enrolment.revoke("a")
    with pytest.raises(ServerError, match="is the key of a, revoked"):
        enrolment.enrol("b", key, source="a.pub")


def test_the_population_is_a_bound(enrolment, public_key):
    for name in "abc":
        enrolment.enrol(name, public_key(), source="node.pub")
    enrolment.revoke("a")
    with pytest.raises(ServerError, match="declared as 3"):
        enrolment.enrol("d", public_key(), source="node.pub")


def test_a_damaged_file_is_not_an_empty_one(enrolment, tmp_path, public_key):
    (tmp_path / "devices.json").write_text("[{}]")
    with pytest.raises(ServerError, match="put it back"):
        enrolment.enrol("a", public_key(), source="a.pub")


def test_keys_are_admitted_as_the_file_says_now(tmp_path, public_key):
    path = tmp_path / "devices.json"
    enrolment = Enrolment(path, population_size=3)
    admitted = AdmittedKeys(enrolment, path)
    first, second = public_key(), public_key()
    assert b64encode(first) not in admitted
    enrolment.enrol("a", first, source="a.pub")
    assert b64encode(first) in admitted
    assert b64encode(second) not in admitted
    assert b"" not in admitted
    enrolment.enrol("b", second, source="b.pub")
    enrolment.revoke("a")
    assert b64encode(first) not in admitted
    assert b64encode(second) in admitted
