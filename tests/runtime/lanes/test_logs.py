"""What workers say, and above all that each line of LOG_FORMAT=json is one object.

With a JSON formatter in each of its loggers' handlers, stock Celery 5.7.0 said 34 lines from its
start to its stop, with a print, a failure and a killed child in between, of which 23 did not parse:
the warning to root, the banner, the pool's line about the child, "Warm shutdown".
"""

import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, Process, Project, running_broker

from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "prefork"

[lanes.prefork]
concurrency = 4
max_retries = 1
max_deliveries = 2

[lanes.limited]
soft_time_limit = "1s"
time_limit = "2s"

[lanes.threads]
pool = "threads"
time_limit = false
max_retries = 1

[lanes.solo]
pool = "solo"
time_limit = false
concurrency = 1
max_retries = 1
"""
POOLS = ("prefork", "threads", "solo")

Entry = dict[str, Any]


def entries(log: str) -> list[Entry]:
    """The lines of a log, each of which must be one object."""
    found = [json.loads(line) for line in log.splitlines()]
    assert all(isinstance(each, dict) for each in found)
    return found


@contextmanager
def project_of(folder: Path, broker: Any, **variables: str) -> Iterator[Project]:
    project = Project(folder, LANES, broker.url)
    project.environment |= variables
    yield project


class Said:
    """What the workers of all pools said in one run of them, and what they were sent."""

    def __init__(self) -> None:
        self.logs: dict[str, str] = {}
        self.ids: dict[tuple[str, str], str] = {}  # by lane and what was sent
        self.sent_at: dict[str, float] = {}  # by id, monotonic seconds before it was sent
        self.seen_at: dict[str, float] = {}  # likewise, when its end was seen

    def lines(self, lane: str, **wanted: Any) -> list[Entry]:
        """Those of a lane's worker that hold what is wanted; a text stands for the beginning."""

        def fits(each: Entry) -> bool:
            return all(
                str(each.get(key, "")).startswith(value)
                if isinstance(value, str)
                else each.get(key) == value
                for key, value in wanted.items()
            )

        return [each for each in entries(self.logs[lane]) if fits(each)]

    def of(self, lane: str, sent: str, **wanted: Any) -> list[Entry]:
        """Of these, those about one task that was sent."""
        return self.lines(lane, id=self.ids[lane, sent], **wanted)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    said = Said()
    folder = tmp_path_factory.mktemp("logs")
    with running_broker() as broker, project_of(folder, broker, LOG_FORMAT="json") as project:
        app = project.app()

        def send(lane: str, name: str, *args: Any, **options: Any) -> str:
            before = time.monotonic()
            id_ = app.send_task(name, args, lane=lane, **options).id
            said.ids[lane, name] = id_
            said.sent_at[id_] = before
            return str(id_)

        later = send("prefork", "where", countdown=1)
        with project.workers(*POOLS, "limited") as workers:
            for lane, worker in list(workers.items())[: len(POOLS)]:
                seen = str(folder / f"{lane}.txt")
                for id_ in (send(lane, "echo", "hello"), send(lane, "chatty")):
                    worker.await_log(f"{id_}] succeeded")
                    said.seen_at[id_] = time.monotonic()
                worker.await_log(f"{send(lane, 'fail', seen)}] raised")
                send(lane, "hold", 0, seen, expires=-5)
                worker.await_log("expired at")
            worker = workers["prefork"]
            worker.await_log(f"{later}] succeeded")
            said.seen_at[later] = time.monotonic()
            send("prefork", "die", seen)
            worker.await_log("poison")
            send("limited", "stubborn", seen)
            workers["limited"].await_log("Hard time limit")
            broker.redis.lpush("prefork_tasks", "rubbish")
            worker.await_log("malformed")
        said.logs = {lane: worker.log for lane, worker in workers.items()}
    return said


every_pool = pytest.mark.parametrize("lane", POOLS)


@every_pool
def test_every_line_from_start_to_stop_is_an_object_that_names_its_lane(
    said: Said, lane: str
) -> None:
    found = entries(said.logs[lane])
    names = dict.fromkeys(("time", "level", "logger", "message"), str)
    for each in found:
        assert {name: type(each[name]) for name in names} == names
        assert each["lane"] == lane
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each["time"])
        assert each["level"] in logging.getLevelNamesMapping()
    assert abs(datetime.fromisoformat(found[-1]["time"]) - datetime.now(UTC)).total_seconds() < 600
    assert len(said.lines(lane, logger="celery.apps.worker")) == 1  # "ready"
    assert found[-1]["message"] == "worker: Warm shutdown (MainProcess)"


@every_pool
def test_a_task_that_succeeds_is_said_with_its_name_id_attempt_wait_and_run(
    said: Said, lane: str
) -> None:
    received, ended = said.of(lane, "echo")
    known: Entry = {"task": "echo", "id": said.ids[lane, "echo"], "attempt": 1}
    assert received["message"] == f"Task echo[{known['id']}] received"
    assert {key: received.get(key) for key in known} == known
    assert not received.keys() & {"wait", "run", "exception"}
    assert ended["message"].startswith(f"Task echo[{known['id']}] succeeded in ")
    assert {key: ended.get(key) for key in known} == known
    took = said.seen_at[known["id"]] - said.sent_at[known["id"]]
    assert 0 <= ended["wait"] + ended["run"] <= took + 0.1


def test_the_wait_counts_from_when_the_task_was_due(said: Said) -> None:
    (ended,) = said.of("prefork", "where", logger="celery.app.trace")
    took = said.seen_at[ended["id"]] - said.sent_at[ended["id"]]
    assert 0 < ended["wait"] + ended["run"] <= took - 1 + 0.1  # its countdown is 1 s


@every_pool
def test_a_failure_has_its_traceback_in_one_text_and_each_run_its_number(
    said: Said, lane: str
) -> None:
    outcomes = said.of(lane, "fail", logger="celery.app.trace")
    retried, failed = sorted(outcomes, key=lambda each: each["attempt"])  # two children say so
    assert "] retry: Retry in " in retried["message"]
    assert (retried["level"], retried["attempt"]) == ("INFO", 1)
    assert failed["message"].endswith("raised unexpected: ValueError('always')")
    assert (failed["level"], failed["attempt"]) == ("ERROR", 2)
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert failed["exception"].endswith("ValueError: always")
    for each in (retried, failed):
        assert (each["task"], each["wait"] >= 0, each["run"] >= 0) == ("fail", True, True)
    (letter,) = said.of(lane, "fail", message="set aside as dead letter")
    assert letter["message"].endswith(": failed, ValueError: always")
    assert letter["attempt"] == 2


@every_pool
def test_what_a_task_prints_warns_of_and_logs_is_about_that_task(said: Said, lane: str) -> None:
    about = said.of(lane, "chatty")
    own = [each for each in about if not each["logger"].startswith("celery.")]
    by_logger = [(each["logger"], each["level"], each["message"]) for each in own]
    (warned,) = [each for each in by_logger if each[0] == "py.warnings"]
    assert "UserWarning: careful" in warned[2]
    by_logger.remove(warned)
    why = "%d format: a real number is required, not str"
    misfit = f"(TypeError when its arguments were filled in: {why})"
    assert by_logger == [
        ("stdout", "WARNING", "printed in parts"),
        ("stdout", "WARNING", "two\nlines"),
        ("stderr", "WARNING", "odd: \udc80 \x85 \u2028 \x00 é"),
        (f"{PACKAGE}.tasks", "INFO", "by the task's\nlogger"),
        ("plain", "ERROR", f"%d does not fit {misfit}"),
    ]
    assert {(each["task"], each["attempt"]) for each in own} == {("chatty", 1)}


@every_pool
def test_what_has_expired_is_said_of_its_task(said: Said, lane: str) -> None:
    _received, discarded, letter = said.of(lane, "hold")
    assert discarded["message"].startswith("Discarding revoked task: hold[")
    assert ": expired, expired at " in letter["message"]
    assert {each["task"] for each in (discarded, letter)} == {"hold"}


def test_time_limits_are_said_with_how_long_the_task_ran(said: Said) -> None:
    about = said.of("limited", "stubborn", logger="celery.worker.request")
    soft, raised, hard = about
    assert soft["message"].startswith("Soft time limit (1.0s) exceeded for stubborn[")
    assert raised["message"] == "Task handler raised error: TimeLimitExceeded(2.0)"
    assert raised["exception"].startswith("Traceback (most recent call last):\n")
    assert hard["message"].startswith("Hard time limit (2.0s) exceeded for stubborn[")
    assert {(each["task"], each["attempt"]) for each in about} == {("stubborn", 1)}
    assert 1 <= soft["run"] < hard["run"]
    assert all(each["wait"] >= 0 for each in about)


def test_a_killed_child_and_poison_are_said_of_the_task(said: Said) -> None:
    about = said.of("prefork", "die")
    lost = [each for each in about if "WorkerLostError" in each["message"]]
    assert len(lost) == 2
    assert all(each["exception"] and each["run"] >= 0 for each in lost)
    assert re.search(r": poison, delivered 2 times, and never acknowledged$", about[-1]["message"])
    assert {(each["task"], each["attempt"]) for each in about} == {("die", 1)}
    # The pool has a logger, and handlers, of its own.
    assert len(said.lines("prefork", logger="multiprocessing", message="Process 'Fork")) == 2


def test_what_is_no_task_is_said_without_one(said: Said) -> None:
    (letter,) = [each for each in said.lines("prefork") if ": malformed, " in each["message"]]
    assert not letter.keys() & {"task", "id", "attempt"}


def test_long_lines_of_several_children_are_not_mixed_in_a_pipe(
    tmp_path: Path, broker: Any
) -> None:
    """Without the lock between its processes they were: one was in the middle of another."""
    with project_of(tmp_path, broker, LOG_FORMAT="json") as project:
        command = [sys.executable, "-m", PACKAGE, "worker", "prefork"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=project.environment, stdout=subprocess.PIPE, stderr=-2
        ) as worker:
            assert worker.stdout is not None
            app = project.app()
            for _ in range(4):
                app.send_task("loud", (50_000, 100))
            lines, ended = [], 0
            for line in worker.stdout:
                lines.append(line)
                if b"] succeeded in" in line:
                    ended += 1
                    if ended == 4:
                        worker.terminate()
    assert worker.returncode == 0
    said = [each for each in map(json.loads, lines) if each["logger"] == f"{PACKAGE}.tasks"]
    assert [len(each["message"]) > 50_000 for each in said] == [True] * 400


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path, broker: Any) -> Iterator[Start]:
    """Starts `celery worker` itself, of the lane solo, with options and variables of the test's."""
    running: list[Process] = []

    def begin(*options: str, **variables: str) -> Process:
        with project_of(tmp_path, broker, **variables) as project:
            command = [sys.executable, "-m", "celery", "-A", PACKAGE, "worker", "-Q", "solo_tasks"]
            command += ["--pool=solo", *options]
            running.append(Process("solo", command, tmp_path, project.environment))
            sent = project.app().send_task("echo", ("there",), lane="solo")
            assert sent.get(PATIENCE) == "there"
        return running[-1]

    yield begin
    for each in running:
        each.end()


def test_a_worker_that_is_started_by_celery_says_the_same_its_banner_too(start: Start) -> None:
    worker = start(LOG_FORMAT="json")
    assert worker.end() == 0
    found = entries(worker.log)
    assert {each.get("lane") for each in found} == {"solo"}
    (banner,) = [each for each in found if "[queues]" in each["message"]]
    assert banner["logger"] == "stdout"
    assert " ready." in str([each["message"] for each in found if each["level"] == "INFO"])


@pytest.mark.parametrize(
    ("options", "variables", "wanted"),
    [
        ([], {}, logging.INFO),
        ([], {"LOG_LEVEL": "error"}, None),
        ([], {"LOG_LEVEL": "debug"}, logging.DEBUG),
        (["--loglevel=ERROR"], {"LOG_LEVEL": "debug"}, None),
        (["-l", "DEBUG"], {"LOG_LEVEL": "critical"}, logging.DEBUG),
    ],
    ids=["neither", "higher", "lower", "an option that raises it", "an option that lowers it"],
)
def test_log_level_holds_unless_the_command_line_says_another(
    start: Start, options: list[str], variables: dict[str, str], wanted: int | None
) -> None:
    """Started by Celery without an option, a worker said nothing below WARNING."""
    worker = start(*options, LOG_FORMAT="json", **variables)
    assert worker.end() == 0
    said = [each for each in entries(worker.log) if each["logger"].startswith("celery.")]
    lowest = min((logging.getLevelNamesMapping()[each["level"]] for each in said), default=None)
    assert lowest == wanted


def test_text_is_as_celery_writes_it_after_the_lanes_name(start: Start) -> None:
    worker = start(LOG_FORMAT="text")
    assert worker.end() == 0
    time_and_level = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO"
    assert re.search(rf"^solo \| {time_and_level} celery@\S+ ready\.$", worker.log, re.MULTILINE)
    assert "\nsolo | worker: Warm shutdown (MainProcess)\n" in worker.log


def ends(project: Project, *command: str) -> tuple[int, list[Entry]]:
    """The exit code of a command that cannot do what it is asked to, and what it said."""
    done = project.python("-m", *command)
    return done.returncode, entries(done.stdout + done.stderr)


def test_a_worker_that_cannot_import_its_tasks_says_so_in_json(tmp_path: Path, broker: Any) -> None:
    with project_of(tmp_path, broker, LOG_FORMAT="json") as project:
        (tmp_path / PACKAGE / "tasks.py").write_text("1 / 0\n")
        code, [said] = ends(project, PACKAGE, "worker", "solo")
    assert code == 1
    assert (said["level"], said["message"]) == ("CRITICAL", "ZeroDivisionError: division by zero")
    assert said["exception"].endswith("ZeroDivisionError: division by zero")


LEVELS = "(expected DEBUG, INFO, WARNING, ERROR or CRITICAL; left out, it is INFO)"
WITH_CELERY = ("celery", "-A", PACKAGE, "worker", "-Q")


@pytest.mark.parametrize(
    ("command", "variables", "told"),
    [
        ((PACKAGE, "worker", "solo"), {"LANES_FILE": "missing"}, "missing: cannot be read: "),
        ((PACKAGE, "worker", "nobody"), {}, 'no lane is called "nobody"'),
        ((PACKAGE, "worker", "solo"), {"BROKER_URL": "amqp://"}, "BROKER_URL: "),
        ((PACKAGE, "workers"), {"RESULT_URL": "amqp://"}, "RESULT_URL: "),
        ((*WITH_CELERY, "nobodys"), {}, 'no lane consumes the queue "nobodys"'),
        ((*WITH_CELERY, "solo_tasks"), {"LANES_FILE": "missing"}, "missing: cannot be read: "),
    ],
    ids=["lanes.toml", "lane", "broker", "workers", "a queue of Celery's", "Celery's command"],
)
def test_a_mistake_in_the_configuration_is_said_in_one_line_of_json(
    tmp_path: Path, broker: Any, command: tuple[str, ...], variables: dict[str, str], told: str
) -> None:
    with project_of(tmp_path, broker, LOG_FORMAT="json", **variables) as project:
        code, [said] = ends(project, *command)
    assert code == 2
    assert said["level"] == "ERROR"
    assert said["message"].startswith(told)


@pytest.mark.parametrize(
    "command", [("worker", "-Q", "solo_tasks"), ("beat",), ("inspect", "ping")], ids=lambda c: c[0]
)
@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"LANES_FILE": "missing"}, "missing: cannot be read: No such file or directory (missing)"),
        ({"LOG_LEVEL": "loud"}, f"LOG_LEVEL: 'loud' {LEVELS}"),
    ],
    ids=["lanes.toml", "level"],
)
def test_a_mistake_that_celerys_own_command_meets_is_one_line_too(
    tmp_path: Path, broker: Any, command: tuple[str, ...], variables: dict[str, str], told: str
) -> None:
    """Seen before: four tracebacks of sixty lines, the mistake in the last."""
    with project_of(tmp_path, broker, **variables) as project:
        done = project.python("-m", "celery", "-A", PACKAGE, *command)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{told}\n")


@pytest.mark.parametrize("command", [("worker", "solo"), ("workers",)], ids=["worker", "workers"])
def test_a_level_that_there_is_not_ends_a_worker_before_it_starts(
    tmp_path: Path, broker: Any, command: tuple[str, ...]
) -> None:
    with project_of(tmp_path, broker, LOG_FORMAT="json", LOG_LEVEL="loud") as project:
        done = project.run(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"LOG_LEVEL: 'loud' {LEVELS}\n"
