"""Consume beside a worker's own consumer, within its process: the lane's messages stay its own."""

import time

import pytest
from conftest import MakeFleet
from harness import Process, wait_until
from support import PYTHON, Fleet, message, ticks

from acme_tasks.lanes import worker

pytestmark = pytest.mark.ours_only("stock counts no deliveries")
every_pool = pytest.mark.parametrize("pool", ["prefork", "threads"])


def _deliveries(fleet: Fleet) -> dict[bytes, bytes]:
    """How often each message came back."""
    return fleet.redis.hgetall(fleet.keys("deliveries"))


def _run_beside_a_neighbour(fleet: Fleet, task: str) -> None:
    """Run `task` while its neighbour runs and others wait: all run once, and none came back."""
    fleet.start()
    names = ["neighbour", "asker", "waits-1", "waits-2"]
    fleet.send(message("hold", names[:1]))
    wait_until(lambda: fleet.ledger.started["neighbour"], "the neighbour to run")
    fleet.send(message(task, ["asker"]), *ticks(names[2:]))
    wait_until(lambda: fleet.ledger.ended["asker"] or _deliveries(fleet), "the task that asks")
    assert _deliveries(fleet) == {}
    # A full lease more, in which whatever is overdue would come back.
    time.sleep(fleet.lane.lease)
    fleet.mend("neighbour")
    fleet.await_ended(names, "all to end")
    fleet.await_idle()
    assert _deliveries(fleet) == {}
    fleet.assert_all_ran(names, 0, task)


@every_pool
def test_a_task_that_asks_the_workers_is_answered(make_fleet: MakeFleet, pool: str) -> None:
    """Seen before: prefork took back what it ran, and threads asked without end."""
    fleet = make_fleet(concurrency=2, lease="2s", pool=pool)
    _run_beside_a_neighbour(fleet, "ask_workers")
    answers = fleet.answer("asker") or {}
    assert list(answers.values()) == [{"ok": "pong"}]


@every_pool
def test_a_task_gets_from_another_queue_what_it_put(make_fleet: MakeFleet, pool: str) -> None:
    """Seen before: nothing came, and prefork took back what it ran and counted it."""
    fleet = make_fleet(concurrency=2, lease="2s", pool=pool)
    _run_beside_a_neighbour(fleet, "use_mailbox")
    wanted = [{"from": "connection_for_read"}, {"from": "connection_or_acquire"}]
    assert fleet.answer("asker") == wanted


def test_a_plain_celery_worker_is_ready_while_another_runs_and_messages_wait(
    make_fleet: MakeFleet,
) -> None:
    """With mingle, which asks the others. Seen before: it fetched instead, as long as any waited.

    The lane's own command is without it.
    """
    fleet = make_fleet(concurrency=1)
    fleet.start()
    fleet.send(message("hold", ["held"]))
    wait_until(lambda: fleet.ledger.started["held"], "it to run")
    names = [f"t{number}" for number in range(20)]
    fleet.send(*ticks(names))
    command = [PYTHON, "-m", "celery", "-A", worker.PACKAGE, "worker", "--loglevel", "INFO"]
    command += ["-Q", fleet.lane.queue, "-n", "plain@%h", "-c", "1"]
    plain = Process("plain", command, fleet.folder, fleet.environment)
    fleet.processes.append(plain)
    plain.await_log(" ready.")
    assert "mingle: searching" in plain.log
    fleet.mend("held")
    fleet.await_ended(["held", *names], "all to run")
    fleet.await_idle()
    assert _deliveries(fleet) == {}
    fleet.assert_all_ran(["held", *names], 0, "mingle")
