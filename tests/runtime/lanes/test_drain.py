"""Real workers that are told to stop while a task runs."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import PATIENCE, Process, Project, running_broker, wait_until

LANES = """
default_lane = "back"

[lanes.back]
concurrency = 1
prefetch = 2
drain = "requeue"
drain_timeout = "500ms"
[lanes.brief]
drain = "requeue"
drain_timeout = "10m"
[lanes.hurried]
concurrency = 1
[lanes.hurried_threads]
concurrency = 1
pool = "threads"
[lanes.hurried_solo]
pool = "solo"
[lanes.patient]
concurrency = 1
drain_timeout = "200ms"
"""
HURRIED = ("hurried", "hurried_threads", "hurried_solo")


@pytest.fixture(scope="module")
def broker() -> Iterator[Any]:
    with running_broker() as server:
        yield server


@pytest.fixture(scope="module")
def project(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Each test ends the worker of a lane of its own."""
    project = Project(tmp_path_factory.mktemp("drain"), LANES, broker.url)
    with project.workers("back", "brief", *HURRIED, "patient"):
        yield project


@pytest.fixture(scope="module")
def app(project: Project) -> Iterator[Celery]:
    app = project.app()
    yield app
    app.close()


def waiting(broker: Any, lane: str) -> list[str]:
    """Ids of the tasks in the lane's queue, the next first."""
    messages = broker.redis.lrange(f"{lane}_tasks", 0, -1)
    return [json.loads(message)["headers"]["id"] for message in reversed(messages)]


def leased(broker: Any, lane: str) -> int:
    return int(broker.redis.hlen(f"lanes:{lane}:leased"))


def stop(process: Process) -> float:
    """SIGTERM to the main process; seconds until it had ended, with exit code 0."""
    began = time.monotonic()
    assert process.end() == 0, process.log
    return time.monotonic() - began


def test_requeue_hands_back_what_runs_after_its_time_and_in_order(
    app: Celery, project: Project, broker: Any, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    sent = [
        app.send_task("hold", (10 * PATIENCE, str(seen)), lane="back", ignore_result=True).id
        for _ in range(3)
    ]
    wait_until(seen.exists, "the first task to begin")
    wait_until(lambda: leased(broker, "back") == 2, "the second to be held by the worker")
    assert waiting(broker, "back") == sent[2:]
    assert 0.5 <= stop(project.started["back"]) < PATIENCE
    assert waiting(broker, "back") == sent
    assert leased(broker, "back") == 0
    # A stop is nobody's fault: it does not count as a delivery.
    assert set(broker.redis.hvals("lanes:back:deliveries")) == {b"0"}
    assert seen.read_text(encoding="utf-8").split() == ["run"]


def test_requeue_lets_a_short_task_finish_and_does_not_wait_any_longer(
    app: Celery, project: Project, broker: Any, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    sent = app.send_task("hold", (1, str(seen)), lane="brief")
    wait_until(seen.exists, "the task to begin")
    assert stop(project.started["brief"]) < PATIENCE  # of the ten minutes that it might have
    assert sent.get(PATIENCE) == "held"
    assert waiting(broker, "brief") == []
    assert leased(broker, "brief") == 0


@pytest.mark.parametrize("lane", HURRIED)
def test_a_second_sigterm_hands_back_at_once(
    app: Celery, project: Project, broker: Any, tmp_path: Path, lane: str
) -> None:
    """Seen before: with solo the running task failed, with a traceback; threads waited for it."""
    seen = tmp_path / "seen"
    process = project.started[lane]
    sent = app.send_task("hold", (10 * PATIENCE, str(seen)), lane=lane, ignore_result=True)
    wait_until(seen.exists, "the task to begin")
    process.process.send_signal(signal.SIGTERM)
    process.await_log("Warm shutdown")
    time.sleep(0.5)  # Celery hangs when a signal finds it handling another: see workers.py
    assert stop(process) < PATIENCE
    assert waiting(broker, lane) == [sent.id]
    assert leased(broker, lane) == 0


def test_finish_waits_for_what_runs_and_takes_nothing_more(
    app: Celery, project: Project, broker: Any, tmp_path: Path
) -> None:
    go, seen = tmp_path / "go", tmp_path / "seen"
    process = project.started["patient"]
    running = app.send_task("hold_until", (str(go), str(seen)), lane="patient")
    wait_until(seen.exists, "the task to begin")
    process.process.send_signal(signal.SIGTERM)
    process.await_log("Warm shutdown")
    later = app.send_task("echo", ("x",), lane="patient", ignore_result=True)
    time.sleep(1)  # much longer than the drain_timeout of this lane, which is not for "finish"
    assert process.process.poll() is None
    assert running.state == "PENDING"
    go.touch()
    assert os.waitstatus_to_exitcode(process.process.wait(PATIENCE)) == 0
    assert running.get(PATIENCE) == "held"
    assert waiting(broker, "patient") == [later.id]
