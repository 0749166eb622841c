import errno
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import Project, free_port, wait_until

from {{ cookiecutter.package_name }}.lanes import status
from {{ cookiecutter.package_name }}.lanes.errors import BrokerError
from {{ cookiecutter.package_name }}.lanes.routing import SENT_AT
from {{ cookiecutter.package_name }}.lanes.status import LaneStatus

LANES = """
default_lane = "quick"

[lanes.slow]
[lanes.quick]
latency_slo = "50ms"
"""


@pytest.fixture
def project(broker: Any, tmp_path: Path) -> Project:
    return Project(tmp_path, LANES, broker.url)


@pytest.fixture
def app(project: Project) -> Iterator[Celery]:
    app = project.app()
    yield app
    app.close()


def test_without_workers_it_tells_what_waits_and_for_how_long(
    app: Celery, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_ANSWER_TIME", 0.1)  # seconds; nobody will answer
    for _ in range(3):
        app.send_task("echo", ("x",), lane="quick")
    wait_until(lambda: not status.read(app)[1].slo_kept, "50 ms to pass")
    slow, quick = status.read(app)
    assert slow == LaneStatus(
        lane="slow",
        waiting=0,
        oldest=None,
        running=0,
        workers=0,
        latency_slo=600.0,
        slo_kept=True,
        delayed=0,
        dead=0,
        paused=False,
    )
    assert (quick.waiting, quick.running, quick.workers) == (3, 0, 0)
    assert quick.oldest > quick.latency_slo == 0.05

    told = project.run("status", "--json")
    assert (told.returncode, told.stderr) == (0, "")
    assert [list(lane) for lane in json.loads(told.stdout)] == [list(LaneStatus.__slots__)] * 2
    assert [lane["waiting"] for lane in json.loads(told.stdout)] == [0, 3]


def test_what_a_plain_sender_gave_a_priority_waits_too(app: Celery, broker: Any) -> None:
    with Celery(broker=broker.url, set_as_current=False) as plain:
        for priority in (0, 3, 9):
            plain.send_task("echo", ("x",), queue="slow_tasks", priority=priority)
    assert broker.redis.llen("slow_tasks") == 1
    assert status.read(app)[0].waiting == 3


def test_it_tells_what_is_delayed_set_aside_and_paused(app: Celery, broker: Any) -> None:
    app.send_task("echo", ("x",), lane="slow", countdown=3600)
    broker.redis.zadd("lanes:slow:dead", {"1": 1, "2": 2})
    status.pause(app, app.lanes.get("slow"), paused=True)
    assert status._kept(broker.redis, app.lanes.get("slow")) == (0, None, 1, 2, True)
    assert status._kept(broker.redis, app.lanes.get("quick")) == (0, None, 0, 0, False)
    status.pause(app, app.lanes.get("slow"), paused=False)
    assert status._kept(broker.redis, app.lanes.get("slow")) == (0, None, 1, 2, False)


def test_a_task_that_was_delayed_waits_from_when_it_was_due(app: Celery, broker: Any) -> None:
    due = datetime.fromtimestamp(time.time() - 100, UTC).isoformat()
    headers = {SENT_AT: time.time() - 3600, "eta": due}
    broker.redis.lpush("slow_tasks", json.dumps({"headers": headers}))
    _, oldest, *_ = status._kept(broker.redis, app.lanes.get("slow"))
    assert oldest == pytest.approx(100, abs=60)


def test_the_oldest_is_the_next_in_line(app: Celery, broker: Any) -> None:
    for value in ("first", "second"):
        app.send_task("echo", (value,), lane="slow")
    messages = [json.loads(message) for message in broker.redis.lrange("slow_tasks", 0, -1)]
    assert [message["headers"]["argsrepr"] for message in messages] == ["('second',)", "('first',)"]
    broker.redis.delete("slow_tasks")
    for age in (1000, 10):
        broker.redis.lpush("slow_tasks", json.dumps({"headers": {SENT_AT: time.time() - age}}))
    waiting, oldest, *_ = status._kept(broker.redis, app.lanes.get("slow"))
    assert (waiting, oldest) == (2, pytest.approx(1000, abs=60))


@pytest.mark.parametrize("foreign", ["no JSON", "[]", '{"headers": null}', '{"headers": {}}'])
def test_a_message_of_somebody_else_is_counted_without_an_age(
    bound: Callable[[str], Celery], broker: Any, foreign: str
) -> None:
    broker.redis.lpush("slow_tasks", foreign)
    kept = status._kept(broker.redis, bound(LANES).lanes.get("slow"))
    assert kept == (1, None, 0, 0, False)


def test_a_broker_that_accepts_and_says_nothing_is_down(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen one, or TLS asked of a port without it. Seen before: no end to it."""
    monkeypatch.setitem(status._PATIENCE, "socket_timeout", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for scheme in ("redis", "rediss"):
            monkeypatch.setenv("BROKER_URL", f"{scheme}://127.0.0.1:{port}/0")
            with pytest.raises(BrokerError, match="does not answer"):
                status.read(bound(LANES))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        # Seen before: lanes+socket://, which is none of the user's words.
        ("redis+socket:///nowhere.sock", "Error 2 connecting to /nowhere.sock. No such file or"),
        # Seen before: 1,500 characters of a client's repr.
        ("sentinel://127.0.0.1:1/0", "No master found for 'mymaster'); start it"),
    ],
)
def test_a_broker_of_another_kind_that_is_down_is_one_line_too(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, url: str, why: str
) -> None:
    monkeypatch.setenv("BROKER_URL", url)
    with pytest.raises(BrokerError) as caught:
        status.read(bound(LANES))
    assert str(caught.value).startswith(f"broker {url} does not answer ({why}")


def test_a_broker_that_is_down_is_one_line_and_exit_1(tmp_path: Path) -> None:
    port = free_port()
    told = Project(tmp_path, LANES, f"redis://:secret@127.0.0.1:{port}/0").run("status")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == (
        f"broker redis://:***@127.0.0.1:{port}/0 does not answer "
        f"(Error {errno.ECONNREFUSED} connecting to 127.0.0.1:{port}. Connection refused.); "
        "start it, or set BROKER_URL\n"
    )


@pytest.mark.parametrize("command", [["status"], ["pause", "quick"]])
def test_a_broker_that_refuses_is_one_line_and_exit_1(
    project: Project, broker: Any, command: list[str]
) -> None:
    """Even to be asked who is there, workers need an answer's key. Seen before: a traceback."""
    broker.redis.config_set("maxmemory", 1)
    result = project.run(*command)
    assert result.returncode == 1
    assert re.fullmatch(
        rf"broker {broker.url} refuses \(command not allowed when used memory > 'maxmemory'\..*\); "
        r"docs/delivery\.md says what can be done\n",
        result.stderr,
    )
