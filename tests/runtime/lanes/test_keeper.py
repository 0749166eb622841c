"""Keeping the schedule: several keepers of one process on a real Valkey, looked at step by step."""

import base64
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish
from harness import wait_until
from redis.exceptions import RedisError

from acme_tasks.lanes.keeper import Keeper
from acme_tasks.lanes.redis.schedule import GONE, Schedule
from acme_tasks.lanes.schedule import id_of
from acme_tasks.lanes.timetable import Entry

LANES = 'default_lane = "quick"\n[lanes.quick]\n[lanes.slow]\n'
KEYS = "lanes:@schedule:acme_tasks:"
OFTEN = Entry(name="often", task="echo", every=1.0, args=("x",))
HOUR = 3600.0

Make = Callable[..., Keeper]


def echo(*_: Any) -> None:
    """Nobody runs it here."""


@pytest.fixture
def app(server: Any, bound: Any, monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setenv("BROKER_URL", server.url)
    app = bound(LANES)
    app.task(echo, name="echo")
    app.finalize()
    return app


@pytest.fixture
def keeper(app: Any, redis: Any) -> Make:  # noqa: ARG001 - it is emptied
    count = iter(range(100))

    def make(*declared: Entry) -> Keeper:
        return Keeper(app, list(declared), owner=f"node#{next(count)}")

    return make


def sent(redis: Any, queue: str = "quick_tasks") -> list[str]:
    """Ids of the tasks in a queue, the oldest first."""
    return [json.loads(each)["headers"]["id"] for each in redis.lrange(queue, 0, -1)][::-1]


def last(redis: Any, name: str = "often") -> float:
    return float(redis.hget(f"{KEYS}entries", name).split()[1])


def set_last(redis: Any, name: str, at: float) -> None:
    """As if the last instant that anybody has done with had been then."""
    says = redis.hget(f"{KEYS}entries", name).decode().split()[0]
    redis.hset(f"{KEYS}entries", name, f"{says} {at:.3f}")


def look_until(condition: Callable[[], Any], *keepers: Keeper) -> None:
    def step() -> Any:
        for each in keepers:
            each.look()
        return condition()

    wait_until(step, "the schedule", 20)


def long_ago(now: float, **more: Any) -> Entry:
    """An entry whose last instant was more than a minute ago, and whose next is not soon."""
    for every in (7200.0, 7500.0, 7800.0):
        entry = Entry(name="long", task="echo", every=every, **more)
        following = entry.following(now)
        assert following is not None
        if 120 < following - now < every - 120:
            return entry
    raise AssertionError(now)


def server_time(redis: Any) -> float:
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


# One message for each instant


def test_each_instant_has_one_message_whoever_claims_it(keeper: Make, redis: Any) -> None:
    ended = threading.Event()

    def keep(each: Keeper) -> None:
        while not ended.wait(0.01):
            each.look()

    threads = [threading.Thread(target=keep, args=(keeper(OFTEN),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: redis.llen("quick_tasks") >= 4, "four messages")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    ids = sent(redis)
    first = last(redis) - len(ids) + 1
    assert ids == [id_of(OFTEN, first + number) for number in range(len(ids))]


def test_an_id_is_made_of_the_name_and_the_instant() -> None:
    assert id_of(OFTEN, 86_400.0) == "often@1970-01-02T00:00:00Z"
    assert id_of(OFTEN, 1.5) == "often@1970-01-01T00:00:01.500Z"


def test_who_comes_later_builds_no_message(keeper: Make, redis: Any) -> None:
    """Receivers of Celery's signals are called by one worker, but when two are as quick."""
    one, other = keeper(OFTEN), keeper(OFTEN)
    called = []

    def note(headers: Any = None, **_: Any) -> None:
        called.append(headers["id"])

    before_task_publish.connect(note)
    one.look()
    other.look()
    look_until(lambda: redis.llen("quick_tasks"), one)
    other.look()
    assert called == sent(redis)
    before_task_publish.disconnect(note)


def test_a_message_is_as_if_it_had_been_sent(keeper: Make, app: Any, redis: Any) -> None:
    one = keeper(OFTEN)
    look_until(lambda: redis.llen("quick_tasks"), one)
    app.send_task("echo", ("x",))
    by_hand, kept = map(json.loads, redis.lrange("quick_tasks", 0, -1))
    assert kept["body"] == by_hand["body"]
    assert base64.b64decode(kept["body"]).startswith(b'[["x"], {}')
    assert kept["headers"].keys() == by_hand["headers"].keys()
    assert abs(kept["headers"]["lane_sent_at"] - server_time(redis)) < 60


def test_options_lead_to_another_lane_or_later(keeper: Make, redis: Any) -> None:
    one = keeper(
        Entry(name="other", task="echo", every=1.0, options={"lane": "slow", "expires": 60}),
        Entry(name="later", task="echo", every=1.0, options={"countdown": 60}),
    )
    look_until(
        lambda: redis.llen("slow_tasks") and redis.zcard("lanes:quick:delayed"),
        one,
    )
    assert json.loads(redis.lindex("slow_tasks", 0))["headers"]["expires"]
    assert not redis.llen("quick_tasks")


def test_monitors_hear_of_it_where_they_hear_of_sends(keeper: Make, app: Any, redis: Any) -> None:
    app.conf.task_send_sent_event = True
    heard = redis.pubsub()
    heard.psubscribe("*celeryev*")
    look_until(lambda: redis.llen("quick_tasks"), keeper(OFTEN))
    found: list[Any] = []
    while "task.sent" not in str(found):
        found.append(heard.get_message(timeout=20))
        assert found[-1]
    heard.close()


def test_eager_mode_is_for_tests_and_a_worker_sends_all_the_same(
    keeper: Make, app: Any, redis: Any
) -> None:
    app.conf.task_always_eager = True
    look_until(lambda: redis.llen("quick_tasks"), keeper(OFTEN))


# What a worker, a server or a task's own code does wrong


def test_one_that_cannot_be_sent_does_not_stop_the_others(
    keeper: Make, app: Any, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(app.Task):
        def apply_async(self, *_: Any, **__: Any) -> Any:
            raise ValueError("a task's own")

    app.task(echo, name="fails", base=Failing)
    one = keeper(Entry(name="bad", task="fails", every=1.0), OFTEN)
    look_until(lambda: len(sent(redis)) >= 3, one)
    assert all(each.startswith("often@") for each in sent(redis))
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert said == ["schedule.bad: its task could not be sent; tried again in 10 s"]


def test_a_receiver_that_raises_stops_nothing(keeper: Make, redis: Any) -> None:
    def refuse(**_: Any) -> None:
        raise ValueError("a receiver's own")

    before_task_publish.connect(refuse)
    try:
        look_until(lambda: len(sent(redis)) >= 2, keeper(OFTEN))
    finally:
        before_task_publish.disconnect(refuse)


def test_a_server_that_refuses_costs_nothing_but_time(keeper: Make, redis: Any) -> None:
    one = keeper(OFTEN)
    look_until(lambda: redis.llen("quick_tasks"), one)
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisError):
            look_until(lambda: False, one)
    finally:
        redis.config_set("maxmemory", 0)
    before = len(sent(redis))
    look_until(lambda: len(sent(redis)) > before + 1, one)
    ids = sent(redis)
    first = last(redis) - len(ids) + 1
    assert ids == [id_of(OFTEN, first + number) for number in range(len(ids))]


def test_after_flushall_it_takes_up_from_then(keeper: Make, redis: Any) -> None:
    one = keeper(OFTEN)
    look_until(lambda: redis.llen("quick_tasks"), one)
    redis.flushall()
    began = server_time(redis)
    look_until(lambda: redis.llen("quick_tasks"), one)
    assert last(redis) > began


def test_where_an_eviction_took_what_was_known_it_takes_up_again(keeper: Make, redis: Any) -> None:
    one = keeper(OFTEN)
    look_until(lambda: redis.llen("quick_tasks"), one)
    redis.delete(f"{KEYS}entries")
    before = len(sent(redis))
    look_until(lambda: len(sent(redis)) > before, one)


# After an outage


@pytest.mark.parametrize(("missed", "runs"), [("none", 0), ("once", 1), ("all", 4)])
def test_after_an_outage_of_all_workers_missed_decides(
    keeper: Make, redis: Any, missed: str, runs: int
) -> None:
    entry = long_ago(server_time(redis), missed=missed)
    assert entry.every is not None
    keeper(entry).look()
    due = [entry.every * (server_time(redis) // entry.every - each) for each in (3, 2, 1, 0)]
    set_last(redis, "long", due[0] - entry.every)
    keeper(entry).look()
    assert sent(redis) == [id_of(entry, each) for each in due[4 - runs :]]
    state = Schedule(redis, {"long": entry.definition}).states()["long"]
    if state.run:
        assert state.run.missed == 4 - runs
        assert state.run.late == runs
        assert state.run.late_by > 120


def test_nothing_is_made_up_for_twice(keeper: Make, redis: Any) -> None:
    entry = long_ago(server_time(redis))
    one, other = keeper(entry), keeper(entry)
    one.look()
    set_last(redis, "long", server_time(redis) - 10 * HOUR)
    for _ in range(3):
        keeper(entry).look()
        one.look()
        other.look()
    assert len(sent(redis)) == 1


# Changes


def test_a_new_entry_and_a_changed_one_take_up_from_now(keeper: Make, redis: Any) -> None:
    entry = long_ago(server_time(redis))
    one = keeper(entry)
    one.look()
    set_last(redis, "long", server_time(redis) - 10 * HOUR)
    changed = Entry(name="long", task="echo", every=entry.every, args=("changed",), missed="all")
    began = server_time(redis)
    two = keeper(changed)
    two.look()
    assert last(redis, "long") >= began - 0.01
    assert not sent(redis)


def test_a_removed_entry_is_forgotten_and_a_renamed_one_is_new(keeper: Make, redis: Any) -> None:
    keeper(OFTEN).look()
    set_last(redis, "often", server_time(redis) - HOUR)
    renamed = Entry(name="renamed", task="echo", every=HOUR)
    began = server_time(redis)
    keeper(renamed).look()
    assert redis.hkeys(f"{KEYS}entries") == [b"renamed"]
    assert last(redis, "renamed") >= began - 0.01
    keeper().look()
    assert not redis.hkeys(f"{KEYS}entries")


def test_a_pause_has_instants_pass_by_over_restarts(keeper: Make, redis: Any) -> None:
    one = keeper(OFTEN)
    one.look()
    schedule = Schedule(redis, {"often": OFTEN.definition})
    schedule.pause("often", paused=True)
    before = last(redis)
    look_until(lambda: last(redis) > before, keeper(OFTEN))
    assert not sent(redis)
    assert schedule.states()["often"].paused
    schedule.pause("often", paused=False)
    look_until(lambda: sent(redis), one)
    assert len(sent(redis)) == 1


# Two releases


NEW = Entry(name="new", task="echo", every=HOUR)


def kept(redis: Any) -> set[str]:
    return {name.decode() for name in redis.hkeys(f"{KEYS}entries")}


def say(each: Keeper) -> bool:
    """Whether its schedule is the one that is kept."""
    each._said_at = float("-inf")
    each.look()
    return bool(each._next)


def test_the_schedule_that_appeared_last_is_kept_while_a_worker_has_it(
    keeper: Make, redis: Any
) -> None:
    old, other_old, new = keeper(OFTEN), keeper(OFTEN), keeper(OFTEN, NEW)
    assert say(old)
    assert say(other_old)
    assert say(new)
    assert not say(old)
    assert not say(other_old)
    assert kept(redis) == {"often", "new"}
    new.end()  # a rollback
    assert say(old)
    assert kept(redis) == {"often"}


def test_what_both_have_runs_once_while_they_change(keeper: Make, redis: Any) -> None:
    old, new = keeper(OFTEN), keeper(OFTEN, NEW)
    look_until(lambda: sent(redis), old)
    look_until(lambda: len(sent(redis)) >= 2, new, old)
    new.end()
    look_until(lambda: len(sent(redis)) >= 4, old)
    ids = sent(redis)
    first = last(redis) - len(ids) + 1
    assert ids == [id_of(OFTEN, first + number) for number in range(len(ids))]


def test_a_worker_that_comes_back_with_an_old_schedule_does_not_win(keeper: Make) -> None:
    """Seen before: none had the old one for a moment, so it was new again."""
    old, new = keeper(OFTEN), keeper(OFTEN, NEW)
    assert say(old)
    assert say(new)
    old.end()
    assert say(new)
    back = keeper(OFTEN)
    assert not say(back)
    assert say(new)


def test_a_worker_that_says_nothing_for_long_keeps_nothing(keeper: Make, redis: Any) -> None:
    old, new = keeper(OFTEN), keeper(OFTEN, NEW)
    say(new)
    at = server_time(redis) - GONE - 1
    value = redis.hget(f"{KEYS}keepers", new.owner).decode().split()[1]
    redis.hset(f"{KEYS}keepers", new.owner, f"{at} {value}")
    assert say(old)
    assert redis.hkeys(f"{KEYS}keepers") == [old.owner.encode()]


def test_a_schedule_that_nobody_had_for_a_day_is_forgotten(keeper: Make, redis: Any) -> None:
    one, new = keeper(OFTEN), keeper(OFTEN, NEW)
    assert say(one)
    one.end()
    for name, value in redis.hgetall(f"{KEYS}schedules").items():
        if name != b"kept":
            first = value.decode().split()[0]
            redis.hset(f"{KEYS}schedules", name, f"{first} {server_time(redis) - 86_401}")
    assert say(new)
    assert redis.hlen(f"{KEYS}schedules") == 2  # the new one, and which is kept


def test_a_stopping_worker_keeps_what_it_can_and_does_not_count(keeper: Make, redis: Any) -> None:
    """Draining takes an hour, perhaps; of a rollback meanwhile it is not to be in the way."""
    old, new = keeper(OFTEN), keeper(OFTEN, NEW)
    say(old)
    say(new)
    new.stop()
    new._said_at = float("-inf")
    look_until(lambda: sent(redis), new)
    assert redis.hkeys(f"{KEYS}keepers") == [old.owner.encode()]
    assert say(old)
    assert kept(redis) == {"often"}
    before = len(sent(redis))
    look_until(lambda: len(sent(redis)) > before, new, old)
    assert len(set(sent(redis))) == len(sent(redis))
