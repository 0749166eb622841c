"""Lines that both type checkers must pass, with the types that they must see."""

from datetime import timedelta
from typing import Any, assert_type
from uuid import uuid4

from acme_tasks.celery import app
from acme_tasks.lanes import (
    App,
    BrokerError,
    ConfigError,
    LanesError,
    RoutingError,
    SendError,
    SettingsError,
    Task,
    shared_task,
)
from acme_tasks.tasks import quick_task, slow_task
from celery import Celery, chain
from celery.canvas import Signature
from celery.result import AsyncResult, EagerResult


@app.task
def bare(number: int) -> str:
    return str(number)


@app.task()
def called(number: int) -> str:
    return str(number)


@app.task(lane="slow", max_retries=None, autoretry_for=(OSError,), retry_backoff=True, name="one")
def one(number: int) -> str:
    return str(number)


@app.task(key="number")
def keyed(number: int) -> str:
    return str(number)


@app.task(key=lambda number: number % 10)
def keyed_by(number: int) -> str:
    return str(number)


@app.task
def none() -> None: ...


@app.task
def two(number: int, text: str = "") -> list[str]:
    return [text] * number


@app.task
def by_keyword(number: int, *, text: str = "") -> str:
    return text * number


@app.task
def any_number(*numbers: int, **texts: str) -> int:
    return len(numbers) + len(texts)


@app.task
def six(a: int, b: int, c: int, d: int, e: int, f: int = 0) -> int:
    return a + b + c + d + e + f


@app.task(bind=True, lane="quick")
def bound(self: Task, number: int, text: str = "") -> str:
    if self.request.retries:
        return text * number
    assert_type(self.lane, str | None)
    self.update_state(state="PROGRESS")
    raise self.retry(countdown=1, lane="slow", key="42", exc=ValueError(number))


class Patient(Task):
    """A base of the owner's."""

    abstract = True
    max_retries = 99
    patience = 3


@app.task(base=Patient)
def based(number: int) -> str:
    return str(number)


@app.task(base=Patient, bind=True)
def bound_and_based(self: Patient, number: int) -> str:
    return str(self.patience * number)


@shared_task
def shared(number: int) -> str:
    return str(number)


@shared_task(lane="slow", bind=True)
def shared_and_bound(self: Task, number: int) -> str:
    return str(number + self.request.retries)


class Counted(Task[[int], str]):
    """A task that is a class."""

    name = "counted"

    def run(self, number: int) -> str:
        """Runs."""
        return str(number)


# What is returned.
bare_is: Task[..., str] = bare
assert_type(app.register_task(Counted()).delay(1).get(), str)
every_task: list[Task] = [bare, none, two, bound, based, shared, shared_and_bound]

# A direct call.
assert_type(bare(1), str)
assert_type(called(number=1), str)
assert_type(two(1, text="a"), list[str])
assert_type(bound(1, "a"), str)
assert_type(shared_and_bound(1), str)
assert_type(slow_task(0.5), float)

# delay, and get.
assert_type(bare.delay(1), AsyncResult[str])
assert_type(bound.delay(1, text="a").get(timeout=1), str)
assert_type(bound_and_based.delay(1).get(), str)
assert_type(none.delay().get(), None)
assert_type(any_number.delay(1, 2, a="b").get(), int)
assert_type(shared.delay(1).get(), str)
assert_type(quick_task.delay(1).get(), int)
bare.delay_on_commit(1)

# apply_async
assert_type(one.apply_async((1,)), AsyncResult[str])
one.apply_async((1,), lane="quick", countdown=1.5, expires=60, headers={"trace": 1}, priority=None)
one.apply_async(args=(1,), queue="slow_tasks", link=bare.si(1))
one.apply_async(kwargs={"number": 1}, lane="quick")
one.apply_async((), {"number": 1}, lane=None)
one.apply_async((1,), key="42", unique="nightly", unique_for=60.5)
one.apply_async((1,), key=42, unique=True, unique_until="start")
one.apply_async((1,), key=uuid4(), unique=uuid4(), unique_for=timedelta(hours=1))
one.apply_async((1,), key=None, unique=None, unique_for=None, unique_until=None, replace=False)
assert_type(keyed.apply_async((1,), unique="nightly", replace=True).get(), str)
assert_type(keyed_by.delay(1), AsyncResult[str])
assert_type(keyed(1), str)
shared_task(key="number")
none.apply_async()
none.apply_async(lane="slow")
two.apply_async((1,))
assert_type(two.apply_async((1, "a")).get(), list[str])
by_keyword.apply_async((1,), {"text": "a"})
any_number.apply_async(())
any_number.apply_async((1, 2, 3, 4, 5, 6, 7))
any_number.apply_async(tuple(range(9)))
six.apply_async((1, 2, 3, 4, 5))
six.apply_async((1, 2, 3, 4, 5, 6))
assert_type(bound.apply_async((1, "a"), lane="slow"), AsyncResult[str])
shared.apply_async((1,), lane="slow")
assert_type(bare.apply((1,)), EagerResult[str])

# by key
assert_type(app.control.revoke_by_key("42"), int)
assert_type(app.control.revoke_by_key(42, lane="quick", terminate=True), int)
app.control.revoke("an-id", terminate=True)

# send_many
assert_type(one.send_many([(1,), (2,)]), int)
one.send_many([(1,)] * 2000, lane="quick", countdown=1, expires=60.5)
one.send_many([(1,)], key="42")
one.send_many((number,) for number in range(9))
none.send_many([()] * 3)
two.send_many([(1,)])
two.send_many([(1, "a"), (2, "b")])
two.send_many(zip(range(3), "abc", strict=True))
two.send_many(two.si(number, text="a") for number in range(9))
two.send_many([two.s(1), two.si(2, "b")])
two.send_many(two.si(n, text="a").set(countdown=n, task_id=f"{n}") for n in range(9))
options: dict[str, Any] = {"lane": "quick", "key": "42"}
two.send_many([two.si(1).set(**options)])
by_keyword.send_many([by_keyword.si(1, text="a")])
any_number.send_many([(1, 2, 3), (1,)])
six.send_many([(1, 2, 3, 4, 5, 6)])
bound.send_many([(1,)])
shared.send_many([(1,)], lane="quick")

# Signatures: all arguments, or all but the first.
assert_type(bare.s(1), Signature[str])
assert_type(bare.s(), Signature[str])
assert_type(two.s(text="a"), Signature[list[str]])
assert_type(bound.si(1, text="a"), Signature[str])
assert_type(bound.si(1).apply_async(countdown=1), AsyncResult[str])
assert_type(bound.si(1).delay().get(), str)
chain(bare.s(1), two.s(text="a")).delay()
chained = quick_task.s(1) | quick_task.s()

# The rest of the front door.
assert_type(app.lanes.default.name, str)
assert_type(app.lanes.get("quick").queue, str)
the_app: App = app
celerys_app: Celery = app
result: AsyncResult[str] = AsyncResult("id", app=app)
errors: list[type[LanesError]] = [
    BrokerError,
    ConfigError,
    LanesError,
    RoutingError,
    SendError,
    SettingsError,
]
assert_type(SendError("", 3).sent, int)
by_name: AsyncResult[Any] = app.send_task("name", (1,), key=42, unique="nightly")
