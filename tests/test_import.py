"""``import repro_callbacks`` costs neither Lightning nor MONAI, and the rooms below the callbacks never import them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import repro_callbacks

FRAMEWORKS = ("lightning", "pytorch_lightning", "monai")
FREE_ROOMS = ("keys", "generators", "flags", "record", "loading", "fingerprint", "study")
PACKAGE = Path(repro_callbacks.__file__).parent


def modules_of(room: str) -> list[str]:
    """Return the names of a room and of every module in it."""
    name = f"repro_callbacks.{room}"
    path = PACKAGE / room
    if not path.is_dir():
        return [name]
    return [name, *sorted(found.name for found in pkgutil.walk_packages([str(path)], name + "."))]


def imported_by(*modules: str) -> set[str]:
    """Import modules in a fresh process and return which of the frameworks that has imported."""
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {FRAMEWORKS!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def frameworks_named_in(path: Path) -> set[str]:
    """Return the frameworks that a file imports anywhere, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found & set(FRAMEWORKS)


def test_the_package_imports_neither_framework() -> None:
    assert imported_by("repro_callbacks") == set()


@pytest.mark.slow
def test_the_test_above_can_fail() -> None:
    assert imported_by("repro_callbacks", "monai.utils") == {"monai"}
    assert {"lightning", "pytorch_lightning"} <= imported_by("repro_callbacks.callbacks.determinism")


@pytest.mark.slow
def test_the_rooms_below_the_callbacks_import_neither() -> None:
    modules = [module for room in FREE_ROOMS for module in modules_of(room)]
    assert len(modules) > len(FREE_ROOMS) + 20, "the modules of the rooms were not found"
    assert imported_by(*modules) == set()


@pytest.mark.parametrize("room", FREE_ROOMS)
def test_no_function_of_these_rooms_imports_them_either(room: str) -> None:
    path = PACKAGE / room
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    named = {file.relative_to(PACKAGE).as_posix(): frameworks_named_in(file) for file in files}
    assert {file: found for file, found in named.items() if found} == {}


def test_the_search_for_imports_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text("def late():\n    from monai.transforms import Compose\n    import lightning.pytorch as L\n")
    assert frameworks_named_in(file) == {"monai", "lightning"}


@pytest.mark.parametrize("name", repro_callbacks.__all__)
def test_a_public_name_resolves(name: str) -> None:
    value = getattr(repro_callbacks, name)
    assert callable(value)
    assert value.__name__.split(".")[-1] == name
    home = importlib.import_module(repro_callbacks._HOMES[name])
    assert value is (home if name == "audit" else getattr(home, name))  # the room itself can be called


def test_every_public_name_is_listed_once() -> None:
    assert sorted(repro_callbacks.__all__) == sorted(repro_callbacks._HOMES)
    assert set(repro_callbacks.__all__) <= set(dir(repro_callbacks))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'repro_callbacks' has no attribute 'determinizm'"):
        _ = repro_callbacks.determinizm
