"""Where a message goes, what is stamped on it, and on whose connection it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import CDeprecationWarning
from celery.utils.saferepr import saferepr
from harness import PATIENCE, Project, free_port, running_broker
from kombu import Queue
from kombu.exceptions import OperationalError
from redis import Redis

from acme_tasks.lanes import routing
from acme_tasks.lanes.errors import RoutingError, SendError
from acme_tasks.lanes.redis import transport
from acme_tasks.lanes.routing import SENT_AT, home_lane, stamp
from acme_tasks.lanes.timeouts import SEND
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
[lanes.quick]
expires = "10m"
[lanes.mail]
queue = "post"

[routes]
"reports.daily" = "mail"
"reports.*" = "slow"
"""


@pytest.fixture
def app(bound: Callable[[str], Celery]) -> Celery:
    return bound(LANES)


def queue_of(app: Celery, name: str = "other", task: Any = None, **options: Any) -> str:
    """Where a call with these options would be sent."""
    return app.amqp.router.route(options, name, task_type=task)["queue"].name


def refusal(app: Celery, name: str = "other", task: Any = None, **options: Any) -> str:
    with pytest.raises(RoutingError) as caught:
        queue_of(app, name, task, **options)
    return str(caught.value)


def test_a_task_goes_to_its_own_lane(app: Celery) -> None:
    @app.task(lane="slow")
    def build() -> None: ...

    assert queue_of(app, build.name, build) == "slow_tasks"


def test_a_task_in_chunks_goes_to_its_own_lane(
    server: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: all went to the default lane, where they delayed others."""
    monkeypatch.setenv("BROKER_URL", server.url)
    app = bound(LANES)

    @app.task(lane="slow", ignore_result=True)
    def add(x: int, y: int) -> int:
        return x + y

    server.redis.flushall()
    add.chunks([(1, 2), (3, 4)], 1).apply_async()
    add.starmap([(1, 2)]).apply_async()
    add.map([(1, 2)]).apply_async(lane="mail")
    assert server.redis.llen("slow_tasks") == 3
    assert server.redis.llen("post") == 1
    assert not server.redis.exists("quick_tasks")


def test_its_own_lane_is_before_a_route(app: Celery) -> None:
    @app.task(name="reports.daily", lane="quick")
    def daily() -> None: ...

    assert queue_of(app, daily.name, daily) == "quick_tasks"


@pytest.mark.parametrize(
    "options",
    [
        {"lane": "mail"},
        {"queue": "post"},
        {"queue": Queue("post")},
        {"lane": "mail", "queue": "post"},
    ],
    ids=["lane", "queue", "kombu.Queue", "both, and they agree"],
)
def test_what_the_call_names_is_before_the_tasks_own_lane(
    app: Celery, options: dict[str, Any]
) -> None:
    @app.task(lane="slow")
    def build() -> None: ...

    assert queue_of(app, build.name, build, **options) == "post"


def test_a_task_may_name_its_queue_and_a_call_its_lane(app: Celery) -> None:
    @app.task(queue="slow_tasks")
    def build() -> None: ...

    with pytest.warns(CDeprecationWarning, match="The 'queue' task attribute is deprecated"):
        _ = build.name  # Celery builds a task when it is first used
    # Celery adds the task's own queue to the options of each call.
    assert queue_of(app, build.name, build, queue="slow_tasks") == "slow_tasks"
    assert queue_of(app, build.name, build, queue="slow_tasks", lane="mail") == "post"


@pytest.mark.parametrize(
    ("name", "queue"),
    [("reports.build", "slow_tasks"), ("reports.daily", "post"), ("nothing.known", "quick_tasks")],
    ids=["a pattern", "the first match", "no match: the default lane"],
)
def test_a_name_alone_is_routed(app: Celery, name: str, queue: str) -> None:
    assert queue_of(app, name) == queue


def test_an_unknown_lane_is_an_error_at_the_line_that_defines_the_task(app: Celery) -> None:
    def build() -> None: ...

    with pytest.raises(RoutingError) as caught:
        app.task(lane="slwo")(build)
    assert str(caught.value) == (
        'no lane is called "slwo"; did you mean "slow"? (lanes: slow, quick, mail)'
    )


def test_an_unknown_queue_is_an_error_when_the_task_is_built(app: Celery) -> None:
    @app.task(queue="celery")
    def build() -> None: ...

    with pytest.raises(RoutingError) as caught:
        _ = build.name
    assert str(caught.value) == (
        'no lane consumes the queue "celery" '
        "(queues: slow_tasks by slow, quick_tasks by quick, post by mail)"
    )


def test_a_task_whose_lane_and_queue_disagree_is_an_error(app: Celery) -> None:
    @app.task(name="build", lane="slow", queue="post")
    def build() -> None: ...

    with pytest.raises(RoutingError) as caught:
        _ = build.name
    assert str(caught.value) == "build: lane='slow' and queue='post' disagree; name one of them"


REFUSED = {
    "unknown lane": (
        {"lane": "bulk"},
        'no lane is called "bulk" (lanes: slow, quick, mail)',
    ),
    "unknown queue": (
        {"queue": "mail_tasks"},
        (
            'no lane consumes the queue "mail_tasks" '
            "(queues: slow_tasks by slow, quick_tasks by quick, post by mail)"
        ),
    ),
    "unknown kombu.Queue": (
        {"queue": Queue("celery")},
        (
            'no lane consumes the queue "celery" '
            "(queues: slow_tasks by slow, quick_tasks by quick, post by mail)"
        ),
    ),
    "lane and queue that disagree": (
        {"lane": "slow", "queue": "post"},
        "other: lane='slow' and queue='post' disagree; name one of them",
    ),
    "exchange": (
        {"exchange": "celery"},
        "other: exchange='celery' cannot be used: a lane has one queue, so say lane= or queue=",
    ),
    "routing key": (
        {"routing_key": "post"},
        "other: routing_key='post' cannot be used: a lane has one queue, so say lane= or queue=",
    ),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_a_call_that_no_lane_would_serve_is_refused(
    app: Celery, options: dict[str, Any], said: str
) -> None:
    assert refusal(app, **options) == said


def test_every_way_of_sending_is_refused_alike(app: Celery) -> None:
    @app.task
    def build() -> None: ...

    said = 'no lane is called "bulk" (lanes: slow, quick, mail)'
    for send in (
        lambda: build.apply_async(lane="bulk"),
        lambda: build.si().set(lane="bulk").apply_async(),
        lambda: app.send_task("build", lane="bulk"),
    ):
        with pytest.raises(RoutingError) as caught:
            send()
        assert str(caught.value) == said


def test_the_home_lane_of_a_task_without_one_is_its_routes(app: Celery) -> None:
    assert home_lane(app.lanes, "reports.build").name == "slow"
    assert home_lane(app.lanes, "anything").name == "quick"


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, "two", None), {"three": [4.0, {"five": "\u00e9'\""}]}), ([1], {"x": (2,)})],
)
def test_a_message_shows_its_arguments_as_celerys_does(
    app: Celery, args: Any, kwargs: dict[str, Any]
) -> None:
    headers = app.amqp.create_task_message("id", "name", args, kwargs).headers
    assert headers["argsrepr"] == saferepr(args)
    assert headers["kwargsrepr"] == saferepr(kwargs)


def test_long_arguments_are_cut_and_hidden_ones_stay_hidden(app: Celery) -> None:
    create = app.amqp.create_task_message
    assert create("id", "name", ("x" * 5000,)).headers["argsrepr"] == f"('{'x' * 1022}"
    assert create("id", "name", ("secret",), argsrepr="***").headers["argsrepr"] == "***"


#: When all of these are sent, by the broker's clock; this host's may say what it likes.
NOW = datetime(2031, 1, 1, tzinfo=UTC).timestamp()


def seconds_from_now(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp() - NOW


def test_a_message_is_stamped_with_the_time_of_sending(app: Celery) -> None:
    headers: dict[str, Any] = {"eta": None, "expires": None}
    stamp(headers, app.lanes.get("slow"), NOW)
    assert headers[SENT_AT] == NOW
    assert headers["expires"] is None


def test_a_message_expires_as_its_lane_says(app: Celery) -> None:
    headers: dict[str, Any] = {"eta": None, "expires": None}
    stamp(headers, app.lanes.get("quick"), NOW)
    assert seconds_from_now(headers["expires"]) == 600


def test_expiry_counts_from_when_the_task_is_due(app: Celery) -> None:
    due = datetime.fromtimestamp(NOW + 3600, UTC).isoformat()
    headers: dict[str, Any] = {"eta": due, "expires": None}
    stamp(headers, app.lanes.get("quick"), NOW)
    assert seconds_from_now(headers["expires"]) == 3600 + 600


def test_a_message_keeps_its_own_expiry(app: Celery) -> None:
    headers: dict[str, Any] = {"eta": None, "expires": "2042-01-01T00:00:00+00:00"}
    stamp(headers, app.lanes.get("quick"), NOW)
    assert headers["expires"] == "2042-01-01T00:00:00+00:00"


def test_a_retry_expires_anew_unless_its_caller_said_when(app: Celery) -> None:
    # Seen without: a retry with a countdown longer than `expires` was discarded and never ran.
    lane = app.lanes.get("quick")
    sent: dict[str, Any] = {"eta": None, "expires": None}
    stamp(sent, lane, NOW)
    later = datetime.fromtimestamp(NOW + 3600, UTC).isoformat()
    retried = sent | {"eta": later}
    stamp(retried, lane, NOW)
    assert seconds_from_now(retried["expires"]) == 3600 + 600
    owned = sent | {"eta": later, "expires": "2042-01-01T00:00:00+00:00"}
    stamp(owned, lane, NOW)
    assert owned["expires"] == "2042-01-01T00:00:00+00:00"


@pytest.fixture
def an_hour_ahead(server: Any, bound: Callable[[str], Celery], monkeypatch: Any) -> Any:
    """An app whose broker's clock is an hour ahead of this host's."""
    monkeypatch.setenv("BROKER_URL", server.url)
    server.redis.flushall()
    app: Any = bound(LANES)
    app.server.clock.learn(time.time() + 3600)
    yield app
    app.close()


def test_a_countdown_and_an_expiry_in_seconds_count_by_the_brokers_clock(
    an_hour_ahead: Any, server: Any
) -> None:
    """Seen before: by the sender's, so that one an hour behind sent what had expired already."""
    an_hour_ahead.send_task("report", lane="slow", countdown=100, expires=200)
    ((raw, due),) = server.redis.zrange("lanes:slow:delayed", 0, -1, withscores=True)
    headers = json.loads(raw)["headers"]
    now = time.time() + 3600
    eta = datetime.fromisoformat(headers["eta"]).timestamp()
    expires = datetime.fromisoformat(headers["expires"]).timestamp()
    assert eta == pytest.approx(now + 100, abs=60)
    assert due == pytest.approx(eta, abs=0.001)
    assert expires - eta == pytest.approx(100, abs=0.001)
    assert headers[SENT_AT] == pytest.approx(now, abs=60)


def test_a_lanes_expiry_and_the_time_of_sending_are_by_the_brokers_clock(
    an_hour_ahead: Any, server: Any
) -> None:
    an_hour_ahead.send_task("report", lane="quick")
    headers = json.loads(server.redis.lindex("quick_tasks", 0))["headers"]
    expires = datetime.fromisoformat(headers["expires"]).timestamp()
    assert headers[SENT_AT] == pytest.approx(time.time() + 3600, abs=60)
    assert expires - headers[SENT_AT] == pytest.approx(600, abs=0.001)


def test_many_that_are_sent_at_once_count_by_the_brokers_clock_too(
    an_hour_ahead: Any, server: Any
) -> None:
    @an_hour_ahead.task(name="report", lane="slow", shared=False)
    def report(_number: int) -> None: ...

    assert report.send_many([(1,), (2,)], countdown=100) == 2
    now = time.time() + 3600
    for _, due in server.redis.zrange("lanes:slow:delayed", 0, -1, withscores=True):
        assert due == pytest.approx(now + 100, abs=60)


def test_a_time_that_the_caller_names_is_the_callers(an_hour_ahead: Any, server: Any) -> None:
    eta = datetime.fromtimestamp(time.time() + 7200, UTC)
    an_hour_ahead.send_task("report", lane="slow", eta=eta)
    ((_, due),) = server.redis.zrange("lanes:slow:delayed", 0, -1, withscores=True)
    assert due == pytest.approx(eta.timestamp(), abs=0.001)


# Whose connection it is. The variables are Celery's own: it reads them after what an app says.


@pytest.mark.parametrize("name", routing.CELERY_VARIABLES)
def test_a_variable_of_celerys_moves_no_message(
    server: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Seen before: it did, and no worker of a lane was there."""
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setenv("BROKER_URL", server.url)
    monkeypatch.setenv(name, nobody)
    server.redis.flushall()
    app: Any = bound(LANES)
    with app:
        app.send_task("report", ignore_result=True)
        app.send_task("report", ignore_result=True, countdown=60)
        for connect in (app.connection, app.connection_for_read, app.connection_for_write):
            with connect() as connection:
                assert connection.transport_options["server"] is app.server
                assert connection.default_channel.client.llen("quick_tasks") == 1
                assert nobody not in connection.as_uri()
    assert server.redis.zcard("lanes:quick:delayed") == 1


def test_a_variable_of_celerys_moves_no_result(
    server: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: it did: senders looked for results where their workers did not put them."""
    monkeypatch.setenv("BROKER_URL", server.url)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", f"redis://127.0.0.1:{free_port()}/0")
    server.redis.flushall()
    with bound(LANES) as app:
        app.backend.client.set("mark", "here")
    with Redis(port=server.port, db=1) as results:
        assert results.get("mark") == b"here"


OPTIONS = {"broker": "-b", "results": "--result-backend"}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_an_option_of_the_celery_command_moves_no_message(
    broker: Any, tmp_path: Path, option: str
) -> None:
    """They set the variables. Seen before: the message went to the URL of -b."""
    project = Project(tmp_path, LANES, broker.url)
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    command = [sys.executable, "-m", "celery", "-A", PACKAGE, option, nobody]
    done = subprocess.run(
        [*command, "call", "echo", "--args", '["x"]'],
        env=project.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert broker.redis.llen("quick_tasks") == 1


def test_a_url_that_is_given_to_a_connection_is_where_it_goes(
    server: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look into another project's broker, or to move its messages here."""
    monkeypatch.setenv("BROKER_URL", server.url)
    server.redis.flushall()
    app: Any = bound(LANES)
    with running_broker() as other, app:
        with app.connection(f"redis://127.0.0.1:{other.port}/3") as foreign:
            assert type(foreign.transport) is not transport.Transport
            assert foreign.as_uri().endswith(f"127.0.0.1:{other.port}/3")
            foreign.default_channel.client.set("mark", "theirs")
            # Celery's own way to send there.
            app.send_task("report", connection=foreign, ignore_result=True)
        with Redis(port=other.port, db=3) as theirs:
            assert theirs.get("mark") == b"theirs"
            assert theirs.llen("quick_tasks") == 1
        assert other.redis.dbsize() == 0
    assert not server.redis.exists("mark", "quick_tasks")


def test_a_connection_of_another_kind_can_be_had(bound: Callable[[str], Celery]) -> None:
    with bound(LANES).connection("memory://") as connection:
        assert connection.transport.driver_type == "memory"


# When the broker does not answer.


@contextmanager
def frozen(server: Any) -> Iterator[None]:
    """A server that is there, takes what it is sent, and says nothing."""
    pid = server.redis.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("way", ["one", "one, with a connection", "many", "delayed"])
def test_a_send_to_a_broker_that_is_silent_gives_up_in_time(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Seen before: it waited for ever, and a web server's threads with it."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app: Any = bound(LANES)

    @app.task(name="report", shared=False, ignore_result=True)
    def report(_number: int) -> None: ...

    if way == "one, with a connection":
        report.delay(0)
    sends: dict[str, Callable[[], Any]] = {
        "many": lambda: report.send_many([(1,)]),
        "delayed": lambda: report.apply_async((1,), countdown=60),
    }
    began = time.monotonic()
    with frozen(broker), pytest.raises((OperationalError, SendError)):
        sends.get(way, lambda: report.delay(1))()
    assert time.monotonic() - began < SEND
    report.delay(2)
    app.close()


def test_a_send_to_a_broker_that_is_away_gives_up_in_time(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    app = bound(LANES)
    began = time.monotonic()
    with pytest.raises(OperationalError):
        app.send_task("report", ignore_result=True)
    assert time.monotonic() - began < SEND
    app.close()


def test_a_policy_of_the_callers_own_is_kept(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    app = bound(LANES)
    tries: list[float] = []
    policy = {"max_retries": 1, "interval_start": 0, "errback": lambda _e, _i: tries.append(1)}
    with pytest.raises(OperationalError):
        app.send_task("report", ignore_result=True, retry_policy=policy)
    assert len(tries) == 1
    app.close()
