"""Leases: short ones never double a long task, and a stopped worker loses its own alone."""

import os
import signal
import time

import pytest
from conftest import MakeFleet
from harness import PATIENCE, wait_until
from support import alive, message, ticks


@pytest.mark.stock("runs twice, side by side, with each pool")
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_of_ten_leases_runs_once(make_fleet: MakeFleet, pool: str) -> None:
    """With another worker that would take it."""
    limits = {} if pool == "prefork" else {"pool": pool}
    fleet = make_fleet(concurrency=1, lease="800ms", **limits)
    fleet.start()
    fleet.send(*ticks(["long"], 8.0))
    wait_until(lambda: fleet.ledger.started, "it to run")
    # Stock looks for overdue messages each 100 s and at a start, so the other one starts now.
    other = fleet.start(instance=2)
    fleet.await_ended(["long"], "its end")
    fleet.run_good("it")
    fleet.await_idle()
    assert alive(other)
    fleet.assert_all_ran(["long"], 0, f"ten leases with {pool}")


@pytest.mark.ours_only("stock takes nothing back at a start")
def test_a_second_worker_of_the_same_name_takes_nothing_from_the_first(
    make_fleet: MakeFleet,
) -> None:
    """Seen before: what ran was run again at each start, and after three of them was poison."""
    fleet = make_fleet(concurrency=2)
    fleet.start()
    fleet.send(message("hold", ["held"]))
    wait_until(lambda: fleet.ledger.started["held"], "it to run")
    second = fleet.start()
    names = [f"t{number}" for number in range(20)]
    fleet.send(*ticks(names, 0.1))
    fleet.await_ended(names, "what came after")
    fleet.mend("held")
    fleet.await_ended(["held"], "its end")
    fleet.await_idle()
    fleet.assert_all_ran(["held", *names], 0, "two of one name")
    assert "another worker is called work-1@" in second.log


@pytest.mark.ours_only("stock has one lane for all")
def test_a_short_lease_leaves_the_other_lanes_tasks_alone(make_fleet: MakeFleet) -> None:
    """The other lane's worker is stopped for longer than the short lease, not than its own."""
    short = make_fleet(name="short", lease="500ms")
    long = make_fleet(name="long", lease="60s")
    holder = long.start()
    short.start()
    long.send(message("hold", ["patient"]))
    wait_until(lambda: long.ledger.started, "it to run")
    os.kill(holder.process.pid, signal.SIGSTOP)
    # Two looks of the other lane's worker and more, each of which takes what is overdue.
    time.sleep(2 * short.lane.lease)
    for number in range(8):
        short.run_good(f"{number} tasks of the other lane")
    long.mend("patient")
    wait_until(lambda: long.ledger.ended, "its child to end")
    assert long.held() == 1
    os.kill(holder.process.pid, signal.SIGCONT)
    long.await_idle()
    long.assert_all_ran(["patient"], 0)


@pytest.mark.stock("the stopped worker answers no more; the other took over after 100 s")
def test_a_worker_stopped_for_two_leases_and_continued_goes_on(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=2, prefetch=2, lease="1500ms")
    stopped = fleet.start()
    names = [f"t{number}" for number in range(12)]
    fleet.send(*ticks(names, 0.4))
    wait_until(lambda: len(fleet.ledger.started) >= 2, "the first to run")
    other = fleet.start(instance=2)
    os.killpg(stopped.process.pid, signal.SIGSTOP)
    held = fleet.held()
    # Until the other has done all of it, which takes two leases: one to run out, and its tasks.
    fleet.await_ended(names, "the other to take all", 150 if fleet.stock else PATIENCE)
    os.killpg(stopped.process.pid, signal.SIGCONT)
    fleet.await_idle()
    os.killpg(other.process.pid, signal.SIGKILL)
    fleet.run_good("being stopped")
    assert alive(stopped)
    assert max(fleet.ledger.started[name] for name in names) <= 2
    fleet.assert_all_ran(names, held, "stopped for two leases")


@pytest.mark.ours_only("stock has no lease to renew")
def test_a_worker_stopped_alone_keeps_its_tasks(make_fleet: MakeFleet) -> None:
    """Nobody was there to take them, so nothing runs twice."""
    fleet = make_fleet(concurrency=2, prefetch=2, lease="500ms")
    stopped = fleet.start()
    names = [f"t{number}" for number in range(8)]
    fleet.send(*(message("hold", [name]) for name in names))
    wait_until(lambda: len(fleet.ledger.started) >= 2, "the first to run")
    os.killpg(stopped.process.pid, signal.SIGSTOP)
    overdue = fleet.keys("leases")
    wait_until(
        lambda: (
            fleet.redis.zrange(overdue, -1, -1, withscores=True)[0][1] < fleet.redis.time()[0] - 1
        ),
        "two leases",
    )
    os.killpg(stopped.process.pid, signal.SIGCONT)
    for name in names:
        fleet.mend(name)
    fleet.await_idle()
    assert alive(stopped)
    fleet.assert_all_ran(names, 0, "stopped alone")
