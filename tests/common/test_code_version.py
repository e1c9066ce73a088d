import importlib.metadata
import re

import pytest

from fedprofile.common.code_version import code_version, fingerprint


def test_a_version_names_release_and_build():
    release, _, build = code_version().partition("+")
    assert release == importlib.metadata.version("fedprofile")
    assert re.fullmatch("[0-9a-f]{12}", build)


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "client"
    (folder / "native").mkdir(parents=True)
    (folder / "fit.py").write_bytes(b"a = 1\n")
    (folder / "native" / "step.cpp").write_bytes(b"int a;\n")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "fit.py").write_bytes(b"a = 2\n"),
        lambda folder: (folder / "fit.py").rename(folder / "fits.py"),
        lambda folder: (folder / "native" / "step.cpp").unlink(),
        lambda folder: (folder / "new.py").touch(),
    ],
)
def test_changed_code_is_another_build(package, change):
    before = fingerprint([package])
    change(package)
    assert fingerprint([package]) != before


def test_a_build_is_the_same_wherever_it_lies(package, tmp_path):
    before = fingerprint([package])
    (package / "fit.py").write_bytes(b"a = 1\r\n")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "fit.pyc").write_bytes(b"?")
    moved = tmp_path / "elsewhere" / "client"
    moved.parent.mkdir()
    package.rename(moved)
    assert fingerprint([moved]) == before
