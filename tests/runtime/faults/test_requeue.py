"""A task that asks to be run again, by `Reject(requeue=True)`, does not go on for ever."""

import pytest
from conftest import MakeFleet
from support import message

pytestmark = pytest.mark.stock("runs it without a pause and without an end")


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_that_always_asks_to_be_run_again_is_set_aside(
    make_fleet: MakeFleet, pool: str
) -> None:
    """Each time is a delivery without an acknowledgement, and counts as one."""
    fleet = make_fleet(pool=pool, concurrency=1, max_deliveries=4)
    fleet.start()
    fleet.send(message("reject_again", ["a"]))
    (letter,) = fleet.await_dead(1)
    assert (letter.reason, letter.deliveries) == ("poison", 4)
    assert fleet.ledger.started["a"] == 4
    fleet.run_good("it")


def test_a_task_that_asks_once_runs_again(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1, max_deliveries=1000)
    fleet.start()
    fleet.send(message("reject_again", ["a"]))
    fleet.await_progress(100)
    fleet.mend("a")
    fleet.await_ended(["a"], "the task, once it does not ask any more")
    fleet.await_idle()
    assert fleet.dead() == []
    assert not fleet.redis.exists(fleet.keys("deliveries"))
