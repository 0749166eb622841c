"""A group's tasks go together, as the messages that Celery's way makes."""

import gc
import json
import re
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, current_app, group
from celery._state import _task_stack
from celery.app.task import Context
from celery.result import GroupResult
from celery.signals import after_task_publish, before_task_publish
from harness import free_port
from kombu.exceptions import OperationalError

from acme_tasks.lanes.errors import RoutingError
from acme_tasks.lanes.redis import batch as batch_module

LANES = """
default_lane = "quick"
[lanes.quick]
expires = "10m"
[lanes.slow]
results = false
"""


@pytest.fixture
def app(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    monkeypatch.setenv("BROKER_URL", broker.url)
    with bound(LANES) as app:
        yield app
    gc.collect()  # of results, which unsubscribe while there is a server


@pytest.fixture
def tasks(app: Any) -> dict[str, Any]:
    return tasks_of(app)


def tasks_of(app: Any) -> dict[str, Any]:
    @app.task
    def plain(*args: Any, **kwargs: Any) -> None: ...

    @app.task(lane="slow")
    def slow(first: int, second: int = 0) -> None: ...

    @app.task(key="customer")
    def keyed(customer: Any = 1, number: int = 0) -> None: ...

    return {task.__name__: task for task in (plain, slow, keyed)}


def hear(**_: Any) -> None:
    """A receiver, with which each is sent by itself, as Celery does."""


ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r'"(lane_sent_at)": [0-9.]+|"(eta|expires|lane_expires|delivery_tag)": "[^"]+"')


def sent(redis: Any) -> list[tuple[str, str]]:
    """The messages by their places, with the same names for the same ids; and then none is left."""
    found: list[tuple[str, Any]] = []
    for key in sorted(redis.scan_iter()):
        kind = redis.type(key)
        if kind == b"list" and not key.endswith(b":turns"):
            found += [(key.decode(), json.loads(each)) for each in redis.lrange(key, 0, -1)]
        elif kind == b"zset":
            found += [(key.decode(), json.loads(each)) for each in redis.zrange(key, 0, -1)]
    redis.flushdb()
    seen: dict[str, str] = {}
    texts = []
    for key, message in found:
        if message != "keyed":
            text = TIME.sub(
                "a time", json.dumps(message | {"body": b64decode(message["body"]).decode()})
            )
            texts.append(
                (key, ID.sub(lambda match: seen.setdefault(match[0], f"#{len(seen)}"), text))
            )
    return texts


SHAPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda t: group([t["plain"].s(n, b=n) for n in range(3)]),
    "of a generator": lambda t: group(t["plain"].s(n, b=n) for n in range(3)),
    "of two lanes": lambda t: group(t["plain"].s(1), t["slow"].s(2), t["plain"].s(3)),
    "one": lambda t: group([t["plain"].s(1)]),
    "with keys": lambda t: group([t["keyed"].s(n % 2) for n in range(4)]),
    "with options": lambda t: group(
        t["plain"].s(1),
        t["plain"].s(2).set(countdown=60),
        t["plain"].s(3).set(lane="slow", priority=3),
        t["plain"].s(4).set(headers={"trace": "1"}),
        t["plain"].s(5).set(link=t["plain"].si(6)),
        t["plain"].s(7).set(ignore_result=True),
    ),
    "of chains": lambda t: group([chain(t["plain"].s(n), t["slow"].s(n)) for n in range(2)]),
    "nested": lambda t: group(t["plain"].s(1), group(t["plain"].s(2), t["slow"].s(3))),
    # The chord's own tasks go before the others: Celery does not hand the producer on to them.
    "with a chord in front": lambda t: group(
        chord([t["plain"].s(2), t["plain"].s(3)], t["slow"].s(4)), t["plain"].s(1)
    ),
    "a chord": lambda t: chord(group([t["plain"].s(n) for n in range(3)]), t["plain"].s(4)),
    "a chain with groups": lambda t: t["plain"].s(1) | group(t["plain"].s(2), t["plain"].s(3)),
}


@pytest.mark.parametrize("options", [{}, {"countdown": 60}, {"args": (9,)}], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_group_has_the_messages_of_celerys_way(
    app: Any,  # noqa: ARG001
    broker: Any,
    tasks: dict[str, Any],
    shape: str,
    options: dict[str, Any],
) -> None:
    result = SHAPES[shape](tasks).apply_async(**options)
    together = sent(broker.redis)
    before_task_publish.connect(hear)
    try:
        other = SHAPES[shape](tasks).apply_async(**options)
    finally:
        before_task_publish.disconnect(hear)
    assert together == sent(broker.redis)
    assert together
    assert type(result) is type(other)
    assert len(getattr(result, "results", ())) == len(getattr(other, "results", ()))


def test_a_groups_tasks_go_the_short_way_in_a_batch(
    tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for options that it does not know, which are in the same batch."""
    publish, long = batch_module.Batch.publish, []

    def noting(self: Any, message: Any, **options: Any) -> Any:
        long.append(json.loads(message["body"])[0])
        return publish(self, message, **options)

    monkeypatch.setattr(batch_module.Batch, "publish", noting)
    for shape in SHAPES.values():
        shape(tasks).apply_async()
    assert long == [[3]]  # with a priority


def test_a_groups_tasks_know_their_parent(app: Any, broker: Any, tasks: dict[str, Any]) -> None:  # noqa: ARG001
    """Within a task that a worker runs."""
    task = tasks["slow"]
    request = Context(id="parent", root_id="root", called_directly=False, children=[])
    task.request_stack.push(request)
    _task_stack.push(task)
    try:
        result = group([tasks["plain"].s(n) for n in range(2)]).apply_async()
    finally:
        _task_stack.pop()
        task.request_stack.pop()
    assert request.children == [result]
    messages = [json.loads(each) for each in reversed(broker.redis.lrange("quick_tasks", 0, -1))]
    headers = [each["headers"] for each in messages]
    assert [(each["root_id"], each["parent_id"]) for each in headers] == [("root", "parent")] * 2
    assert [each["id"] for each in headers] == [each.id for each in result]
    assert [(each["group"], each["group_index"]) for each in headers] == [
        (result.id, 0),
        (result.id, 1),
    ]


def test_a_group_goes_in_few_commands(broker: Any, tasks: dict[str, Any]) -> None:
    """Seen before: one for each task."""
    result = group([tasks["plain"].s(n) for n in range(2500)]).apply_async()
    assert len(result) == 2500
    assert broker.redis.info("commandstats")["cmdstat_lpush"]["calls"] == 25
    first, last = (json.loads(broker.redis.lindex("quick_tasks", at)) for at in (-1, 0))
    assert [first["headers"]["id"], last["headers"]["id"]] == [result[0].id, result[-1].id]


def test_tasks_of_a_generator_that_takes_its_time_go_at_once(
    broker: Any, tasks: dict[str, Any]
) -> None:
    """But for the one before, as with Celery's way (#3021), in a chord, too."""
    waiting: list[int] = []

    def slowly() -> Iterator[Any]:
        for number in range(4):
            time.sleep(0.1)
            waiting.append(broker.redis.llen("quick_tasks"))
            yield tasks["plain"].s(number)

    def looked(send: Callable[[], Any], count: int = 4) -> list[int]:
        broker.redis.flushdb()
        waiting.clear()
        send()
        assert broker.redis.llen("quick_tasks") == count
        return waiting.copy()

    three = [tasks["plain"].s(n) for n in range(3)]

    def both() -> list[list[int]]:
        return [
            looked(lambda: group(slowly()).apply_async()),
            looked(lambda: chord(slowly(), tasks["plain"].s()).apply_async()),
            looked(lambda: group([*three, group(slowly())]).apply_async(), 7),
        ]

    together = both()
    before_task_publish.connect(hear)
    try:
        assert both() == together
    finally:
        before_task_publish.disconnect(hear)
    assert together == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 3]]


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # Celery's
def test_a_groups_result_can_be_kept(app: Any, broker: Any, tasks: dict[str, Any]) -> None:  # noqa: ARG001
    result = group([tasks["plain"].s(n) for n in range(3)]).apply_async()
    result.save()
    assert GroupResult.restore(result.id, app=app) == result


def test_who_listens_to_each_send_hears_of_it_when_it_is_done(
    broker: Any, tasks: dict[str, Any]
) -> None:
    waiting: list[int] = []

    def look(**_: Any) -> None:
        waiting.append(broker.redis.llen("quick_tasks"))

    after_task_publish.connect(look)
    try:
        group([tasks["plain"].s(n) for n in range(3)]).apply_async()
    finally:
        after_task_publish.disconnect(look)
    assert waiting == [1, 2, 3]


def test_a_group_with_wrong_arguments_ends_there(broker: Any, tasks: dict[str, Any]) -> None:
    """With nothing sent of their step, where Celery's has sent what stands before them."""
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments but 3 were given"):
        group(tasks["slow"].s(1), tasks["slow"].s(1, 2, 3)).apply_async()
    with pytest.raises(RoutingError, match="unique cannot be used in a group"):
        group(tasks["slow"].s(1), tasks["slow"].s(2).set(unique="x")).apply_async()
    assert broker.redis.llen("slow_tasks") == 0
    some = [tasks["plain"].s(n) for n in range(250)]
    with pytest.raises(TypeError):
        group([*some, tasks["slow"].s(1, 2, 3)]).apply_async()
    assert broker.redis.llen("quick_tasks") == 200


def test_a_group_with_a_producer_that_has_a_batch_goes_with_that(
    app: Any, broker: Any, tasks: dict[str, Any]
) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        with producer.batch():
            tasks["plain"].apply_async((0,), producer=producer)
            group([tasks["plain"].s(n) for n in range(3)]).apply_async(producer=producer)
            assert broker.redis.llen("quick_tasks") == 0
        assert broker.redis.llen("quick_tasks") == 4
        group([tasks["plain"].s(n) for n in range(3)]).apply_async(producer=producer)
    assert broker.redis.llen("quick_tasks") == 7


def test_a_batch_that_failed_cannot_be_used_again(app: Any, broker: Any, tasks: Any) -> None:
    def use() -> None:
        with app.producer_pool.acquire(block=True) as producer, producer.batch() as batch:
            tasks["plain"].apply_async((0,), producer=producer)
            broker.redis.config_set("maxmemory", 1)
            with pytest.raises(Exception, match=r"a batch failed: .*memory"):
                batch.flush()
            broker.redis.config_set("maxmemory", 0)
            tasks["plain"].apply_async((1,), producer=producer)

    with pytest.raises(Exception, match="cannot be reused after a previous failure"):
        use()
    assert broker.redis.llen("quick_tasks") == 0


def test_a_group_that_knows_its_app_by_a_proxy_is_sent(
    app: Any, broker: Any, tasks: dict[str, Any]
) -> None:
    """One that was deserialised, say. Seen before: an AttributeError of the proxy."""
    app.set_current()
    group([tasks["plain"].s(n) for n in range(3)], app=current_app).apply_async()
    assert broker.redis.llen("quick_tasks") == 3


def test_groups_of_other_apps_are_sent_as_before(app: Any) -> None:  # noqa: ARG001
    with Celery("other", broker="memory://", set_as_current=False) as other:

        @other.task(name="theirs", shared=False)
        def theirs(number: int) -> None: ...

        result = group([theirs.s(n) for n in range(3)], app=other).apply_async()
        with other.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
            ids = [queue.get(timeout=5).headers["id"] for _ in range(3)]
    assert ids == [each.id for each in result]


def fail(
    monkeypatch: pytest.MonkeyPatch, *, times: int, first: int = 0, after: bool = False
) -> list[float]:
    """Have batches fail from the `first` on: a connection is cut before, or after, the send."""
    send, tries = batch_module.Batch._send, []

    def failing(self: Any) -> None:
        tries.append(time.monotonic())
        if after:
            send(self)
        if first < len(tries) <= first + times:
            raise ConnectionResetError("the connection was cut")
        if not after:
            send(self)

    monkeypatch.setattr(batch_module.Batch, "_send", failing)
    return tries


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_connection_that_is_cut_has_a_group_sent_again(
    broker: Any, tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """As `delay` is; what may have been sent is sent again under its id."""
    tries = fail(monkeypatch, times=2, after=after)
    result = group([tasks["plain"].s(n) for n in range(5)]).apply_async()
    assert len(tries) == 3
    found = [
        json.loads(each)["headers"]["id"] for each in broker.redis.lrange("quick_tasks", 0, -1)
    ]
    assert set(found) == {each.id for each in result}
    assert len(found) == (15 if after else 5)  # the step goes again as a whole


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 4), ({"retry": False}, 1), ({"retry_policy": {"max_retries": 1}}, 2)],
    ids=["by default", "not again", "once more"],
)
def test_a_group_that_cannot_be_sent_is_an_error_after_as_many_tries_as_the_policy_says(
    broker: Any,
    tasks: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    count: int,
) -> None:
    tries = fail(monkeypatch, times=9)
    with pytest.raises(OperationalError, match="the server ends the connection"):
        group([tasks["plain"].s(n) for n in range(5)]).apply_async(**options)
    assert len(tries) == count
    assert broker.redis.llen("quick_tasks") == 0


def test_a_broker_that_has_gone_is_an_error_in_time(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setenv("RESULT_URL", "")
    with bound(LANES) as app:
        tasks = tasks_of(app)
        began = time.monotonic()
        with pytest.raises(OperationalError, match=r"nothing answers|refused"):
            group([tasks["plain"].s(n) for n in range(5)]).apply_async()
        assert time.monotonic() - began < 10  # seconds: timeouts.SEND


def test_what_was_sent_when_a_group_fails_was_sent(
    broker: Any, tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Celery's way, but for what goes together."""
    fail(monkeypatch, times=99, first=3)
    with pytest.raises(OperationalError):
        group([tasks["plain"].s(n) for n in range(500)]).apply_async(retry=False)
    assert broker.redis.llen("quick_tasks") == 300
