"""Whose a task is: what a key may be, what is refused, and where messages of a key go."""

import json
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import pytest
from celery import Celery, chord, group
from harness import Project, wait_until
from keying import LANES, WORKED, made, marks, messages, of_key, refusal, thumbnail

from acme_tasks.lanes.once import Once
from acme_tasks.lanes.redis.store import KEY, ONCE
from acme_tasks.lanes.task import Task


@pytest.fixture
def app(bound: Callable[[str], Celery]) -> Celery:
    return bound(LANES)


@pytest.fixture
def sender(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """An app that can send."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound(LANES)
    yield app
    app.close()


def key(task: Any, *args: Any, **options: Any) -> Any:
    return marks(task, *args, **options).get(KEY)


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
        unique = lambda: marks(task, 42, unique=value)  # noqa: E731
        assert refusal(unique) == f"thumbnail: unique{said}"


def test_the_longest_key_has_200_characters(app: Celery) -> None:
    assert unquote(key(made(app), 42, key="ü" * 200)) == "ü" * 200


def test_a_task_that_runs_another_for_each_of_many_has_no_key_but_the_calls(app: Any) -> None:
    task = made(app, key="customer_id")
    many = app.tasks["celery.map"]
    inner = {"task": task.s(), "it": [1, 2]}
    assert marks(many, kwargs=inner) == {}
    assert key(many, kwargs=inner, key="7") == "7"


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


# Where they go


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


def test_headers_that_a_task_hands_on_bring_neither_key_nor_lock(sender: Any, broker: Any) -> None:
    headers = {"trace": "1", KEY: "42", ONCE: "done 0 0 id name"}
    sender.send_task("reports.build", headers=headers, ignore_result=True)
    made(sender).apply_async((42,), headers=headers)
    sent = [message["headers"] for message in messages(broker)]
    assert [each.get("trace") for each in sent] == ["1", "1"]
    assert not any({KEY, ONCE} & each.keys() for each in sent)


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


def test_tasks_of_a_group_and_a_chord_have_their_own_keys(sender: Any, broker: Any) -> None:
    task = made(sender, key="customer_id")
    group(task.s(number % 2) for number in range(4)).delay()
    assert [len(of_key(broker, name)) for name in ("0", "1")] == [2, 2]
    chord([task.s(7), task.s(7, "b.png").set(key="8")], task.si(9)).delay()
    assert [len(of_key(broker, name)) for name in ("7", "8", "9")] == [1, 1, 0]


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
