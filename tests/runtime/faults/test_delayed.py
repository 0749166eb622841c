"""Delayed tasks wait in Redis: they cost a worker nothing, delay nobody, and are not lost."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import NOISE, SOAK, Fleet, message, resident, ticks


def _due(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def _delayed(names: list[str], seconds: float) -> list[dict[str, object]]:
    """As a plain Celery sends them, straight into the queue."""
    return [message("tick", [name], eta=_due(seconds)) for name in names]


@pytest.mark.timeout(SOAK)
@pytest.mark.stock("34 MiB more for 4,000")
def test_tasks_of_the_far_future_cost_the_worker_no_memory(
    make_fleet: MakeFleet, rounds: int
) -> None:
    fleet = make_fleet(concurrency=2)
    process = fleet.start()
    for number in range(20):
        fleet.run_good(f"{number} to warm up")
    before = resident(process.process.pid)
    count = min(2000 * rounds, 20_000)
    names = [f"t{number}" for number in range(count)]
    fleet.send(*_delayed(names, 3600))
    behind = [f"behind{number}" for number in range(150)]
    fleet.send(*ticks(behind))
    fleet.await_ended(behind, f"what is behind {count} delayed ones")
    if not fleet.stock:
        wait_until(lambda: fleet.redis.zcard(fleet.keys("delayed")) == count, "all to be delayed")
    grown = resident(process.process.pid) - before
    print(f"{count} delayed tasks: {grown} KiB more")
    assert not set(names) & fleet.ledger.started.keys()
    # Python keeps some of what it used in passing; stock needs 3 KiB for each.
    assert grown < 0.5 * count + 2000
    # Some were fetched with the delayed ones, for which there were no slots.
    fleet.assert_all_ran(behind, 0, "behind them")


@pytest.mark.ours_only("send_many is ours")
def test_send_many_with_a_countdown_waits_in_redis(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    assert _tick(fleet).send_many((("later",) for _ in range(2500)), countdown=3600) == 2500
    assert fleet.redis.zcard(fleet.keys("delayed")) == 2500
    assert not fleet.redis.llen(fleet.lane.queue)


def _tick(fleet: Fleet) -> object:
    app = fleet.app()

    @app.task(name="tick", shared=False)
    def tick(name: str) -> None:
        raise NotImplementedError

    return tick


@pytest.mark.stock("passes")
def test_due_tasks_start_on_time_beside_immediate_ones(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=4)
    fleet.start()
    names = [f"t{number}" for number in range(10)]
    due = time.time() + 4
    fleet.send(*_delayed(names, 4))
    fleet.run_good("delayed ones")
    assert not set(names) & fleet.ledger.started.keys()
    fleet.await_ended(names, "all to be due")
    late = [fleet.ledger.when(name)[0] - due for name in names]
    print(f"late by {min(late):.2f} to {max(late):.2f} s")
    assert min(late) > -0.1
    assert max(late) < 1 + NOISE
    fleet.assert_all_ran(names, 0)


@pytest.mark.stock("none lost, all late by 100 s")
def test_a_killed_worker_loses_no_delayed_task(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=2)
    killed = fleet.start()
    names = [f"t{number}" for number in range(50)]
    fleet.send(*_delayed(names, 2))
    fleet.run_good("delayed ones")
    fleet.kill(killed)
    fleet.start()
    fleet.await_ended(names, "all to run")
    fleet.assert_all_ran(names, 0, "delayed over a kill")


@pytest.mark.stock("passes")
def test_a_retry_with_a_countdown_runs_after_a_kill(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=2)
    killed = fleet.start()
    fleet.send(message("retry_once", ["again", 1.0]), *ticks(["other"]))
    wait_until(lambda: fleet.ledger.started["again"] and fleet.is_idle(), "its first run")
    fleet.kill(killed)
    fleet.start()
    fleet.await_ended(["again"], "its second run")
    assert fleet.ledger.started["again"] == 2


def test_what_falls_due_while_the_worker_is_busy_runs_in_the_order_in_which_it_was_due(
    make_fleet: MakeFleet,
) -> None:
    """Seen before, and with a plain task behind it: the newest first."""
    fleet = make_fleet(concurrency=1)
    fleet.start()
    names = [f"t{number}" for number in range(8)]
    fleet.send(
        *(message("tick", [name], eta=_due(1 + number / 10)) for number, name in enumerate(names))
    )
    wait_until(lambda: fleet.redis.zcard(fleet.keys("delayed")) == len(names), "all to be delayed")
    fleet.send(message("hold", ["held"]))
    wait_until(lambda: fleet.ledger.started["held"], "the worker to be busy")
    last = fleet.redis.zrange(fleet.keys("delayed"), -1, -1, withscores=True)[0][1]
    wait_until(lambda: fleet.redis.time()[0] > last, "all to be due")
    fleet.mend("held")
    fleet.await_ended(names, "all to run")
    assert sorted(names, key=lambda name: fleet.ledger.when(name)[0]) == names
    fleet.assert_all_ran(names, 0, "in the order in which they were due")


@pytest.mark.timeout(SOAK)
@pytest.mark.ours_only("stock keeps delayed tasks in its workers")
@pytest.mark.parametrize("flood", ["due at once", "plain"])
def test_neither_what_is_due_nor_what_is_not_delayed_waits_for_a_flood_of_the_other(
    make_fleet: MakeFleet, rounds: int, flood: str
) -> None:
    """20,000 for every day; with --rounds 10, the 200,000 of which this was seen.

    Seen before: of those due, a hundred at a time went in front of all that was plain.
    """
    fleet = make_fleet(concurrency=2)
    count = 20_000 * rounds
    few = [f"few{number}" for number in range(100)]
    past = _due(-60)
    for start in range(0, count, 5000):
        many = ticks(f"many{number}" for number in range(start, start + 5000))
        if flood == "plain":
            fleet.send(*many)
        else:
            fleet.redis.zadd(fleet.keys("delayed"), {json.dumps(each): start for each in many})
    if flood == "plain":
        fleet.redis.zadd(
            fleet.keys("delayed"), {json.dumps(message("tick", [n], eta=past)): 1 for n in few}
        )
    else:
        fleet.send(*ticks(few))
    fleet.start()
    fleet.await_ended(few, "the few")
    ran = len(fleet.ledger.ended) - len(few)
    print(f"{ran} of {count} {flood} ran while {len(few)} others did")
    assert ran < 20 * len(few), "they took turns"
