"""Real workers on a broker of their own: what a lane does, seen from outside."""

import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery
from celery.exceptions import ChordError, TaskRevokedError
from harness import PATIENCE, Project, processes, running_broker, wait_until

from acme_tasks.lanes import deadletters, status
from acme_tasks.lanes.deadletters import DeadLetter
from acme_tasks.lanes.prove.tasks import STARTS
from acme_tasks.lanes.status import LaneStatus
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
concurrency = 1
[lanes.quick]
max_retries = 1
unknown_wait = false
max_deliveries = 2
[lanes.light]
pool = "threads"
results = false
[lanes.single]
pool = "solo"
[lanes.stale]
concurrency = 1
expires = "6s"
[lanes.brief]
time_limit = "6s"
soft_time_limit = "2s"
[lanes.idle]

[routes]
"slow.*" = "slow"
"light.*" = "light"
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[Any]:
    with running_broker() as server:
        yield server


@pytest.fixture(scope="module")
def project(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("running"), LANES, broker.url)
    with project.workers("slow", "quick", "light", "single", "stale", "brief"):
        yield project


@pytest.fixture(scope="module")
def app(project: Project) -> Iterator[Celery]:
    app = project.app()
    yield app
    app.close()


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """A file that tasks write a line to."""
    return tmp_path / "seen"


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def dead_letter(app: Celery, broker: Any, lane: str, task_id: str) -> DeadLetter:
    """The one of this task, once it is there."""

    def found() -> list[DeadLetter]:
        letters = deadletters.read(broker.redis, app.lanes.get(lane))
        return [letter for letter in letters if letter.task_id == task_id]

    (letter,) = wait_until(found, f"a dead letter of {task_id}")
    return letter


def flood(app: Celery, task: str, arguments: tuple[Any, ...], count: int, **options: Any) -> None:
    with app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=500):
        for _ in range(count):
            app.send_task(task, arguments, producer=producer, ignore_result=True, **options)


def test_a_flood_in_slow_does_not_delay_quick(app: Celery, broker: Any, seen: Path) -> None:
    flood(app, "hold", (0.1, str(seen)), 2000, lane="slow")
    try:
        wait_until(lambda: lines(seen), "the flood to begin")
        assert app.send_task("echo", ("answer",), lane="quick").get(PATIENCE) == "answer"
        # One worker, one at a time: 2,000 of them take more than three minutes.
        assert broker.redis.llen("slow_tasks") > 1000
    finally:
        broker.redis.delete("slow_tasks")


def test_the_same_flood_in_one_queue_starves_the_quick_task(project: Project, broker: Any) -> None:
    """The control arm: without lanes, what the test above claims is not so.

    Seen when the flood above is sent with lane="quick" too: its `get` times out.
    """
    module = f"{PACKAGE}.lanes.prove"
    command = [sys.executable, "-m", "celery", "--quiet", "-A", f"{module}.control", "worker"]
    command += ["--concurrency=1", "--loglevel=INFO", f"--include={module}.tasks"]
    with (
        Celery("sender", broker=broker.url, set_as_current=False) as plain,
        processes({"control": command}, project.folder, project.environment) as started,
    ):
        flood(plain, "prove.sleep", (0.02,), 2000)
        plain.send_task("prove.probe", (0, 0.0))
        # The worker is at work, and the quick task is behind all of it.
        waiting = wait_until(
            lambda: (count := broker.redis.llen("celery")) < 1980 and count, "20 tasks to be run"
        )
        answered = broker.redis.llen(STARTS)
        broker.redis.delete("celery")
        # Stock Celery may take over 30 s to stop while tasks run: drain.py says why.
        started["control"].kill()
    assert waiting > 0
    assert answered == 0


def test_every_way_of_routing_ends_in_the_right_lane(app: Celery) -> None:
    @app.task(name="where", lane="slow", shared=False)
    def where() -> str:
        raise NotImplementedError  # the worker's is in tests/project/tasks.py

    ways = {
        "its own lane": (where.delay(), "slow"),
        "the lane of the call": (where.apply_async(lane="single"), "single"),
        "the queue of the call": (where.apply_async(queue="single_tasks"), "single"),
        "a route by name": (app.send_task("slow.where"), "slow"),
        "no lane at all": (app.send_task("somewhere"), "quick"),
    }
    ran_in = {way: sent.get(PATIENCE) for way, (sent, _) in ways.items()}
    assert ran_in == {way: lane for way, (_, lane) in ways.items()}


def test_threads_and_solo_run_tasks(app: Celery, seen: Path) -> None:
    assert app.send_task("echo", ("answer",), lane="single").get(PATIENCE) == "answer"
    app.send_task("hold", (0, str(seen)), lane="light")
    wait_until(lambda: lines(seen) == ["run"], "the task in the threads pool")


def test_a_lane_without_results_stores_none(app: Celery, project: Project, seen: Path) -> None:
    sent = app.send_task("light.note", (str(seen),))
    project.started["light"].await_log(f"light.note[{sent.id}] succeeded")
    kept = app.send_task("echo", ("answer",))
    assert kept.get(PATIENCE) == "answer"
    assert app.backend.client.exists(f"celery-task-meta-{kept.id}")
    assert not app.backend.client.exists(f"celery-task-meta-{sent.id}")


def test_a_task_that_always_fails_runs_once_and_max_retries_more_and_is_a_dead_letter(
    app: Celery, broker: Any, seen: Path
) -> None:
    sent = app.send_task("fail", (str(seen),))
    with pytest.raises(ValueError, match=r"^always$"):
        sent.get(PATIENCE)
    assert lines(seen) == ["quick"] * 2
    letter = dead_letter(app, broker, "quick", sent.id)
    assert (letter.reason, letter.error, letter.task) == ("failed", "ValueError: always", "fail")
    assert letter.traceback.endswith('raise ValueError("always")\nValueError: always\n')


def test_a_retry_stays_in_the_lane_of_the_call(app: Celery, seen: Path) -> None:
    with pytest.raises(ValueError, match=r"^always$"):
        app.send_task("fail", (str(seen),), lane="slow").get(PATIENCE)
    assert lines(seen) == ["slow"] * 2


def test_a_task_that_kills_its_process_is_set_aside_after_max_deliveries_and_the_lane_goes_on(
    app: Celery, broker: Any, seen: Path
) -> None:
    sent = app.send_task("die", (str(seen),))
    # Seen before the failure was stored: whoever waited for it waited for ever.
    with pytest.raises(WorkerLostError, match=r"^delivered 2 times, and never acknowledged$"):
        sent.get(PATIENCE)
    letter = dead_letter(app, broker, "quick", sent.id)
    assert (letter.reason, letter.deliveries) == ("poison", 2)
    assert letter.error == "delivered 2 times, and never acknowledged"
    assert lines(seen) == ["run"] * 2
    assert app.send_task("echo", ("answer",)).get(PATIENCE) == "answer"


def sent_by(project: Project, expression: str) -> str:
    """The id of what `expression` sends, in a process that has the project's tasks."""
    code = f"from celery import chord; from {PACKAGE}.tasks import *; print(({expression}).id)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=project.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_task_that_kills_its_process_fails_the_chord_that_it_is_in(
    app: Celery, project: Project, seen: Path
) -> None:
    """Seen before: the chord's body was PENDING for ever."""
    body = sent_by(project, f"chord([echo.s('header'), die.s({str(seen)!r})])(echo.si('body'))")
    with pytest.raises(ChordError):
        app.AsyncResult(body).get(PATIENCE)


def test_the_errback_of_a_task_that_kills_its_process_is_called(
    project: Project, seen: Path, tmp_path: Path
) -> None:
    """Seen before: nobody called it."""
    called = tmp_path / "called"
    errback = f"hold.si(0, {str(called)!r})"
    sent_by(project, f"die.apply_async(({str(seen)!r},), link_error={errback})")
    wait_until(lambda: lines(called) == ["run"], "the errback")


def test_what_is_no_task_is_set_aside_with_its_bytes_and_the_lane_goes_on(
    app: Celery, broker: Any
) -> None:
    garbage = b"\xff no task"
    broker.redis.lpush("single_tasks", garbage)
    assert app.send_task("echo", ("answer",), lane="single").get(PATIENCE) == "answer"
    (letter,) = deadletters.read(broker.redis, app.lanes.get("single"), reason="malformed")
    assert letter.message == garbage
    assert letter.error.startswith("UnicodeDecodeError: ")


def test_a_task_that_no_worker_knows_is_set_aside(app: Celery, broker: Any) -> None:
    sent = app.send_task("of.a.newer.release", (1,), ignore_result=True)
    letter = dead_letter(app, broker, "quick", sent.id)
    assert (letter.reason, letter.error) == ("unknown", "no task is called 'of.a.newer.release'")


def test_what_was_set_aside_can_be_tried_again(app: Celery, broker: Any, seen: Path) -> None:
    # Without retries of its own, each run is a failure for good.
    sent = app.send_task("fail", (str(seen),), lane="brief", retries=3, ignore_result=True)
    first = dead_letter(app, broker, "brief", sent.id)
    lane = app.lanes.get("brief")
    assert deadletters.retry(broker.redis, lane, [first], lambda _count: None) == 1
    second = wait_until(
        lambda: (letter := dead_letter(app, broker, "brief", sent.id)) != first and letter,
        "it to fail again",
    )
    assert lines(seen) == ["brief"] * 2
    assert (second.message, second.deliveries) == (first.message, 1)


def test_a_task_with_a_countdown_waits_in_redis_and_runs_when_it_is_due(
    app: Celery, broker: Any
) -> None:
    began = time.monotonic()
    sent = app.send_task("echo", ("answer",), lane="light", countdown=4)
    assert broker.redis.zcard("lanes:light:delayed") == 1
    app.send_task("echo", ("x",), lane="light", countdown=3600, ignore_result=True)
    wait_until(lambda: broker.redis.zcard("lanes:light:delayed") == 1, "it to be due")
    assert time.monotonic() - began >= 4
    assert sent.id not in broker.redis.zrange("lanes:light:delayed", 0, -1)[0].decode()


def test_a_paused_lane_takes_nothing_until_it_goes_on(app: Celery, broker: Any, seen: Path) -> None:
    lane = app.lanes.get("single")
    status.pause(app, lane, paused=True)
    app.send_task("hold", (0, str(seen)), lane="single", ignore_result=True)
    time.sleep(1)  # twice as long as a worker waits for messages
    assert broker.redis.llen("single_tasks") == 1
    status.pause(app, lane, paused=False)
    wait_until(lambda: lines(seen) == ["run"], "the task that waited")


def test_an_old_task_is_a_dead_letter_and_one_that_is_due_late_runs(
    app: Celery, broker: Any, seen: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    app.send_task("hold_until", (str(go), str(seen)), lane="stale")
    wait_until(lambda: lines(seen) == ["run"], "the only slot to be taken")
    old = app.send_task("hold", (0, str(seen)), lane="stale")
    late = app.send_task("echo", ("answer",), lane="stale", countdown=7)
    too_old = datetime.now(UTC) + timedelta(seconds=6)
    wait_until(lambda: datetime.now(UTC) > too_old, "the lane's 6 seconds to pass")
    go.touch()
    with pytest.raises(TaskRevokedError, match=r"^expired$"):
        old.get(PATIENCE)
    assert late.get(PATIENCE) == "answer"
    assert lines(seen) == ["run"]
    letter = dead_letter(app, broker, "stale", old.id)
    assert letter.reason == "expired"
    assert letter.error.startswith("expired at 20")


def test_the_soft_limit_comes_first_and_the_hard_one_ends_the_task(
    app: Celery, broker: Any, seen: Path
) -> None:
    sent = app.send_task("stubborn", (str(seen),), lane="brief")
    with pytest.raises(TimeLimitExceeded, match=r"^TimeLimitExceeded\(6.0"):
        sent.get(PATIENCE)
    assert lines(seen) == ["run", "soft limit"]
    letter = dead_letter(app, broker, "brief", sent.id)
    assert (letter.reason, letter.error) == ("failed", "time limit of 6 s exceeded")


def test_status_counts_workers_and_the_tasks_they_run(app: Celery, tmp_path: Path) -> None:
    def read() -> dict[str, LaneStatus]:
        return {state.lane: state for state in status.read(app)}

    go, seen = tmp_path / "go", tmp_path / "seen"
    app.send_task("hold_until", (str(go), str(seen)), lane="slow", ignore_result=True)
    try:
        wait_until(seen.exists, "the task to begin")
        wait_until(lambda: read()["slow"].running == 1, "its worker to say so, once a second")
        states = read()
    finally:
        go.touch()
    slow, quick, idle = states["slow"], states["quick"], states["idle"]
    assert (slow.workers, slow.waiting) == (1, 0)
    assert (quick.running, quick.workers) == (0, 1)
    assert (idle.running, idle.workers) == (0, 0)


@pytest.mark.parametrize(
    ("queues", "asked"),
    [
        ([], "no -Q"),
        (["-Q", "slow_tasks,quick_tasks"], "queues slow_tasks, quick_tasks"),
    ],
    ids=["no -Q", "two lanes"],
)
def test_a_worker_that_would_not_serve_one_lane_does_not_start(
    project: Project, queues: list[str], asked: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "celery", "--quiet", "-A", PACKAGE, "worker", *queues],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout + ended.stderr == (
        f"a worker serves one lane, and this one was started with {asked}: say, for example, "
        "-Q quick_tasks for the lane quick\n"
    )
