"""The runtime's longer tests, in tests/runtime: the same text in every project, so run on one bake.

They use what a project's own tests have: harness.py, the faults' support.py, and the fixtures. To
work on one, copy the folder into a bake's tests/, and run it there.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest
from support import BAKES, bake, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

RUNTIME = Path(__file__).parent / "runtime"
FILES = sorted(path.relative_to(RUNTIME).as_posix() for path in RUNTIME.rglob("test_*.py"))


@pytest.mark.parametrize("name", FILES)
def test_the_runtime_in_a_bake(
    template: Path, env: dict[str, str], tmp_path: Path, name: str
) -> None:
    assert bake(template, tmp_path, BAKES["default"].answers, env).returncode == 0
    project = tmp_path / BAKES["default"].slug
    shutil.copytree(RUNTIME, project / "tests", dirs_exist_ok=True)
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", "-rs")
    result = run(*command, f"tests/{name}", cwd=project, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    # No test is skipped, expected to fail, or warned about.
    assert re.fullmatch(r"=+ \d+ passed in .*=", result.stdout.splitlines()[-1]), result.stdout


def test_they_are_written_as_a_projects_own_tests_are(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    assert bake(template, tmp_path, BAKES["default"].answers, env).returncode == 0
    project = tmp_path / BAKES["default"].slug
    shutil.copytree(RUNTIME, project / "tests", dirs_exist_ok=True)
    for command in (("check",), ("format", "--check")):
        result = run("ruff", *command, "tests", cwd=project, env=env)
        assert result.returncode == 0, result.stdout + result.stderr
