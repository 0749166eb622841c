"""The runtime's own tests, those of tests/runtime/lanes, and how all of them are written."""

import shutil
from pathlib import Path

import pytest
from runtime_on_a_bake import RUNTIME, assert_all_pass, bake_default
from support import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_the_runtime_in_a_bake(template: Path, env: dict[str, str], tmp_path: Path) -> None:
    assert_all_pass("lanes", bake_default(template, env, tmp_path), env)


def test_they_are_written_as_a_projects_own_tests_are(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    project = bake_default(template, env, tmp_path)
    shutil.copytree(RUNTIME, project / "tests", dirs_exist_ok=True)
    for command in (("check",), ("format", "--check")):
        result = run("ruff", *command, "tests", cwd=project, env=env)
        assert result.returncode == 0, result.stdout + result.stderr
