"""The runtime's own tests, in tests/runtime: the same text for every project, so run on one bake.

`make test-runtime` runs them, or some of them, on what `make bake` baked.
"""

import re
import sys
from pathlib import Path

from support import BAKES, bake, run, succeed

RUNTIME = Path(__file__).parent / "runtime"
# Two at a time: they wait more than they work.
_PYTEST = ("-m", "pytest", "--numprocesses=2", "--dist=loadfile", "--color=no", "-rs")


def bake_default(template: Path, env: dict[str, str], into: Path) -> Path:
    """The default project, compiled: hundreds of processes import it, and may write nothing."""
    assert bake(template, into, BAKES["default"].answers, env).returncode == 0
    project = into / BAKES["default"].slug
    succeed(sys.executable, "-m", "compileall", "-q", "src", cwd=project, env=env)
    return project


def assert_all_pass(folder: str, project: Path, env: dict[str, str]) -> None:
    """That each test in a folder of tests/runtime passes on a project."""
    # The project's settings and source; no conftest.py from above.
    places = ("-c", project / "pyproject.toml", "--rootdir", project, "--confcutdir", RUNTIME)
    command = (sys.executable, *_PYTEST, "-p", "no:cacheprovider", *places, RUNTIME / folder)
    result = run(*command, cwd=project, env=env | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert result.returncode == 0, result.stdout + result.stderr
    # No test is skipped, expected to fail, or warned about.
    assert re.fullmatch(r"=+ \d+ passed in .*=", result.stdout.splitlines()[-1]), result.stdout
