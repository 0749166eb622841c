"""Whether tasks, lanes.toml and deploy/ agree. Yours to extend; it needs no change."""

import ast
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.__main__ import PROJECT
from {{ cookiecutter.package_name }}.celery import app
from {{ cookiecutter.package_name }}.lanes import deploy, schedule
from {{ cookiecutter.package_name }}.lanes.routing import home_lane

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"


@pytest.fixture(autouse=True, scope="module")
def _import_the_tasks() -> None:
    app.loader.import_default_modules()


def tasks_in_the_source() -> dict[str, str]:
    """Functions of this project below `@app.task`, `@shared_task` or the like: name, and place."""
    found = {}
    for path in (SOURCE / PROJECT.package).rglob("*.py"):
        place = path.relative_to(SOURCE)
        module = place.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in getattr(node, "decorator_list", []):
                options = decorator.keywords if isinstance(decorator, ast.Call) else []
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                if ast.unparse(called).endswith((".task", "shared_task")):
                    own = [each.value for each in options if each.arg == "name"] or [
                        ast.Constant(f"{module}.{node.name}")
                    ]
                    if isinstance(own[0], ast.Constant):  # others are known when it runs
                        found[str(own[0].value)] = f"{place}:{node.lineno}"
    runtime = f"{PROJECT.package}/lanes/"
    return {name: place for name, place in found.items() if not place.startswith(runtime)}


def test_a_worker_knows_every_task_in_the_source() -> None:
    program = (
        f"import json; from {PROJECT.package}.celery import app; "
        "app.loader.import_default_modules(); print(json.dumps(list(app.tasks)))"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    known = json.loads(told.stdout)
    written = tasks_in_the_source().items()
    missing = [f"{name} ({place})" for name, place in written if name not in known]
    assert not missing, (
        "no worker would know these: move their module into tasks/ (tasks.py may become a "
        "package), or add it to `include` in celery.py"
    )


def test_every_task_has_a_lane_that_exists() -> None:
    for name, task in app.tasks.items():
        assert home_lane(app.lanes, name, task) in list(app.lanes), name


def test_routes_agree_with_the_lanes_that_tasks_name_themselves() -> None:
    """[routes] serves senders that do not import the tasks: both must send them one way."""
    disagreeing = {
        name: f"{task.lane} by itself, {lane.name} by route {pattern}"
        for name, task in app.tasks.items()
        for pattern, lane in app.lanes.routes
        if task.lane and fnmatch.fnmatchcase(name, pattern)
        if app.lanes.for_task(name).name != task.lane
    }
    assert not disagreeing


def test_what_runs_by_the_clock_is_there_and_takes_its_arguments() -> None:
    """Else no worker starts."""
    schedule.check_tasks(app, schedule.entries(app))


def test_every_lane_has_its_queue_and_nothing_else_has_one() -> None:
    assert list(app.amqp.queues) == [lane.queue for lane in app.lanes]


def test_a_task_that_names_no_lane_goes_where_a_worker_is() -> None:
    assert app.lanes.for_queue(app.conf.task_default_queue) is app.lanes.default


def test_deploy_is_up_to_date() -> None:
    stale = deploy.stale(deploy.render(app.lanes, PROJECT), ROOT / "deploy")
    paths = [str(path.relative_to(ROOT)) for path, _, _ in stale]
    assert not paths, "lanes.toml says otherwise: run `make units`"
