import os
import shutil
import stat

import pytest

from fedprofile.client.native_build import load_library, native_library
from fedprofile.common.errors import ConfigError

COMPILER = os.environ.get("CXX", "g++")

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason="there is no C++ compiler")


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def compiler(tmp_path):
    """A compiler that is quick about it, and counts what it compiles."""
    log = tmp_path / "log"
    log.touch()
    count = f'[ "$1" = --version ] || echo >> {log}'
    return script(tmp_path / "compiler", f'{count}\nexec {COMPILER} "$@" -O0'), log


def compiled(log):
    return len(log.read_text().splitlines())


def test_a_library_is_built_once_and_kept(compiler, tmp_path):
    command, log = compiler
    for _ in range(2):
        assert load_library(command, tmp_path / "cache").native_train
        assert compiled(log) == 1
    folder = tmp_path / "cache" / "fedprofile"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 1  # nothing is left behind
    assert load_library(f"{command} -DOTHER", tmp_path / "cache").native_train
    assert compiled(log) == 2


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_a_damaged_library_is_built_again(compiler, tmp_path, keep):
    command, log = compiler
    load_library(command, tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "fedprofile").iterdir()
    # Elsewhere: what is loaded must stay as it is, and the loader knows a path by name from then on.
    moved = tmp_path / "moved" / "fedprofile"
    moved.mkdir(mode=0o700, parents=True)
    (moved / kept.name).write_bytes(kept.read_bytes()[:keep])
    assert load_library(command, tmp_path / "moved").native_train
    assert compiled(log) == 2


@pytest.mark.parametrize("why", ["no folder", "others may write"])
def test_without_a_cache_of_its_own_it_is_built_for_the_process(compiler, tmp_path, why):
    command, log = compiler
    if why == "no folder":
        (tmp_path / "cache").write_text("no folder")
    else:
        folder = tmp_path / "cache" / "fedprofile"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    assert load_library(command, tmp_path / "cache").native_train
    assert compiled(log) == 1


def test_a_process_loads_it_once():
    assert native_library() is native_library()


def test_a_compiler_that_fails_is_told(tmp_path):
    version = '[ "$1" = --version ] && exit 0'
    command = script(
        tmp_path / "broken",
        f"{version}\necho warming up >&2; echo x.cpp:1: error: no header >&2; exit 1",
    )
    with pytest.raises(ConfigError, match=r"broken' failed \(x.cpp:1: error: no header\); install"):
        load_library(command, tmp_path)
    with pytest.raises(ConfigError, match=r"mute' failed \(exit code 3\)"):
        load_library(script(tmp_path / "mute", f"{version}\nexit 3"), tmp_path)
    with pytest.raises(ConfigError, match="no-such-compiler' can't be started"):
        load_library("no-such-compiler", tmp_path)
