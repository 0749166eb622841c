"""The order in which to read the runtime is the order of its imports."""

import ast
import re
from pathlib import Path

from {{ cookiecutter.package_name }} import lanes

ROOT = Path(str(lanes.__file__)).parent
TEXT = re.findall(r"Reading order: (.*?)\. A module", str(lanes.__doc__), re.DOTALL)[0]
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
