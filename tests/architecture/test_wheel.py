"""The wheel holds the source and nothing else: the folders' mapping to packages is easy to get wrong."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
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
        if path.suffix == ".py" or path.name == "py.typed" or path.name.endswith(".html.j2")
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"fedprofile/common/page.html.j2", "fedprofile/simulations/report.html.j2"} <= held


def test_wheel_names_command_and_licence(wheel):
    (entry,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "fedprofile = fedprofile.common.cli:main" in wheel.read(entry).decode()
    (licence,) = (n for n in wheel.namelist() if n.endswith("LICENSE"))
    assert b"Apache License" in wheel.read(licence)
