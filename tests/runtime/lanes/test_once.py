"""What is sent once: the lock of a message, what is refused, and when it goes."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from celery import Celery, chord, group
from celery.canvas import Signature
from celery.result import AsyncResult
from celery.signals import after_task_publish, before_task_publish
from harness import PATIENCE, Project, wait_until
from keying import LANES, WORKED, made, marks, messages, refusal

from acme_tasks.lanes.once import Once
from acme_tasks.lanes.redis.store import KEY, ONCE


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


def once(task: Any, *args: Any, **options: Any) -> Any:
    return marks(task, *args, **options).get(ONCE)


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


def test_a_call_of_many_cannot_be_unique(sender: Any) -> None:
    task: Any = made(sender)
    with pytest.raises(TypeError, match="unexpected keyword argument 'unique'"):
        task.send_many([(1,)], unique="x")


@pytest.mark.parametrize("said", ["", "done", "done x 0 id name", "a b c d e f"])
def test_a_lock_that_cannot_be_read_is_none(app: Celery, said: str) -> None:
    """Anything may have sent the message that is tried again."""
    assert Once.read(said) is None
    assert marks(made(app), 42, **{ONCE: said}) == {}


# Real workers, and many senders


def test_one_of_fifty_that_race_is_sent_and_all_have_its_result(
    tmp_path: Path, broker: Any
) -> None:
    """From threads of several processes, once they all stand ready."""
    project = Project(tmp_path, WORKED, broker.url)
    program = """
import os, sys, threading
from acme_tasks.celery import app

app.send_task("echo", ("x",), ignore_result=True, unique="other")  # connected from here on
print("ready", flush=True)
sys.stdin.readline()

def send():
    id_ = app.send_task("echo", ("x",), unique="nightly").id
    os.write(1, f"{id_}\\n".encode())  # one write, and so a line of its own

threads = [threading.Thread(target=send) for _ in range(10)]
[each.start() for each in threads]
[each.join() for each in threads]
"""
    pipe = subprocess.PIPE
    senders: list[Any] = [
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


def test_each_lock_ends_when_the_page_says(tmp_path: Path, broker: Any) -> None:
    lanes = WORKED.replace("concurrency = 2", "concurrency = 1\nprefetch = 1")
    project = Project(tmp_path, lanes, broker.url)
    app: Any = project.app()
    go, seen = tmp_path / "go", tmp_path / "seen"

    def locks() -> set[str]:
        found = broker.redis.keys("lanes:quick:once:*")
        return {unquote(key.decode().partition("once:")[2]) for key in found}

    def echo(value: str, **options: Any) -> Any:
        return app.send_task("echo", (value,), unique="x", **options)

    with app, project.workers("quick"):
        held = app.send_task(
            "hold_until", (str(go), str(seen)), unique="start", unique_until="start"
        )
        wait_until(seen.exists, "the task to begin")
        assert locks() == set()
        next_ = [
            app.send_task("hold_until", (str(go), str(seen)), unique="start", unique_until="start")
            for _ in range(2)
        ]
        assert next_[0] == next_[1] != held
        # One slot is busy: the first has not begun, and takes the newest arguments.
        latest = [echo(value, replace=True) for value in ("first", "second", "third")]
        go.touch()
        assert {each.get(timeout=PATIENCE) for each in latest} == {"third"}
        assert latest[0] == latest[1] == latest[2]
        wait_until(lambda: not locks(), "the locks to go")

        for_an_hour = echo("x", unique_for="1h")
        assert for_an_hour.get(timeout=PATIENCE) == "x"
        wait_until(lambda: not broker.redis.hlen("lanes:quick:leased"), "the end")
        assert echo("y", unique_for="1h") == for_an_hour
        failed = app.send_task("fail", (str(seen),), unique="x", unique_for="1h")
        with pytest.raises(ValueError, match="always"):
            failed.get(timeout=PATIENCE)
        wait_until(lambda: locks() == {"echo:x"}, "the lock of what failed to go")
        revoked = app.send_task("echo", ("x",), unique="late", countdown=3)
        app.control.revoke(revoked.id)
        assert "echo:late" in locks()
        wait_until(lambda: locks() == {"echo:x"}, "the lock of what was revoked to go")
