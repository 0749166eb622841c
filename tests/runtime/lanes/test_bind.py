from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import celery.apps.worker
import pytest
from celery import Celery
from celery.backends.base import DisabledBackend
from celery.contrib.testing.worker import start_worker
from harness import wait_until
from kombu.transport import resolve_transport
from kombu.utils.imports import symbol_by_name

from acme_tasks.lanes import bind, drain, serving, sharing, timeouts
from acme_tasks.lanes.consumer import Consumer
from acme_tasks.lanes.errors import RoutingError, UsageError
from acme_tasks.lanes.redis import transport
from acme_tasks.lanes.redis.store import NO_LIMITS
from acme_tasks.lanes.task import Task

LANES = """
default_lane = "quick"

[lanes.slow]
lease = "20s"
max_deliveries = 5
dead_cap = 100
dead_size = "1M"
dead_age = "7d"
[lanes.quick]
[lanes.endless]
time_limit = false
"""


@pytest.fixture
def app(bound: Callable[[str], Celery]) -> Celery:
    return bound(LANES)


def worker_options(app: Celery, queue: str) -> dict[str, Any]:
    """The lease options of a worker started with `-Q queue`."""
    serving.configure(
        app,
        instance=SimpleNamespace(app=app, hostname="node-1@host"),
        conf=app.conf,
        options={"queues": [queue]},
    )
    return dict(app.lease_options)


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals, and what is replaced in Celery, outlive a test, and this process is no worker."""
    monkeypatch.setattr(drain, "install", lambda _lane: None)
    monkeypatch.setattr(sharing, "install", lambda: None)
    monkeypatch.setattr(celery.apps.worker, "safe_say", celery.apps.worker.safe_say)


def test_the_queues_are_those_of_the_lanes(app: Celery) -> None:
    assert list(app.amqp.queues) == ["slow_tasks", "quick_tasks", "endless_tasks"]
    assert app.conf.task_default_queue == "quick_tasks"
    assert app.conf.task_create_missing_queues is False


def test_a_killed_workers_tasks_are_delivered_again(app: Celery) -> None:
    assert app.conf.task_acks_late
    assert app.conf.task_reject_on_worker_lost


def test_messages_pass_the_firewall(app: Celery) -> None:
    assert symbol_by_name(app.conf.worker_consumer) is Consumer


class Owners(celery.Task[..., Any]):
    """As Celery itself gives an app one where it finds Django, with `delay_on_commit`."""

    abstract = True
    max_retries = 99

    def delay_on_commit(self) -> str:
        return f"{self.name} goes to {self.lane}"


def test_a_task_class_that_the_app_has_is_kept_beside_ours(
    lanes_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANES_FILE", str(lanes_file(LANES)))
    app: Any = bind.bind(Celery("test", set_as_current=False, task_cls=Owners))

    @app.task(name="build", lane="slow", shared=False)
    def build() -> None: ...

    assert build.delay_on_commit() == "build goes to slow"
    assert isinstance(build, Task)
    assert build.max_retries == 99


def test_an_outage_of_the_broker_is_waited_out(app: Celery) -> None:
    assert app.conf.broker_connection_max_retries is None
    assert app.conf.broker_connection_retry_on_startup


def test_nothing_but_json_is_read(app: Celery) -> None:
    assert (app.conf.task_serializer, app.conf.result_serializer) == ("json", "json")
    assert (app.conf.accept_content, app.conf.result_accept_content) == (["json"], ["json"])


def test_the_broker_and_results_come_from_the_environment(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", "redis://:secret@broker/4")
    app: Any = bound(LANES)
    assert (app.server.endpoint.hosts, app.server.endpoint.database) == ((("broker", 6379),), 4)
    assert (app.results.endpoint.hosts, app.results.endpoint.database) == ((("broker", 6379),), 1)
    # What Celery shows, where Flower and `celery report` look; without the password.
    assert app.conf.broker_url == app.server.endpoint.shown
    assert app.conf.result_backend == app.results.endpoint.shown
    assert "broker:6379/4" in app.conf.broker_url
    assert "broker:6379/1" in app.conf.result_backend
    assert "secret" not in f"{app.conf.broker_url} {app.conf.result_backend}"
    assert not app.conf.task_ignore_result


def test_results_can_be_off_for_all(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULT_URL", "")
    app: Any = bound(LANES)
    assert app.conf.result_backend is None
    assert app.results is None
    assert type(app.backend) is DisabledBackend
    assert app.conf.task_ignore_result


URLS = {
    "TCP": "redis://host/0",
    "TLS": "rediss://host/0?ssl_cert_reqs=none",
    "a socket": "redis+socket:///run/valkey.sock",
    "Sentinel": "sentinel://one:26379;sentinel://two:26379",
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_every_kind_of_redis_gets_the_leased_transport(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """One transport for all. Seen before: Sentinel had another, lanes-sentinel."""
    monkeypatch.setenv("BROKER_URL", url)
    app: Any = bound(LANES)
    assert app.conf.broker_transport == "lanes"
    assert resolve_transport(app.conf.broker_transport) is transport.Transport
    for connect in (app.connection, app.connection_for_read, app.connection_for_write):
        connection = connect()
        assert type(connection.transport) is transport.Transport
        assert connection.transport_options["server"] is app.server
        assert connection.virtual_host == "0"
    assert app.server.endpoint.scheme == url.partition(":")[0]


@pytest.mark.parametrize("url", ["redis://host:6379/0", "sentinel://host:26379/0"])
def test_monitors_are_told_a_scheme_that_they_know(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("BROKER_URL", url)
    told = bound(LANES).connection().as_uri()
    assert told.replace(":**@", "") == url


def test_monitors_that_connect_by_themselves_can_ask_for_the_password(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower reads the queues' lengths so; without it, no secret is told."""
    monkeypatch.setenv("BROKER_URL", "redis://:s%2Fecret@host:6379/3")
    connection = bound(LANES).connection()
    assert "ecret" not in connection.as_uri()
    assert connection.as_uri(include_password=True) == "redis://:s%2Fecret@host:6379/3"


def test_sentinels_are_asked_for_the_master_of_the_environment(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", "sentinel://one:26379;sentinel://two:26380")
    monkeypatch.setenv("SENTINEL_MASTER", "main")
    app: Any = bound(LANES)
    for server in (app.server, app.results):
        assert server.sentinels.master == "main"
        assert server.sentinels.hosts == (("one", 26379), ("two", 26380))


def test_no_wait_for_the_broker_is_without_an_end(app: Celery) -> None:
    assert app.conf.broker_connection_timeout == timeouts.CONNECT
    assert app.conf.broker_pool_acquire_timeout == timeouts.POOL
    results: Any = app.results  # type: ignore[attr-defined]
    assert (results._connect, results._reply) == (timeouts.RESULTS_CONNECT, timeouts.RESULTS_REPLY)


def senders(app: Any) -> dict[str, Any]:
    """Options of every connection but a worker's one."""
    return {
        "priority_steps": [0],
        "health_check_interval": timeouts.HEALTH,
        "server": app.server,
        "lane_by_queue": {"slow_tasks": "slow", "quick_tasks": "quick", "endless_tasks": "endless"},
        "limits_by_lane": dict.fromkeys(("slow", "quick", "endless"), NO_LIMITS),
    }


def test_a_sender_holds_no_lease(app: Celery) -> None:
    assert app.conf.broker_transport_options == senders(app)


def test_a_worker_leases_as_its_lane_says_and_in_its_own_name(app: Celery) -> None:
    assert worker_options(app, "slow_tasks") == {
        "lane": "slow",
        "node": "node-1@host",
        "in_threads": False,
        "concurrency": 2,
        "lease": 20.0,
        "max_deliveries": 5,
        "dead_cap": 100,
        "dead_size": 1 << 20,
        "dead_age": 7 * 86400.0,
        "latency_slo": 600.0,
    }
    # Only the consumer's connection has them: any other consumer in the process would lease too.
    assert app.conf.broker_transport_options == senders(app)


def test_a_worker_drains_as_its_lane_says(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    drains: list[str] = []
    monkeypatch.setattr(drain, "install", lambda lane: drains.append(lane.drain))
    for queue in ("slow_tasks", "quick_tasks"):
        worker_options(app, queue)
    assert drains == ["requeue", "finish"]


def test_each_line_of_a_workers_log_begins_with_its_lane(app: Celery) -> None:
    worker_options(app, "slow_tasks")
    assert app.conf.worker_log_format.startswith("slow | ")
    assert app.conf.worker_task_log_format.startswith("slow | ")


def test_another_apps_worker_is_left_alone(app: Celery) -> None:
    conf = SimpleNamespace()
    bind._serve(
        app,
        instance=SimpleNamespace(app=object()),
        conf=conf,
        options={"queues": ["celery"]},
    )
    assert vars(conf) == {}


@pytest.mark.parametrize(
    ("queues", "asked"),
    [
        (None, "no -Q"),
        ([], "no -Q"),
        (["slow_tasks", "quick_tasks"], "queues slow_tasks, quick_tasks"),
    ],
    ids=["none", "empty", "two lanes"],
)
def test_a_worker_serves_one_lane(app: Celery, queues: list[str] | None, asked: str) -> None:
    with pytest.raises(UsageError) as caught:
        serving.lane_of_worker(app.lanes, queues)
    assert str(caught.value) == (
        f"a worker serves one lane, and this one was started with {asked}: say, for example, "
        "-Q quick_tasks for the lane quick"
    )


def test_a_worker_of_an_unknown_queue_is_refused(app: Celery) -> None:
    with pytest.raises(RoutingError) as caught:
        serving.lane_of_worker(app.lanes, ["celery"])
    assert str(caught.value) == (
        'no lane consumes the queue "celery" (queues: slow_tasks by slow, quick_tasks by quick, '
        "endless_tasks by endless)"
    )


def test_celerys_worker_for_tests_runs_tasks_in_the_process_of_the_test(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leases nothing: no node of a lane was started."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound(LANES)
    ran: list[int] = []

    @app.task(name="note")
    def note(number: int) -> None:
        ran.append(number)
        if number == 1:
            raise ValueError(number)

    with start_worker(app, perform_ping_check=False, queues=["quick_tasks"]):
        for number in (1, 2):
            note.apply_async((number,), ignore_result=True)
        wait_until(lambda: ran == [1, 2], "the tasks")
    assert not broker.redis.exists("lanes:quick:sequence")
    app.close()


def test_a_worker_says_that_another_brokers_url_is_not_used(
    app: Celery, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`celery -b URL` sets the variable. Seen before: it moved the worker, and not its senders."""
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://elsewhere:6379/0")
    worker_options(app, "quick_tasks")
    shown = app.server.endpoint.shown  # type: ignore[attr-defined]
    assert capsys.readouterr().out == (
        "quick | --broker and CELERY_BROKER_URL are not used: BROKER_URL says where the broker is, "
        f"{shown}\n"
    )
