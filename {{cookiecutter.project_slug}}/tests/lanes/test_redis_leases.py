"""What a worker process holds, on a real Valkey; its thread is turned by hand."""

import time
from collections.abc import Callable
from hashlib import sha1
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from {{ cookiecutter.package_name }}.lanes.redis.leases import Leases
from {{ cookiecutter.package_name }}.lanes.redis.store import EXCHANGE_KEYS, Keys, Store

OWNER = "quick-1@host"
OTHER = "quick-2@host"
LEASE = 60.0  # seconds
KEYS = Keys("quick", "quick_tasks")

MakeLeases = Callable[..., Leases]


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test's leases are looked after behind its back."""
    monkeypatch.setattr(Leases, "_keep", lambda _self: None)


@pytest.fixture
def redis(server: Any) -> Any:
    server.redis.flushall()
    return Redis.from_url(server.url)  # redis-py, as a worker's


def make_leases(redis: Any, **options: Any) -> Leases:
    values = {"concurrency": 32, "lease": LEASE, "max_deliveries": 3, "dead_cap": 9, "dead_age": 99}
    return Leases(Store(redis, KEYS), owner=OWNER, **values | options)


def send(redis: Any, count: int) -> list[str]:
    messages = [f"m{number}" for number in range(count)]
    redis.lpush(KEYS.queue, *messages)
    return messages


def queue(redis: Any) -> list[str]:
    """What is in the queue, the next first."""
    return [message.decode() for message in reversed(redis.lrange(KEYS.queue, 0, -1))]


def take(redis: Any, count: int, owner: str = OWNER) -> list[str]:
    """Fetch as the transport does; the ids of the new leases."""
    args = (count, LEASE, owner, 0)
    return [id_.decode() for id_ in Store(redis, KEYS)._run("exchange", EXCHANGE_KEYS, args)[::2]]


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
    assert len(counted) == 32
    assert counted == dict.fromkeys(ran, b"1")
    assert queue(redis) == sent


@pytest.mark.parametrize("counted", [False, True], ids=["a stop", "a requeue"])
def test_what_could_not_be_handed_back_goes_back_in_order_when_the_broker_does(
    redis: Any, counted: bool
) -> None:
    """Seen before: one by one, each in front of the one before, so that the newest was next."""
    sent = send(redis, 6)
    leases = make_leases(redis)
    ids = take(redis, 5)
    leases.held.update(dict.fromkeys(ids))
    nobody = Redis(port=1, retry=Retry(NoBackoff(), 0))
    with pytest.MonkeyPatch.context() as away:
        away.setattr(redis, "connection_pool", nobody.connection_pool)
        leases.hand_back(ids, counted=counted)
    assert queue(redis) == sent[5:]
    leases._tend()
    assert queue(redis) == sent
    assert not redis.exists(KEYS("leased"))
