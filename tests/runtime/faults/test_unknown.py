"""A task that no worker knows waits for workers that do, as a rolling deploy brings them.

Seen before: a dead letter at once; a worker without the task made 12,000 of them in 25 s. Stock
Celery deletes the message.
"""

import time
from datetime import UTC, datetime, timedelta

import pytest
from conftest import MakeFleet
from harness import PATIENCE, wait_until
from support import NEW_TASK, NOISE, SOAK, Fleet, alive, message, ticks

pytestmark = pytest.mark.ours_only("stock deletes them")

MANY = 3000


def parts(fleet: Fleet) -> tuple[int, int]:
    """Messages that are delayed, and all, at one moment."""
    with fleet.redis.pipeline() as pipe:
        pipe.zcard(fleet.keys("delayed")).llen(fleet.lane.queue).hlen(fleet.keys("leased"))
        delayed, *others = pipe.execute()
    return delayed, delayed + sum(others)


def hurry(fleet: Fleet) -> None:
    """Have what is delayed be due."""
    for each in fleet.redis.zrange(fleet.keys("delayed"), 0, -1):
        fleet.redis.zadd(fleet.keys("delayed"), {each: time.time()}, xx=True)


def notes(fleet: Fleet, what: str) -> int:
    """How often the worker's own code has noted this."""
    lines = fleet.ledger.path.read_text(encoding="utf-8").splitlines()
    return sum(line.startswith(f"{what} ") for line in lines)


@pytest.mark.timeout(SOAK)
def test_a_flood_of_unknown_tasks_waits_and_the_next_release_runs_each_once(
    make_fleet: MakeFleet,
) -> None:
    old = make_fleet(concurrency=2)
    process = old.start()
    names = [f"new-{number}" for number in range(MANY)]
    old.send(*(message(NEW_TASK, [name]) for name in names))
    wait_until(lambda: parts(old) == (MANY, MANY), "all to wait")
    # They are tried again and again meanwhile, and those that are known take turns with them.
    began = time.time()
    known = [f"known-{number}" for number in range(50)]
    old.send(*ticks(known))
    old.await_ended(known, "tasks that are known")
    assert max(old.ledger.when(known[-1])) - began < NOISE
    wait_until(lambda: parts(old)[1] == MANY, "those alone to be left")
    assert old.dead() == []
    assert process.log.count(f"no task is called '{NEW_TASK}' here") == 1

    assert process.end() == 0
    new = make_fleet(concurrency=2)
    new.become_next_release(of=old)
    new.start()
    new.await_ended(names, "all to run", 3 * PATIENCE)
    new.await_idle()
    new.assert_all_ran(names, 0, "the next release")
    assert old.dead() == []
    assert not old.redis.exists(old.keys("deliveries"))


def test_after_unknown_wait_each_is_a_dead_letter(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1, unknown_wait="2s")
    fleet.start()
    with fleet.app() as app:
        began = time.time()
        sent = [app.send_task(NEW_TASK) for _ in range(20)]
        letters = fleet.await_dead(20)
        assert {letter.reason for letter in letters} == {"unknown"}
        assert min(letter.at for letter in letters) - began >= 2
        assert {letter.task_id for letter in letters} == {each.id for each in sent}
        assert {type(each.get(PATIENCE, propagate=False)).__name__ for each in sent} == {
            "NotRegistered"
        }
    assert parts(fleet) == (0, 0)
    assert not fleet.redis.exists(fleet.keys("deliveries"))


def test_without_unknown_wait_it_is_one_at_once(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1, unknown_wait=False)
    fleet.start()
    fleet.send(message(NEW_TASK, ["a"]))
    (letter,) = fleet.await_dead(1)
    assert (letter.reason, letter.error) == ("unknown", f"no task is called '{NEW_TASK}'")
    assert parts(fleet) == (0, 0)


def test_it_expires_while_it_waits(make_fleet: MakeFleet) -> None:
    """Which only a worker finds that knows it; the others leave it alone."""
    old = make_fleet(concurrency=1)
    process = old.start()
    expires = datetime.now(UTC) + timedelta(seconds=2)
    stale = message(NEW_TASK, ["stale"], expires=expires.isoformat())
    old.send(stale, message(NEW_TASK, ["a"]))
    wait_until(lambda: parts(old) == (2, 2), "both to wait")
    wait_until(lambda: datetime.now(UTC) > expires, "one to expire")
    assert process.end() == 0
    new = make_fleet(concurrency=1)
    new.become_next_release(of=old)
    new.start()
    new.await_ended(["a"], "the other")
    (letter,) = new.await_dead(1)
    assert (letter.reason, letter.task_id) == ("expired", stale["headers"]["id"])
    assert new.ledger.started["stale"] == 0


def test_where_there_is_no_room_for_its_letter_it_stays_and_its_failure_is_told_once(
    make_fleet: MakeFleet,
) -> None:
    """When it has its letter: seen before, at each of its tries, one in ten minutes."""
    fleet = make_fleet(concurrency=1, unknown_wait=False, dead_cap=2)
    process = fleet.start()
    past = datetime.now(UTC) - timedelta(hours=1)
    with fleet.app() as app:
        errback = app.signature("tell")
        for _ in range(4):
            app.send_task(NEW_TASK, link_error=errback)
        app.send_task("tick", ("stale",), expires=past, link_error=errback)

        def await_told(count: int, delayed: int) -> None:
            def is_so() -> bool:
                later = fleet.redis.zcount(fleet.keys("delayed"), time.time() + 60, "+inf")
                return (later, notes(fleet, "told")) == (delayed, count)

            wait_until(is_so, f"{count} to be told of, and {delayed} to be delayed for long")
            fleet.run_good("that")
            fleet.await_idle()
            assert is_so()

        await_told(2, 3)
        hurry(fleet)
        await_told(2, 3)
        assert notes(fleet, "task_unknown") == 2
        for told, delayed in ((4, 1), (5, 0)):
            assert fleet.run("dead", "purge", "--all", "--yes").returncode == 0
            hurry(fleet)
            await_told(told, delayed)
    assert {letter.reason for letter in fleet.dead()} <= {"unknown", "expired"}
    assert notes(fleet, "task_unknown") == 4
    assert alive(process)
