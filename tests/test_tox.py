"""A project's tests run under its own tox, on every Python that is installed here."""

import os
import re
import sys
from pathlib import Path

import pytest
from support import bake, index, run


def pythons() -> list[Path]:
    """Folders of pyenv's Pythons, since only the one in use is in PATH."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return sorted(root.glob("versions/3.1[1-4].*/bin"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tox_passes_on_every_python_that_is_installed(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    assert bake(template, tmp_path, {}, env).returncode == 0
    bare = env | index()
    path = os.pathsep.join([*map(str, pythons()), bare["PATH"]])
    result = run(
        *(sys.executable, "-m", "tox", "run-parallel", "--parallel-live", "--colored", "no"),
        cwd=tmp_path / "acme-tasks",
        env=bare | {"PATH": path},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ran = re.findall(r"^  (py3\d\d): OK ", result.stdout, re.MULTILINE)
    assert f"py{sys.version_info.major}{sys.version_info.minor}" in ran, result.stdout
    assert len(re.findall(r"= \d+ passed in ", result.stdout)) == len(ran)
