"""Generated projects pass their own tests, here, where what they depend on is installed."""

import re
import sys
from pathlib import Path

import pytest
from support import BAKES, bake, run

# In full where lanes differ most; the default ones are, by `make test`, in test_update, updated and
# with an owner's edits. Elsewhere what needs no broker.
WHOLE = ("five",)
WITHOUT_BROKER = ("tests/test_tasks.py", "tests/test_lanes.py", "tests/lanes/test_config.py")
RUNS = {name: () if name in WHOLE else WITHOUT_BROKER for name in BAKES}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("name", "only"), RUNS.items(), ids=RUNS)
def test_a_project_passes_its_own_tests(
    template: Path, env: dict[str, str], tmp_path: Path, name: str, only: tuple[str, ...]
) -> None:
    assert bake(template, tmp_path, BAKES[name].answers, env).returncode == 0
    # Two at a time: they wait more than they work, and no other file here takes as long.
    two = () if only else ("--numprocesses=2", "--dist=loadfile")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *two, *only]
    result = run(*command, cwd=tmp_path / BAKES[name].slug, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    # No test is skipped, expected to fail, or warned about.
    assert re.fullmatch(r"=+ \d+ passed in .*=", result.stdout.splitlines()[-1]), result.stdout
