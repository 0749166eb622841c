"""Generated projects pass their own tests, here, where what they depend on is installed."""

import re
import sys
from pathlib import Path

import pytest
from support import BAKES, bake, run

# In full where lanes differ most; the default ones are, by `make test`, in test_update, updated and
# with an owner's edits. Elsewhere what needs no broker.
WHOLE = ("one", "five")
WITHOUT_BROKER = ("tests/test_tasks.py", "tests/test_lanes.py")
RUNS = {name: () if name in WHOLE else WITHOUT_BROKER for name in BAKES}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "only"), RUNS.items(), ids=RUNS)
def test_a_project_passes_its_own_tests(
    template: Path, env: dict[str, str], tmp_path: Path, name: str, only: tuple[str, ...]
) -> None:
    assert bake(template, tmp_path, BAKES[name].answers, env).returncode == 0
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *only]
    result = run(*command, cwd=tmp_path / BAKES[name].slug, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    # No test is skipped, expected to fail, or warned about.
    assert re.fullmatch(r"=+ \d+ passed in .*=", result.stdout.splitlines()[-1]), result.stdout


def pytest_in(project: Path, env: dict[str, str], *only: str) -> str:
    """What a project's pytest says, of some of its tests."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *only]
    return run(*command, cwd=project, env=env).stdout


@pytest.mark.slow
def test_the_test_that_the_readme_shows_passes(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    assert bake(template, tmp_path, BAKES["one"].answers, env).returncode == 0
    project = tmp_path / BAKES["one"].slug
    page = (project / "README.md").read_text()
    shown = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (test,) = [each for each in shown if "\ndef test_" in each]
    (project / "tests/test_shown.py").write_text(test)
    said = pytest_in(project, env, "tests/test_shown.py")
    assert re.fullmatch(r"=+ 1 passed in .*=", said.splitlines()[-1]), said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "name"),
    [("reports.py", "acme_tasks.reports.report"), ("deep/er/__init__.py", "yearly")],
    ids=["a-module", "a-package-and-a-name"],
)
def test_a_task_that_no_worker_imports_fails_a_projects_tests(
    template: Path, env: dict[str, str], tmp_path: Path, path: str, name: str
) -> None:
    assert bake(template, tmp_path, {}, env).returncode == 0
    project = tmp_path / "acme-tasks"
    file = project / "src/acme_tasks" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    named = "" if name.startswith("acme_tasks.") else f', name="{name}"'
    file.write_text(
        "from acme_tasks.celery import app\n\n\n"
        f'@app.task(lane="slow"{named})\ndef report() -> None: ...\n'
    )
    said = pytest_in(project, env, "tests/test_lanes.py")
    assert "no worker would know these: move their module into tasks/" in said
    assert "or add it to `include` in celery.py" in said
    assert f"['{name} (acme_tasks/{path}:5)']" in said
    assert re.fullmatch(r"=+ 1 failed, 6 passed in .*=", said.splitlines()[-1]), said


@pytest.mark.slow
def test_a_project_whose_tasks_are_a_package_passes_its_tests(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    assert bake(template, tmp_path, {}, env).returncode == 0
    project = tmp_path / "acme-tasks"
    package = project / "src/acme_tasks/tasks"
    package.mkdir()
    package.with_suffix(".py").rename(package / "__init__.py")
    (package / "reports.py").write_text(
        'from acme_tasks.celery import app\n\n\n@app.task(lane="slow")\ndef report() -> None: ...\n'
    )
    said = pytest_in(project, env, *WITHOUT_BROKER)
    assert re.fullmatch(r"=+ 9 passed in .*=", said.splitlines()[-1]), said
