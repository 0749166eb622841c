from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import CDeprecationWarning
from celery.utils.saferepr import saferepr
from kombu import Queue

from {{ cookiecutter.package_name }}.lanes.errors import RoutingError
from {{ cookiecutter.package_name }}.lanes.routing import SENT_AT, home_lane, stamp

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


def seconds_from_now(moment: str) -> float:
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()


def test_a_message_is_stamped_with_the_time_of_sending(app: Celery) -> None:
    headers: dict[str, Any] = {"eta": None, "expires": None}
    stamp(headers, app.lanes.get("slow"))
    assert headers[SENT_AT] == pytest.approx(datetime.now(UTC).timestamp(), abs=10)
    assert headers["expires"] is None


def test_a_message_expires_as_its_lane_says(app: Celery) -> None:
    headers: dict[str, Any] = {"eta": None, "expires": None}
    stamp(headers, app.lanes.get("quick"))
    assert seconds_from_now(headers["expires"]) == pytest.approx(600, abs=10)


def test_expiry_counts_from_when_the_task_is_due(app: Celery) -> None:
    due = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    headers: dict[str, Any] = {"eta": due, "expires": None}
    stamp(headers, app.lanes.get("quick"))
    assert seconds_from_now(headers["expires"]) == pytest.approx(3600 + 600, abs=10)


def test_a_message_keeps_its_own_expiry(app: Celery) -> None:
    headers: dict[str, Any] = {"eta": None, "expires": "2042-01-01T00:00:00+00:00"}
    stamp(headers, app.lanes.get("quick"))
    assert headers["expires"] == "2042-01-01T00:00:00+00:00"


def test_a_retry_expires_anew_unless_its_caller_said_when(app: Celery) -> None:
    # Seen without: a retry with a countdown longer than `expires` was discarded and never ran.
    lane = app.lanes.get("quick")
    sent: dict[str, Any] = {"eta": None, "expires": None}
    stamp(sent, lane)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    retried = sent | {"eta": later}
    stamp(retried, lane)
    assert seconds_from_now(retried["expires"]) == pytest.approx(3600 + 600, abs=10)
    owned = sent | {"eta": later, "expires": "2042-01-01T00:00:00+00:00"}
    stamp(owned, lane)
    assert owned["expires"] == "2042-01-01T00:00:00+00:00"
