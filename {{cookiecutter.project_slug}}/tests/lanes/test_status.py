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
from {{ cookiecutter.package_name }}.lanes.redis.connect import Server
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


def kept(app: Any, lane: str) -> tuple[Any, ...]:
    """Waiting, age of the next, delayed, dead, whether paused."""
    return status._kept(status.store_of(app.server.client, app.lanes.get(lane)))


def test_without_workers_it_tells_what_waits_and_for_how_long(
    app: Celery, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "ANSWER", 0.1)  # seconds; nobody will answer
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
    assert kept(app, "slow") == (0, None, 1, 2, True)
    assert kept(app, "quick") == (0, None, 0, 0, False)
    status.pause(app, app.lanes.get("slow"), paused=False)
    assert kept(app, "slow") == (0, None, 1, 2, False)


def test_a_task_that_was_delayed_waits_from_when_it_was_due(app: Celery, broker: Any) -> None:
    """What is due waits where it was delayed. Seen before: it was no waiting message until then."""
    now = time.time()
    for name, due in (("due", now - 100), ("due later", now - 50), ("later", now + 3600)):
        eta = datetime.fromtimestamp(due, UTC).isoformat()
        headers = {"id": name, SENT_AT: now - 3600, "eta": eta}
        broker.redis.zadd("lanes:slow:delayed", {json.dumps({"headers": headers}): due})
    waiting, oldest, delayed, *_ = kept(app, "slow")
    assert (waiting, delayed) == (2, 1)
    assert oldest == pytest.approx(100, abs=45)


@pytest.mark.parametrize("eta", [None, "2001-01-01T00:00:00", "soon"])
def test_a_host_whose_clock_is_wrong_tells_how_long_a_message_has_waited_all_the_same(
    app: Celery, broker: Any, monkeypatch: pytest.MonkeyPatch, eta: str | None
) -> None:
    """Seen before: an hour, on a host that was an hour ahead."""
    headers = {SENT_AT: time.time() - 1000, "eta": eta}
    broker.redis.lpush("slow_tasks", json.dumps({"headers": headers}))
    at = time.time()
    monkeypatch.setattr(time, "time", lambda: at + 3600)
    _, oldest, *_ = kept(app, "slow")
    assert oldest == pytest.approx(1000, abs=60)


def test_the_oldest_is_the_next_in_line(app: Celery, broker: Any) -> None:
    for value in ("first", "second"):
        app.send_task("echo", (value,), lane="slow")
    messages = [json.loads(message) for message in broker.redis.lrange("slow_tasks", 0, -1)]
    assert [message["headers"]["argsrepr"] for message in messages] == ["('second',)", "('first',)"]
    broker.redis.delete("slow_tasks")
    for age in (1000, 10):
        broker.redis.lpush("slow_tasks", json.dumps({"headers": {SENT_AT: time.time() - age}}))
    waiting, oldest, *_ = kept(app, "slow")
    assert (waiting, oldest) == (2, pytest.approx(1000, abs=60))


@pytest.mark.parametrize("foreign", ["no JSON", "[]", '{"headers": null}', '{"headers": {}}'])
def test_a_message_of_somebody_else_is_counted_without_an_age(
    app: Celery, broker: Any, foreign: str
) -> None:
    broker.redis.lpush("slow_tasks", foreign)
    assert kept(app, "slow") == (1, None, 0, 0, False)


def test_a_broker_that_accepts_and_says_nothing_is_down(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen one, or TLS asked of a port without it. Seen before: no end to it."""
    monkeypatch.setattr(Server.__init__, "__kwdefaults__", {"connect": 1.0, "reply": 0.1})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for scheme in ("redis", "rediss"):
            url = f"{scheme}://127.0.0.1:{port}/0"
            monkeypatch.setenv("BROKER_URL", url)
            with pytest.raises(BrokerError, match=r"^BROKER_URL") as caught:
                status.read(bound(LANES))
            assert url in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        # Seen before: lanes+socket://, which is none of the user's words.
        ("redis+socket:///nowhere.sock", "redis+socket:///nowhere.sock"),
        # Seen before: 1,500 characters of a client's repr.
        ("sentinel://127.0.0.1:1/0", "sentinel://127.0.0.1:1/0"),
    ],
)
def test_a_broker_of_another_kind_that_is_down_is_one_line_too(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, url: str, shown: str
) -> None:
    monkeypatch.setenv("BROKER_URL", url)
    with pytest.raises(BrokerError) as caught:
        status.read(bound(LANES))
    told = str(caught.value)
    assert told.startswith("BROKER_URL")
    assert shown in told
    assert len(told.splitlines()) == 1
    assert len(told) < 300


def test_a_broker_that_is_down_is_one_line_and_exit_1(tmp_path: Path) -> None:
    port = free_port()
    told = Project(tmp_path, LANES, f"redis://:secret@127.0.0.1:{port}/0").run("status")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("BROKER_URL")
    assert f"127.0.0.1:{port}/0" in told.stderr
    assert len(told.stderr.splitlines()) == 1
    assert "secret" not in told.stderr


@pytest.mark.parametrize("command", [["status"], ["pause", "quick"]])
def test_a_broker_that_refuses_is_one_line_and_exit_1(
    project: Project, broker: Any, command: list[str]
) -> None:
    """Even to be asked who is there, workers need an answer's key. Seen before: a traceback."""
    broker.redis.config_set("maxmemory", 1)
    result = project.run(*command)
    assert result.returncode == 1
    assert re.fullmatch(
        rf"BROKER_URL.*{broker.url}.*command not allowed when used memory > 'maxmemory'.*\n",
        result.stderr,
    )
