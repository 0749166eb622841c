"""Other versions of Cookiecutter than the one of this environment."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import contents, environment, index, install, run, succeed

pytestmark = pytest.mark.slow


def cookiecutter(version: str, folder: Path, env: dict[str, str]) -> Path:
    """The `cookiecutter` of this version, in a virtual environment of its own."""
    # The oldest takes pkg_resources for granted.
    wanted = (f"cookiecutter=={version}", "setuptools<81")
    return install(folder / "venv", *wanted, env=env) / "cookiecutter"


def test_one_that_is_too_old_is_told_and_leaves_nothing(template: Path, tmp_path: Path) -> None:
    """Debian 12's. Seen before: a traceback that ended in `TemplateNotFound`; likewise of 2.1.1."""
    env = environment(tmp_path / "home", **index())
    command = cookiecutter("1.7.3", tmp_path, env)
    out = tmp_path / "out"
    told = run(command, template, "--no-input", "-o", out, cwd=tmp_path, env=env)
    assert told.returncode == 1
    assert told.stderr.splitlines()[0] == (
        "celery-lanes-template needs Cookiecutter 2.2.3 or later, and this is 1.7.3. "
        "Install a newer one, for example: pipx install --python python3.13 cookiecutter"
    )
    assert "Traceback" not in told.stderr
    assert not list(out.rglob("*"))


def test_the_oldest_that_will_do_bakes_the_same_bytes(
    template: Path, tmp_path: Path, baked: Callable[[str], Path]
) -> None:
    env = environment(tmp_path / "home", **index())
    command = cookiecutter("2.2.3", tmp_path, env)
    out = tmp_path / "out"
    succeed(command, template, "--no-input", "-o", out, cwd=tmp_path, env=env)
    assert contents(out / "acme-tasks") == contents(baked("default"))
