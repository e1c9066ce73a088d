"""Who may import whom, read off the source.

One import is invisible here: ``common/lazy_group.py`` loads a sub-command by name when it is called, and
is the one place where that happens.
"""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "common": set(),
    "client": {"common"},
    "server": {"common"},
    "audit": {"common"},
    "simulations": {"common", "client", "server", "audit"},
}

FLOWER = {
    "common/messages.py",  # the wire format
    "common/wire_arrays.py",  # and its arrays
    "client/app.py",
    "client/fit.py",  # runs the ClientApp
    "client/fleet.py",  # a node's calls
    "client/node.py",
    "client/outbox.py",
    "server/app.py",
    "server/link.py",  # the operator's calls, and the grid of a deployment
    "server/service.py",
    "server/strategy.py",
    "server/superlink.py",  # serves Flower's
    "server/validation.py",  # reads replies
    "simulations/grid.py",
    "simulations/population.py",  # finds a host by a node's context
    "simulations/ray_engine.py",
    "simulations/watched_grid.py",  # meddles with replies
}
OPACUS = {
    "client/local_privacy.py",  # gradients of single examples
    "common/user_level_optimizer.py",
    "common/accounting.py:_prv_accountant",  # the cross-check alone
}
SCORING_PATH = (
    "client.profile",
    "client.scoring",
    "client.strategies",
    "client.connect",
    "client.device_cli",
    "client.profile_cli",
    "common.decay",
    "common.items",
    "common.histories",
)
HEAVY = ("torch", "flwr", "opacus", "ray", "polars", "sklearn", "scipy", "matplotlib", "grpc")

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]
FOLDERS = sorted(SETTINGS["package-dir"].values())
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    """(dots, module, name of the enclosing function or "") of each import, wherever it stands."""

    def visit(node, function):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((0, alias.name, function) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                names = [child.module] if child.module else [alias.name for alias in child.names]
                yield from ((child.level, name, function) for name in names)
            inner = child.name if isinstance(child, ast.FunctionDef) else function
            yield from visit(child, inner)

    return list(visit(ast.parse(path.read_text(encoding="utf-8")), ""))


def name(path):
    return path.relative_to(ROOT).as_posix()


def importers(package, *, by_function=False):
    """Modules that import ``package``; with ``by_function`` the function that does, where one does."""
    return {
        f"{name(path)}:{function}" if by_function and function else name(path)
        for path in MODULES
        for dots, module, function in imports(path)
        if not dots and module.partition(".")[0] == package
    }


def test_every_package_has_its_layer():
    assert set(FOLDERS) <= set(MAY_IMPORT)
    assert set(SETTINGS["packages"]) == {f"fedprofile.{folder}" for folder in FOLDERS}
    assert {f"fedprofile.{folder}": folder for folder in FOLDERS} == SETTINGS["package-dir"]


def test_packages_are_flat_and_complete():
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").is_file()
        nested = list((ROOT / folder).glob("*/*.py"))
        assert not nested


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_layers(path):
    package = path.parent.name
    for dots, module, _ in imports(path):
        top = module.partition(".")[0]
        assert top != "fedprofile", f"{name(path)}: source imports its own relatively"
        assert dots <= 2, f"{name(path)}: packages are flat, so two dots reach everything"
        if dots == 2:
            assert top in MAY_IMPORT[package], f"{name(path)} may not import {top}"
        if dots == 1:
            assert (path.parent / f"{top}.py").is_file()


def test_flower_is_where_messages_meet_the_network():
    assert importers("flwr") <= FLOWER
    assert {f for f in FLOWER if not (ROOT / f).is_file()} == set()


def test_opacus_is_where_noise_is_added():
    assert importers("opacus", by_function=True) == OPACUS


def test_tests_import_absolutely():
    for path in (ROOT / "tests").rglob("*.py"):
        assert all(dots == 0 for dots, _, _ in imports(path)), name(path)


def test_scoring_loads_nothing_heavy():
    modules = ", ".join(f"fedprofile.{module}" for module in SCORING_PATH)
    program = f"import {modules}, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert "numpy" in loaded
    assert not set(HEAVY) & set(loaded)


def test_the_command_line_loads_nothing_heavy_before_it_is_asked():
    program = "import fedprofile.common.cli, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert not set(HEAVY) & set(loaded)


def test_the_reader_of_imports_sees_all_kinds(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\nfrom .c import d\nfrom .. import e\n"
        "def f():\n    if True:\n        from ..g.h import i\n"
    )
    assert imports(path) == [(0, "a.b", ""), (1, "c", ""), (2, "e", ""), (2, "g.h", "f")]
