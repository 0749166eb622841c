"""Whether Python and the packages are those that the project asks for."""

import importlib.metadata
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from .. import __version__
from ..errors import ContractError
from .finding import Finding

_AREA = "versions"
#: Those that carry a task from its sender to its run; all others are compared, too.
_SHOWN = ("celery", "kombu", "billiard", "redis")
_INSTALL = "install what pyproject.toml asks for: pip install -e ."


def find(distribution: str) -> Iterator[Finding]:
    """Look at the packages that the project's own, called `distribution`, is installed with."""
    versions = [f"lanes {__version__}", f"Python {platform.python_version()}"]
    for name in _SHOWN:
        called = "redis-py" if name == "redis" else name  # or it could be the server
        versions.append(f"{called} {importlib.metadata.version(name)}")
    yield Finding(_AREA, "ok", ", ".join(versions))
    try:
        project = importlib.metadata.distribution(distribution)
    except PackageNotFoundError:
        yield Finding(
            _AREA,
            "note",
            f"{distribution} is not installed, so its ranges of versions were not compared",
            "pip install -e .",
        )
    else:
        yield from _outside(project)
    yield from _of_contract()


def _outside(project: importlib.metadata.Distribution) -> Iterator[Finding]:
    wanted: Any = project.metadata["Requires-Python"]
    if wanted and platform.python_version() not in SpecifierSet(wanted, prereleases=True):
        what = f"this is Python {platform.python_version()}, and the project asks for {wanted}"
        yield Finding(_AREA, "problem", what, "make .venv with another: make PYTHON=python3.13 ...")
    for requirement in map(Requirement, project.requires or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            there = importlib.metadata.version(requirement.name)
        except PackageNotFoundError:
            yield Finding(_AREA, "problem", f"{requirement.name} is not installed", _INSTALL)
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            asked = ",".join(sorted(map(str, requirement.specifier), reverse=True))
            what = f"{requirement.name} is {there}, and the project asks for {asked}"
            yield Finding(_AREA, "problem", what, _INSTALL)


def _of_contract() -> Iterator[Finding]:
    """With other insides than those that we know, no worker starts."""
    try:
        from .. import contract  # noqa: F401 - checks when it is imported
    except ContractError as error:
        for problem in error.problems:
            what, _, do = problem.partition("; ")
            yield Finding(_AREA, "problem", what, do)
