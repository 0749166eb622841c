"""Each step of a message's life in Redis, on a real Valkey and without a worker."""

import json
import time
from collections.abc import Sequence
from hashlib import sha1
from typing import Any

import pytest
from harness import wait_until

from acme_tasks.lanes.redis import store as module
from acme_tasks.lanes.redis.store import (
    FULL,
    PRIORITY_LISTS,
    Keys,
    Rescued,
    Store,
)

OWNER = "quick-1@host#1"
OTHER = "quick-2@host#2"
LEASE = 60.0  # seconds
MOST = 3  # deliveries
NOTHING = Rescued(wait=None, more=False, poison=[])
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
    """The script that the transport runs: ids and messages, in turn."""
    said = store.run("exchange", module.EXCHANGE_KEYS, (count, lease, owner, last, *done))
    assert float(said[0]) == pytest.approx(now(store), abs=60)
    return [each for index, each in enumerate(said[3:]) if index % 3 != 2]


def take(store: Store, count: int, **options: Any) -> list[str]:
    """Fetch; the ids of the new leases."""
    return [id_.decode() for id_ in fetch(store, count, **options)[::2]]


def owned(store: Store, owner: str = OWNER) -> list[str]:
    """Ids of the leases of this owner, oldest first."""
    ids = [id_.decode() for id_ in store.redis.hkeys("lanes:quick:leased")]
    mine = [id_ for id_ in ids if id_.partition("@")[2] == owner]
    return sorted(mine, key=lambda id_: int(id_.partition("@")[0]))


def delayed(store: Store) -> list[str]:
    """What waits for its time, the first due first."""
    return [message.decode() for message in store.redis.zrange("lanes:quick:delayed", 0, -1)]


def requeue(store: Store, ids: Sequence[str], most: int = MOST) -> list[tuple[str, int, bytes]]:
    """Return to the queue what may have killed a process; the poison in it."""
    return store.requeue(ids, lease=LEASE, most=most).poison


def rescue(store: Store, *, lease: float = LEASE, at_once: int = 9, most: int = MOST) -> Rescued:
    return store.rescue_expired(lease=lease, at_once=at_once, most=most)


def await_the_end(store: Store, count: int) -> None:
    """Wait until so many leases have run out."""
    ended = ("lanes:quick:leases", "-inf")
    wait_until(lambda: store.redis.zcount(*ended, now(store)) == count, "the leases to end")


def counted(store: Store) -> dict[bytes, int]:
    """Deliveries that count, by the digest of their message; what does not count has a 0."""
    found = store.redis.hgetall("lanes:quick:deliveries").items()
    return {digest: int(count) for digest, count in found if int(count)}


def keys_left(store: Store) -> set[str]:
    return {key.decode() for key in store.redis.keys("*")}


def now(store: Store) -> float:
    seconds, microseconds = store.redis.time()
    return float(seconds + microseconds / 1e6)


def test_a_fetch_takes_the_oldest_and_no_more_than_asked(store: Store) -> None:
    send(store, "a", "b", "c")
    assert fetch(store, 2) == [b"1@quick-1@host#1", b"a", b"2@quick-1@host#1", b"b"]
    assert queue(store) == ["c"]
    assert fetch(store, 2) == [b"3@quick-1@host#1", b"c"]
    assert fetch(store, 2) == []


def test_a_fetch_says_first_what_time_it_is_at_the_server(store: Store) -> None:
    send(store, "a", "b")
    before = now(store)
    taken = store.run("exchange", module.EXCHANGE_KEYS, (1, LEASE, OWNER, 0))
    paused = (
        store.pause(paused=True),
        store.run("exchange", module.EXCHANGE_KEYS, (1, LEASE, OWNER, 0)),
    )
    told = store.run("exchange", module.EXCHANGE_KEYS, (0, 0, "", 0, "1@quick-1@host#1"))
    assert before <= float(taken[0]) <= float(paused[1][0]) <= float(told[0]) <= now(store)
    assert (len(taken), paused[1][1:], told[1:]) == (6, [b"", b"", b"paused"], [b"", b""])


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


def test_a_fetch_takes_what_is_due_from_where_it_waits(store: Store) -> None:
    """Straight from there, and before what it takes from the queue.

    Seen before: it was put in the queue first, in front, and was no delayed message any more.
    """
    send(store, "waits", "waits too")
    store.delay({"due": now(store) - 1, "later": now(store) + 3600})
    assert fetch(store, 2)[1::2] == [b"due", b"waits"]
    assert queue(store) == ["waits too"]
    assert delayed(store) == ["later"]


def test_what_is_due_comes_in_the_order_in_which_it_was_due(store: Store) -> None:
    """Seen before: the last due came first, since each was put in front of the one before."""
    names = [f"due {number}" for number in range(10)]
    began = now(store) - 100
    store.delay({name: began + place for place, name in enumerate(names)})
    assert [name.decode() for name in fetch(store, 10)[1::2]] == names


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_neither_what_is_due_nor_what_is_in_the_queue_starves(store: Store, slots: int) -> None:
    """They share each fetch, half and half; an odd slot is theirs in turn.

    Seen before: with one slot at a time, all that was due came before the first of the queue.
    """
    send(store, *(f"plain {number}" for number in range(200)))
    began = now(store) - 1000
    store.delay({f"due {number}": began + number for number in range(200)})
    came: list[str] = []
    while got := fetch(store, slots)[1::2]:
        came += [message.decode() for message in got]
    kinds = [name.split()[0] for name in came]
    for taken in range(slots, 400, slots):
        assert abs(kinds[:taken].count("due") - taken / 2) <= slots
    for kind in ("plain", "due"):
        each = [name for name in came if name.startswith(kind)]
        assert each == [f"{kind} {number}" for number in range(200)]


def test_what_one_of_them_leaves_free_is_the_others(store: Store) -> None:
    send(store, "a", "b", "c")
    store.delay({"due": now(store) - 1})
    assert fetch(store, 4)[1::2] == [b"due", b"a", b"b", b"c"]
    send(store, "d")
    store.delay({f"due {number}": now(store) - 9 + number for number in range(3)})
    assert fetch(store, 4)[1::2] == [b"due 0", b"due 1", b"due 2", b"d"]


def test_no_more_leaves_delayed_than_is_wanted(store: Store) -> None:
    """Seen before: a hundred went to the queue with the first fetch, for one slot."""
    began = now(store) - 1000
    store.delay({f"due {number:03}": began + number for number in range(150)})
    assert fetch(store, 2)[1::2] == [b"due 000", b"due 001"]
    assert delayed(store) == [f"due {number:03}" for number in range(2, 150)]
    assert queue(store) == []
    assert len(owned(store)) == 2


def test_what_a_plain_sender_gave_a_priority_is_taken_in_kombus_order(store: Store) -> None:
    send(store, "a", "b")
    for step in (9, 3):
        for number in (1, 2):
            store.redis.lpush(f"quick_tasks\x06\x16{step}", f"{step}.{number}")
    assert fetch(store, 3)[1::2] == [b"a", b"b", b"3.1"]
    assert fetch(store, 9)[1::2] == [b"3.2", b"9.1", b"9.2"]
    assert fetch(store, 9) == []


def test_a_paused_lane_gives_nothing_and_loses_nothing(store: Store) -> None:
    """What is due stays where it waits. Seen before: it went to the queue, paused or not."""
    send(store, "a")
    store.pause(paused=True)
    store.delay({"due": now(store) - 1})
    assert fetch(store, 5) == [b"paused"]
    assert (queue(store), delayed(store)) == (["a"], ["due"])
    assert not store.redis.exists("lanes:quick:leased")
    store.pause(paused=False)
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
    store.hand_back([])
    assert store.dead_letters([]) == []


def test_an_acknowledgement_forgets_how_often_it_came_back(store: Store) -> None:
    send(store, "a")
    requeue(store, take(store, 1))
    assert store.redis.hvals("lanes:quick:deliveries") == [b"1"]
    store.acknowledge(take(store, 1))
    assert keys_left(store) == {"lanes:quick:sequence"}


def test_what_is_handed_back_is_next_again_in_its_order(store: Store) -> None:
    send(store, "a", "b", "c")
    ids = take(store, 2)
    store.hand_back(ids)
    assert queue(store) == ["a", "b", "c"]
    assert store.redis.hvals("lanes:quick:deliveries") == [b"0"] * 2  # known, and not counted
    # A lease is never used twice, so a late acknowledgement of the first worker changes nothing.
    again = take(store, 2)
    assert set(again).isdisjoint(ids)
    store.acknowledge(ids)
    assert len(owned(store)) == 2


def test_no_number_of_times_that_it_is_handed_back_makes_a_message_poison(store: Store) -> None:
    """A stop, a full worker, a message that was not due: nobody has begun to run it."""
    send(store, "a")
    for _ in range(5 * MOST):
        store.hand_back(take(store, 1))
    assert store.redis.hvals("lanes:quick:deliveries") == [b"0"]
    assert requeue(store, take(store, 1)) == []


def test_what_somebody_else_has_taken_back_is_not_handed_back_twice(store: Store) -> None:
    send(store, "a")
    ids = take(store, 1)
    store.hand_back(ids)
    store.hand_back(ids)
    assert queue(store) == ["a"]


def test_what_came_back_too_often_is_poison_and_stays_leased(store: Store) -> None:
    send(store, "a", "b")
    for _ in range(2):
        assert requeue(store, take(store, 1)) == []
    bad, good = take(store, 2)
    assert requeue(store, [bad, good]) == [(bad, 3, b"a")]
    assert queue(store) == ["b"]
    assert owned(store) == [bad]


def test_the_same_bytes_are_counted_as_one_message(store: Store) -> None:
    send(store, "a")
    requeue(store, take(store, 1))
    key = sha1(b"a", usedforsecurity=False).hexdigest().encode()
    assert store.redis.hgetall("lanes:quick:deliveries") == {key: b"1"}


def look_now(store: Store) -> None:
    """As if somebody had looked at the leases a moment ago, and no owner needed time."""
    store.redis.hset("lanes:quick:watch", mapping={"looked": now(store), "grace": 0})


def test_only_the_expired_are_taken_back_and_the_renewed_passed_over(store: Store) -> None:
    send(store, "a", "b")
    dead, alive = take(store, 2, lease=0.05)
    await_the_end(store, 2)
    store.renew([alive], LEASE)
    look_now(store)
    assert rescue(store) == NOTHING
    assert queue(store) == ["a"]
    assert owned(store) == [alive]
    assert len(store.redis.hkeys("lanes:quick:deliveries")) == 1
    assert rescue(store) == NOTHING  # there is nothing more
    assert store.redis.hvals("lanes:quick:deliveries") == [b"1"]
    assert dead not in owned(store)


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
    before = now(store)
    at, renewed = store.renew([first, second, third, "99@nobody"], LEASE)
    assert renewed == [first, third]
    assert before <= at <= now(store)
    assert store.renew([second], LEASE)[1] == []


def test_those_that_ran_out_are_in_front_again_oldest_first(store: Store) -> None:
    send(store, "a", "b", "c", "d")
    take(store, 2, lease=0.05)
    take(store, 1)
    await_the_end(store, 2)
    look_now(store)
    assert rescue(store) == NOTHING
    assert queue(store) == ["a", "b", "d"]


def test_all_that_ran_out_go_back_at_once_in_the_order_of_their_fetches(store: Store) -> None:
    """A renewal gives them all one time, and of equal times Redis says "10@" before "2@".

    Seen before: the first 100 in that order, so that what had waited was counted for what ran.
    """
    sent = [str(number) for number in range(128)]
    send(store, *sent)
    store.renew(take(store, 128), -1.0)
    look_now(store)
    assert rescue(store, at_once=32) == NOTHING
    assert queue(store) == sent
    ran = {sha1(each.encode(), usedforsecurity=False).hexdigest().encode() for each in sent[:32]}
    assert counted(store) == dict.fromkeys(ran, 1)


def test_of_each_owner_the_oldest_count_and_no_others(store: Store) -> None:
    """As many as a worker runs at once; the others only waited beside them."""
    sent = [str(number) for number in range(12)]
    send(store, *sent)
    ids = [id_ for turn in range(6) for id_ in take(store, 2, owner=(OWNER, OTHER)[turn % 2])]
    store.renew(ids, -1.0)
    look_now(store)
    assert rescue(store, at_once=3) == NOTHING
    assert queue(store) == sent
    ran = [sent[place] for place in (0, 1, 4, 2, 3, 6)]
    digests = {sha1(each.encode(), usedforsecurity=False).hexdigest().encode() for each in ran}
    assert counted(store) == dict.fromkeys(digests, 1)


def test_more_than_a_thousand_of_several_owners_go_back_in_their_order(store: Store) -> None:
    """In steps, between which Redis serves others; of each owner its oldest count all the same.

    Seen before: behind all that had run came all that had waited, and the order was lost.
    """
    owners = [f"quick-{number}@host#{number}" for number in range(3)]
    sent = [str(number) for number in range(2400)]
    send(store, *sent)
    ids = [id_ for turn in range(300) for id_ in take(store, 8, owner=owners[turn % 3])]
    store.renew(ids, -1.0)
    look_now(store)
    before = scripts_run(store)
    assert rescue(store, at_once=10) == NOTHING
    assert scripts_run(store) - before >= 3
    assert queue(store) == sent
    assert not store.redis.exists("lanes:quick:leased", "lanes:quick:leases")
    ran = [str(24 * turn + 8 * owner + each) for owner in range(3) for turn, each in FIRST_TEN]
    digests = {sha1(each.encode(), usedforsecurity=False).hexdigest().encode() for each in ran}
    assert counted(store) == dict.fromkeys(digests, 1)


def scripts_run(store: Store) -> int:
    """But for those that the server had to be told first."""
    said = store.redis.info("commandstats")["cmdstat_evalsha"]
    return int(said["calls"]) - int(said["failed_calls"])


@pytest.mark.parametrize("way", ["hand_back", "rescue_from", "requeue", "acknowledge"])
def test_redis_serves_others_between_the_steps_of_what_has_thousands(
    store: Store, way: str
) -> None:
    """Seen before, of 100,000 in one step: nobody else was served for 1.3 to 2.3 s."""
    sent = [str(number) for number in range(2400)]
    send(store, *sent)
    ids = [id_ for _ in range(24) for id_ in take(store, 100)]
    assert ids[0].partition("@")[2] == OWNER
    before = scripts_run(store)
    if way == "hand_back":
        store.hand_back(ids)
    elif way == "acknowledge":
        store.acknowledge(ids)
    elif way == "requeue":
        assert requeue(store, ids) == []
    else:
        assert store.rescue_from(OWNER, lease=LEASE, at_once=9, most=MOST) == NOTHING
    assert scripts_run(store) - before == 3
    assert queue(store) == ([] if way == "acknowledge" else sent)
    assert not store.redis.exists("lanes:quick:leased", "lanes:quick:leases")
    counted = {"rescue_from": 9, "requeue": 2400}.get(way, 0)
    assert list(map(int, store.redis.hvals("lanes:quick:deliveries"))).count(1) == counted


def test_a_rescue_of_very_many_leaves_the_rest_for_when_leases_are_renewed(store: Store) -> None:
    """Seen before: 43 s for 100,000, while which the rescuer's own leases of 15 s ran out."""
    sent = [str(number) for number in range(2400)]
    send(store, *sent)
    store.renew([id_ for _ in range(24) for id_ in take(store, 100)], -1.0)
    look_now(store)
    before = scripts_run(store)
    ids = store.redis.zrangebyscore("lanes:quick:leases", "-inf", now(store))
    rescued = store._rescue_all("expired", module._ran(ids, 0), LEASE, MOST, within=0)
    assert rescued == Rescued(wait=None, more=True, poison=[])
    assert scripts_run(store) - before == 1
    assert queue(store) == sent[1400:]
    assert rescue(store, at_once=0) == NOTHING
    assert queue(store) == sent


#: Of an owner that takes eight in each of its turns: turn, place.
FIRST_TEN = [*((0, place) for place in range(8)), (1, 0), (1, 1)]


def test_poison_that_two_rescuers_find_at_once_is_counted_once_and_given_to_one(
    store: Store,
) -> None:
    """Seen before: each of them counted it, and set it aside with a count of its own."""
    send(store, "a")
    for _ in range(MOST - 1):
        requeue(store, take(store, 1))
    (id_,) = take(store, 1, lease=0.05)
    await_the_end(store, 1)
    look_now(store)
    found = [rescue(store).poison, rescue(store).poison]
    assert found == [[(id_, MOST, b"a")], []]
    assert store.redis.hvals("lanes:quick:deliveries") == [str(MOST).encode()]
    # Should the one die before it has set it aside, another does it.
    assert owned(store) == [id_]
    store.renew([id_], -1.0)
    assert rescue(store).poison == [(id_, MOST + 1, b"a")]


def test_nothing_is_taken_back_until_owners_had_a_lease_of_time_to_renew(store: Store) -> None:
    """Nobody has looked for long: the broker, or every worker, was away.

    The time is a lease's, 5 s at the most. Seen before: all of a lease, which may be an hour.
    """
    lease = 0.9
    send(store, "a")
    take(store, 1, lease=0.01)
    store.redis.hset("lanes:quick:watch", "looked", now(store) - lease)
    began = time.monotonic()
    wait = rescue(store, lease=lease).wait
    assert wait == pytest.approx(lease, abs=0.1)

    def look() -> bool:
        # Often enough, as workers do it, for the grace to end.
        return rescue(store, lease=lease).wait is None

    assert wait_until(look, "the grace to end")
    assert time.monotonic() - began >= lease
    assert queue(store) == ["a"]


@pytest.mark.parametrize(("lease", "grace"), [(2.0, 2.0), (60.0, 5.0)])
def test_the_first_look_of_all_takes_nothing(store: Store, lease: float, grace: float) -> None:
    send(store, "a")
    take(store, 1, lease=0.01)
    assert rescue(store, lease=lease) == Rescued(
        wait=pytest.approx(grace, abs=0.1), more=False, poison=[]
    )
    ends = float(store.redis.hget("lanes:quick:watch", "grace"))
    assert 0 < ends - now(store) <= grace
    assert len(owned(store)) == 1


@pytest.mark.parametrize(("lease", "gap"), [(6.0, 4.0), (60.0, 8.0)])
def test_owners_get_time_when_two_looks_were_missed(store: Store, lease: float, gap: float) -> None:
    """Workers look at each third of a lease, each 4 s at least."""
    send(store, "a", "b")
    for seconds, taken in ((gap / 2, True), (gap + 1, False)):
        store.renew(take(store, 1), -1.0)
        watch = {"looked": now(store) - seconds, "grace": 0}
        store.redis.hset("lanes:quick:watch", mapping=watch)
        assert (rescue(store, lease=lease).wait is None) is taken
        assert bool(owned(store)) is not taken


def test_what_a_dead_worker_held_is_taken_back_and_nobody_elses(store: Store) -> None:
    sent = [str(number) for number in range(14)]
    send(store, *sent)
    take(store, 11)
    others = [*take(store, 1, owner="quick-1@host2#1"), *take(store, 1, owner=f"1@{OWNER}")]
    others += take(store, 1, owner="quick-1@host#12")
    for owner in (OWNER, OTHER):
        store.renew([], LEASE, owner=owner, note="note")
    rescued = store.rescue_from(OWNER, lease=LEASE, at_once=2, most=MOST)
    assert rescued == NOTHING
    assert queue(store) == sent[:11]  # by number: 2 is before 10
    assert {*map(bytes.decode, store.redis.hkeys("lanes:quick:leased"))} == {*others}
    assert list(counted(store).values()) == [1, 1]
    assert list(store.workers()) == [OTHER]


def test_a_worker_is_known_with_its_note_until_it_says_goodbye(store: Store) -> None:
    before = now(store)
    store.renew([], LEASE, owner=OWNER, note='{"pid": 7}')
    store.renew([], LEASE)  # says nothing of anybody
    assert list(store.workers()) == [OWNER]
    at, note = store.workers()[OWNER]
    assert before <= at <= now(store)
    assert note == '{"pid": 7}'
    store.forget_worker(OWNER)
    assert store.workers() == {}


def test_a_worker_that_said_nothing_for_a_day_is_forgotten(store: Store) -> None:
    for owner in (OWNER, OTHER):
        store.renew([], LEASE, owner=owner, note="")
    store.redis.hset("lanes:quick:workers", OWNER, f"{now(store) - DAY - 60} ")
    for owner in (OWNER, OTHER, "quick-3@host#3"):  # the last said it as it was forgotten
        store.redis.hset("lanes:quick:loads", owner, "1 {}")
    store.forget_old_workers(now(store))
    assert list(store.workers()) == [OTHER]
    assert store.redis.hkeys("lanes:quick:loads") == [OTHER.encode()]


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


def test_identical_bytes_are_postponed_each_and_all_come_back(store: Store) -> None:
    """Seen before: of two, one was gone: a set holds the same bytes once."""
    message = '{"headers": {"eta": "2001-01-01T00:00:00"}}'
    send(store, message, message, message)
    due = now(store) - 1
    for id_ in take(store, 2):
        store.postpone({id_: due})
    (third,) = take(store, 1, owner=OTHER)  # of what is due, the first
    store.postpone({third: due})
    store.postpone(dict.fromkeys(take(store, 1), due))
    assert store.redis.zcard("lanes:quick:delayed") + len(queue(store)) == 3
    came = fetch(store, 5)[1::2]
    assert [json.loads(each) for each in came] == [json.loads(message)] * 3


ROOM = {"cap": 100, "size": 1 << 20, "age": DAY}


def set_aside(store: Store, id_: str, *, report: dict[str, Any] = REPORT, **room: Any) -> int:
    return store.set_aside(id_, report, **ROOM | room)


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
        "lanes:quick:dead:ran",
        "lanes:quick:dead:totals",
    }
    assert store.redis.hgetall("lanes:quick:dead:messages") == {b"1": message}
    report = json.loads(store.redis.hget("lanes:quick:dead:reports", "1"))
    assert report == REPORT | {"at": pytest.approx(before, abs=60), "deliveries": 1}


def test_a_report_says_how_often_it_was_delivered(store: Store) -> None:
    send(store, "a")
    requeue(store, take(store, 1), most=9)
    requeue(store, take(store, 1), most=9)
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
    store.redis.zadd("lanes:quick:dead:ran", {"1": now(store) - DAY - 1})
    assert set_aside(store, new) == 1
    assert dead(store) == ["new"]


def test_age_and_cap_together_drop_no_letter_twice(store: Store) -> None:
    send(store, *"abcd")
    ids = take(store, 4)
    for id_ in ids[:3]:
        set_aside(store, id_)
    store.redis.zadd("lanes:quick:dead:ran", {"1": now(store) - DAY - 1})
    assert set_aside(store, ids[3], cap=2) == 2
    assert dead(store) == ["c", "d"]


NEVER = {"reason": "unknown", "error": "no task is called 'next'"}


def test_what_never_ran_is_not_dropped_for_the_cap_and_stays_leased(store: Store) -> None:
    """Seen before: of 12,000 messages, 2,000 of an unknown task were deleted in 25 s."""
    send(store, *"abcd")
    ids = take(store, 4)
    kept = [set_aside(store, id_, report=NEVER, cap=2) for id_ in ids]
    assert kept == [0, 0, FULL, FULL]
    assert dead(store) == ["a", "b"]
    assert set(owned(store)) == set(ids[2:])
    counts = store.counts()
    assert (counts.never_ran, counts.is_full(cap=2, size=1000)) == (2, True)
    assert not counts.is_full(cap=3, size=1000)
    assert counts.is_full(cap=3, size=counts.never_ran_bytes)
    store.purge_dead([1])
    assert set_aside(store, ids[2], report=NEVER, cap=2) == 0


def test_for_what_never_ran_those_that_ran_are_dropped_and_one_that_ran_is_always_taken(
    store: Store,
) -> None:
    send(store, *"abcdef")
    reports = [REPORT, NEVER, {"reason": "poison"}, NEVER, REPORT, REPORT]
    dropped = [
        set_aside(store, id_, report=report, cap=2)
        for id_, report in zip(take(store, 6), reports, strict=True)
    ]
    assert dropped == [0, 0, 1, 1, 0, 1]
    assert dead(store) == ["b", "d", "f"]


def test_dead_letters_are_dropped_for_their_size(store: Store) -> None:
    """Seen before: there was no limit; six errors of 20 MB took 240 MB."""
    send(store, *"abcd")
    report = REPORT | {"error": "x" * 1000}
    dropped = [set_aside(store, id_, report=report, size=2500) for id_ in take(store, 4)]
    assert dropped == [0, 0, 1, 1]
    assert dead(store) == ["c", "d"]
    sizes = sum(
        len(part)
        for name in ("messages", "reports")
        for part in store.redis.hvals(f"lanes:quick:dead:{name}")
    )
    totals = store.redis.hgetall("lanes:quick:dead:totals")
    assert totals == {b"ran": b"2", b"ran_bytes": str(sizes).encode()}
    store.purge_dead(store.dead_numbers())
    assert {*store.redis.hvals("lanes:quick:dead:totals")} == {b"0"}


def test_what_never_ran_is_not_dropped_for_its_size_or_age_either(store: Store) -> None:
    send(store, *"abc")
    first, second, third = take(store, 3)
    assert set_aside(store, first, report=NEVER, size=10) == 0
    assert set_aside(store, second, report=NEVER, size=10) == FULL
    assert set_aside(store, third, report=NEVER, age=-1) == 0
    assert dead(store) == ["a", "c"]


def test_one_that_ran_and_is_larger_than_there_is_room_is_kept_alone(store: Store) -> None:
    send(store, "a", "b")
    assert [set_aside(store, id_, size=10) for id_ in take(store, 2)] == [0, 1]
    assert dead(store) == ["b"]


def test_letters_of_a_release_that_did_not_count_them_are_counted(store: Store) -> None:
    send(store, *"abcd")
    ids = take(store, 4)
    for id_, report in zip(ids, [REPORT, NEVER, REPORT], strict=False):
        set_aside(store, id_, report=report)
    wanted = store.redis.hgetall("lanes:quick:dead:totals")
    store.redis.delete("lanes:quick:dead:totals", "lanes:quick:dead:ran")
    assert set_aside(store, ids[3], report=NEVER, cap=3) == 1
    assert dead(store) == ["b", "c", "d"]
    assert store.counts().never_ran == int(wanted[b"never"]) + 1


def digest_of(message: str) -> str:
    return sha1(message.encode(), usedforsecurity=False).hexdigest()


PURGED = {"waiting": ("waiting", 6, 2), "delayed": ("delayed", 2, 6)}


@pytest.mark.parametrize(("what", "count", "left"), PURGED.values(), ids=PURGED)
def test_a_purge_takes_what_it_is_told_and_the_counts_of_deliveries(
    store: Store, what: str, count: int, left: int
) -> None:
    send(store, "held")
    held = take(store, 1)
    send(store, "back", *"ab")
    requeue(store, take(store, 1), most=9)
    for name in PRIORITY_LISTS[:2]:
        store.redis.lpush(store.keys(name), name)
    at = now(store)
    store.delay({"due": at - 5, "later": at + 500, "last": at + 5000})
    store.redis.hset("lanes:quick:deliveries", digest_of("later"), 2)
    before = store.counts()
    assert (before.waiting, before.delayed) == (6, 2)
    assert sum(store.purge(what, 99)) == count
    after = store.counts()
    assert after.waiting + after.delayed == left
    assert getattr(after, what) == 0
    assert owned(store) == held
    kept = digest_of("back" if what == "delayed" else "later")
    assert store.redis.hkeys("lanes:quick:deliveries") == [kept.encode()]


def test_a_purge_takes_no_more_than_it_is_told_the_next_first(store: Store) -> None:
    send(store, *"abcde")
    assert list(store.purge("waiting", 3)) == [3]
    assert queue(store) == ["d", "e"]


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
    other.hand_back(ids)
    assert requeue(other, ids) == []
    assert other.rescue_from(OWNER, lease=LEASE, at_once=9, most=1) == NOTHING
    assert set_aside(other, ids[0]) == -1
    assert owned(store) == ids
    assert keys_left(store) == {"lanes:quick:sequence", "lanes:quick:leased", "lanes:quick:leases"}
