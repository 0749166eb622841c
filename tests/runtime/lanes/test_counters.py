"""What workers count of their tasks, by real workers, and what Redis then says."""

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import Project, running_broker, wait_until
from redis import Redis

from acme_tasks.lanes.counting import MOST_NAMES, OTHER, Counted, Load, Tally, gather
from acme_tasks.lanes.redis.counters import Counters
from acme_tasks.lanes.redis.store import Keys, Store
from acme_tasks.lanes.status import store_of

LANES = """
default_lane = "quick"

[lanes.quick]
max_retries = 1
unknown_wait = false
max_deliveries = 1
latency_slo = "2s"
[lanes.light]
pool = "threads"
[lanes.single]
pool = "solo"
[lanes.stale]
"""
POOLS = ("quick", "light", "single")


@pytest.fixture(scope="module")
def broker() -> Iterator[Any]:
    with running_broker() as server:
        yield server


@pytest.fixture(scope="module")
def project(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("counters"), LANES, broker.url)
    with project.workers(*POOLS):
        yield project


@pytest.fixture(scope="module")
def app(project: Project) -> Iterator[Celery]:
    app = project.app()
    yield app
    app.close()


@pytest.fixture
def counters(redis: Any) -> Counters:
    """Of a lane of no worker's."""
    redis.flushall()
    return Counters(Store(redis, Keys("own", "own_tasks")))


def counters_of(app: Any, broker: Any, lane: str) -> Counters:
    return Counters(store_of(broker.redis, app.lanes.get(lane)))


def added(counters: Counters, task: str, send: Any, done: int) -> Counted:
    """What is counted of a task since `send` was called, once so many are done with."""
    before = counters.total().get(task, Counted())
    send()

    def grown() -> Counted | None:
        now = counters.total().get(task, Counted())
        more = now.outcomes.total() - before.outcomes.total()
        return now if more >= done else None

    after = wait_until(grown, f"{done} of {task} to be counted")
    wait, run = after.wait.count - before.wait.count, after.run.count - before.run.count
    return Counted(
        after.outcomes - before.outcomes,
        type(after.wait)({0.0: wait}, after.wait.sum - before.wait.sum),
        type(after.run)({0.0: run}, after.run.sum - before.run.sum),
        after.good - before.good,
        after.total - before.total,
        after.redelivered - before.redelivered,
    )


@pytest.mark.parametrize("lane", POOLS)
def test_what_succeeds_is_counted_with_its_wait_and_its_run(
    app: Celery, broker: Any, lane: str, tmp_path: Path
) -> None:
    def send() -> None:
        for _ in range(3):
            app.send_task("hold", (0.2, str(tmp_path / "seen")), lane=lane)

    counted = added(counters_of(app, broker, lane), "hold", send, 3)
    assert counted.outcomes == {"succeeded": 3}
    assert counted.wait.count == counted.run.count == counted.total == 3
    assert 0.6 <= counted.run.sum < 2
    assert 0 < counted.wait.sum < 6
    assert counted.redelivered == 0


def test_a_wait_counts_from_when_a_task_is_due(app: Celery, broker: Any) -> None:
    def send() -> None:
        app.send_task("echo", ("later",), countdown=1.5)

    counted = added(counters_of(app, broker, "quick"), "echo", send, 1)
    assert (counted.good, counted.total) == (1, 1)
    assert 0 <= counted.wait.sum < 1.5


def test_a_failure_counts_each_of_its_runs_and_one_end(
    app: Celery, broker: Any, tmp_path: Path
) -> None:
    def send() -> None:
        app.send_task("fail", (str(tmp_path / "seen"),))

    counted = added(counters_of(app, broker, "quick"), "fail", send, 2)
    assert counted.outcomes == {"retried": 1, "failed": 1}
    assert counted.run.count == counted.wait.count == 2


def test_what_killed_its_child_is_poison(app: Celery, broker: Any, tmp_path: Path) -> None:
    counted = added(
        counters_of(app, broker, "quick"),
        "die",
        lambda: app.send_task("die", (str(tmp_path / "seen"),)),
        1,
    )
    assert counted.outcomes == {"poison": 1}


def test_what_is_revoked_before_it_starts_is_counted_and_has_no_wait(
    app: Celery, broker: Any
) -> None:
    def send() -> None:
        id_ = str(uuid.uuid4())
        app.control.revoke(id_)
        app.send_task("echo", ("never",), task_id=id_)

    counted = added(counters_of(app, broker, "quick"), "echo", send, 1)
    assert counted.outcomes == {"revoked": 1}
    assert counted.total == counted.run.count == 0


def test_what_expired_did_not_start_in_time(app: Celery, broker: Any) -> None:
    def send() -> None:
        app.send_task("echo", ("late",), countdown=0.1, expires=0.05)

    counted = added(counters_of(app, broker, "quick"), "echo", send, 1)
    assert counted.outcomes == {"expired": 1}
    assert (counted.good, counted.total, counted.wait.count) == (0, 1, 0)


def test_what_no_worker_knows_has_no_name_of_its_own(app: Celery, broker: Any) -> None:
    counted = added(
        counters_of(app, broker, "quick"),
        OTHER,
        lambda: app.send_task("name." + uuid.uuid4().hex),
        1,
    )
    assert counted.outcomes == {"unknown": 1}
    counted = added(
        counters_of(app, broker, "quick"),
        OTHER,
        lambda: broker.redis.lpush("quick_tasks", '{"headers": 3, "properties": {}, "body": ""}'),
        1,
    )
    assert counted.outcomes == {"malformed": 1}


def test_a_run_that_a_kill_cut_short_is_redelivered_once(
    project: Project, app: Celery, broker: Any, tmp_path: Path
) -> None:
    go, seen = tmp_path / "go", tmp_path / "seen"
    with project.workers("stale") as first:
        app.send_task("hold_until", (str(go), str(seen)), lane="stale")
        wait_until(seen.exists, "the task to begin")
        counters = counters_of(app, broker, "stale")
        wait_until(lambda: counters.total().get("hold_until"), "its start to be counted")
        first["stale"].kill()
        go.touch()
    with project.workers("stale"):
        after = wait_until(
            lambda: counters.total()["hold_until"].outcomes and counters.total()["hold_until"],
            "it to end",
        )
    assert after.outcomes == {"succeeded": 1}
    assert (after.redelivered, after.total, after.wait.count, after.run.count) == (1, 1, 1, 1)


def test_a_worker_says_how_many_it_runs_and_is_forgotten_when_it_ends(
    project: Project, app: Celery, broker: Any, tmp_path: Path
) -> None:
    counters = counters_of(app, broker, "stale")
    store = store_of(broker.redis, app.lanes.get("stale"))
    go, seen = tmp_path / "go", tmp_path / "seen"

    def running() -> list[tuple[int, int]]:
        return [(load.slots, load.running) for load in counters.loads(store.now())]

    with project.workers("stale"):
        app.send_task("hold_until", (str(go), str(seen)), lane="stale")
        wait_until(lambda: running() == [(2, 1)], "the worker to say so")
        go.touch()
        wait_until(lambda: running() == [(2, 0)], "the worker to say so")
    assert running() == []
    assert broker.redis.hlen("lanes:stale:loads") == 0


def test_the_last_hour_has_what_was_counted_and_what_waited_before(
    app: Celery, broker: Any
) -> None:
    counters = counters_of(app, broker, "quick")
    store = store_of(broker.redis, app.lanes.get("quick"))
    total = sum(counters.total().values(), Counted())
    for seconds in (3600, 86_400, 30 * 86_400):
        last = counters.last(seconds, now=store.now())
        assert last.all.outcomes == total.outcomes
        assert last.all.wait.count == total.wait.count
        assert 0 < last.seconds <= seconds
        assert last.backlog == 0
        assert last.since is not None
        assert last.since < 600


# Without workers


def load(running: int = 0) -> Load:
    return Load(node="a@b", slots=2, running=running, clock=0.0)


def add(counters: Counters, tally: Tally, *, batch: int, now: float = 1e9) -> None:
    counters.add(tally.take(), now=now, owner="a@b#1", batch=batch, load=load())


def test_a_batch_whose_reply_was_lost_is_counted_once(counters: Counters) -> None:
    tally = Tally(1.0)
    tally.ended("t", "succeeded")
    additions = tally.take()
    for batch in (1, 1, 2):
        counters.add(additions, now=1e9, owner="a@b#1", batch=batch, load=load())
    assert counters.total()["t"].outcomes == {"succeeded": 2}


def test_there_are_so_many_names_and_then_other(counters: Counters) -> None:
    tally = Tally(1.0)
    for number in range(MOST_NAMES + 7):
        tally.ended(f"task {number}", "succeeded")
    for odd in ("", "x" * 300, "a\nb", "\ud800"):
        tally.ended(odd, "succeeded")
    add(counters, tally, batch=1)
    total = counters.total()
    assert len(total) == MOST_NAMES + 1
    assert total[OTHER].outcomes == {"succeeded": 11}
    tally.ended("task 3", "succeeded")
    add(counters, tally, batch=2)
    assert counters.total()["task 3"].outcomes == {"succeeded": 2}


def test_an_edge_lies_just_at_the_objective(counters: Counters) -> None:
    tally = Tally(0.7)
    for wait in (0.7, 0.7000001, float("nan"), -5.0, float("inf")):
        tally.started("t", wait, again=False)
    tally.started("t", None, again=False)
    add(counters, tally, batch=1)
    counted = counters.total()["t"]
    assert dict(counted.wait.cumulative())[0.7] == counted.good == 2
    assert counted.total == counted.wait.count == 4


def test_what_is_older_than_asked_for_is_left_out(counters: Counters) -> None:
    now = 1_700_000_000.0
    for batch, age in enumerate((0, 200, 3000, 50_000, 20 * 86_400), start=1):
        tally = Tally(1.0)
        tally.ended("t", "succeeded")
        add(counters, tally, batch=batch, now=now - age)
    found = {
        seconds: counters.last(seconds, now=now).all.outcomes["succeeded"]
        for seconds in (300, 3600, 86_400, 30 * 86_400)
    }
    assert found == {300: 2, 3600: 3, 86_400: 4, 30 * 86_400: 5}


def test_what_was_counted_is_kept_while_redis_refuses_it(counters: Counters, redis: Redis) -> None:
    redis.set("lanes:own:counts", "something else")
    tally = Tally(1.0)
    tally.ended("t", "succeeded")
    additions = tally.take()
    with pytest.raises(Exception, match="WRONGTYPE"):
        counters.add(additions, now=1e9, owner="a@b#1", batch=1, load=load())
    redis.delete("lanes:own:counts")
    counters.add(additions, now=1e9, owner="a@b#1", batch=2, load=load())
    assert counters.total()["t"].outcomes == Counter(succeeded=1)


def test_a_quantile_lies_in_its_bucket() -> None:
    tally = Tally(1.0)
    for milliseconds in range(1, 1001):
        tally.ran("t", milliseconds / 1000)
    run = gather(tally.take())["t"].run
    assert run.count == 1000
    assert run.mean == pytest.approx(0.5005)
    assert run.variance == pytest.approx(1 / 12, rel=0.01)
    for share in (0.1, 0.5, 0.95, 0.99):
        assert run.quantile(share) == pytest.approx(share, rel=0.02)


def test_a_quantile_lies_in_its_bucket_where_those_below_are_empty() -> None:
    tally = Tally(1.0)
    tally.ran("t", 45.0)
    run = gather(tally.take())["t"].run
    assert [run.quantile(share) for share in (0.0, 0.5, 1.0)] == [25.0, 37.5, 50.0]
