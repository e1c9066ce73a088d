"""The wheel holds the source and nothing else: the folders' mapping to packages is easy to get wrong."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from fedprofile.common import cli

pytestmark = pytest.mark.xdist_group("wheel")  # it is built once

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
_IMPORTED_AS = {
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health",
    "protobuf": "google",
    "scikit-learn": "sklearn",
    "sqlcipher3-wheels": "sqlcipher3",
}
FOLDERS = sorted(PROJECT["tool"]["setuptools"]["package-dir"].values())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # From a copy: a build leaves its own folder behind, and takes along what an earlier one left there.
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    for folder in (*FOLDERS, "tests", "docs"):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    (source / "common" / "leftover.txt").write_text("belongs nowhere")
    command = ["wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", *command, "--wheel-dir", str(out), str(source)],
        check=True,
        timeout=120,
    )
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_exactly_the_source(wheel):
    expected = {
        f"fedprofile/{folder}/{path.name}"
        for folder in FOLDERS
        for path in (ROOT / folder).iterdir()
        if path.suffix in (".py", ".pyi", ".proto", ".j2", ".cpp", ".h") or path.name == "py.typed"
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"fedprofile/common/page.html.j2", "fedprofile/simulations/report.html.j2"} <= held
    assert "fedprofile/client/edge_v1.proto" in held


def test_a_light_install_brings_nothing_that_trains(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("METADATA"))
    lines = wheel.read(name).decode().splitlines()
    needed = [line.removeprefix("Requires-Dist: ") for line in lines if "Requires-Dist" in line]

    def brought(extra):
        found = {re.match(r"[\w-]+", r)[0] for r in needed if f'extra == "{extra}"' in r}
        return found | {re.match(r"[\w-]+", r)[0] for r in needed if "extra ==" not in r}

    heavy = {"torch", "flwr", "opacus", "scipy", "scikit-learn", "polars", "matplotlib", "ray"}
    assert not heavy & brought("score")
    assert {"sqlcipher3-wheels", "grpcio", "numpy", "safetensors"} <= brought("score")
    assert {"torch", "flwr", "opacus"} <= brought("train")
    assert not {"torch", "flwr", "opacus"} & brought("audit")


def test_every_optional_package_has_an_extra_to_name():
    extras = PROJECT["project"]["optional-dependencies"]
    for extra in ("score", "audit", "train"):
        packages = {re.match(r"[\w-]+", line)[0] for line in extras[extra]} - {"fedprofile"}
        named = {package for package, name in cli._EXTRAS.items() if name == extra}
        imports = {_IMPORTED_AS.get(p, p.replace("-", "_")) for p in packages}
        assert imports == named, extra


def test_wheel_names_command_and_licence(wheel):
    (entry,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "fedprofile = fedprofile.common.cli:main" in wheel.read(entry).decode()
    (licence,) = (n for n in wheel.namelist() if n.endswith("LICENSE"))
    assert b"Apache License" in wheel.read(licence)
