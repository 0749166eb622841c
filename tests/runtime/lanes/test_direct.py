"""The short way of a send and Celery's make the same message, and a send fails in the same way."""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, signature
from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import after_task_publish, before_task_publish, task_sent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import serialization
from kombu.exceptions import EncodeError, OperationalError
from kombu.messaging import Producer
from redis import Redis, exceptions

from acme_tasks.lanes import results
from acme_tasks.lanes.errors import RoutingError
from acme_tasks.lanes.redis.connect import Server

LANES = """
default_lane = "quick"
[lanes.quick]
expires = "10m"
[lanes.slow]
results = false
"""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
#: What differs between two sends of one task.
DIFFERS = re.compile(
    r'"(id|root_id|correlation_id|delivery_tag)": "[0-9a-f-]{32,36}"'
    r'|"(lane_sent_at)": [0-9.]+|"(eta|expires|lane_expires)": "[0-9T:.+-]+"'
)


@pytest.fixture
def app(broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setenv("BROKER_URL", broker.url)
    return bound(LANES)


@pytest.fixture
def tasks(app: Celery) -> dict[str, Any]:
    @app.task
    def plain(*args: Any, **kwargs: Any) -> None: ...

    @app.task(lane="slow")
    def slow(*args: Any, **kwargs: Any) -> None: ...

    @app.task(ignore_result=True, time_limit=5)
    def packed(*args: Any, **kwargs: Any) -> None: ...

    @app.task(expires=60)
    def own(*args: Any, **kwargs: Any) -> None: ...

    @app.task(key="customer")
    def keyed(customer: Any = 1, **kwargs: Any) -> None: ...

    return {task.__name__: task for task in (plain, slow, packed, own, keyed)}


def sent(app: Any) -> str:
    """The message that was sent, but for its ids and times."""
    redis = app.server.client
    found = []
    for key in redis.scan_iter():
        kind = redis.type(key)
        if kind == b"list" and not key.endswith(b":turns"):
            found += redis.lrange(key, 0, -1)
        elif key.endswith(b"delayed"):
            ((message, due),) = redis.zrange(key, 0, -1, withscores=True)
            eta = datetime.fromisoformat(json.loads(message)["headers"]["eta"])
            assert abs((eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp() - due) < 1e-5
            found.append(message)
    (message,) = (each for each in found if each != b'"keyed"')
    redis.flushdb()
    return DIFFERS.sub(lambda match: f'"{match[1] or match[2] or match[3]}": ...', message.decode())


def hear(**_: Any) -> None:
    """Whoever listens has Celery's way."""


@contextmanager
def celerys_way() -> Iterator[None]:
    before_task_publish.connect(hear)
    try:
        yield
    finally:
        before_task_publish.disconnect(hear)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that went the short way, as they go."""
    commands: list[str] = []
    call = Server.call

    def noting(self: Server, *command: Any) -> Any:
        commands.append(command[0])
        return call(self, *command)

    monkeypatch.setattr(Server, "call", noting)
    return commands


@contextmanager
def within(task: Any) -> Iterator[Context]:
    """Within a task that a worker runs."""
    request = Context(id="parent", root_id="root", called_directly=False, children=[])
    task.push_request()
    task.request_stack.pop()
    task.request_stack.push(request)
    _task_stack.push(task)
    try:
        yield request
    finally:
        _task_stack.pop()
        task.request_stack.pop()


NAMES = st.from_regex("[a-z]{1,5}", fullmatch=True)
OPTIONS = {
    "lane": st.sampled_from(["quick", "slow"]),
    "ignore_result": st.booleans(),
    "key": st.text('ab \x00\xe9%"', min_size=1, max_size=4) | st.integers(0, 9),
    "countdown": st.sampled_from([1, 0.5, 60]),
    "eta": st.sampled_from(
        [datetime(2040, 1, 1), datetime(2040, 1, 1, tzinfo=UTC), "2040-01-01T00:00:00"]  # noqa: DTZ001
    ),
    "expires": st.sampled_from([0, 30.0, 90]),
    "priority": st.integers(0, 9),
    "shadow": st.text(max_size=9),
    "headers": st.sampled_from([{"own": 1}, {"own": {"lane_key": "x"}}, {"lane_key": "mine"}]),
    "time_limit": st.sampled_from([1, 1.0, True]),
    "soft_time_limit": st.just(1),
    "serializer": st.just("json"),
    "link": st.just(signature("after", (1,))) | st.just([signature("after", (1,))]),
    "link_error": st.just(signature("after", (1,))),
    "chain": st.just([signature("next", (1,))]),
    "root_id": st.just("another"),
    "retries": st.integers(0, 2),
    "add_to_parent": st.booleans(),
    "task_id": st.text(min_size=1, max_size=9),
}


@pytest.mark.parametrize("name", ["plain", "slow", "packed", "own", "keyed"])
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    args=st.lists(VALUES, max_size=3),
    kwargs=st.dictionaries(NAMES, VALUES, max_size=2),
    # Most with few, as most calls are.
    options=st.just({})
    | st.fixed_dictionaries({}, optional=OPTIONS)
    | st.sampled_from(sorted(OPTIONS)).flatmap(
        lambda each: st.fixed_dictionaries({each: OPTIONS[each]})
    ),
    by_name=st.booleans(),
    in_a_task=st.booleans(),
)
def test_both_ways_make_the_same_bytes(  # noqa: PLR0913, PLR0917
    app: Any,
    tasks: dict[str, Any],
    name: str,
    args: list[Any],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    by_name: bool,
    in_a_task: bool,
) -> None:
    task = tasks[name]
    if name == "keyed":
        args = []
    if "countdown" in options:
        options.pop("eta", None)

    def send() -> tuple[str, Any]:
        if by_name:
            result = app.send_task(task.name, args, kwargs, **options)
        else:
            result = task.apply_async(args, kwargs, **options)
        return sent(app), result

    if in_a_task:
        with within(tasks["slow"]) as request:
            message, result = send()
            assert (result in request.children) == options.get("add_to_parent", True)
            with celerys_way():
                other, others = send()
    else:
        message, result = send()
        with celerys_way():
            other, others = send()
    assert message == other
    assert type(result) is type(others)
    assert (result.ignored, result.backend) == (others.ignored, others.backend)


@pytest.mark.parametrize(
    ("name", "options", "command"),
    [
        ("plain", {}, "LPUSH"),
        ("slow", {}, "LPUSH"),
        ("packed", {}, "LPUSH"),
        ("own", {}, "LPUSH"),
        ("keyed", {}, "EVALSHA"),
        ("plain", {"lane": "slow"}, "LPUSH"),
        ("plain", {"queue": "slow_tasks"}, "LPUSH"),
        ("plain", {"task_id": "mine", "ignore_result": True}, "LPUSH"),
        ("plain", {"key": 7}, "EVALSHA"),
        ("plain", {"countdown": 60}, "ZADD"),
        ("keyed", {"countdown": 60}, "EVALSHA"),
        ("plain", {"expires": 60}, "LPUSH"),
        ("plain", {"headers": {"own": 1}, "link": signature("after")}, "LPUSH"),
        ("plain", {"priority": 3}, None),
        ("plain", {"serializer": "pickle"}, None),
        ("plain", {"unique": True}, None),
        ("plain", {"expires": -1}, None),
        ("plain", {"expires": datetime(2040, 1, 1, tzinfo=UTC)}, None),
        ("plain", {"retry": False}, None),
        ("plain", {"compression": "gzip"}, None),
        ("plain", {"stamped_headers": ["own"], "own": 1}, None),
    ],
)
def test_the_short_way_is_taken_where_it_can_be(  # noqa: PLR0913, PLR0917
    app: Any,
    tasks: dict[str, Any],
    short: list[str],
    name: str,
    options: dict[str, Any],
    command: str | None,
) -> None:
    with celerys_way():
        tasks["keyed"].delay()  # or the server would lack its script
    for send in (
        lambda: tasks[name].apply_async(**options),
        lambda: app.send_task(tasks[name].name, **options),
    ):
        short.clear()
        send()
        assert short == ([command] if command else [])


def test_a_name_that_nobody_knows_goes_to_its_lane(app: Any, broker: Any, short: list[str]) -> None:
    for number in range(1100):  # more than are remembered
        app.send_task(f"unknown.{number}", queue="slow_tasks")
    assert (broker.redis.llen("slow_tasks"), len(short)) == (1100, 1100)


def test_a_script_that_the_server_lacks_is_loaded(
    broker: Any, tasks: dict[str, Any], short: list[str]
) -> None:
    broker.redis.script_flush()
    for _ in range(2):
        tasks["keyed"].delay("one")
    assert short == ["EVALSHA", "EVALSHA"]
    assert broker.redis.llen("lanes:quick:keyed:messages:one") == 2


def test_a_task_that_a_task_sends_knows_its_parent(app: Any, tasks: dict[str, Any]) -> None:
    with within(tasks["slow"]) as request:
        result = tasks["plain"].delay(1)
    headers = json.loads(sent(app).replace("...", "0"))["headers"]
    assert (headers["root_id"], headers["parent_id"]) == ("root", "parent")
    assert result in request.children


def test_a_priority_is_inherited_where_that_is_asked_for(
    app: Any, tasks: dict[str, Any], short: list[str]
) -> None:
    app.conf.task_inherit_parent_priority = True
    with within(tasks["slow"]) as request:
        request.delivery_info = {"priority": 4}
        app.send_task("unknown", (1,))
    assert json.loads(sent(app).replace("...", "0"))["properties"]["priority"] == 4
    assert short == []


def test_receivers_of_signals_and_events_have_celerys_way(
    app: Any, tasks: dict[str, Any], short: list[str]
) -> None:
    heard: list[str] = []

    def note(sender: str, headers: Any = None, task_id: str = "", **_: Any) -> None:  # noqa: ARG001
        heard.append(task_id or headers["id"])

    for signal in (before_task_publish, after_task_publish, task_sent):
        signal.connect(note)
        try:
            result = tasks["plain"].delay()
        finally:
            signal.disconnect(note)
        assert heard.pop() == result.id
    assert short == []
    tasks["plain"].delay()
    assert short == ["LPUSH"]
    app.conf.task_send_sent_event = True
    tasks["plain"].delay()
    assert short == ["LPUSH"]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Celery, "send_task"), (Producer, "publish"), (Redis, "execute_command")],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_a_tracer_that_wraps_what_is_left_out_is_called(
    tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """As Sentry's does with the first two, and others' with the last, before or after `bind`."""
    called: list[str] = []
    original = getattr(owner, name)

    def wrapper(*args: Any, **options: Any) -> Any:
        called.append(name)
        return original(*args, **options)

    tasks["plain"].delay()
    monkeypatch.setattr(owner, name, wrapper)
    tasks["plain"].delay()
    assert name in called


def test_who_has_put_another_sender_there_is_asked(app: Any, tasks: dict[str, Any]) -> None:
    """As tests of an owner's may."""
    asked: list[Any] = []
    tasks["plain"].delay(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(app.amqp), "send_task_message", lambda *args, **_: asked.append(args[1]))
        tasks["plain"].delay(1)
    app.send_task = lambda *args, **options: asked.append(args)  # noqa: ARG005
    tasks["plain"].delay(2)
    assert asked == [tasks["plain"].name, (tasks["plain"].name, (2,), {})]


@pytest.mark.parametrize(
    "setting",
    [
        {"task_publish_retry": False},
        {"task_publish_retry_policy": {"max_retries": 0}},
        {"task_compression": "gzip"},
        {"task_default_delivery_mode": 1},
    ],
    ids=lambda each: next(iter(each)),
)
def test_a_setting_that_is_not_for_the_short_way(
    app: Any, tasks: dict[str, Any], short: list[str], setting: dict[str, Any]
) -> None:
    app.conf.update(setting)
    tasks["plain"].delay()
    assert short == []


def test_a_backend_that_has_something_to_do_for_a_send_does_it(
    app: Any, tasks: dict[str, Any], short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Asked(type(app.backend)):  # type: ignore[misc]
        def on_task_call(self, producer: Any, task_id: str) -> None:  # noqa: ARG002
            asked.append(task_id)

    monkeypatch.setattr(app, "_backend_cache", None, raising=False)
    monkeypatch.setattr(app.backend, "__class__", Asked)
    result = tasks["plain"].delay()
    assert (asked, short) == ([result.id], [])


def test_a_serializer_that_took_the_place_of_json_is_used(app: Any, tasks: dict[str, Any]) -> None:
    def own(body: Any) -> str:
        return json.dumps(body).replace("1", "2")

    tasks["plain"].delay(1)
    app.server.client.flushdb()
    registry = serialization.registry
    before = registry._encoders["json"]
    try:
        registry._encoders["json"] = type(before)(*before[:2], own)
        tasks["plain"].delay(1)
        message = sent(app)
        with celerys_way():
            tasks["plain"].delay(1)
        assert message == sent(app)
        registry._encoders["json"] = type(before)("application/x-own", "utf-8", own)
        tasks["plain"].delay(1)
        assert '"content-type": "application/x-own"' in sent(app)
    finally:
        registry._encoders["json"] = before


def test_a_reply_that_is_lost_has_it_sent_again_under_its_id(
    app: Any, tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kombu does."""
    call = Server.call

    def losing(self: Server, *command: Any) -> Any:
        call(self, *command)
        raise exceptions.ConnectionError("closed")

    monkeypatch.setattr(Server, "call", losing)
    result = tasks["plain"].delay()
    messages = app.server.client.lrange("quick_tasks", 0, -1)
    assert [json.loads(each)["headers"]["id"] for each in messages] == [result.id] * 2


def test_a_server_that_is_silent_is_waited_for_once(
    app: Any, tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its time is that of Celery's way, with which it goes on for what is left."""
    now, tries = time.monotonic(), []

    def silent(self: Server, *command: Any) -> Any:  # noqa: ARG001
        tries.append(command[0])
        monkeypatch.setattr("acme_tasks.lanes.routing.monotonic", lambda: now + 60)
        raise exceptions.TimeoutError("Timeout reading from socket")

    monkeypatch.setattr(Server, "call", silent)
    with pytest.raises(OperationalError, match=r"did not answer|no answer|within 4"):
        tasks["plain"].delay()
    assert tries == ["LPUSH"]
    assert app.server.client.dbsize() == 0


def test_threads_send_each_on_a_connection_of_its_own(
    app: Any, broker: Any, tasks: dict[str, Any]
) -> None:
    ids: list[str] = []

    def send() -> None:
        ids.extend(tasks["plain"].delay(number).id for number in range(100))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    messages = broker.redis.lrange("quick_tasks", 0, -1)
    assert sorted(json.loads(each)["headers"]["id"] for each in messages) == sorted(ids)
    assert len(set(ids)) == 800
    assert len(app.server._kept) <= 8


def test_a_child_leaves_its_parents_connections_alone(broker: Any, tasks: dict[str, Any]) -> None:
    tasks["plain"].delay("before")
    child = os.fork()
    if not child:
        try:
            for _ in range(200):
                tasks["plain"].delay("child")
        finally:
            os._exit(0)
    for _ in range(200):
        tasks["plain"].delay("parent")
    assert os.waitpid(child, 0)[1] == 0
    tasks["plain"].delay("after")
    messages = [json.loads(each) for each in broker.redis.lrange("quick_tasks", 0, -1)]
    origins = [each["headers"]["origin"] for each in messages]
    assert sorted(map(origins.count, set(origins))) == [200, 202]


def test_eager_mode_sends_nothing(app: Any, tasks: dict[str, Any]) -> None:
    app.conf.task_always_eager = True
    assert tasks["plain"].delay().successful()
    assert app.server.client.dbsize() == 0
    with pytest.warns(match="no effect on send_task"):
        app.send_task(tasks["plain"].name)


def test_a_map_goes_to_the_lane_of_what_it_maps(
    app: Any, broker: Any, tasks: dict[str, Any]
) -> None:
    for name in ("plain", "slow"):
        app.tasks["celery.map"].delay(task=tasks[name].s(), it=[1])
    assert [broker.redis.llen(f"{each}_tasks") for each in ("quick", "slow")] == [1, 1]


def test_a_soft_time_limit_within_a_send_is_raised(
    tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(arguments: Any) -> str:  # noqa: ARG001
        raise SoftTimeLimitExceeded

    tasks["plain"].delay()
    monkeypatch.setattr("acme_tasks.lanes.envelope.shown", late)
    with pytest.raises(SoftTimeLimitExceeded):
        tasks["plain"].delay()


def test_what_cannot_be_sent_is_said_as_celery_does(app: Any, tasks: dict[str, Any]) -> None:
    @app.task
    def two(first: int, second: int) -> None: ...

    with pytest.raises(TypeError, match="second"):
        two.delay(1)
    with pytest.raises(EncodeError):
        tasks["plain"].delay(object())
    with pytest.raises(TypeError, match="task args must be a list or tuple"):
        tasks["plain"].apply_async("text")
    with pytest.raises(RoutingError, match="lanes: quick, slow"):
        app.send_task("unknown", lane="none")


def test_a_connection_that_was_cut_is_made_anew(broker: Any, tasks: dict[str, Any]) -> None:
    for way in ("LPUSH", "EVALSHA"):
        task = tasks["plain"] if way == "LPUSH" else tasks["keyed"]
        task.delay()
        broker.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        broker.redis.flushdb()
        task.delay()
        assert broker.redis.dbsize() > 0


def test_a_broker_that_refuses_is_explained(broker: Any, tasks: dict[str, Any]) -> None:
    tasks["plain"].delay()
    broker.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OperationalError, match="memory"):
            tasks["plain"].delay()
    finally:
        broker.redis.config_set("maxmemory", 0)


def test_a_result_that_nobody_waited_for_leaves_nothing(app: Any, tasks: dict[str, Any]) -> None:
    """Celery unsubscribes from each when it is dropped; so does this from those of a waiter."""
    backend = app.backend
    assert isinstance(backend, results.Backend)
    dropped = tasks["plain"].delay()
    del dropped
    assert not backend.result_consumer._pending_unsubscribe
    waited = tasks["plain"].delay()
    backend.add_pending_result(waited, weak=True)
    assert backend.result_consumer.subscribed_to
    del waited
    assert not backend.result_consumer.subscribed_to
