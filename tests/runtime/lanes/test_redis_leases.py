"""What a worker process holds, on a real Valkey; its thread is turned by hand."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from hashlib import sha1
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from acme_tasks.lanes.redis import identity, leases
from acme_tasks.lanes.redis.clock import Clock
from acme_tasks.lanes.redis.counters import Counters
from acme_tasks.lanes.redis.leases import Leases
from acme_tasks.lanes.redis.store import EXCHANGE_KEYS, Keys, Store

NODE = "quick-1@host"
OTHER = "quick-2@host#2"
LEASE = 60.0  # seconds
KEYS = Keys("quick", "quick_tasks")

MakeLeases = Callable[..., Leases]


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No test's leases are looked after behind its back."""
    caplog.set_level(logging.WARNING)  # of which an earlier test's worker may have left nothing
    monkeypatch.setattr(Leases, "_keep", lambda _self: None)


@pytest.fixture
def redis(server: Any) -> Any:
    server.redis.flushall()
    return Redis.from_url(server.url)  # redis-py, as a worker's


def make_leases(redis: Any, **options: Any) -> Leases:
    values = {"concurrency": 32, "lease": LEASE, "max_deliveries": 3, "dead_cap": 9, "dead_age": 99}
    values |= {"dead_size": 1 << 20, "latency_slo": 1.0, "running": lambda: 0}
    store = Store(redis, KEYS)
    return Leases(store, Clock(store.now), node=NODE, **values | options)


@contextmanager
def broker_away(redis: Any) -> Iterator[None]:
    nobody = Redis(port=1, retry=Retry(NoBackoff(), 0))
    with pytest.MonkeyPatch.context() as away:
        away.setattr(redis, "connection_pool", nobody.connection_pool)
        yield


def send(redis: Any, count: int) -> list[str]:
    messages = [f"m{number}" for number in range(count)]
    redis.lpush(KEYS.queue, *messages)
    return messages


def queue(redis: Any) -> list[str]:
    """What is in the queue, the next first."""
    return [message.decode() for message in reversed(redis.lrange(KEYS.queue, 0, -1))]


def take(redis: Any, count: int, owner: str = OTHER) -> list[str]:
    """Fetch as the transport does; the ids of the new leases."""
    args = (count, LEASE, owner, 0)
    return [id_.decode() for id_ in Store(redis, KEYS).run("exchange", EXCHANGE_KEYS, args)[3::3]]


def deliveries(redis: Any) -> list[int]:
    """The counts; of what came back and does not count, there is a 0."""
    return [int(count) for count in redis.hvals(KEYS("deliveries")) if int(count)]


def look_now(redis: Any) -> None:
    """As if somebody had looked at the leases a moment ago, and no owner needed time."""
    redis.hset(KEYS("watch"), mapping={"looked": time.time(), "grace": 0})


def test_of_what_a_dead_worker_held_the_oldest_are_counted_and_all_go_back_in_order(
    redis: Any,
) -> None:
    """Seen before: looked over a hundred at a time, 60 were counted, and the order was lost."""
    sent = send(redis, 128)
    ids = take(redis, 100, OTHER) + take(redis, 28, OTHER)
    leases = make_leases(redis, concurrency=32)
    leases.store.renew(ids, -1.0)  # all at one time, as an owner does
    while redis.exists(KEYS("leased")):
        look_now(redis)
        leases._tend()
    ran = {sha1(each.encode(), usedforsecurity=False).hexdigest().encode() for each in sent[:32]}
    counted = redis.hgetall(KEYS("deliveries"))
    assert {digest for digest, count in counted.items() if int(count)} == ran
    assert deliveries(redis) == [1] * 32
    assert queue(redis) == sent


@pytest.mark.parametrize("counted", [False, True], ids=["a stop", "a requeue"])
def test_what_could_not_be_handed_back_goes_back_in_order_when_the_broker_does(
    redis: Any, counted: bool
) -> None:
    """Seen before: one by one, each in front of the one before, so that the newest was next."""
    sent = send(redis, 6)
    leases = make_leases(redis)
    ids = take(redis, 5, leases.owner)
    leases.hold(ids)
    with broker_away(redis):
        (leases.requeue if counted else leases.hand_back)(ids)
    assert queue(redis) == sent[5:]
    assert list(leases._pending) == ids
    leases._tend()
    assert queue(redis) == sent
    assert not redis.exists(KEYS("leased"))
    assert not leases._pending
    assert deliveries(redis) == ([1] * 5 if counted else [])


def test_what_could_not_be_acknowledged_is_when_the_broker_is_back(redis: Any) -> None:
    send(redis, 3)
    leases = make_leases(redis)
    first, second, third = take(redis, 3, leases.owner)
    leases.hold([first, second, third])
    with broker_away(redis):
        leases.acknowledge(first, at_once=True)
        leases.acknowledge(second, at_once=False)
        leases.keep_acks(leases.take_acks())  # by an exchange whose reply never came
    assert {*leases._pending} == {first, second}
    leases._tend()
    assert list(leases.held) == [third]
    assert redis.hkeys(KEYS("leased")) == [third.encode()]
    assert not leases._pending


@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
@pytest.mark.parametrize("revoked", [False, True], ids=["done", "revoked"])
def test_a_lock_for_a_time_goes_when_its_task_was_revoked(
    redis: Any, revoked: bool, away: bool
) -> None:
    """And stays when it ended well. That is kept, too, while the broker is away."""
    leases = make_leases(redis)
    once = "time 3600000 0 {} t%3A{}"
    for id_ in "ab":
        headers = {"id": id_, "lane_once": once.format(id_, id_)}
        assert leases.store.send([json.dumps({"headers": headers})]) == [""]
    ids = take(redis, 2, leases.owner)
    leases.hold(ids)
    with broker_away(redis) if away else nullcontext():
        leases.acknowledge(ids[0], at_once=True, revoked=revoked)
        leases.acknowledge(ids[1], at_once=False, revoked=revoked)
        leases.keep_acks(leases.take_acks())  # by an exchange whose reply never came
    leases._tend()
    assert not redis.exists(KEYS("leased"))
    assert not leases._pending
    assert len(redis.keys("lanes:quick:once:*")) == (0 if revoked else 2)


def test_nobody_waits_for_a_broker_that_is_known_to_be_away(redis: Any) -> None:
    """Only the thread does, and finds out when it is back.

    Seen before: each acknowledgement waited for it by itself, in the event loop.
    """
    send(redis, 4)
    leases = make_leases(redis)
    ids = take(redis, 4, leases.owner)
    leases.hold(ids)
    with broker_away(redis):
        leases.hand_back(ids[:1])
    # From here on it would answer.
    leases.hand_back(ids[1:2])
    leases.acknowledge(ids[2], at_once=True)
    leases.set_aside(ids[3], {"reason": "failed", "error": "no"})
    assert redis.hlen(KEYS("leased")) == 4
    leases._tend()
    assert not redis.exists(KEYS("leased"))
    assert queue(redis) == ["m0", "m1"]
    assert redis.zcard(KEYS("dead")) == 1
    assert not leases.held


def test_what_could_not_be_postponed_is_when_the_broker_is_back(redis: Any) -> None:
    """Seen before: the error ended the connection, and the message waited for its lease to end."""
    send(redis, 2)
    leases = make_leases(redis)
    ids = take(redis, 2, leases.owner)
    leases.hold(ids)
    due = {id_: time.time() + 3600 + place for place, id_ in enumerate(ids)}
    with broker_away(redis):
        leases.postpone(due)
    leases._tend()
    assert redis.zrange(KEYS("delayed"), 0, -1) == [b"m0", b"m1"]
    assert not redis.exists(KEYS("leased"))


def test_a_stop_never_counts_as_a_delivery(redis: Any) -> None:
    """However often: max_deliveries is for what may have killed a process."""
    send(redis, 1)
    for _ in range(9):
        leases = make_leases(redis, max_deliveries=2)
        ids = take(redis, 1, leases.owner)
        leases.hold(ids)
        leases.hand_back(ids)
    assert queue(redis) == ["m0"]
    assert deliveries(redis) == []


def test_the_failure_of_poison_is_stored_before_it_is_set_aside(
    redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed in between leaves it to the next.

    Seen before: set aside first, so that whoever waited for the result waited for ever.
    """
    stored: list[tuple[bytes, str, int]] = []

    def store(message: bytes, error: str) -> None:
        stored.append((message, error, redis.zcard(KEYS("dead"))))

    monkeypatch.setattr(leases, "store_lost", store)
    send(redis, 2)
    take(redis, 2)
    held = make_leases(redis, max_deliveries=1, concurrency=1)
    look_now(redis)
    held.store.renew([id_.decode() for id_ in redis.hkeys(KEYS("leased"))], -1.0)
    held._tend()
    assert stored == [(b"m0", "delivered 1 times, and never acknowledged", 0)]
    assert redis.hvals(KEYS("dead:messages")) == [b"m0"]
    report = json.loads(redis.hget(KEYS("dead:reports"), "1"))
    assert (report["reason"], report["deliveries"]) == ("poison", 1)
    assert queue(redis) == ["m1"]  # it only waited


def test_more_than_one_step_takes_is_all_taken_back_in_one_look(redis: Any) -> None:
    sent = send(redis, 2500)
    ids = [id_ for _ in range(25) for id_ in take(redis, 100)]
    held = make_leases(redis)
    held.store.renew(ids, -1.0)
    look_now(redis)
    held._tend()
    assert queue(redis) == sent
    assert deliveries(redis) == [1] * 32


def left_behind(redis: Any, owner: str, **known: Any) -> list[str]:
    """What a worker holds of whom `known` is what differs from this process; ids of its leases."""
    store = Store(redis, KEYS)
    note = json.loads(identity.note(store.now(), stopping=False)) | known
    store.renew([], LEASE, owner=owner, note=json.dumps(note))
    return take(redis, 2, owner)


@pytest.fixture(scope="module")
def ended() -> int:
    """The process id of one that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_what_a_predecessor_held_that_has_ended_for_sure_is_taken_back_at_once(
    redis: Any, ended: int, caplog: pytest.LogCaptureFixture
) -> None:
    sent = send(redis, 2)
    left_behind(redis, f"{NODE}#before", pid=ended)
    held = make_leases(redis, concurrency=1)
    assert queue(redis) == sent
    assert deliveries(redis) == [1]
    assert list(held.store.workers()) == [held.owner]
    assert caplog.messages == []


UNCERTAIN = {
    "another host, or another boot": {"boot": 1.0},
    "another container": {"in": "4026531836 of another kernel"},
}


@pytest.mark.parametrize("known", UNCERTAIN.values(), ids=UNCERTAIN)
def test_what_a_predecessor_held_that_may_be_alive_is_left_until_its_lease_ends(
    redis: Any, ended: int, known: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Two hosts of one name, or a host that came back under it.

    Seen before: all of it was taken, and run twice, where the server would not say who is
    connected (CLIENT LIST), or the other was cut off from it for a moment.
    """
    send(redis, 2)
    ids = left_behind(redis, f"{NODE}#before", pid=ended, **known)
    held = make_leases(redis)
    assert queue(redis) == []
    assert {*redis.hkeys(KEYS("leased"))} == {id_.encode() for id_ in ids}
    assert {*held.store.workers()} == {held.owner, f"{NODE}#before"}
    assert caplog.messages == []


def test_a_worker_of_the_same_name_that_lives_keeps_what_it_holds_and_is_warned_of(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    send(redis, 2)
    left_behind(redis, f"{NODE}#beside", pid=os.getppid())
    make_leases(redis)
    assert queue(redis) == []
    assert caplog.messages == [
        f"another worker is called {NODE}: give each a name of its own, with --instance or -n"
    ]


def test_what_a_worker_of_another_name_held_is_left_until_its_lease_ends(
    redis: Any, ended: int
) -> None:
    send(redis, 2)
    left_behind(redis, OTHER, pid=ended)
    make_leases(redis)
    assert queue(redis) == []


def test_workers_that_said_nothing_for_a_day_are_forgotten(redis: Any) -> None:
    """Each that was killed leaves an entry; here, one of a host that is no more."""
    store = Store(redis, KEYS)
    store.renew([], LEASE, owner=OTHER, note="")
    redis.hset(KEYS("workers"), OTHER, f"{store.now() - 90_000} ")
    held = make_leases(redis)
    assert list(store.workers()) == [held.owner]


def test_what_a_worker_holds_is_renewed_and_said_with_where_it_runs(redis: Any) -> None:
    send(redis, 1)
    held = make_leases(redis)
    (id_,) = take(redis, 1, held.owner)
    held.hold([id_])
    redis.zadd(KEYS("leases"), {id_: 1})
    held._tend()
    assert redis.zscore(KEYS("leases"), id_) > held.store.now() + LEASE - 30
    _, note = held.store.workers()[held.owner]
    assert json.loads(note)["pid"] == os.getpid()


@pytest.mark.parametrize("told", [False, True], ids=["killed", "told to stop, then killed"])
def test_what_a_stop_ends_does_not_count_as_a_delivery(redis: Any, ended: int, told: bool) -> None:
    """By systemd, after its time-out: whatever the task did, it did not end its process.

    Seen before: a task longer than the time-out was poison after as many deploys.
    """
    sent = send(redis, 4)
    left_behind(redis, f"{NODE}#before", pid=ended, stopping=told)
    ids = left_behind(redis, OTHER, stopping=told)
    held = make_leases(redis)
    held.store.renew(ids, -1.0)
    look_now(redis)
    held._tend()
    assert sorted(queue(redis)) == sent
    assert deliveries(redis) == ([] if told else [1] * 4)


def test_a_worker_that_was_told_to_stop_notes_it_with_its_next_look(redis: Any) -> None:
    held = make_leases(redis)
    noted: list[bool] = []
    for _ in range(2):
        held._tend()
        noted.append(json.loads(held.store.workers()[held.owner][1])["stopping"])
        held.stop()
    assert noted == [False, True]


def test_a_worker_that_ends_in_order_is_known_no_more(redis: Any) -> None:
    held = make_leases(redis)
    held.end()
    assert held.store.workers() == {}


def test_a_renewal_that_is_under_way_does_not_bring_it_back(
    redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before, on a busy machine: a worker that had ended was listed for a day."""
    leases = make_leases(redis)
    renew, begun = leases.store.renew, threading.Event()

    def late(*args: Any, **options: Any) -> Any:
        begun.set()
        time.sleep(0.3)
        return renew(*args, **options)

    monkeypatch.setattr(leases.store, "renew", late)
    thread = threading.Thread(target=leases._tend)
    thread.start()
    begun.wait()
    leases.end()
    thread.join()
    leases._tend()
    assert leases.store.workers() == {}


def test_what_was_counted_while_the_broker_was_away_is_told_at_the_end(redis: Any) -> None:
    held = make_leases(redis)
    held.tally.ended("before", "succeeded")
    with broker_away(redis), pytest.raises(RedisError):
        held.tell_counts()
    held.tally.ended("meanwhile", "succeeded")
    held.end()
    assert set(Counters(held.store).total()) == {"before", "meanwhile"}
    held.tally.ended("after", "succeeded")
    held.tell_counts()  # as its thread may
    assert redis.hlen("lanes:quick:loads") == 0


def test_a_worker_that_ends_with_something_in_hand_stays_known(redis: Any) -> None:
    """Its successor takes that back at once."""
    send(redis, 1)
    held = make_leases(redis)
    held.hold(take(redis, 1, held.owner))
    held.end()
    assert list(held.store.workers()) == [held.owner]


def letter(redis: Any, number: int) -> dict[str, Any]:
    return dict(json.loads(redis.hget(KEYS("dead:reports"), str(number))))


def test_what_never_ran_waits_where_there_is_no_room_and_the_log_says_so_once(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen before: the oldest letter was deleted for each, whatever it was."""
    sent = send(redis, 4)
    leases = make_leases(redis, dead_cap=2)
    ids = take(redis, 4, leases.owner)
    leases.hold(ids)
    for id_ in ids:
        leases.set_aside(id_, {"reason": "unknown", "error": "no such task"})
    due = redis.zrange(KEYS("delayed"), 0, -1, withscores=True)
    assert [message.decode() for message, _ in due] == sent[2:]
    assert due[0][1] - time.time() == pytest.approx(600, abs=60)
    assert (leases.held, redis.hgetall(KEYS("leased"))) == ({}, {})
    full = [each.getMessage() for each in caplog.records if "full" in each.getMessage()]
    said = (
        "the lane's dead letters are full of messages that never ran, which are not dropped "
        "(dead_cap is 2, dead_size 1048576 bytes): others like them stay delayed until "
        "`dead retry` or `dead purge` makes room"
    )
    assert full == [said]


def test_a_report_is_cut_in_the_middle_in_redis_and_in_the_log(
    redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen before: an error of 20 MB was 40 MB of report, and 20 MB of log."""
    send(redis, 1)
    leases = make_leases(redis)
    (id_,) = take(redis, 1, leases.owner)
    long = "ValueError: " + "\u20ac" * 5_000_000 + " end"
    report = {"reason": "failed", "error": long, "traceback": f"Traceback {long}", "task": long}
    leases.set_aside(id_, report)
    kept = letter(redis, 1)
    assert kept["error"].startswith("ValueError: \u20ac")
    assert "\n[... 4,996,016 characters left out ...]\n" in kept["error"]
    assert kept["error"].endswith(" end")
    assert kept["traceback"].startswith("Traceback ValueError: ")
    assert len(kept["traceback"]) < 41_000
    assert len(kept["task"]) < 1_100
    assert redis.hstrlen(KEYS("dead:reports"), "1") < 300_000
    assert sum(len(each.getMessage()) for each in caplog.records) < 5_000


def test_a_letter_that_the_server_refuses_for_its_size_is_kept_without_its_report(
    redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: leased for ever, and no word of it."""
    monkeypatch.setattr(leases, "_LONGEST", {"error": 10_000_000})
    (message,) = send(redis, 1)
    held = make_leases(redis)
    (id_,) = take(redis, 1, held.owner)
    held.hold([id_])
    refusing = "if #ARGV[2] > 1048576 then return redis.error_reply('ERR string exceeds') end\n"
    script = held.store._scripts["set_aside"]
    held.store._scripts["set_aside"] = redis.register_script(refusing + script.script)
    held.set_aside(id_, {"reason": "failed", "error": "x" * 2_000_000, "traceback": "y"})
    assert letter(redis, 1) | {"at": 0} == {
        "at": 0,
        "deliveries": 1,
        "reason": "failed",
        "error": "the broker refused the report: string exceeds",
    }
    assert redis.hget(KEYS("dead:messages"), "1") == message.encode()
    assert (held.held, held._letters) == ({}, {})


@pytest.mark.parametrize("late", [False, True], ids=["at once", "half-way"])
def test_a_letter_that_the_server_refuses_altogether_stays_leased_and_the_log_says_why(
    redis: Any, caplog: pytest.LogCaptureFixture, late: bool
) -> None:
    """Seen before: leased for ever, and no word of it."""
    send(redis, 2)
    held = make_leases(redis)
    ids = take(redis, 2, held.owner)
    held.hold(ids)
    redis.set(KEYS("dead:reports" if late else "dead"), "of another kind")
    for id_ in ids:
        held.set_aside(id_, {"reason": "failed", "error": "no"})
    assert list(held.held) == ids
    (said,) = [each.getMessage() for each in caplog.records]
    assert said.startswith(
        "the broker refuses a dead letter, which stays leased: WRONGTYPE Operation against a key"
    )
    redis.delete(KEYS("dead:reports"), KEYS("dead"))
    held._tend()
    assert [letter(redis, number)["error"] for number in (1, 2)] == ["no", "no"]
    assert not held.held


def test_no_report_is_larger_than_the_least_that_a_server_may_be_set_to_take(redis: Any) -> None:
    """It would close the connection, which looks like an outage, each time anew."""
    send(redis, 1)
    held = make_leases(redis)
    (id_,) = take(redis, 1, held.owner)
    least = 1 << 20  # bytes; Redis and Valkey take no smaller one
    with pytest.raises(ResponseError):
        redis.config_set("proto-max-bulk-len", least - 1)
    before = redis.config_get("proto-max-bulk-len")["proto-max-bulk-len"]
    redis.config_set("proto-max-bulk-len", least)
    try:
        text = "\U0001f4a5" * 1_000_000  # twelve bytes of JSON each
        report = dict.fromkeys(("error", "traceback", "task", "task_id"), text)
        held.set_aside(id_, {"reason": "failed"} | report)
    finally:
        redis.config_set("proto-max-bulk-len", before)
    assert letter(redis, 1)["traceback"].endswith("\U0001f4a5")


def test_a_server_without_memory_takes_dead_letters(redis: Any) -> None:
    send(redis, 1)
    held = make_leases(redis)
    (id_,) = take(redis, 1, held.owner)
    redis.config_set("maxmemory", 1)
    try:
        held.set_aside(id_, {"reason": "failed", "error": "no", "traceback": "z" * 1000})
    finally:
        redis.config_set("maxmemory", 0)
    assert letter(redis, 1)["traceback"] == "z" * 1000
