"""SIGTERM to the whole process group, as an init or a platform sends it, drains like one to the
worker alone, and never counts as a delivery.

Seen before, and on stock Celery: the children end at once, amid their tasks, which count as
delivered; after max_deliveries such deploys, the task is poison.
"""

import os
import signal

import pytest
from conftest import MakeFleet
from harness import Process, wait_until
from support import Fleet, children, message, ticks

pytestmark = pytest.mark.stock("the children end at once, and what they ran is run again")


def signal_group(process: Process, number: signal.Signals) -> list[int]:
    """The children that have got it, too."""
    pid = process.process.pid
    pids = children(pid)
    os.killpg(pid, number)
    return pids


def start_holding(fleet: Fleet, name: str = "a") -> None:
    fleet.send(message("hold", [name]))
    wait_until(lambda: fleet.ledger.started[name], "it to run")


def known(fleet: Fleet) -> list[int]:
    """How many deliveries count of each message that came back."""
    return [int(count) for count in fleet.redis.hvals(fleet.keys("deliveries"))]


def test_tasks_finish_when_the_group_is_told_to_stop(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=2, prefetch=2)
    process = fleet.start()
    start_holding(fleet, "a")
    start_holding(fleet, "b")
    fleet.send(*ticks(["waits"]))
    wait_until(lambda: fleet.held() == 3, "a third to be held")
    pids = signal_group(process, signal.SIGTERM)
    process.await_log("Warm shutdown")
    fleet.mend("a")
    fleet.await_ended(["a"], "the first")
    assert set(pids) & set(children(process.process.pid)), "its neighbour's child has ended"
    fleet.mend("b")
    assert process.ended() == 0
    fleet.await_ended(["b"], "the second")
    fleet.start()
    fleet.await_idle()
    fleet.assert_all_ran(["a", "b", "waits"], 0, "SIGTERM to the group")


def test_a_hangup_is_a_stop_like_any_other(make_fleet: MakeFleet) -> None:
    """Seen before: without the lane's drain, and Celery's way of starting anew failed at the end.

    A second one, or one beside a SIGTERM, does not hurry it.
    """
    fleet = make_fleet(concurrency=1)
    process = fleet.start()
    start_holding(fleet)
    for _ in range(2):
        pids = signal_group(process, signal.SIGHUP)
        process.await_log("Warm shutdown")
    assert pids == children(process.process.pid)
    fleet.mend("a")
    assert process.ended() == 0
    fleet.assert_all_ran(["a"], 0, "SIGHUP to the group")
    assert fleet.held() == 0


@pytest.mark.ours_only("stock counts no deliveries")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["term", "hup"])
def test_so_many_deploys_as_make_poison_make_none(
    make_fleet: MakeFleet, number: signal.Signals
) -> None:
    fleet = make_fleet(drain="requeue", drain_timeout="200ms", concurrency=1, max_deliveries=3)
    fleet.send(message("hold", ["a"]))
    process = fleet.start()
    for deploy in range(1, 5):
        wait_until(lambda n=deploy: fleet.ledger.started["a"] == n, f"run {deploy}")
        signal_group(process, number)
        assert process.ended() == 0
        assert (fleet.held(), fleet.redis.llen(fleet.lane.queue)) == (0, 1)
        process = fleet.start()
        assert known(fleet) == [0]
    fleet.mend("a")
    fleet.await_ended(["a"], "the task")
    fleet.await_idle()
    assert fleet.dead() == []
    assert fleet.ledger.started["a"] == 5


@pytest.mark.parametrize("order", ["children-first", "worker-first", "all-twice"])
def test_one_after_another_in_any_order_is_the_same(make_fleet: MakeFleet, order: str) -> None:
    fleet = make_fleet(concurrency=1)
    process = fleet.start()
    start_holding(fleet)
    own = process.process.pid
    pids = children(own)
    signalled = {
        "children-first": [*pids, own],
        "worker-first": [own, *pids],
        # As by a platform that signals all that runs: the worker's supervisor hands it on.
        "all-twice": [*pids, own, *pids, own],
    }[order]
    for pid in signalled:
        os.kill(pid, signal.SIGTERM)
    process.await_log("Warm shutdown")
    assert children(own) == pids
    fleet.mend("a")
    assert process.ended() == 0
    fleet.assert_all_ran(["a"], 0, order)
    assert fleet.held() == 0


@pytest.mark.ours_only("stock has no drain")
@pytest.mark.parametrize("how", ["ignores", "stopped"])
def test_a_child_that_hangs_is_killed_at_the_end_of_the_drain(
    make_fleet: MakeFleet, how: str
) -> None:
    """It ignores every signal that asks, or is stopped by a SIGSTOP.

    Seen before: the worker waited for it without an end.
    """
    fleet = make_fleet(drain="requeue", drain_timeout="200ms", concurrency=2)
    process = fleet.start()
    start_holding(fleet)
    fleet.send(message("hang", ["b", how]))
    wait_until(lambda: fleet.ledger.started["b"], "it to hang")
    pids = signal_group(process, signal.SIGTERM)
    assert process.ended() == 0
    wait_until(lambda: not any(map(is_running, pids)), "the children to be gone")
    assert (fleet.held(), fleet.redis.llen(fleet.lane.queue)) == (0, 2)
    assert known(fleet) == [0, 0]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_a_task_starts_ends_by_sigterm_as_ever(make_fleet: MakeFleet) -> None:
    """A program, and a fork of the task's own, as `multiprocessing` makes it.

    Seen before, and on stock: the fork went on as a second process of the pool.
    """
    fleet = make_fleet(concurrency=1, time_limit="30s", soft_time_limit="20s")
    fleet.start()
    fleet.send(message("end_own_processes", ["a"]))
    fleet.await_ended(["a"], "both to end")
    assert fleet.answer("a") == [-signal.SIGTERM, -signal.SIGTERM]
