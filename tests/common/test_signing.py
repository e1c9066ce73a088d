import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fedprofile.common.errors import LedgerError
from fedprofile.common.signing import SigningKey, read_public_key, signature_holds

# RFC 8032, section 7.1, test 2: public key, message, signature.
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_signatures_are_those_of_rfc_8032():
    assert signature_holds(b"\x72", signature=SIGNATURE, public_key=PUBLIC)
    assert not signature_holds(b"\x73", signature=SIGNATURE, public_key=PUBLIC)


@pytest.mark.parametrize(
    ("signature", "public"),
    [
        ("", PUBLIC),
        ("zz" * 64, PUBLIC),
        (SIGNATURE[2:], PUBLIC),
        (SIGNATURE, ""),
        (SIGNATURE, "00"),
    ],
)
def test_malformed_signatures_and_keys_do_not_hold(signature, public):
    assert not signature_holds(b"\x72", signature=signature, public_key=public)


def test_a_key_is_kept_for_its_owner_and_loaded_again(tmp_path):
    path = tmp_path / "鍵.pem"
    made = SigningKey.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    loaded = SigningKey.load(path)
    assert loaded.public_key == made.public_key
    assert signature_holds(b"x", signature=loaded.sign(b"x"), public_key=made.public_key)
    assert SigningKey.generate().public_key != made.public_key
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="exists already"):
        SigningKey.create(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_can_reach_is_refused(tmp_path, mode):
    path = tmp_path / "key.pem"
    SigningKey.create(path)
    path.chmod(mode)
    with pytest.raises(LedgerError, match="others may read"):
        SigningKey.load(path)


def test_what_is_no_key_is_refused_in_one_line(tmp_path):
    path = tmp_path / "key.pem"
    with pytest.raises(LedgerError, match="can't read"):
        SigningKey.load(path)
    with pytest.raises(LedgerError, match="can't write"):
        SigningKey.create(tmp_path / "nowhere" / "key.pem")
    other = ec.generate_private_key(ec.SECP256R1())
    locked = BestAvailableEncryption(b"secret")
    contents = [
        b"",
        b"hello",
        os.urandom(100),
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked),
    ]
    for content in contents:
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(LedgerError, match=r"key\.pem: "):
            SigningKey.load(path)


def test_a_public_key_is_read_from_hex_or_pem(tmp_path):
    assert read_public_key(PUBLIC.upper()) == PUBLIC
    path = tmp_path / "public.pem"
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(PUBLIC))
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert read_public_key(str(path)) == PUBLIC
    for wrong in ("", "ab", "nowhere.pem"):
        with pytest.raises(LedgerError):
            read_public_key(wrong)
    path.write_bytes(b"hello")
    with pytest.raises(LedgerError, match="no public key"):
        read_public_key(str(path))
