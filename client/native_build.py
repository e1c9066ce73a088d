"""Builds the native training step where it runs, once, and loads it.

A library is kept under the user's cache directory. Its name tells what it was built from and for
(sources, command, compiler, processor) and the SHA-256 of its bytes, so that another machine's is never
loaded and a damaged one is built again. It comes to its name by a rename: processes that build at the
same time do each other no harm.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ..common.errors import ConfigError

_SOURCES = ("native_step.cpp", "native_layers.h", "native_gemm.h")
# Nobody reads errno or floating-point exceptions. No -ffast-math: NaN must stay NaN.
_FLAGS = (
    *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *("-fopenmp-simd", "-fPIC", "-shared"),
)
_DO = "install a C++ compiler, name one in the environment variable CXX, or set engine.compile = false"


def native_library() -> ctypes.CDLL:
    """The library, built on first use: some seconds.

    Raises:
        ConfigError: there is no C++ compiler, or it fails.
    """
    return _loaded(os.environ.get("CXX") or "g++")


@cache
def _loaded(compiler: str) -> ctypes.CDLL:
    return load_library(compiler, Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser())


def load_library(compiler: str, cache_folder: Path) -> ctypes.CDLL:
    """The library as ``compiler`` builds it, from ``cache_folder`` where it is kept there.

    Args:
        compiler: a command, perhaps with arguments.
        cache_folder: the user's; where it can't be used, the library is built for this process.

    Raises:
        ConfigError: the compiler isn't there, it fails, or what it builds can't be loaded.
    """
    command = [*shlex.split(compiler), *_FLAGS, _processor_flag()]
    key = _key(command)
    try:
        folder = cache_folder / "fedprofile"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError("others may put code there")
        return _kept(folder, key) or _built(folder, key, command)
    except OSError:
        with tempfile.TemporaryDirectory(prefix="fedprofile-") as scratch:
            try:
                return _built(Path(scratch), key, command)
            except OSError as e:
                raise ConfigError(f"engine.compile: can't load what was built ({e}); {_DO}") from e


def _kept(folder: Path, key: str) -> ctypes.CDLL | None:
    for path in folder.glob(f"native-{key}-*.so"):
        if path.name == _name(key, path):
            return ctypes.CDLL(str(path))
        path.unlink(missing_ok=True)
    return None


def _built(folder: Path, key: str, command: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        made = Path(scratch) / "native.so"
        source = Path(__file__).with_name(_SOURCES[0])
        _run([*command, str(source), "-o", str(made)])
        return ctypes.CDLL(str(made.rename(folder / _name(key, made))))


def _name(key: str, library: Path) -> str:
    return f"native-{key}-{hashlib.sha256(library.read_bytes()).hexdigest()[:16]}.so"


def _key(command: list[str]) -> str:
    parts = [Path(__file__).with_name(name).read_bytes() for name in _SOURCES]
    parts += [part.encode() for part in (*command, _run([command[0], "--version"]), _processor())]
    lengths = b"".join(len(part).to_bytes(8) for part in parts)
    return hashlib.sha256(lengths + b"".join(parts)).hexdigest()[:16]


def _processor_flag() -> str:
    # -march=native is not understood on ARM by every compiler, -mcpu=native not on x86.
    return "-march=native" if platform.machine() in {"x86_64", "AMD64"} else "-mcpu=native"


def _processor() -> str:
    """What tells this kind of processor from others that may share the cache."""
    told = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        first = ""
    lines = [line for line in first.splitlines() if line.startswith(told)]
    return "\n".join([platform.machine(), platform.processor(), *lines])


def _run(command: list[str]) -> str:
    """What the command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as e:
        raise ConfigError(
            f"engine.compile needs a C++ compiler, and '{command[0]}' can't be started; {_DO}"
        ) from e
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise ConfigError(f"engine.compile: '{command[0]}' failed ({first}); {_DO}")
    return done.stdout
