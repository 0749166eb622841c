"""Messages with a key on a real Valkey: what is known of each key, and who waits for whom."""

import json
from typing import Any

import pytest

from acme_tasks.lanes.redis.store import (
    EXCHANGE_KEYS,
    NO_LIMITS,
    KeyCounts,
    Keys,
    KeyState,
    Limits,
    Store,
    quoted,
)

HOUR = 3600.0  # seconds


def store_of(redis: Any, limits: Limits = NO_LIMITS) -> Store:
    return Store(redis, Keys("quick", "quick_tasks", limits))


def message(id_: str, key: str | None = None) -> str:
    return json.dumps({"headers": {"id": id_} | ({"lane_key": quoted(key)} if key else {})})


def take(store: Store, count: int) -> tuple[list[str], list[str]]:
    """Fetch as the transport does; the ids of the leases, and of the tasks."""
    _, _, _, *found = store.run("exchange", EXCHANGE_KEYS, (count, 60, "owner", 0))
    tasks = [json.loads(each)["headers"]["id"] for each in found[1::3]]
    return [id_.decode() for id_ in found[::3]], tasks


# What is known of a key


def test_what_a_key_has_is_found_wherever_it_is(redis: Any) -> None:
    store = store_of(redis)
    for name in ("é 1", "é"):
        store.send([message(f"{name} {number}", name) for number in range(4)])
        store.send([message(f"{name} due", name)], due=store.now() - 1)
        store.send([message(f"{name} later", name)], due=store.now() + HOUR)
    taken, _ = take(store, 2)
    assert store.counts_of("é") == KeyCounts(waiting=4, delayed=1, leased=1)
    wanted = {*(f"é {number}" for number in range(4)), "é due", "é later"}
    assert set(store.ids_of("é")) == wanted
    store.acknowledge(taken)
    assert set(store.ids_of("é")) == wanted - {"é 0"}
    assert store.counts_of("nobody") == KeyCounts(0, 0, 0)
    assert list(store.ids_of("nobody")) == []


def test_a_message_that_cannot_be_read_has_no_key_and_hides_no_other(redis: Any) -> None:
    store = store_of(redis)
    odd = ('{"lane_key": "k", broken', '{"headers": ["lane_key": "k"]}', '["lane_key": "k"]')
    store.send([*odd, '{"headers": {"lane_key": "k"}}', message("good", "k")])
    assert list(store.ids_of("k")) == ["good"]
    assert store.counts_of("k").waiting == 5


def test_the_longest_keys_come_first_with_what_holds_each_back(redis: Any) -> None:
    store = store_of(redis, Limits(running=2))
    for name, count in (("a", 3), ("b", 4), ("c", 1)):
        store.send([message(f"{name}{number}", name) for number in range(count)])
    take(store, 4)  # a, b, c, a
    held = "max_running_per_key"
    assert store.keys_waiting() == [KeyState("b", 3, 1, ""), KeyState("a", 1, 2, held)]
    assert store.keys_waiting(1) == [KeyState("b", 3, 1, "")]
    counts = store.counts()
    assert (counts.waiting, counts.keys, counts.keys_held) == (4, 2, 1)


# A lanes.toml that is not the same everywhere, as while it is rolled out

ROLLED_OUT = {
    "a limit that senders have first": (Limits(), Limits(running=1)),
    "a limit that senders have no more": (Limits(running=1), Limits()),
}


@pytest.mark.parametrize(("of_workers", "of_senders"), ROLLED_OUT.values(), ids=ROLLED_OUT)
def test_no_message_is_left_behind_while_a_limit_is_rolled_out(
    redis: Any, of_workers: Limits, of_senders: Limits
) -> None:
    """Seen before: with the first, it waited until another message of its key was sent."""
    workers, senders = store_of(redis, of_workers), store_of(redis, of_senders)
    workers.send([message("1", "k")])
    taken, _ = take(workers, 1)
    senders.send([message("2", "k")])
    workers.acknowledge(taken)
    assert redis.llen("quick_tasks") == 1, "a worker that waits is woken"
    assert take(workers, 1)[1] == ["2"]


def test_no_message_is_left_behind_when_a_limit_is_removed(redis: Any) -> None:
    """Seen before: the other two waited until another message of their key was sent."""
    before, after = store_of(redis, Limits(running=1)), store_of(redis)
    before.send([message(str(number), "k") for number in range(3)])
    taken, _ = take(before, 9)
    after.acknowledge(taken)
    assert take(after, 9)[1] == ["1", "2"]


# Without a key


def test_neither_what_is_due_nor_what_is_in_the_queue_starves_beside_one_key(redis: Any) -> None:
    """Seen before: with one key beside them, 30 of the queue came, and none of what was due."""
    store = store_of(redis)
    for number in range(100):
        redis.lpush("quick_tasks", message(f"queue {number}"))
    store.delay({message(f"due {number}"): 1.0 + number for number in range(100)})
    store.send([message(f"key {number}", "k") for number in range(100)])
    came = [take(store, 1)[1][0].split()[0] for _ in range(100)]
    assert came.count("key") == 50
    assert min(came.count("due"), came.count("queue")) > 5
