"""The short way of a send and Celery's make the same message, and a send fails in the same way."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest
from celery import Celery
from celery._state import _task_stack
from celery.app.task import Context
from celery.signals import after_task_publish, before_task_publish
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.exceptions import EncodeError, OperationalError

from acme_tasks.lanes import direct

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
    r'"(id|root_id|correlation_id|delivery_tag)": "[0-9a-f-]{36}"'
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
    keys = [key for key in redis.scan_iter(_type="LIST") if not key.endswith(b":turns")]
    found = [message for key in keys for message in redis.lrange(key, 0, -1)]
    (message,) = (each for each in found if each != b'"keyed"')
    redis.flushdb()
    return DIFFERS.sub(lambda match: f'"{match[1] or match[2] or match[3]}": ...', message.decode())


def celerys_way(task: Any, *args: Any, **options: Any) -> Any:
    return celery.Task.apply_async(task, *args, **options)


@pytest.mark.parametrize("name", ["plain", "slow", "packed", "own", "keyed"])
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    args=st.lists(VALUES, max_size=3),
    kwargs=st.dictionaries(st.from_regex("[a-z]{1,5}", fullmatch=True), VALUES, max_size=2),
    options=st.fixed_dictionaries(
        {},
        optional={
            "lane": st.sampled_from(["quick", "slow"]),
            "priority": st.integers(0, 9),
            "shadow": st.text(max_size=9),
            "ignore_result": st.booleans(),
            "headers": st.just({"own": 1}),
            "time_limit": st.integers(1, 9),
            "serializer": st.just("json"),
            "expires": st.just(30.0),
        },
    ),
    with_options=st.booleans(),
)
def test_both_ways_make_the_same_bytes(
    app: Any,
    tasks: dict[str, Any],
    name: str,
    args: list[Any],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    with_options: bool,
) -> None:
    task, given = tasks[name], options if with_options else {}
    if name == "keyed":
        args = []
    task.apply_async(args, kwargs, **given)
    short = sent(app)
    celerys_way(task, args, kwargs, **given)
    assert short == sent(app)


def test_the_short_way_is_taken_where_it_can_be(
    tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    send = direct.send

    def noting(*args: Any) -> Any:
        result = send(*args)
        taken.append(result is not None)
        return result

    monkeypatch.setattr(direct, "send", noting)
    for name in ("plain", "slow", "packed", "own", "keyed"):
        tasks[name].delay()
    assert taken == [True, True, False, False, False]


def test_the_result_is_celerys(tasks: dict[str, Any]) -> None:
    for name in ("plain", "slow"):
        short, other = tasks[name].delay(1), celerys_way(tasks[name], (1,))
        assert type(short) is type(other)
        assert (short.ignored, short.backend) == (other.ignored, other.backend)
        assert len(short.id) == len(other.id) == 36


@pytest.fixture
def within(tasks: dict[str, Any]) -> Iterator[Any]:
    """Within a task that a worker runs."""
    task = tasks["slow"]
    request = Context(id="parent", root_id="root", called_directly=False, children=[])
    task.push_request(request=None)
    task.request_stack.pop()
    task.request_stack.push(request)
    _task_stack.push(task)
    yield request
    _task_stack.pop()
    task.request_stack.pop()


def test_a_task_that_a_task_sends_knows_its_parent(
    app: Any, tasks: dict[str, Any], within: Any
) -> None:
    result = tasks["plain"].delay(1)
    short = sent(app)
    celerys_way(tasks["plain"], (1,))
    assert short == sent(app)
    headers = json.loads(short.replace("...", "0"))["headers"]
    assert (headers["root_id"], headers["parent_id"]) == ("root", "parent")
    assert result in within.children


def test_receivers_of_signals_and_events_have_celerys_way(app: Any, tasks: dict[str, Any]) -> None:
    heard: list[str] = []

    def hear(sender: str, headers: dict[str, Any], **_: Any) -> None:
        heard.append(headers["id"])

    tasks["plain"].delay()
    for signal in (before_task_publish, after_task_publish):
        signal.connect(hear)
        try:
            result = tasks["plain"].delay()
        finally:
            signal.disconnect(hear)
        assert heard.pop() == result.id
    app.conf.task_send_sent_event = True
    assert direct.send(tasks["plain"], (), {}, "id") is None


def test_who_has_put_another_send_task_there_is_asked(app: Any, tasks: dict[str, Any]) -> None:
    """As tests of an owner's may."""
    asked: list[Any] = []
    tasks["plain"].delay(0)
    app.send_task = lambda *args, **options: asked.append(args)
    tasks["plain"].delay(1)
    assert asked == [(tasks["plain"].name, (1,), {})]


def test_what_may_have_been_sent_is_sent_again_under_its_id(
    app: Any, tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kombu does, when a reply is lost."""
    push = direct._push
    monkeypatch.setattr(direct, "_push", lambda *args: push(*args) and False)
    result = tasks["plain"].delay()
    messages = app.server.client.lrange("quick_tasks", 0, -1)
    assert [json.loads(each)["headers"]["id"] for each in messages] == [result.id] * 2


def test_eager_mode_sends_nothing(app: Any, tasks: dict[str, Any]) -> None:
    app.conf.task_always_eager = True
    assert tasks["plain"].delay().successful()
    assert app.server.client.dbsize() == 0


def test_what_cannot_be_sent_is_said_as_celery_does(app: Any, tasks: dict[str, Any]) -> None:
    @app.task
    def two(first: int, second: int) -> None: ...

    with pytest.raises(TypeError, match="second"):
        two.delay(1)
    with pytest.raises(EncodeError):
        tasks["plain"].delay(object())
    with pytest.raises(TypeError, match="task args must be a list or tuple"):
        tasks["plain"].apply_async("text")


def test_a_connection_that_was_cut_is_made_anew(broker: Any, tasks: dict[str, Any]) -> None:
    tasks["plain"].delay()
    broker.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    broker.redis.flushdb()
    tasks["plain"].delay()
    assert broker.redis.llen("quick_tasks") == 1


def test_a_broker_that_refuses_is_explained(broker: Any, tasks: dict[str, Any]) -> None:
    tasks["plain"].delay()
    broker.redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(OperationalError, match="memory"):
            tasks["plain"].delay()
    finally:
        broker.redis.config_set("maxmemory", 0)
