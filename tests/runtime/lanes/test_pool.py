"""How the children of a real worker get their tasks, and what is fetched for them."""

import select
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import Project, running_broker, wait_until

LANES = """
default_lane = "quick"
[lanes.quick]
concurrency = 2
prefetch = 4
"""
MORE_TASKS = '''

@app.task(name="child", ignore_result=False)
def child(text: str) -> tuple[int, int]:
    """Who runs this, and how long the text is."""
    return os.getpid(), len(text)


@app.task(name="rare", rate_limit="1/h")
def rare() -> None:
    """Waits in its worker, but for the first."""


import os  # noqa: E402
'''
SOON = 10.0  # seconds; the first turn of an event loop without events comes after one or more


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Any]]:
    """A worker of two children, its project and its broker."""
    with running_broker() as broker:
        project = Project(tmp_path_factory.mktemp("pool"), LANES, broker.url)
        with (project.folder / "acme_tasks/tasks.py").open("a", encoding="utf-8") as tasks:
            tasks.write(MORE_TASKS)
        with project.workers("quick"):
            yield project, broker.redis


@pytest.fixture
def app(running: tuple[Project, Any]) -> Iterator[Any]:
    with running[0].app() as app:
        yield app


@pytest.mark.parametrize(
    "size",
    [0, *range(select.PIPE_BUF // 2, select.PIPE_BUF + 100, 37), 65_536, 1 << 20],
)
def test_a_task_of_any_size_reaches_a_child_whole(app: Any, size: int) -> None:
    """Also those just below and above what a pipe takes in one piece."""
    assert app.send_task("child", ("x" * size,)).get(60)[1] == size


def test_children_take_turns(app: Any) -> None:
    assert len({app.send_task("child", ("",)).get(60)[0] for _ in range(20)}) == 2


def test_what_has_ended_is_acknowledged_while_another_task_runs_on(
    running: tuple[Project, Any], app: Any
) -> None:
    """It waits for no more than a moment for others to be acknowledged with it."""
    project, redis = running
    go, seen = project.folder / "go", project.folder / "seen"
    app.send_task("hold_until", (str(go), str(seen)), ignore_result=True)
    wait_until(seen.exists, "the task to begin")
    for sent in [app.send_task("child", ("",)) for _ in range(30)]:
        sent.get(60)
    wait_until(lambda: redis.hlen("lanes:quick:leased") == 1, "acknowledgements", SOON)
    go.touch()
    wait_until(lambda: not redis.hlen("lanes:quick:leased"), "the last one")


def test_slots_are_filled_while_tasks_wait_in_the_worker(
    running: tuple[Project, Any], app: Any
) -> None:
    """Those of a rate limit hold more than each child's next task, and then nothing happens.

    Without a timer that has the loop turn, half of them took 10 s, and now all take one.
    """
    _, redis = running
    redis.set("lanes:quick:paused", "1")
    for _ in range(5):
        app.send_task("rare", ignore_result=True)
    sent = [app.send_task("child", ("",)) for _ in range(80)]
    redis.delete("lanes:quick:paused")
    until = time.monotonic() + SOON
    for each in sent:
        each.get(max(0.1, until - time.monotonic()))
    wait_until(lambda: redis.hlen("lanes:quick:leased") == 4, "four that wait for their rate")
