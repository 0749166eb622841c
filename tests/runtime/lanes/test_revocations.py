"""Revocations on a real Valkey: how long and how many are kept, and what a worker learns."""

import time
from typing import Any

import pytest
from harness import wait_until

from acme_tasks.lanes.redis import revocations
from acme_tasks.lanes.redis.revocations import Revocations, revoke
from acme_tasks.lanes.redis.store import REVOCATIONS


def number(redis: Any) -> bytes:
    """What a fetch tells a worker."""
    return bytes(redis.get(REVOCATIONS) or b"")


def known(redis: Any) -> Revocations:
    """What a worker knows that has just begun."""
    fresh = Revocations(redis)
    fresh.learn(number(redis))
    return fresh


def test_what_is_revoked_is_known_by_id_and_by_stamp(redis: Any) -> None:
    revoke(redis, ids=["a", "b"], stamps={"customer": ["c1", 2], "shop": "s1"})
    all_ = known(redis)
    assert all_.ids == {"a", "b"}
    assert all_.stamps == {"customer": {"c1", 2}, "shop": {"s1"}}
    covered = [
        {"id": "a"},
        {"id": "x", "stamps": {"customer": "c1"}},
        {"id": "x", "stamps": {"customer": ["c0", 2]}},
        {"id": "x", "stamps": {"other": "s1", "shop": ["s1"]}},
    ]
    assert all(map(all_.cover, covered))
    others = [None, [], {}, {"id": 1}, {"id": "c1"}, {"id": "x", "stamps": "customer"}]
    others += [{"id": "x", "stamps": {"shop": stamp}} for stamp in ("c1", None, [["s1"]], {})]
    assert not any(map(all_.cover, others))


def test_a_worker_learns_of_the_new_ones_alone(redis: Any) -> None:
    revoke(redis, ids=["a"])
    worker = known(redis)
    revoke(redis, ids=["b"], stamps={"customer": "c1"})
    ids, stamps = worker.learn(number(redis))
    assert ("b" in ids, stamps) == (True, {"customer": {"c1"}})
    assert worker.ids == {"a", "b"}
    assert worker.number == number(redis)


def test_it_learns_of_those_that_come_when_the_servers_clock_was_set_back(redis: Any) -> None:
    """Or another server took over, whose clock is behind. Seen before: it never did."""
    revoke(redis, ids=["a"])
    (last, at), *_ = redis.zrange("lanes:revoked", 0, -1, withscores=True)
    redis.zadd("lanes:revoked", {last: at + 3600})
    worker = known(redis)
    revoke(redis, ids=["b"])
    worker.learn(number(redis))
    assert worker.ids == {"a", "b"}


def test_it_learns_of_all_anew_when_the_server_has_lost_its_data(redis: Any) -> None:
    for each in "abc":
        revoke(redis, ids=[each])
    worker = known(redis)
    redis.flushall()
    revoke(redis, ids=["d"])
    worker.learn(number(redis))
    assert worker.ids == {"d"}


def test_no_more_than_so_many_are_kept_the_newest_of_them(
    redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "MOST", 3)
    for each in "abcde":
        revoke(redis, ids=[each])
    assert known(redis).ids == {"c", "d", "e"}
    # One that is revoked again is as new as the last.
    revoke(redis, ids=["c"])
    revoke(redis, ids=["f"])
    assert known(redis).ids == {"c", "e", "f"}


def test_none_is_kept_for_longer_than_so_long(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (revocations.AGE, revocations.MOST) == (30 * 86400, 100_000)
    revoke(redis, ids=["a"])
    redis.zadd("lanes:revoked", {'"old"': time.time() - revocations.AGE - 3600})
    redis.zadd("lanes:revoked", {'"young"': time.time() - revocations.AGE + 3600})
    revoke(redis, ids=["b"])
    assert known(redis).ids == {"a", "b", "young"}
    monkeypatch.setattr(revocations, "AGE", 0.2)

    def is_forgotten() -> bool:
        revoke(redis, ids=["c"])
        return known(redis).ids == {"c"}

    wait_until(is_forgotten, "the others to be too old")


def test_revoking_nothing_tells_nobody(redis: Any) -> None:
    revoke(redis, ids=[], stamps={})
    assert number(redis) == b""
