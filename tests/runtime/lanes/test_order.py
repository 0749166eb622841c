"""The order in which to read the runtime is the order of its imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from acme_tasks import lanes

ROOT = Path(str(lanes.__file__)).parent
TEXT = re.findall(r"Reading order: (.*?)\.\sA\smodule", str(lanes.__doc__), re.DOTALL)[0]
ORDER = re.split(r",\s+", TEXT)


def _listed(module: str) -> str | None:
    """The entry of ORDER that a module of the runtime belongs to."""
    parts = module.split(".")
    names = (".".join(parts[:2]), parts[0])
    return next((name for name in names if name in ORDER), None)


def _imports(path: Path) -> list[str]:
    """What a file imports of the runtime, as names relative to it."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = node.module.split(".") if node.module else []
            found += [".".join([*base, *module, alias.name]) for alias in node.names]
    return found


def test_every_module_is_in_the_reading_order_and_imports_only_from_those_before_it() -> None:
    packages = {"__init__.py", "redis/__init__.py"}
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if name in packages:
            continue
        own = _listed(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        assert own is not None, f"{name} is not in the reading order"
        for imported in filter(None, map(_listed, _imports(path))):
            assert ORDER.index(imported) <= ORDER.index(own), f"{own} imports {imported}"


def test_the_front_door_imports_nothing_until_a_name_is_asked_for() -> None:
    """`units` renders deploy/ where nothing but Python is installed."""
    front_door = str(lanes.__name__)
    program = (
        "import importlib, sys; source, name = sys.argv[1:]; sys.path.insert(0, source);"
        "lanes = importlib.import_module(name); lanes.__all__; lanes.SendError;"
        "print(*sorted(each for each in sys.modules if each.startswith(name)))"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(ROOT.parent.parent), front_door]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True)
    assert loaded.stdout.split() == [front_door, f"{front_door}.errors"]


def test_the_front_door_has_every_name_that_it_lists_and_no_other() -> None:
    assert all(getattr(lanes, name) for name in lanes.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Tusk'"):
        _ = lanes.Tusk  # type: ignore[attr-defined]
