"""What the firewall says of a message; tests/faults shows that workers survive them all."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state
from kombu.asynchronous.timer import Timer

from acme_tasks.lanes.consumer import Request, problem, set_aside, shortest
from acme_tasks.lanes.pool import TIMERS, dropping_ended, hard_limit_alone
from acme_tasks.lanes.redis.clock import Clock

HEADERS: dict[str, Any] = {"task": "echo", "id": "1"}
BODY: Any = [["x"], {}, {"callbacks": None}]


def message(**parts: Any) -> Any:
    """A message as kombu has it, good but for `parts`."""
    good: dict[str, Any] = {
        "malformed": None,
        "headers": HEADERS,
        "properties": {},
        "delivery_info": {},
        "payload": BODY,
    }
    return SimpleNamespace(**good | parts)


def with_header(name: str, value: Any) -> Any:
    return message(headers=HEADERS | {name: value})


GOOD = {
    "as Celery sends it": message(),
    "a tuple": message(payload=(("x",), {}, {})),
    "no options": message(payload=[[], {}, None]),
    "all headers empty": message(
        headers=HEADERS
        | dict.fromkeys(
            ("eta", "expires", "timelimit", "retries", "argsrepr", "root_id", "group", "stamps")
        )
    ),
    "times": message(
        headers=HEADERS | {"eta": "2042-01-01T00:00:00+00:00", "expires": "2042-01-01T00:00:00"}
    ),
    "limits": with_header("timelimit", [30, None]),
    "retries": with_header("retries", 3),
    "stamps": message(headers=HEADERS | {"stamped_headers": ["a"], "stamps": {"a": [1]}}),
    "a header of somebody else's": with_header("x-trace", {"any": ["thing"]}),
}


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
def test_a_task_passes(good: Any) -> None:
    assert problem(good) is None


BAD = {
    "what could not be read at all": (
        message(malformed="JSONDecodeError: no"),
        "JSONDecodeError: no",
    ),
    "headers that are a list": (message(headers=[]), "headers: list (expected an object)"),
    "no headers": (message(headers=None), "headers: NoneType (expected an object)"),
    "properties that are text": (
        message(properties="x"),
        "properties: str (expected an object)",
    ),
    "delivery_info that is a number": (
        message(delivery_info=7),
        "delivery_info: int (expected an object)",
    ),
    "no task": (message(headers={"id": "1"}), "headers.task: None (expected a text)"),
    "an empty task": (with_header("task", ""), "headers.task: '' (expected a text)"),
    "a task that is a list": (
        with_header("task", ["echo"]),
        "headers.task: ['echo'] (expected a text)",
    ),
    "no id": (message(headers={"task": "echo"}), "headers.id: None (expected a text)"),
    "an id that is a number": (with_header("id", 5), "headers.id: 5 (expected a text)"),
    "a long one is cut": (
        with_header("id", ["x" * 1000]),
        f"headers.id: ['{'x' * 98} (expected a text)",
    ),
    "an eta that is a number": (with_header("eta", 5), "headers.eta: 5 (not what Celery sends)"),
    "an eta that is no time": (
        with_header("eta", "soon"),
        "headers.eta: 'soon' (not what Celery sends)",
    ),
    "an expiry that is an object": (
        with_header("expires", {}),
        "headers.expires: {} (not what Celery sends)",
    ),
    "a time limit that is a number": (
        with_header("timelimit", 5),
        "headers.timelimit: 5 (not what Celery sends)",
    ),
    "three time limits": (
        with_header("timelimit", [1, 2, 3]),
        "headers.timelimit: [1, 2, 3] (not what Celery sends)",
    ),
    "a time limit of text": (
        with_header("timelimit", [None, "5"]),
        "headers.timelimit: [None, '5'] (not what Celery sends)",
    ),
    "retries of text": (
        with_header("retries", "3"),
        "headers.retries: '3' (not what Celery sends)",
    ),
    "retries that are true": (
        with_header("retries", True),
        "headers.retries: True (not what Celery sends)",
    ),
    "stamped_headers that are text": (
        with_header("stamped_headers", "a"),
        "headers.stamped_headers: 'a' (not what Celery sends)",
    ),
    "stamps that are a list": (
        with_header("stamps", ["a"]),
        "headers.stamps: ['a'] (not what Celery sends)",
    ),
    **{
        f"{name} that is a number": (
            with_header(name, 5),
            f"headers.{name}: 5 (not what Celery sends)",
        )
        for name in ("argsrepr", "kwargsrepr", "shadow", "root_id", "parent_id", "group", "origin")
    },
    "a body that is an object": (
        message(payload={"args": []}),
        "body: expected a list of three: arguments, keyword arguments, options",
    ),
    "a body of two": (
        message(payload=[[], {}]),
        "body: expected a list of three: arguments, keyword arguments, options",
    ),
    "a body of three letters": (
        message(payload="abc"),
        "body: expected a list of three: arguments, keyword arguments, options",
    ),
    "arguments that are text": (
        message(payload=["x", {}, {}]),
        "body: expected a list of arguments and an object of keyword arguments",
    ),
    "keyword arguments that are a list": (
        message(payload=[[], [], {}]),
        "body: expected a list of arguments and an object of keyword arguments",
    ),
    "options that are a list": (
        message(payload=[[], {}, []]),
        "body: options are list (expected an object)",
    ),
}


@pytest.mark.parametrize(("bad", "said"), BAD.values(), ids=BAD)
def test_what_celery_could_not_be_given_is_named(bad: Any, said: str) -> None:
    assert problem(bad) == said


def test_a_body_that_cannot_be_decoded_is_named() -> None:
    class Undecodable(SimpleNamespace):
        @property
        def payload(self) -> Any:
            raise LookupError("unknown encoding: klingon")

    parts = vars(message())
    del parts["payload"]
    assert problem(Undecodable(**parts)) == "body: LookupError: unknown encoding: klingon"


class Channel:
    """A channel's part in setting aside: the order of what it was told."""

    lane = "quick"

    def __init__(self, *, away: bool = False) -> None:
        self.told: list[Any] = []
        self.away = away
        self.leases = self.qos = self

    def set_aside(self, id_: str, report: dict[str, Any]) -> None:
        if self.away:
            raise OSError("away")
        self.told.append((id_, report))

    def free_slot(self, id_: str) -> None:
        self.told.append(id_)


def test_a_message_is_set_aside_before_its_slot_is_free() -> None:
    channel = Channel()
    set_aside(message(channel=channel, delivery_tag="7@x"), "failed", "ValueError: no", "trace")
    report = {
        "reason": "failed",
        "error": "ValueError: no",
        "traceback": "trace",
        "task": "echo",
        "task_id": "1",
        "key": None,
    }
    assert channel.told == [("7@x", report), "7@x"]


def test_a_message_without_headers_is_set_aside_too() -> None:
    channel = Channel()
    set_aside(message(channel=channel, delivery_tag="7@x", headers=None), "malformed", "no")
    assert channel.told[0][1]["task"] is None


def test_what_could_not_be_set_aside_keeps_its_slot_and_its_lease() -> None:
    channel = Channel(away=True)
    with pytest.raises(OSError, match="away"):
        set_aside(message(channel=channel, delivery_tag="7@x"), "failed", "no")
    assert channel.told == []


HOUR = 3600.0  # seconds


@pytest.fixture
def request_of(bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes Celery's request of a message with these times, by seconds from now at the server."""
    app: Any = bound('default_lane = "quick"\n[lanes.quick]\n')

    @app.task(name="echo", shared=False)
    def echo() -> None: ...

    monkeypatch.setattr(state, "revoked", set())

    def make(*, ahead: float = 0.0, lane: str | None = "quick", **times: float) -> Any:
        clock = Clock(time.time)  # which is not asked
        clock.learn(time.time() + ahead)
        now = clock.now()
        channel = SimpleNamespace(lane=lane, server=SimpleNamespace(clock=clock))
        headers = {
            name: datetime.fromtimestamp(now + seconds, UTC).isoformat()
            for name, seconds in times.items()
        }
        parts = dict.fromkeys(("body", "content_type", "content_encoding")) | {"channel": channel}
        return Request(message(headers=HEADERS | headers, **parts), app=app, task=echo)

    return make


@pytest.mark.parametrize("ahead", [-HOUR, 0.0, HOUR], ids=["behind", "alike", "ahead"])
def test_a_task_expires_by_the_servers_clock(request_of: Any, ahead: float) -> None:
    """However far it is from this host's.

    Seen before: by this host's, so that one an hour ahead set every task aside, and ran none.
    And as one that was revoked, so that it was dropped when it came back with a fresh expiry.
    """
    assert not request_of(ahead=ahead, expires=60).maybe_expire()
    assert request_of(ahead=ahead, expires=-1).maybe_expire()
    assert state.revoked == set()


def test_a_host_whose_clock_is_set_while_a_task_waits_expires_none_for_it(
    request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = request_of(expires=60)
    at = time.time()
    monkeypatch.setattr(time, "time", lambda: at + HOUR)
    assert not fresh.maybe_expire()


def test_a_task_without_an_expiry_does_not_expire(request_of: Any) -> None:
    assert not request_of().maybe_expire()


@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
def test_what_the_server_gave_out_is_due_whatever_this_hosts_clock_says(
    request_of: Any, ahead: float
) -> None:
    """Celery would keep it, and a slot with it, for as long as the two clocks differ."""
    assert request_of(ahead=ahead, eta=-1).eta is None


def test_celerys_worker_for_tests_goes_by_the_only_clock_that_it_has(request_of: Any) -> None:
    """It has no lane, and its server may be a list in memory."""
    request = request_of(lane=None, eta=50, expires=-1)
    assert request.eta is not None
    assert request.maybe_expire()


#: By call, task and worker: hard and soft, in seconds; what comes of them; what the pool starts.
LIMITS: dict[str, tuple[list[Any], tuple[Any, Any], tuple[Any, Any]]] = {
    "none": ([(None, None)] * 3, (None, None), (None, None)),
    "zeros": ([(0, 0)] * 3, (None, None), (None, None)),
    "the lane's": ([(None, None), (None, None), (30, 27)], (30, 27), (27, 30)),
    "the task's hard one": ([(None, None), (3, None), (30, 27)], (3, 27), (None, 3)),
    "the call's hard one": ([(3, None), (None, None), (30, 27)], (3, 27), (None, 3)),
    "the call's before the task's": ([(3, None), (5, None), (30, 27)], (3, 27), (None, 3)),
    "the task's before the call's": ([(5, None), (3, None), (30, 27)], (3, 27), (None, 3)),
    "the task's soft one": ([(None, None), (None, 2), (30, 27)], (30, 2), (2, 30)),
    "the call's soft one": ([(None, 2), (None, None), (30, 27)], (30, 2), (2, 30)),
    "soft of one, hard of another": ([(None, 2), (3, None), (30, 27)], (3, 2), (2, 3)),
    "soft of one, shorter hard of another": ([(2, None), (None, 3), (30, 27)], (2, 3), (None, 2)),
    "soft as long as hard": ([(3, 3), (None, None), (30, 27)], (3, 3), (None, 3)),
    "longer ones": ([(60, 50), (70, 65), (30, 27)], (30, 27), (27, 30)),
    "longer hard, shorter soft": ([(60, 5), (None, None), (30, 27)], (30, 5), (5, 30)),
    "none of the lane": ([(60, None), (None, 50), (None, None)], (60, 50), (50, 60)),
    "soft alone": ([(None, 50), (None, None), (None, None)], (None, 50), (50, None)),
    "a zero and the lane's": ([(0, 0), (None, None), (30, 27)], (30, 27), (27, 30)),
    "odd ones": ([(-1, float("nan")), (float("inf"), 1e300), (30, 27)], (30, 27), (27, 30)),
    "one that no timer can count": (
        [(10**400, None), (None, None), (None, None)],
        *[(None, None)] * 2,
    ),
}


@pytest.mark.parametrize(("given", "merged", "started"), LIMITS.values(), ids=LIMITS)
def test_the_shortest_time_limit_wins(
    given: list[Any], merged: tuple[Any, Any], started: tuple[Any, Any]
) -> None:
    """Seen before: the call's, else the task's, else the lane's; and a hard one after a soft."""
    assert shortest(*given) == merged
    timers: list[Any] = []
    hard, soft = merged
    hard_limit_alone(lambda _, soft, hard: timers.append((soft, hard)))(None, soft, hard)
    assert timers == [started]


def test_the_limits_of_tasks_that_have_ended_take_no_memory_and_the_others_stay() -> None:
    """Seen before: each was kept for as long as its task might have run."""
    timer, running, ended = Timer(), [], 0
    begin = dropping_ended(lambda job, _soft, hard: job.append(timer.call_after(hard, list)), timer)
    for number in range(20_000):
        job: list[Any] = []
        begin(job, None, 3600 - number % 100)
        if number % 200:
            job[0].cancel()
            ended += 1
        else:
            running += job
    assert (len(running), ended) == (100, 19_900)
    assert len(timer) <= TIMERS + 3 * len(running)
    due = [each.entry for each in sorted(timer._queue) if not each.entry.cancelled]
    assert set(map(id, due)) == set(map(id, running))
    assert timer._queue[0] == min(timer._queue)


def test_a_request_has_the_shortest_limits_of_call_task_and_worker(request_of: Any) -> None:
    request = request_of()
    assert request.time_limits == (None, None)
    app, task = request.app, request.task
    app.worker_limits = (30, 27)
    task.time_limit = 20
    headers = HEADERS | {"timelimit": [25, 5]}
    parts = dict.fromkeys(("body", "content_type", "content_encoding", "channel"))
    assert Request(message(headers=headers, **parts), app=app, task=task).time_limits == (20, 5)
