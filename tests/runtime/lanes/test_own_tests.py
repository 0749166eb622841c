"""What an owner's tests use: Celery's worker in the test's process, and its eager mode."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from harness import free_port, wait_until

from acme_tasks.lanes.errors import RoutingError
from acme_tasks.lanes.redis.store import Keys, Store

LANES = """
default_lane = "quick"

[lanes.quick]
[lanes.slow]
"""
NO_LANE = 'no lane is called "bulk" (lanes: quick, slow)'


@pytest.fixture
def app(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Celery]:
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound(LANES)
    yield app
    app.close()


def test_celerys_worker_for_tests_runs_countdowns_and_retries_of_every_lane(app: Celery) -> None:
    """Seen before: neither ever ran, and a test that waited for one never ended."""
    began: dict[str, list[float]] = {}

    @app.task(name="again", bind=True, default_retry_delay=0.5)
    def again(self: Any, lane: str) -> None:
        began.setdefault(lane, []).append(time.time())
        if len(began[lane]) == 1:
            raise self.retry()

    with start_worker(app, perform_ping_check=False):  # with no queues named: of all
        sent = time.time()
        for lane in ("quick", "slow"):
            again.apply_async((lane,), lane=lane, countdown=1, ignore_result=True)
        wait_until(lambda: [len(runs) for runs in began.values()] == [2, 2], "the retries", 30)
    for first, second in began.values():
        assert first - sent >= 1
        assert second - first >= 0.5


def test_what_is_due_there_runs_first_due_first(app: Celery, broker: Any) -> None:
    ran: list[int] = []

    @app.task(name="note")
    def note(number: int) -> None:
        ran.append(number)

    now = datetime.now(UTC)
    for number in (3, 1, 2):
        due = now + timedelta(seconds=number / 100)
        note.apply_async((number,), eta=due, ignore_result=True)
    wait_until(lambda: Store(broker.redis, Keys("quick", "quick_tasks")).counts().waiting == 3, "")
    with start_worker(app, perform_ping_check=False):
        wait_until(lambda: len(ran) == 3, "the tasks", 30)
    assert ran == [1, 2, 3]


@pytest.fixture
def eager(bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An app in eager mode, with no broker anywhere."""
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    app = bound(LANES)
    app.conf.update(task_always_eager=True, task_eager_propagates=True)
    yield app
    app.close()


def double_task(app: Celery) -> Any:
    @app.task(name="double")
    def double(number: int) -> int:
        ran.append(number)
        return 2 * number

    ran: list[int] = []
    double.ran = ran
    return double


EAGERLY: dict[str, Callable[[Any], Any]] = {
    "apply": lambda task: task.apply((1,), lane="bulk"),
    "apply_async": lambda task: task.apply_async((1,), lane="bulk"),
    "a signature": lambda task: task.s(1).set(lane="bulk").apply(),
    "a signature's delay": lambda task: task.s(1).set(lane="bulk").delay(),
    "a group": lambda task: (task.s(1).set(lane="bulk") | task.s()).apply(),
    "a chain's end": lambda task: (task.s(1) | task.s().set(lane="bulk")).apply(),
    "a link": lambda task: task.apply((1,), link=task.s().set(lane="bulk")),
    "send_many": lambda task: task.send_many([(1,)], lane="bulk"),
}


@pytest.mark.parametrize("send", EAGERLY.values(), ids=EAGERLY)
def test_eager_mode_knows_the_lanes(eager: Celery, send: Callable[[Any], Any]) -> None:
    """Seen before: it ran the task, and the typing error came in production."""
    with pytest.raises(RoutingError) as caught:
        send(double_task(eager))
    assert str(caught.value) == NO_LANE


def test_a_queue_that_no_lane_consumes_is_an_error_in_eager_mode_too(eager: Celery) -> None:
    with pytest.raises(RoutingError) as caught:
        double_task(eager).apply_async((1,), queue="celery")
    assert str(caught.value) == (
        'no lane consumes the queue "celery" (queues: quick_tasks by quick, slow_tasks by slow)'
    )


def test_a_retry_to_a_lane_that_does_not_exist_is_an_error_in_eager_mode_too(
    eager: Celery,
) -> None:
    eager.conf.task_eager_propagates = False  # Celery would raise the Retry itself

    @eager.task(name="again", bind=True)
    def again(self: Any) -> None:
        raise self.retry(lane="bulk", countdown=0)

    with pytest.raises(RoutingError) as caught:
        again.delay()
    assert str(caught.value) == NO_LANE


def test_apply_knows_the_lanes_out_of_eager_mode_too(eager: Celery) -> None:
    eager.conf.task_always_eager = False
    with pytest.raises(RoutingError) as caught:
        double_task(eager).apply((1,), lane="bulk")
    assert str(caught.value) == NO_LANE


def test_eager_tasks_run_in_their_lane_without_a_broker(eager: Celery) -> None:
    double = double_task(eager)
    assert double.delay(2).get() == 4
    assert double.apply_async((2,), lane="slow").get() == 4
    assert double.apply((2,), queue="slow_tasks").get() == 4
    assert (double.s(2) | double.s().set(lane="slow")).apply().get() == 8


def test_eager_send_many_runs_each_without_a_broker(eager: Celery) -> None:
    """Seen before: it went to the real broker."""
    double = double_task(eager)
    assert double.send_many(((number,) for number in range(3)), lane="slow", countdown=60) == 3
    assert double.ran == [0, 1, 2]
    with pytest.raises(TypeError, match=r"double\(\) missing 1 required positional argument"):
        double.send_many([()])
