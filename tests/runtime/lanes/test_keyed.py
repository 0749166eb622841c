"""The key and the lock of a message: what they are, what is refused, and where they go."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import pytest
from celery import Celery, chord, group
from celery.canvas import Signature
from celery.result import AsyncResult
from celery.signals import after_task_publish, before_task_publish
from harness import PATIENCE, Project, wait_until

from acme_tasks.lanes.errors import RoutingError
from acme_tasks.lanes.keyed import Once
from acme_tasks.lanes.redis.store import KEY, ONCE
from acme_tasks.lanes.task import Task

LANES = """
default_lane = "quick"

[lanes.quick]
[lanes.slow]
"""


@pytest.fixture
def app(bound: Callable[[str], Celery]) -> Celery:
    return bound(LANES)


def thumbnail(customer_id: Any, image: str = "a.png", *, size: int = 1) -> None: ...


def made(app: Any, task: Any = thumbnail, **options: Any) -> Any:
    """A task of this app."""
    return app.task(task, name=options.pop("name", task.__name__), **options)


def marks(task: Any, *args: Any, kwargs: Any = None, **options: Any) -> dict[str, Any]:
    """What the router makes of a call's options."""
    app = task.app
    routed = app.amqp.router.route(options, task.name, args, kwargs or {}, task)
    return {name: routed[name] for name in (KEY, ONCE) if name in routed}


def key(task: Any, *args: Any, **options: Any) -> Any:
    return marks(task, *args, **options).get(KEY)


def once(task: Any, *args: Any, **options: Any) -> Any:
    return marks(task, *args, **options).get(ONCE)


def refusal(send: Callable[[], Any]) -> str:
    with pytest.raises(RoutingError) as caught:
        send()
    return str(caught.value)


# Whose a task is


CALLS = {
    "by position": (((42,), {}), "42"),
    "by name": (((), {"customer_id": 42}), "42"),
    "with more": (((42, "b.png"), {"size": 2}), "42"),
    "None": (((None,), {}), None),
    "not given": (((), {}), None),
}


@pytest.mark.parametrize(("call", "found"), CALLS.values(), ids=CALLS)
def test_an_argument_is_the_key_however_it_is_given(app: Celery, call: Any, found: Any) -> None:
    args, kwargs = call
    assert key(made(app, key="customer_id"), *args, kwargs=kwargs) == found


def test_an_argument_that_is_left_out_is_its_default(app: Celery) -> None:
    assert key(made(app, name="second", key="image"), 42) == "a.png"
    assert key(made(app, name="last", key="size"), 42, "b.png") == "1"
    assert key(made(app, name="named", key="size"), 42, kwargs={"size": 3}) == "3"


def test_a_function_of_the_arguments_is_asked_for_the_key(app: Celery) -> None:
    def whose(customer_id: int, image: str = "", *, size: int = 1) -> object:
        return f"{customer_id}/{size}" if image else None

    task = made(app, key=whose)
    assert key(task, 42, "b.png", kwargs={"size": 2}) == "42/2"
    assert key(task, 42) is None


def test_an_argument_of_a_bound_task_is_found_past_its_self(app: Celery) -> None:
    def build(self: Any, customer_id: int) -> None: ...

    assert key(made(app, build, bind=True, key="customer_id"), 42) == "42"


def test_a_task_that_is_a_class_has_a_key_as_well(app: Any) -> None:
    class Build(Task[..., None]):
        name = "build"
        key = "customer_id"

        def run(self, image: str, customer_id: int) -> None: ...

    assert key(app.register_task(Build()), "a.png", 42) == "42"


def test_the_key_of_a_base_is_that_of_its_tasks(app: Celery) -> None:
    class OfACustomer(Task[..., Any]):
        abstract = True
        key = "customer_id"

    assert key(made(app, base=OfACustomer), 42) == "42"


def test_an_argument_among_others_of_any_name_is_found(app: Celery) -> None:
    def build(**options: Any) -> None: ...

    task = made(app, build, key="customer_id")
    assert key(task, kwargs={"customer_id": 42}) == "42"
    assert key(task) is None


def test_a_task_that_retries_by_itself_has_its_key(app: Celery) -> None:
    """Celery puts a function of its own around it."""
    assert key(made(app, key="image", autoretry_for=(OSError,)), 1, "b.png") == "b.png"


def test_a_key_that_is_no_argument_is_an_error_at_the_line_that_names_it(app: Any) -> None:
    rule = "is none of its arguments; say one of them, or a function that is called with them"
    said = f"thumbnail: key='customer' {rule} (arguments: customer_id, image, size)"
    assert refusal(lambda: app.task(thumbnail, key="customer")) == said
    assert refusal(lambda: app.task(key="customer")(thumbnail)) == said

    def build(self: Any, *more: Any) -> None: ...

    said = f"build: key='{{}}' {rule} (arguments: none)"
    for name in ("self", "more"):
        assert refusal(lambda: app.task(bind=True, key=name)(build)) == said.format(name)  # noqa: B023


def test_a_class_whose_key_is_no_argument_is_an_error_when_it_is_registered(app: Any) -> None:
    class Build(Task[..., None]):
        name = "build"
        key = "customer"

        def run(self, image: str) -> None: ...

    assert refusal(lambda: app.register_task(Build())) == (
        "build: key='customer' is none of its arguments; say one of them, or a function that is "
        "called with them (arguments: image)"
    )


def test_the_key_of_a_call_comes_before_that_of_its_task(app: Celery) -> None:
    task = made(app, key="customer_id")
    assert key(task, 42, key="7") == "7"
    assert key(task, 42, key=None) == "42"
    assert key(made(app, name="other"), 42, key=7) == "7"


class Plan(str, Enum):  # noqa: UP042 - its own text is its name
    GOLD = "gold"


KEYS = {
    "text": ("customer 42", "customer 42"),
    "whole number": (42, "42"),
    "below nothing": (-1, "-1"),
    "nothing": (0, "0"),
    "UUID": (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "member of an enumeration": (Plan.GOLD, "gold"),
    "what stands as it is": (" /:@+,=.-_~", " /:@+,=.-_~"),
    "what would end the header": ('a"b\\c', "a%22b%5Cc"),
    "percent": ("100%", "100%25"),
    "other letters": ("Zürich", "Z%C3%BCrich"),
    "lines": ("a\n\0b", "a%0A%00b"),
}


@pytest.mark.parametrize(("value", "header"), KEYS.values(), ids=KEYS)
def test_a_key_is_a_text_that_scripts_can_find(app: Celery, value: Any, header: str) -> None:
    assert key(made(app), 42, key=value) == header
    assert json.dumps(header) == f'"{header}"'


NOT_KEYS = {
    "truth": (True, "True", "expected a text, a whole number or a UUID"),
    "fraction": (1.5, "1.5", "expected a text, a whole number or a UUID"),
    "list": ([1], "[1]", "expected a text, a whole number or a UUID"),
    "empty": ("", "''", "expected 1 to 200 characters, and these are 0"),
    "long": ("x" * 201, f"'{'x' * 59}", "expected 1 to 200 characters, and these are 201"),
    "half a character": ("\udc80", "'\\udc80'", "it has half a character in it"),
}
WAYS_OUT = {
    "a UUID": "; make a text of it that is always the same",
    "0": "; a hash of it is short enough",
    "201": "; a hash of it is short enough",
    "it": "; leave that out",
}


@pytest.mark.parametrize(("value", "shown", "rule"), NOT_KEYS.values(), ids=NOT_KEYS)
def test_what_cannot_be_a_key_is_refused_with_where_it_came_from(
    app: Celery, value: Any, shown: str, rule: str
) -> None:
    (way_out,) = (each for end, each in WAYS_OUT.items() if rule.endswith(end))
    said = f"={shown} cannot be used: {rule}{way_out}"
    task = made(app, key="customer_id")
    assert refusal(lambda: key(task, 42, key=value)) == f"thumbnail: key{said}"
    assert refusal(lambda: key(task, value)) == f"thumbnail: customer_id{said}"
    by_function = made(app, name="other", key=lambda *_: value)
    assert refusal(lambda: key(by_function, 42)) == f"other: key{said}"
    if value is not True:
        assert refusal(lambda: once(task, 42, unique=value)) == f"thumbnail: unique{said}"


def test_the_longest_key_has_200_characters(app: Celery) -> None:
    assert unquote(key(made(app), 42, key="ü" * 200)) == "ü" * 200


def test_a_task_that_runs_another_for_each_of_many_has_no_key_but_the_calls(app: Any) -> None:
    task = made(app, key="customer_id")
    many = app.tasks["celery.map"]
    inner = {"task": task.s(), "it": [1, 2]}
    assert marks(many, kwargs=inner) == {}
    assert key(many, kwargs=inner, key="7") == "7"


# What is sent once


ONCES = {
    "until it is done": ({"unique": "nightly"}, "done 0"),
    "likewise, said": ({"unique": "nightly", "unique_until": "done"}, "done 0"),
    "until it starts": ({"unique": "nightly", "unique_until": "start"}, "start 0"),
    "for seconds": ({"unique": "nightly", "unique_for": 1.5}, "time 1500"),
    "for a timedelta": ({"unique": "nightly", "unique_for": timedelta(minutes=1)}, "time 60000"),
    "for a duration": ({"unique": "nightly", "unique_for": "1h"}, "time 3600000"),
    "for next to no time": ({"unique": "nightly", "unique_for": 0.0001}, "time 1"),
    "the latest": ({"unique": "nightly", "replace": True}, "latest 0"),
    "the latest, said": (
        {"unique": "nightly", "replace": True, "unique_until": "start"},
        "latest 0",
    ),
}


@pytest.mark.parametrize(("options", "begins"), ONCES.values(), ids=ONCES)
def test_a_lock_is_named_by_the_task_and_a_text(
    app: Celery, options: dict[str, Any], begins: str
) -> None:
    lock = once(made(app), 42, **options)
    assert lock.header("an id", 2) == f"{begins} 2 an%20id thumbnail%3Anightly"
    assert Once.read(lock.header("an id", 2)) == lock


def test_what_is_not_unique_has_no_lock(app: Celery) -> None:
    task = made(app)
    assert marks(task, 42) == marks(task, 42, unique=False) == marks(task, 42, unique=None) == {}
    nothing = {"unique_for": None, "unique_until": None, "replace": False}
    assert marks(task, 42, unique=None, **nothing) == {}


def test_unique_by_the_arguments_is_the_same_however_they_are_given(app: Celery) -> None:
    task = made(app)
    one = once(task, 42, unique=True)
    same = [
        once(task, 42, "a.png", unique=True),
        once(task, kwargs={"image": "a.png", "customer_id": 42}, unique=True),
        once(task, kwargs={"size": 1, "customer_id": 42}, unique=True),
    ]
    assert same == [one] * 3
    others = [
        once(task, 43, unique=True),
        once(task, "42", unique=True),
        once(task, 42, kwargs={"size": 2}, unique=True),
        once(made(app, name="other"), 42, unique=True),
    ]
    assert len({one, *others}) == 5
    nested = once(task, {"b": [1], "a": (2,)}, unique=True)
    assert nested == once(task, {"a": [2], "b": (1,)}, unique=True)


REFUSED = {
    "time and end": (
        {"unique": "x", "unique_for": 60, "unique_until": "done"},
        (
            "unique_for and unique_until cannot be used together: the one ends by the clock, the "
            "other with the task; leave one of them out"
        ),
    ),
    "latest and time": (
        {"unique": "x", "unique_for": 60, "replace": True},
        (
            "replace and unique_for cannot be used together: only what has not started can be "
            "replaced; leave one of them out"
        ),
    ),
    "latest and done": (
        {"unique": "x", "unique_until": "done", "replace": True},
        (
            "replace and unique_until='done' cannot be used together: only what has not started "
            "can be replaced; leave one of them out"
        ),
    ),
    "time alone": (
        {"unique_for": 60},
        "unique_for=60 needs unique: say unique=True, or a text",
    ),
    "end alone": (
        {"unique_until": "start", "unique": False},
        "unique_until='start' needs unique: say unique=True, or a text",
    ),
    "latest alone": ({"replace": True}, "replace=True needs unique: say unique=True, or a text"),
    "another end": (
        {"unique": "x", "unique_until": "success"},
        "unique_until='success' cannot be used: expected 'start' or 'done'",
    ),
    **{
        f"for {value!r}": (
            {"unique": "x", "unique_for": value},
            (
                f"unique_for={value!r} cannot be used: expected seconds, a timedelta or a duration "
                'such as "1h", of up to 366 days'
            ),
        )
        for value in (0, -1, True, "1 hour", float("nan"), 367 * 86_400, [1])
    },
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_sent_once_is_refused(
    app: Celery, options: dict[str, Any], said: str
) -> None:
    assert refusal(lambda: once(made(app), 42, **options)) == f"thumbnail: {said}"


def test_unique_by_the_arguments_of_a_task_that_is_not_here_is_refused(app: Any) -> None:
    assert refusal(lambda: app.send_task("reports.build", (1,), unique=True)) == (
        "reports.build: unique=True needs to know the task's arguments, and no task is called so "
        "here: say a text instead"
    )


def test_the_latest_with_an_id_of_ones_own_is_refused(app: Any) -> None:
    task = made(app)
    send = lambda: task.apply_async((1,), task_id="mine", unique="x", replace=True)  # noqa: E731
    assert refusal(send) == (
        "thumbnail: replace and task_id cannot be used together: the task that waits keeps its id; "
        "leave one of them out"
    )


def test_eager_mode_looks_at_keys_and_runs_each(app: Celery) -> None:
    app.conf.task_always_eager = True
    ran: list[int] = []

    def build(number: int) -> None:
        ran.append(number)

    task = made(app, build, key="number")
    for _ in range(2):
        task.apply_async((1,), unique="x")
    task.send_many([(2,), (3,)], key="7")
    assert ran == [1, 1, 2, 3]
    assert refusal(lambda: task.delay(1.5)).startswith("build: number=1.5 cannot be used")
    assert refusal(lambda: task.apply_async((1,), unique_for=1)).startswith("build: unique_for=1")


# In what is part of more


def of_more(task: Any) -> dict[str, tuple[str, Callable[[], Any]]]:
    plain, unique = task.si(1), task.si(1).set(unique="x")
    chained: Signature[Any] = plain | task.si(2) | unique
    return {
        "first of a chain": ("a chain", (unique | plain).delay),
        "last of a chain": ("a chain", (plain | unique).delay),
        "far in a chain": ("a chain", chained.delay),
        "in a chain in a chord": ("a chord", chord([plain], plain | unique).delay),
        "in a group in a chain": ("a chain", (plain | group(plain, unique) | plain).delay),
        "in a group": ("a group", group(unique, plain).delay),
        "in a chord": ("a chord", chord([unique, plain], plain).delay),
        "a chord's body": ("a chord", chord([plain, plain], unique).delay),
        "with what follows": (
            "a call with link or link_error",
            lambda: task.apply_async((1,), unique="x", link=plain),
        ),
        "with what follows a failure": (
            "a call with link or link_error",
            lambda: task.apply_async((1,), unique="x", link_error=plain),
        ),
        "a last task, when its turn comes": (
            "a chain",
            lambda: task.apply_async((1,), unique="x", chain=[]),
        ),
        "what replaces a task": (
            "what replaces a task",
            lambda: task.apply_async((1,), unique="x", replaced_task_nesting=1),
        ),
    }


@pytest.fixture
def sender(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """An app that can send."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound(LANES)
    yield app
    app.close()


def test_what_others_wait_for_is_always_sent(sender: Any, broker: Any) -> None:
    """It is refused before any of them is sent."""
    task = made(sender)
    for what, (part, send) in of_more(task).items():
        assert refusal(send) == (
            f"thumbnail: unique cannot be used in {part}: what is not sent, because another is "
            "under way, would never end, and nothing would follow it; send it by itself"
        ), what
    assert not broker.redis.keys("*_tasks")


# Where they go


def messages(broker: Any, queue: str = "quick_tasks") -> list[Any]:
    """What is in the queue, the next first."""
    return [json.loads(message) for message in reversed(broker.redis.lrange(queue, 0, -1))]


def of_key(broker: Any, name: str, lane: str = "quick") -> list[Any]:
    """What waits of a key, likewise."""
    waiting = broker.redis.lrange(f"lanes:{lane}:keyed:messages:{name}", 0, -1)
    return [json.loads(message) for message in reversed(waiting)]


def test_a_message_with_a_key_waits_among_those_of_its_key(sender: Any, broker: Any) -> None:
    task = made(sender, key="customer_id")
    task.delay(42)
    sender.send_task("reports.build", (1,), key="a/b", lane="slow", unique="nightly")
    (one,) = of_key(broker, "42")
    assert one["headers"][KEY] == "42"
    assert ONCE not in one["headers"]
    (other,) = of_key(broker, "a/b", "slow")
    id_ = other["headers"]["id"]
    assert other["headers"][ONCE] == f"done 0 0 {id_} reports.build%3Anightly"
    for message in (one, other):  # Celery's sender takes what it does not know for properties
        assert not {"key", "unique", "lane_first"} & {*message["properties"], *message["headers"]}


def test_what_has_neither_key_nor_lock_is_celerys_message(sender: Any, broker: Any) -> None:
    made(sender).delay(42)
    (message,) = messages(broker)
    assert not {KEY, ONCE} & message["headers"].keys()


def test_the_second_send_returns_the_first_ones_result(sender: Any, broker: Any) -> None:
    task = made(sender)
    first = task.apply_async((42,), unique="nightly")
    second = task.apply_async((43,), unique="nightly")
    third = sender.send_task("thumbnail", (44,), unique="nightly", task_id="mine")
    assert isinstance(second, AsyncResult)
    assert first == second == third
    assert [message["headers"]["id"] for message in messages(broker)] == [first.id]
    assert task.apply_async((42,), unique="weekly") != first
    assert task.apply_async((42,), unique="nightly", lane="slow") != first
    assert (broker.redis.llen("quick_tasks"), broker.redis.llen("slow_tasks")) == (2, 1)


def test_a_class_of_results_of_ones_own_gets_the_first_id(sender: Any) -> None:
    class Result(AsyncResult[Any]):
        pass

    own = functools.partial(Result, app=sender)
    first = sender.send_task("reports.build", unique="x", result_cls=own)
    second = sender.send_task("reports.build", unique="x", result_cls=own)
    assert (type(second), second.id) == (Result, first.id)


def test_a_send_that_was_not_needed_keeps_the_connection(sender: Any, broker: Any) -> None:
    """Seen with an exception out of Celery's send: a new connection for each."""
    task = made(sender)
    task.apply_async((42,), unique="nightly")
    before = broker.redis.info("stats")["total_connections_received"]
    for _ in range(10):
        task.apply_async((42,), unique="nightly")
    assert broker.redis.info("stats")["total_connections_received"] == before


def test_headers_that_a_task_hands_on_bring_neither_key_nor_lock(sender: Any, broker: Any) -> None:
    headers = {"trace": "1", KEY: "42", ONCE: "done 0 0 id name"}
    sender.send_task("reports.build", headers=headers, ignore_result=True)
    made(sender).apply_async((42,), headers=headers)
    sent = [message["headers"] for message in messages(broker)]
    assert [each.get("trace") for each in sent] == ["1", "1"]
    assert not any({KEY, ONCE} & each.keys() for each in sent)


def test_a_signal_before_is_sent_for_each_and_one_after_for_what_was_sent(sender: Any) -> None:
    begun: list[str] = []
    ended: list[str] = []

    def before(headers: Any, **_: Any) -> None:
        begun.append(headers["id"])

    def after(headers: Any, **_: Any) -> None:
        ended.append(headers["id"])

    before_task_publish.connect(before)
    after_task_publish.connect(after)
    try:
        results = [made(sender).apply_async((42,), unique="x") for _ in range(2)]
    finally:
        before_task_publish.disconnect(before)
        after_task_publish.disconnect(after)
    assert ended == begun[:1] == [results[0].id]
    assert len(begun) == 2


def test_the_latest_takes_the_place_of_what_waits(sender: Any, broker: Any) -> None:
    task = made(sender)
    first = task.apply_async((42,), unique="x", replace=True)
    second = task.apply_async((43,), unique="x", replace=True, countdown=60)
    assert second == first
    assert broker.redis.llen("quick_tasks") == 1
    assert broker.redis.hlen("lanes:quick:latest") == 1


def test_many_have_the_keys_of_each_or_that_of_the_call(sender: Any, broker: Any) -> None:
    task = made(sender, key="customer_id")
    assert task.send_many([(1,), (2,), (1, "b.png"), task.si(customer_id=2), (None,)]) == 5
    assert [len(of_key(broker, name)) for name in ("1", "2")] == [2, 2]
    assert [message["headers"].get(KEY) for message in messages_alone(broker)] == [None]
    assert task.send_many([(1,), (2,)], key="all", countdown=60) == 2
    assert broker.redis.zcard("lanes:quick:keyed:delayed") == 2
    assert refusal(lambda: task.send_many([(1,)], key=True)).startswith("thumbnail: key=True")


def messages_alone(broker: Any) -> list[Any]:
    """What is in the queue besides the tokens of keys."""
    return [message for message in messages(broker) if message != "keyed"]


def test_a_call_of_many_cannot_be_unique(sender: Any) -> None:
    task: Any = made(sender)
    with pytest.raises(TypeError, match="unexpected keyword argument 'unique'"):
        task.send_many([(1,)], unique="x")


def test_a_retry_keeps_its_key_and_lock_and_a_task_hands_neither_on(sender: Any) -> None:
    """With headers of its own run, as those do who pass a trace on."""
    task = made(sender, key="customer_id", bind=False)
    once = "done 0 0 mine thumbnail%3Anightly"
    headers = {"trace": "1", KEY: "a%22b", ONCE: once, "id": "mine", "retries": 0}
    task.push_request(args=(42,), kwargs={}, called_directly=False, **headers)
    try:
        again = task.signature_from_request(retries=1)
        assert marks(task, 42, **again.options) == {
            KEY: "a%22b",
            ONCE: Once("done", 0, "thumbnail%3Anightly"),
        }
        elsewhere = task.signature_from_request(retries=1, key="7")
        assert key(task, 42, **elsewhere.options) == "7"
        assert refusal(lambda: marks(task, 42, **again.options, unique="x")) == (
            "thumbnail: unique cannot be said in a retry, which keeps that of its task"
        )
        assert marks(task, 42, headers=task.request.headers) == {KEY: "42"}
        assert marks(made(sender, name="other"), 42, headers=task.request.headers) == {}
    finally:
        task.pop_request()


@pytest.mark.parametrize("said", ["", "done", "done x 0 id name", "a b c d e f"])
def test_a_lock_that_cannot_be_read_is_none(app: Celery, said: str) -> None:
    """Anything may have sent the message that is tried again."""
    assert Once.read(said) is None
    assert marks(made(app), 42, **{ONCE: said}) == {}


# Real workers, and many senders


WORKED = """
default_lane = "quick"

[lanes.quick]
concurrency = 2
[lanes.slow]
"""


def test_one_of_fifty_that_race_is_sent_and_all_have_its_result(
    tmp_path: Path, broker: Any
) -> None:
    """From threads of several processes, once they all stand ready."""
    project = Project(tmp_path, WORKED, broker.url)
    program = """
import sys, threading
from acme_tasks.celery import app

app.send_task("echo", ("x",), ignore_result=True, unique="other")  # connected from here on
print("ready", flush=True)
sys.stdin.readline()

def send():
    print(app.send_task("echo", ("x",), unique="nightly").id, flush=True)

threads = [threading.Thread(target=send) for _ in range(10)]
[each.start() for each in threads]
[each.join() for each in threads]
"""
    pipe = subprocess.PIPE
    senders = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=project.environment,
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        for _ in range(5)
    ]
    try:
        for each in senders:
            assert each.stdout.readline() == "ready\n"
        for each in senders:
            each.stdin.write("go\n")
            each.stdin.flush()
        ids = [id_ for each in senders for id_ in each.communicate(timeout=PATIENCE)[0].split()]
    finally:
        for each in senders:
            each.kill()
            each.wait()
    assert len(ids) == 50
    sent = [message["headers"] for message in messages(broker)]
    assert [each["id"] for each in sent if "nightly" in each[ONCE]] == list(set(ids))
    assert len(sent) == 2


def test_a_lock_goes_when_its_task_has_ended_well_or_not(tmp_path: Path, broker: Any) -> None:
    project = Project(tmp_path, WORKED, broker.url)
    app: Any = project.app()
    go, seen = tmp_path / "go", tmp_path / "seen"
    hold = functools.partial(app.send_task, "hold_until", (str(go), str(seen)), unique="x", key=7)
    fail = functools.partial(app.send_task, "fail", (str(seen),), unique="x", key=7)
    with app, project.workers("quick"):
        first = hold()
        wait_until(seen.exists, "the task to begin")
        assert hold() == first
        go.touch()
        assert hold().get(timeout=PATIENCE) == first.get(timeout=PATIENCE) == "held"
        wait_until(lambda: not broker.redis.keys("lanes:quick:once:*"), "the lock to go")
        assert hold().id != first.id

        failed = fail()
        with pytest.raises(ValueError, match="always"):
            failed.get(timeout=PATIENCE)
        wait_until(lambda: broker.redis.zcard("lanes:quick:dead"), "the dead letter")
        (letter,) = map(json.loads, broker.redis.hvals("lanes:quick:dead:messages"))
        assert letter["headers"][KEY] == "7"
        assert letter["headers"][ONCE] == f"done 0 3 {failed.id} fail%3Ax"
        assert fail().id != failed.id


def test_a_task_of_a_chain_has_its_own_key_and_not_that_of_the_one_before(
    tmp_path: Path, broker: Any
) -> None:
    project = Project(tmp_path, WORKED, broker.url)
    app: Any = project.app()
    with app, project.workers("quick"):
        first = app.signature("echo", ("x",), {}, {"key": "1"})
        for key in ({"key": "2"}, {}):
            (first | app.signature("echo", options={"lane": "slow", **key})).delay()
        wait_until(lambda: broker.redis.llen("slow_tasks") == 2, "the second ones")
    assert len(of_key(broker, "2", "slow")) == 1
    alone = [message for message in messages(broker, "slow_tasks") if message != "keyed"]
    assert [message["headers"].get(KEY) for message in alone] == [None]
