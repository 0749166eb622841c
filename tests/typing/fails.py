"""Lines that both type checkers must refuse: those that end in `# error`, and no others."""

from typing import assert_type

from acme_tasks import lanes
from acme_tasks.celery import app
from acme_tasks.lanes import Task, shared_task


@app.task(lane="slow")
def one(number: int) -> str:
    return str(number)


@app.task
def none() -> None: ...


@app.task(bind=True)
def bound(self: Task, number: int, text: str = "") -> str:
    self.retry(contdown=1)  # error
    self.retry(lane=3)  # error
    self.retry(key=1.5)  # error
    self.retry(unique="nightly")  # error
    return text * number


@app.task
def by_keyword(number: int, *, text: str) -> str:
    return text * number


@app.task
def any_number(*numbers: int) -> int:
    return len(numbers)


@shared_task(lane="slow")
def shared(number: int) -> str:
    return str(number)


class Patient(Task):
    """A base of the owner's."""

    patience = 3


@app.task(bind=True, base=Patient)
def based(self: Patient, number: int) -> str:
    return str(self.patience * number)


# Options of a task.
app.task(lnae="slow")  # error
app.task(lane=3)  # error
app.task(lane=None)  # error
app.task(max_retries="3")  # error
app.task(key=3)  # error
app.task(unique=True)  # error
app.task(base=int)  # error
shared_task(lnae="slow")  # error
shared_task(lane=3)  # error


@app.task(bind=True)  # error
def no_self(number: int) -> None: ...


@app.task(bind=True, base=Patient)  # error
def of_another_base(self: int) -> None: ...


# A direct call.
one("1")  # error
one()  # error
one(1, 2)  # error
one(numbre=1)  # error
bound(bound, 1)  # error
by_keyword(1, "a")  # error
any_number("1")  # error
shared("1")  # error
based(based, 1)  # error
assert_type(one(1), int)  # error

# delay, and get.
one.delay("1")  # error
one.delay()  # error
one.delay(1, 2)  # error
one.delay(1, lane="quick")  # error
none.delay(1)  # error
bound.delay(bound, 1)  # error
bound.delay(1, txet="a")  # error
shared.delay("1")  # error
number: int = one.delay(1).get()  # error
one.delay_on_commit("1")  # error

# apply_async
one.apply_async(("1",))  # error
one.apply_async((1, 2))  # error
one.apply_async(())  # error
one.apply_async()  # error
one.apply_async(lane="quick")  # error
one.apply_async(1)  # error
one.apply_async((1,), lane=3)  # error
one.apply_async((1,), lnae="quick")  # error
one.apply_async((1,), countdown="1")  # error
one.apply_async((1,), key=1.5)  # error
one.apply_async((1,), unique=1.5)  # error
one.apply_async((1,), unqiue="nightly")  # error
one.apply_async((1,), unique="nightly", unique_until="success")  # error
one.apply_async((1,), unique="nightly", unique_for=[60])  # error
one.apply_async((1,), unique="nightly", replace="yes")  # error
none.apply_async((1,))  # error
none.apply_async(lnae="quick")  # error
bound.apply_async((1, 2))  # error
bound.apply_async((bound, 1))  # error
by_keyword.apply_async((1,))  # error
any_number.apply_async(("1",))  # error
shared.apply_async((1,), lnae="quick")  # error
number = one.apply_async((1,)).get()  # error

# send_many
one.send_many([("1",)])  # error
one.send_many([(1, 2)])  # error
one.send_many([1])  # error
one.send_many((1,))  # error
one.send_many([(1,)], lane=3)  # error
one.send_many([(1,)], lnae="quick")  # error
one.send_many([(1,)], countdown="1")  # error
one.send_many([(1,)], key=1.5)  # error
one.send_many([(1,)], unique="nightly")  # error
one.send_many([one.si("1")])  # error
one.send_many([one.si(numbre=1)])  # error
one.send_many([none.si()])  # error
none.send_many([(1,)])  # error
bound.send_many([("1", "a")])  # error
by_keyword.send_many([(1,)])  # error
shared.send_many([("1",)])  # error

# Signatures
one.s("1")  # error
one.s(1, 2)  # error
one.s(numbre=1)  # error
one.si()  # error
one.si("1")  # error
bound.s(bound, 1)  # error
bound.si(1, txet="a")  # error

# The app
app.lanes.defualt  # error
app.lnaes  # error
app.control.revoke_by_key(4.2)  # error
app.control.revoke_by_key("42", "quick", True)  # error

# The front door
lanes.Tusk  # error
