"""Whether tasks.py, lanes.toml and deploy/ agree. Yours to extend; it needs no change."""

import fnmatch
from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.__main__ import PROJECT
from {{ cookiecutter.package_name }}.celery import app
from {{ cookiecutter.package_name }}.lanes import deploy
from {{ cookiecutter.package_name }}.lanes.routing import home_lane

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="module")
def _import_the_tasks() -> None:
    app.loader.import_default_modules()


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


def test_every_lane_has_its_queue_and_nothing_else_has_one() -> None:
    assert list(app.amqp.queues) == [lane.queue for lane in app.lanes]


def test_a_task_that_names_no_lane_goes_where_a_worker_is() -> None:
    assert app.lanes.for_queue(app.conf.task_default_queue) is app.lanes.default


def test_deploy_is_up_to_date() -> None:
    stale = deploy.stale(deploy.render(app.lanes, PROJECT), ROOT / "deploy")
    paths = [str(path.relative_to(ROOT)) for path, _, _ in stale]
    assert not paths, "lanes.toml says otherwise: run `make units`"
