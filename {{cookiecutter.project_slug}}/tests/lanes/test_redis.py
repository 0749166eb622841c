"""Each step of a message's life in Redis, on a real Valkey and without a worker."""

import json
import time
from hashlib import sha1
from typing import Any

import pytest
from harness import wait_until

from {{ cookiecutter.package_name }}.lanes.redis.store import EXCHANGE_KEYS, Keys, Store

OWNER = "quick-1@host"
LEASE = 60.0  # seconds
REPORT = {"reason": "failed", "error": "ValueError: no"}
DAY = 86400.0  # seconds


@pytest.fixture
def store(redis: Any) -> Store:
    return Store(redis, Keys("quick", "quick_tasks"))


def send(store: Store, *messages: str) -> None:
    """As a sender does it: on the left."""
    for message in messages:
        store.redis.lpush("quick_tasks", message)


def queue(store: Store) -> list[str]:
    """What is in the queue, the next first."""
    return [message.decode() for message in reversed(store.redis.lrange("quick_tasks", 0, -1))]


def fetch(
    store: Store, count: int, *done: str, lease: float = LEASE, owner: str = OWNER, last: int = 0
) -> Any:
    """The script that the transport runs."""
    return store._run("exchange", EXCHANGE_KEYS, (count, lease, owner, last, *done))


def take(store: Store, count: int, **options: Any) -> list[str]:
    """Fetch; the ids of the new leases."""
    return [id_.decode() for id_ in fetch(store, count, **options)[::2]]


def keys_left(store: Store) -> set[str]:
    return {key.decode() for key in store.redis.keys("*")}


def now(store: Store) -> float:
    seconds, microseconds = store.redis.time()
    return float(seconds + microseconds / 1e6)


def test_a_fetch_takes_the_oldest_and_no_more_than_asked(store: Store) -> None:
    send(store, "a", "b", "c")
    assert fetch(store, 2) == [b"1@quick-1@host", b"a", b"2@quick-1@host", b"b"]
    assert queue(store) == ["c"]
    assert fetch(store, 2) == [b"3@quick-1@host", b"c"]
    assert fetch(store, 2) == []


def test_what_was_fetched_is_leased_in_the_same_step(store: Store) -> None:
    send(store, "a", "b")
    before = now(store)
    first, second = take(store, 2)
    assert store.redis.hgetall("lanes:quick:leased") == {
        first.encode(): b"a",
        second.encode(): b"b",
    }
    ends = store.redis.zrange("lanes:quick:leases", 0, -1, withscores=True)
    assert [id_ for id_, _ in ends] == [first.encode(), second.encode()]
    for _, end in ends:
        assert before + LEASE <= end <= now(store) + LEASE


def test_a_fetch_puts_what_is_due_in_front(store: Store) -> None:
    send(store, "waits")
    store.redis.zadd("lanes:quick:delayed", {"due": now(store) - 1, "later": now(store) + 3600})
    assert fetch(store, 1)[1] == b"due"
    assert queue(store) == ["waits"]
    assert store.redis.zrange("lanes:quick:delayed", 0, -1) == [b"later"]


def test_what_a_plain_sender_gave_a_priority_is_taken_in_kombus_order(store: Store) -> None:
    send(store, "a", "b")
    for step in (9, 3):
        for number in (1, 2):
            store.redis.lpush(f"quick_tasks\x06\x16{step}", f"{step}.{number}")
    assert fetch(store, 3)[1::2] == [b"a", b"b", b"3.1"]
    assert fetch(store, 9)[1::2] == [b"3.2", b"9.1", b"9.2"]
    assert fetch(store, 9) == []


def test_a_paused_lane_gives_nothing_and_loses_nothing(store: Store) -> None:
    send(store, "a")
    store.redis.set("lanes:quick:paused", "1")
    store.redis.zadd("lanes:quick:delayed", {"due": now(store) - 1})
    assert fetch(store, 5) == [b"paused"]
    assert sorted(queue(store)) == ["a", "due"]
    assert not store.redis.exists("lanes:quick:leased")
    store.redis.delete("lanes:quick:paused")
    assert len(take(store, 5)) == 2


def test_a_paused_lane_is_still_told_what_is_done(store: Store) -> None:
    send(store, "a")
    (id_,) = take(store, 1)
    store.redis.set("lanes:quick:paused", "1")
    assert fetch(store, 1, id_) == [b"paused"]
    assert not store.redis.exists("lanes:quick:leased", "lanes:quick:leases")


def test_what_is_done_is_forgotten_and_nothing_else(store: Store) -> None:
    send(store, "a", "b", "c")
    first, second, third = take(store, 3)
    store.acknowledge([first, third])
    assert store.redis.hkeys("lanes:quick:leased") == [second.encode()]
    assert store.redis.zrange("lanes:quick:leases", 0, -1) == [second.encode()]
    store.acknowledge([second, first, "99@nobody"])
    assert keys_left(store) == {"lanes:quick:sequence"}


def test_nothing_to_acknowledge_is_no_call(store: Store) -> None:
    store.redis = None
    store._scripts = {}
    store.acknowledge([])
    assert store.hand_back([]) == []


def test_an_acknowledgement_forgets_how_often_it_came_back(store: Store) -> None:
    send(store, "a")
    store.hand_back(take(store, 1), most=3)
    assert store.redis.hvals("lanes:quick:deliveries") == [b"1"]
    store.acknowledge(take(store, 1))
    assert keys_left(store) == {"lanes:quick:sequence"}


def test_what_is_handed_back_is_next_again_in_its_order(store: Store) -> None:
    send(store, "a", "b", "c")
    ids = take(store, 2)
    assert store.hand_back(ids) == []
    assert queue(store) == ["a", "b", "c"]
    assert keys_left(store) == {"quick_tasks", "lanes:quick:sequence"}  # and is not counted
    # A lease is never used twice, so a late acknowledgement of the first worker changes nothing.
    again = take(store, 2)
    assert set(again).isdisjoint(ids)
    store.acknowledge(ids)
    assert len(store.owned(OWNER)) == 2


def test_what_somebody_else_has_taken_back_is_not_handed_back_twice(store: Store) -> None:
    send(store, "a")
    ids = take(store, 1)
    store.hand_back(ids)
    store.hand_back(ids)
    assert queue(store) == ["a"]


def test_what_came_back_too_often_is_poison_and_stays_leased(store: Store) -> None:
    send(store, "a", "b")
    for _ in range(2):
        assert store.hand_back(take(store, 1), most=3) == []
    bad, good = take(store, 2)
    assert store.hand_back([bad, good], most=3) == [(bad, 3, b"a")]
    assert queue(store) == ["b"]
    assert store.owned(OWNER) == [bad]


def test_the_same_bytes_are_counted_as_one_message(store: Store) -> None:
    send(store, "a")
    store.hand_back(take(store, 1), most=3)
    key = sha1(b"a", usedforsecurity=False).hexdigest().encode()
    assert store.redis.hgetall("lanes:quick:deliveries") == {key: b"1"}


def test_only_the_expired_are_taken_back_and_the_renewed_passed_over(store: Store) -> None:
    send(store, "a", "b")
    dead, alive = take(store, 2, lease=0.05)
    wait_until(lambda: store.redis.zcount("lanes:quick:leases", "-inf", now(store)) == 2, "the end")
    store.renew([alive], LEASE)
    assert store.hand_back([dead, alive], most=3, only_expired=True) == []
    assert queue(store) == ["a"]
    assert store.owned(OWNER) == [alive]
    assert len(store.redis.hkeys("lanes:quick:deliveries")) == 1


def test_a_lease_that_was_taken_back_cannot_be_renewed(store: Store) -> None:
    send(store, "a")
    ids = take(store, 1)
    store.hand_back(ids)
    store.renew(ids, LEASE)
    assert not store.redis.exists("lanes:quick:leases")


def test_a_renewal_says_which_are_still_leased(store: Store) -> None:
    """Seen before: it said nothing, so that a late owner could not know."""
    send(store, "a", "b", "c")
    first, second, third = take(store, 3)
    store.hand_back([second])
    assert store.renew([first, second, third, "99@nobody"], LEASE) == [first, third]
    assert store.renew([second], LEASE) == []


def look_now(store: Store) -> None:
    """As if somebody had looked at the leases a moment ago, and no owner needed time."""
    store.redis.hset("lanes:quick:watch", mapping={"looked": now(store), "grace": 0})


def test_overdue_are_those_that_ran_out_oldest_first(store: Store) -> None:
    send(store, "a", "b", "c")
    first, second = take(store, 2, lease=0.05)
    take(store, 1)
    wait_until(lambda: store.redis.zcount("lanes:quick:leases", "-inf", now(store)) == 2, "the end")
    look_now(store)
    assert store.overdue(LEASE) == [first, second]


def test_all_that_ran_out_are_overdue_at_once_in_the_order_of_their_fetches(store: Store) -> None:
    """A renewal gives them all one time, and of equal times Redis says "10@" before "2@".

    Seen before: the first 100 in that order, so that what had waited was counted for what ran.
    """
    send(store, *(str(number) for number in range(128)))
    ids = take(store, 128)
    store.renew(ids, -1.0)
    look_now(store)
    assert sorted(store.overdue(LEASE), key=ids.index) == ids


def test_nothing_is_overdue_until_owners_had_a_lease_of_time_to_renew(store: Store) -> None:
    """Nobody has looked for long: the broker, or every worker, was away."""
    lease = 0.5
    send(store, "a")
    (id_,) = take(store, 1, lease=0.01)
    store.redis.hset("lanes:quick:watch", "looked", now(store) - lease)
    began = time.monotonic()
    assert store.overdue(lease) == []

    def look() -> list[str]:
        # Often enough, as workers do it, for the grace to end.
        return store.overdue(lease)

    assert wait_until(look, "the grace to end") == [id_]
    assert time.monotonic() - began >= lease


def test_the_first_look_of_all_takes_nothing(store: Store) -> None:
    send(store, "a")
    take(store, 1, lease=0.01)
    assert store.overdue(LEASE) == []
    assert float(store.redis.hget("lanes:quick:watch", "grace")) > now(store)


def test_a_worker_finds_its_own_in_their_order_and_no_others(store: Store) -> None:
    send(store, *(str(number) for number in range(13)))
    mine = take(store, 11)
    take(store, 1, owner="quick-1@host2")
    take(store, 1, owner="1@quick-1@host")
    assert store.owned(OWNER) == mine  # by number: 2 is before 10


def test_what_is_not_due_waits_until_it_is(store: Store) -> None:
    send(store, "a")
    (id_,) = take(store, 1)
    due = now(store) + 3600
    store.postpone({id_: due, "7@x": due})
    assert store.redis.zrange("lanes:quick:delayed", 0, -1, withscores=True) == [
        (b"a", pytest.approx(due, abs=0.001))
    ]
    assert not store.redis.exists("lanes:quick:leased", "lanes:quick:leases", "quick_tasks")
    store.postpone({id_: 0})  # no longer ours
    assert store.redis.zscore("lanes:quick:delayed", "a") == pytest.approx(due, abs=0.001)


def set_aside(
    store: Store, id_: str, *, cap: int = 100, age: float = DAY, report: dict[str, Any] = REPORT
) -> int:
    return store.set_aside(id_, report, cap=cap, age=age)


def dead(store: Store) -> list[str]:
    """The messages of the dead letters, oldest first."""
    numbers = store.redis.zrange("lanes:quick:dead", 0, -1)
    assert {*numbers} == {*store.redis.hkeys("lanes:quick:dead:messages")}
    assert {*numbers} == {*store.redis.hkeys("lanes:quick:dead:reports")}
    return [store.redis.hget("lanes:quick:dead:messages", number).decode() for number in numbers]


def test_what_is_set_aside_keeps_its_bytes_and_a_report_and_is_acknowledged(store: Store) -> None:
    message = b"\xff\x00 no text"
    store.redis.lpush("quick_tasks", message)
    (id_,) = take(store, 1)
    before = now(store)
    assert set_aside(store, id_) == 0
    assert keys_left(store) == {
        "lanes:quick:sequence",
        "lanes:quick:dead",
        "lanes:quick:dead:messages",
        "lanes:quick:dead:reports",
    }
    assert store.redis.hgetall("lanes:quick:dead:messages") == {b"1": message}
    report = json.loads(store.redis.hget("lanes:quick:dead:reports", "1"))
    assert report == REPORT | {"at": pytest.approx(before, abs=60), "deliveries": 1}


def test_a_report_says_how_often_it_was_delivered(store: Store) -> None:
    send(store, "a")
    store.hand_back(take(store, 1), most=9)
    store.hand_back(take(store, 1), most=9)
    (id_,) = take(store, 1)
    set_aside(store, id_)
    assert json.loads(store.redis.hget("lanes:quick:dead:reports", "3"))["deliveries"] == 3
    assert not store.redis.exists("lanes:quick:deliveries")  # a retry begins anew


def test_setting_aside_twice_is_once(store: Store) -> None:
    send(store, "a")
    (id_,) = take(store, 1)
    assert set_aside(store, id_) == 0
    assert set_aside(store, id_) == -1
    assert dead(store) == ["a"]


def test_what_somebody_else_has_by_now_is_not_set_aside(store: Store) -> None:
    send(store, "a")
    ids = take(store, 1)
    store.hand_back(ids)
    assert set_aside(store, ids[0]) == -1
    assert dead(store) == []
    assert queue(store) == ["a"]


def test_the_oldest_dead_letters_are_dropped_for_the_cap(store: Store) -> None:
    send(store, "a", "b", "c", "d")
    dropped = [set_aside(store, id_, cap=2) for id_ in take(store, 4)]
    assert dropped == [0, 0, 1, 1]
    assert dead(store) == ["c", "d"]


def test_a_smaller_cap_drops_many_at_once(store: Store) -> None:
    send(store, *"abcdef")
    *most, last = take(store, 6)
    assert [set_aside(store, id_) for id_ in most] == [0, 0, 0, 0, 0]
    assert set_aside(store, last, cap=2) == 4
    assert dead(store) == ["e", "f"]


def test_dead_letters_are_dropped_for_their_age(store: Store) -> None:
    send(store, "old", "new")
    old, new = take(store, 2)
    set_aside(store, old)
    store.redis.zadd("lanes:quick:dead", {"1": now(store) - DAY - 1})
    assert set_aside(store, new) == 1
    assert dead(store) == ["new"]


def test_age_and_cap_together_drop_no_letter_twice(store: Store) -> None:
    send(store, *"abcd")
    ids = take(store, 4)
    for id_ in ids[:3]:
        set_aside(store, id_)
    store.redis.zadd("lanes:quick:dead", {"1": now(store) - DAY - 1})
    assert set_aside(store, ids[3], cap=2) == 2
    assert dead(store) == ["c", "d"]


# What a message may bring into its report: whatever Python reads from JSON.
ODD = {
    "a number": 5,
    "not a number": float("nan"),
    "half a character": "\ud800",
    "an empty list": [],
    "deep": json.loads("[" * 900 + "]" * 900),
    "a large number": 12345678901234567890,
    "what JSON has not": object,
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_any_report_can_be_kept(store: Store, value: Any) -> None:
    send(store, "a")
    (id_,) = take(store, 1)
    assert set_aside(store, id_, report=REPORT | {"task": value}) == 0
    assert dead(store) == ["a"]


def test_lanes_do_not_meet(store: Store) -> None:
    other = Store(store.redis, Keys("slow", "slow_tasks"))
    send(store, "a")
    ids = take(store, 1)
    other.acknowledge(ids)
    assert other.hand_back(ids) == []
    assert other.owned(OWNER) == []
    assert set_aside(other, ids[0]) == -1
    assert store.owned(OWNER) == ids
