"""A task with `retry_on_worker_lost` whose child was lost is sent again, as a retry of its own."""

import pytest
from celery import Celery
from conftest import MakeFleet
from harness import PATIENCE, wait_until
from support import Fleet

pytestmark = pytest.mark.ours_only("stock keeps no dead letters")


def send(app: Celery, task: str, name: str = "a") -> str:
    return str(app.send_task(task, (name,)).id)


def await_next_run(fleet: Fleet, runs: int) -> None:
    wait_until(lambda: fleet.ledger.started["a"] >= runs, f"run {runs}")


def assert_nothing_is_left(fleet: Fleet) -> None:
    fleet.await_idle()
    assert fleet.redis.zcard(fleet.keys("delayed")) == 0
    assert not fleet.redis.exists(fleet.keys("deliveries"))


@pytest.mark.parametrize("most", [1, 3], ids=["poison-at-once", "poison-later"])
def test_it_succeeds_in_the_end_and_leaves_no_dead_letter(make_fleet: MakeFleet, most: int) -> None:
    """Each run that was lost is acknowledged, and none counts as a delivery.

    Seen before: a dead letter, `failed`, of each run that was lost.
    """
    fleet = make_fleet(concurrency=1, max_deliveries=most)
    fleet.start()
    with fleet.app() as app:
        id_ = send(app, "lost_then_retried")
        await_next_run(fleet, 2)
        fleet.mend("a")
        assert app.AsyncResult(id_).get(PATIENCE) == "a"
    assert_nothing_is_left(fleet)
    assert fleet.dead() == []


def test_it_waits_for_its_retry_over_a_restart(make_fleet: MakeFleet) -> None:
    """In Redis: seen before, it was a retry and a dead letter at once."""
    fleet = make_fleet(concurrency=1)
    process = fleet.start()
    with fleet.app() as app:
        id_ = send(app, "lost_then_retried")
        wait_until(lambda: fleet.redis.zcard(fleet.keys("delayed")), "it to be sent again")
        wait_until(lambda: not fleet.held(), "this run to be acknowledged")
        fleet.kill(process)
        fleet.mend("a")
        fleet.start()
        assert app.AsyncResult(id_).get(PATIENCE) == "a"
    assert_nothing_is_left(fleet)
    assert fleet.dead() == []


def test_after_its_last_retry_it_has_failed_and_is_one_dead_letter(make_fleet: MakeFleet) -> None:
    """Seen before: one of each run."""
    fleet = make_fleet(concurrency=1, max_deliveries=5)
    fleet.start()
    with fleet.app() as app:
        id_ = send(app, "lost_for_good")
        wait_until(lambda: app.AsyncResult(id_).state == "FAILURE", "it to fail")
    (letter,) = fleet.await_dead(1)
    assert_nothing_is_left(fleet)
    assert (letter.reason, letter.task_id) == ("failed", id_)
    assert letter.error.startswith("WorkerLostError: ")
    assert fleet.ledger.started["a"] == 2
    assert len(fleet.dead()) == 1
    fleet.run_good("it")
