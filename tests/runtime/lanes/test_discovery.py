from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import Project

from acme_tasks.lanes.worker import PACKAGE

LANES = 'default_lane = "quick"\n[lanes.quick]\n'
TASK = f"""
from {PACKAGE}.celery import app

@app.task(name="{{name}}")
def task() -> str:
    return "{{name}}"
"""
MODULES = {
    "__init__": "",
    "mail": TASK.format(name="mail"),
    "reports.__init__": "",
    "reports.yearly": TASK.format(name="yearly"),
    "__main__": "raise SystemExit('run by hand')",
}


@pytest.fixture
def project(tmp_path: Path, broker: Any) -> Project:
    """Whose tasks are a package."""
    project = Project(tmp_path, LANES, broker.url)
    package = tmp_path / PACKAGE / "tasks"
    package.with_suffix(".py").unlink()
    for name, text in MODULES.items():
        path = package / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return project


def test_a_worker_runs_the_tasks_of_every_module_of_a_package(project: Project) -> None:
    """Seen before: Celery imports the package alone, and each became a dead letter, unknown."""
    app = project.app()
    with project.workers("quick"):
        for name in ("mail", "yearly"):
            assert app.send_task(name).get(timeout=30) == name


def test_a_module_that_cannot_be_imported_ends_the_worker_with_its_traceback(
    project: Project,
) -> None:
    broken = project.folder / PACKAGE / "tasks/reports/broken.py"
    broken.write_text("import no_such_module\n", encoding="utf-8")
    told = project.run("worker", "quick")
    assert told.returncode == 1
    assert "No module named 'no_such_module'" in told.stdout + told.stderr


def test_anothers_package_is_imported_as_celery_does_it(
    bound: Callable[[str], Celery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "another_app"
    other.mkdir()
    (other / "__init__.py").touch()
    (other / "migration.py").write_text("raise AssertionError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    app = bound(LANES)
    app.conf.include = ["another_app"]
    app.loader.import_default_modules()
