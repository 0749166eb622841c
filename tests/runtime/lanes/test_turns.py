"""What the scripts do with keys, limits and locks, where the model test does not go.

Each was seen to go wrong once, as the test says.
"""

import json
from typing import Any
from urllib.parse import quote

import pytest
from celery.contrib.testing.worker import start_worker
from celery.worker import state
from harness import wait_until

from acme_tasks.lanes.redis.fetch import Fetch
from acme_tasks.lanes.redis.store import EXCHANGE, NO_LIMITS, Keys, Limits, Store

LEASE = 15.0  # seconds
Taken = list[tuple[str, Any]]  # ids of leases, and what the messages' bodies say


class Lane:
    """A lane's store, and a worker that fetches with these limits."""

    def __init__(self, redis: Any, limits: Limits = NO_LIMITS) -> None:
        self.redis, self.keys = redis, Keys("quick", "quick_tasks", limits)
        self.store, self.soon = Store(redis, self.keys), 0.0
        redis.script_load(EXCHANGE)

    def fetch(self, wanted: int = 1, done: tuple[str, ...] = ()) -> Taken:
        fetch = Fetch(self.keys, owner="worker", lease=LEASE)
        exchange = fetch.begin(wanted, done)[1]
        fetched = fetch.end([None, self.redis.execute_command(*exchange)])
        self.soon = fetch._soon
        return [(each.id, json.loads(each.message)["body"]) for each in fetched.messages]

    def bodies(self, wanted: int = 1) -> list[Any]:
        return [body for _, body in self.fetch(wanted)]

    def lock(self, name: str = "n") -> str | None:
        held = self.redis.get(f"lanes:quick:once:{name}")
        return held and held.decode()


def message(
    body: Any, key: str | None = None, once: str = "", id_: str = "", retries: int = 0, **more: Any
) -> str:
    """One whose lock is called n, in the mode `once`."""
    id_ = id_ or f"task-{body}"
    headers = {"id": id_, "retries": retries, **more}
    if key is not None:
        headers["lane_key"] = key
    if once:
        milliseconds = 60_000 if once == "time" else 0
        headers["lane_once"] = f"{once} {milliseconds} {retries} {quote(id_, safe='')} n"
    return json.dumps({"body": body, "headers": headers})


@pytest.fixture
def lane(redis: Any) -> Lane:
    return Lane(redis)


def test_what_takes_the_place_of_a_retry_gives_its_lock_back(lane: Lane) -> None:
    """Seen before: the lock stayed for ever, and whatever was sent later was swallowed."""
    lane.store.send([message(1, once="latest")])
    ((lease, _),) = lane.fetch()
    lane.store.send([message(1, once="latest", retries=1)])
    assert lane.lock() == "1 task-1"
    lane.store.acknowledge([lease])
    assert lane.store.send([message(2, once="latest")]) == ["task-1"]
    assert lane.bodies() == [2]
    assert lane.lock() is None
    assert lane.store.send([message(3, once="latest")]) == [""]


def test_a_key_that_another_releases_limit_held_back_goes_on(redis: Any) -> None:
    """Seen before: it waited until somebody sent to it again."""
    for before, after in ((NO_LIMITS, Limits(running=2)), (Limits(running=2), NO_LIMITS)):
        redis.flushdb()
        old, new = Lane(redis, before), Lane(redis, after)
        new.store.send([message(number, "A") for number in range(5)])
        held = [lease for lease, _ in new.fetch(2)]
        old.fetch(0)
        for _ in range(3):
            assert old.fetch(3) == [] or before is NO_LIMITS
            new.fetch(0)
        (old if before is NO_LIMITS else new).store.acknowledge(held)
        assert new.fetch(1) or old.fetch(1)


def test_what_takes_a_tasks_place_waits_for_the_run_after_its_retry(lane: Lane) -> None:
    """Seen before: it was sent beside the retry, and its own retry was taken for that one."""
    lane.store.send([message(1, once="done")])
    ((lease, _),) = lane.fetch()
    assert lane.store.send([message(2, once="latest")]) == ["task-1"]
    lane.store.send([message(1, once="done", retries=1)])
    lane.store.acknowledge([lease])
    ((again, body),) = lane.fetch(5)
    assert body == 1
    lane.store.acknowledge([again])
    assert lane.bodies(5) == [2]
    assert lane.redis.exists("lanes:quick:latest") == 0


def test_nothing_takes_the_place_of_a_task_that_ended_and_holds_its_lock_for_a_time(
    lane: Lane,
) -> None:
    """Seen before: the message was kept, and never read."""
    lane.store.send([message(1, once="time")])
    ((lease, _),) = lane.fetch()
    lane.store.acknowledge([lease])
    assert lane.store.send([message(2, once="latest")]) == ["task-1"]
    assert lane.redis.exists("lanes:quick:latest") == 0


@pytest.mark.parametrize("start", [0, 1])
def test_neither_what_is_due_nor_what_is_queued_starves_beside_a_key(
    lane: Lane, start: int
) -> None:
    """Seen before: with one key in turn it was always the same of the two."""
    lane.redis.set("lanes:quick:sequence", start)
    lane.store.send([message(f"a{number}", "A") for number in range(40)])
    lane.redis.lpush("quick_tasks", *(message(f"q{number}") for number in range(20)))
    lane.store.delay({message(f"d{number}"): 1.0 + number for number in range(20)})
    first = "".join(lane.bodies()[0][0] for _ in range(40))
    assert (first.count("a"), first.count("q"), first.count("d")) == (20, 10, 10)


def test_a_message_without_a_key_starts_soon_behind_a_flood_of_tokens(lane: Lane) -> None:
    """Seen before: behind 20,000 after 42 rounds, if others stood before those."""
    lane.redis.lpush("quick_tasks", *(message(f"before {number}") for number in range(3)))
    for start in range(0, 20_000, 1000):
        lane.store.send([message(number, "A") for number in range(start, start + 1000)])
    lane.redis.lpush("quick_tasks", message("behind"))
    taken = [lane.bodies()[0] for _ in range(12)]
    assert taken.index("behind") < 12
    assert lane.store.counts().waiting == 20_004 - 12


def test_places_that_a_release_without_keys_did_not_give_back_are_found(redis: Any) -> None:
    """Seen before: a key with a limit of one waited for ever."""
    lane = Lane(redis, Limits(running=1))
    lane.store.send([message(number, "A", once="done") for number in range(1)])
    lane.store.send([message(number, "A") for number in range(1, 3)])
    ((lease, _),) = lane.fetch()
    redis.hdel("lanes:quick:leased", lease)
    redis.zrem("lanes:quick:leases", lease)
    assert lane.fetch() == []
    lane.store.promote(keyed=True)
    assert lane.bodies() == [1]
    assert lane.lock() is None


@pytest.mark.parametrize("id_", ["nightly@2026-01-01T00:00:00Z", "n:1", 'a "b" 100%', "ü"])
def test_a_message_takes_the_place_of_a_task_with_any_id(lane: Lane, id_: str) -> None:
    """Seen before: it ran under the id as it is encoded in the lock."""
    lane.store.send([message(1, once="latest", id_=id_)])
    own = "0b0c3b33-8f9c-4a2c-9f2d-0123456789ab"
    assert lane.store.send([message(2, once="latest", id_=own, root_id=own)]) == [id_]
    ((lease, _),) = lane.fetch()
    headers = json.loads(lane.redis.hget("lanes:quick:leased", lease))["headers"]
    assert (headers["id"], headers["root_id"]) == (id_, id_)
    assert headers["lane_once"] == f"latest 0 0 {quote(id_, safe='')} n"


def test_a_fetch_after_a_purge_of_very_many_keys_is_short(lane: Lane) -> None:
    """Seen before: the next fetch passed over 100,000 keys in one step, for 772 ms."""
    for start in range(0, 5000, 1000):
        lane.store.send([message(number, str(number)) for number in range(start, start + 1000)])
    assert sum(lane.store.purge("waiting", 10_000)) == 5000
    lane.store.send([message("last", "B")])
    rounds = 0
    while not (taken := lane.bodies()):
        rounds += 1
        assert rounds < 10
    assert (taken, rounds) == (["last"], 4)
    assert lane.store.counts().keys <= 1


def test_what_has_not_begun_is_no_start(redis: Any) -> None:
    """Seen before: of a task that was not due, or unknown, the rate was used up."""
    lane = Lane(redis, Limits(interval=3600.0))
    lane.store.send([message(1, "A"), message(2, "A")])
    ((lease, _),) = lane.fetch()
    lane.store.await_release(lease, most=3600.0)
    assert lane.bodies() == [2]


def test_a_lock_in_a_header_within_headers_is_not_the_messages_own(lane: Lane) -> None:
    """Seen before: a child that was given its parent's headers released the parent's lock."""
    lane.store.send([message(1, "A", once="done")])
    lane.fetch()
    handed_on = json.loads(message(1, "A", once="done"))["headers"]
    none = {"lane_key": None, "lane_once": None}
    child = json.dumps({"body": 2, "headers": none | {"id": "child", "from": handed_on}})
    lane.redis.lpush("quick_tasks", child)
    ((lease, body),) = lane.fetch()
    lane.store.acknowledge([lease])
    assert (body, lane.lock()) == (2, "0 task-1")
    assert lane.redis.hgetall("lanes:quick:keyed:running") == {b"A": b"1"}


def test_tokens_that_somebody_else_took_are_made_anew(lane: Lane) -> None:
    """Seen before: what waits was counted as nothing, and a plain message waited for the rest."""
    lane.store.send([message(number, "A") for number in range(30)])
    lane.redis.delete("quick_tasks")
    lane.redis.lpush("quick_tasks", message("plain"))
    assert "plain" in lane.bodies(4)
    counts = lane.store.counts()
    assert counts.waiting == 27
    assert lane.redis.llen("quick_tasks") == 27


def test_a_worker_wakes_for_a_rate_alone_that_something_waits_for(redis: Any) -> None:
    """Seen before: an idle worker woke after each start of any key."""
    lane = Lane(redis, Limits(interval=0.25))
    lane.store.send([message(1, "A"), message(2, "A")])
    lane.fetch(2)
    assert 0.2 < lane.soon <= 0.25
    lane.store.purge("waiting", 10, key="A")
    assert sum(lane.store.purge("waiting", 10)) == 1
    lane.fetch(2)
    assert lane.soon == 0.5


def test_a_lock_ends_with_its_task_in_celerys_worker_for_tests(
    broker: Any, bound: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: without a key it stayed, and a second test's task never ran."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound('default_lane = "quick"\n[lanes.quick]\n')
    ran: list[int] = []

    @app.task
    def note(number: int) -> None:
        ran.append(number)

    with start_worker(app, perform_ping_check=False):
        for number in (1, 2):
            note.apply_async((number,), unique="n")
            wait_until(lambda: len(ran) == number, "it to run")  # noqa: B023 - called here
    assert broker.redis.keys("lanes:quick:once:*") == []
    state.active_requests.clear()  # which Celery's worker for tests leaves to other tests
