"""What workers count is what they did, but for the last second of one that was killed."""

import random
import time

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import SOAK, Fleet, ticks

from acme_tasks.lanes.counting import Counted
from acme_tasks.lanes.redis.counters import Counters
from acme_tasks.lanes.redis.store import Store
from acme_tasks.lanes.routing import SENT_AT

pytestmark = pytest.mark.ours_only("stock Celery counts nothing")

KILLS = 10
SECOND = 2.0  # seconds that a worker may take to tell what it has counted in one
_dice = random.Random(7)  # noqa: S311 - moments, not secrets


def send(fleet: Fleet, count: int, *, seconds: float = 0.0) -> None:
    """As a lane's own senders do it, who say when."""
    sent = ticks((f"t{number}" for number in range(count)), seconds)
    for each in sent:
        each["headers"][SENT_AT] = time.time()
    fleet.send(*sent)


def since(fleet: Fleet, what: str, at: float) -> int:
    """How many tasks did this after a time in seconds since 1970: "start" or "end"."""
    return sum(did == what and float(when) > at for did, _, when in fleet.ledger._lines())


def counted(fleet: Fleet) -> Counted:
    total = Counters(Store(fleet.redis, fleet.keys)).total()
    assert total.keys() <= {"tick"}
    return total.get("tick", Counted())


def assert_sound(seen: Counted) -> None:
    numbers = [seen.good, seen.total, seen.redelivered, seen.run.count, seen.wait.count]
    for histogram in (seen.run, seen.wait):
        numbers += histogram.buckets.values()
    assert min([*numbers, *seen.outcomes.values()], default=0) >= 0
    assert min(seen.run.sum, seen.wait.sum, seen.run.squares) >= 0
    assert seen.good <= seen.total == seen.wait.count


@pytest.mark.timeout(SOAK)
def test_counts_are_exact_over_10_000_tasks_in_four_children(make_fleet: MakeFleet) -> None:
    """Seen to fail with each batch told twice: 20,000."""
    fleet = make_fleet(prefetch=4, latency_slo="10m")
    send(fleet, 10_000)
    process = fleet.start()
    fleet.await_idle()
    assert process.end() == 0
    seen = counted(fleet)
    assert_sound(seen)
    assert seen.outcomes == {"succeeded": 10_000}
    assert seen.run.count == seen.total == seen.good == 10_000
    assert seen.redelivered == 0
    assert fleet.ledger.ended.total() == 10_000


@pytest.mark.timeout(SOAK)
def test_ten_kills_cost_the_counts_no_more_than_the_last_second_before_each(
    make_fleet: MakeFleet,
) -> None:
    """Seen to fail with workers that tell each 6 s."""
    fleet = make_fleet(prefetch=4, max_deliveries=1000, latency_slo="10m")
    tasks, uncounted, unstarted = 7_000, 0, 0
    send(fleet, tasks, seconds=0.02)
    before = Counted()
    for _ in range(KILLS):
        process = fleet.start(ready=False)
        told = before.outcomes.total()
        wait_until(lambda told=told: counted(fleet).outcomes.total() > told, "a worker to tell")
        time.sleep(_dice.uniform(2, 3))  # else one that tells each 6 s would pass
        at = time.time()
        fleet.kill(process)
        assert not fleet.is_idle(), "the kill was to be amid work"
        uncounted += since(fleet, "end", at - SECOND)
        unstarted += since(fleet, "start", at - SECOND)
        after = counted(fleet)
        assert_sound(after)
        assert all(after.outcomes[each] >= count for each, count in before.outcomes.items())
        before = after
    last = fleet.start()
    fleet.await_idle()
    assert last.end() == 0
    seen = counted(fleet)
    assert_sound(seen)
    ran, began = fleet.ledger.ended.total(), fleet.ledger.started.total()
    print(
        f"{KILLS} kills: {ran} ended, {seen.outcomes.total()} counted, {uncounted} may be missing"
    )
    assert set(seen.outcomes) == {"succeeded"}
    assert ran >= tasks
    assert ran - uncounted <= seen.outcomes["succeeded"] <= ran
    assert ran - uncounted <= seen.run.count <= ran
    assert began - unstarted <= seen.total + seen.redelivered <= began + 4 * KILLS
