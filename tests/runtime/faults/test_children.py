"""A child process ends when the worker has a reason of its own, though it leaves SIGTERM to it.

All of this held before, too: it is here because children do not end by SIGTERM any more.
"""

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import Fleet, alive, children, message


def pids(fleet: Fleet, count: int) -> list[int]:
    """In which process each of so many tasks ran, one after another."""
    found = []
    for number in range(count):
        name = f"pid-{number}"
        fleet.send(message("own_pid", [name]))
        fleet.await_ended([name], name)
        found.append(int(fleet.answer(name)))
    return found


@pytest.mark.ours_only("limits of a lane")
@pytest.mark.parametrize(
    "limit", [{"max_tasks_per_child": 1}, {"max_memory_per_child": "1M"}], ids=["tasks", "memory"]
)
def test_children_are_replaced_when_they_have_done_enough(
    make_fleet: MakeFleet, limit: dict[str, object]
) -> None:
    fleet = make_fleet(concurrency=1, **limit)
    process = fleet.start()
    assert len(set(pids(fleet, 2))) == 2
    fleet.await_idle()
    assert process.end() == 0
    assert fleet.dead() == []


@pytest.mark.ours_only("limits of a lane")
def test_a_time_limit_ends_even_a_child_that_ignores_signals(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1, time_limit="2s", soft_time_limit="1s", max_retries=0)
    process = fleet.start()
    fleet.send(message("hang", ["a", "ignores"]))
    (letter,) = fleet.await_dead(1)
    assert (letter.reason, letter.error) == ("failed", "time limit of 2 s exceeded")
    fleet.run_good("the limit")
    assert process.end() == 0


@pytest.mark.ours_only("limits of a lane")
def test_a_time_limit_holds_while_the_worker_drains(make_fleet: MakeFleet) -> None:
    """Or a task that hangs would hold up the stop of a lane that lets its tasks finish."""
    fleet = make_fleet(concurrency=1, time_limit="4s", soft_time_limit="3s", max_retries=0)
    process = fleet.start()
    fleet.send(message("hang", ["a", "stopped"]))
    wait_until(lambda: fleet.ledger.started["a"], "it to hang")
    assert process.end() == 0
    (letter,) = fleet.dead()
    assert letter.error == "time limit of 4 s exceeded"


@pytest.mark.parametrize("how", [None, "SIGTERM", "SIGKILL"])
def test_a_task_that_is_revoked_and_terminated_ends_and_never_runs_again(
    make_fleet: MakeFleet, how: str | None
) -> None:
    """By each signal, as Celery has it: None is its default, SIGTERM."""
    fleet = make_fleet(concurrency=1, max_deliveries=2)
    process = fleet.start()
    sent = message("hold", ["a"], ignore_result=False)
    fleet.send(sent)
    wait_until(lambda: fleet.ledger.started["a"], "it to run")
    (pid,) = children(process.process.pid)
    with fleet.app() as app:
        result = app.AsyncResult(sent["headers"]["id"])
        app.control.revoke(result.id, terminate=True, **({"signal": how} if how else {}))
        wait_until(lambda: result.state == "REVOKED", "it to be revoked")
        wait_until(lambda: pid not in children(process.process.pid), "its child to be replaced")
        fleet.run_good("it")
        assert alive(process)
        assert process.end() == 0
        fleet.start()
        fleet.run_good("a restart")
        fleet.await_idle()
        assert result.state == "REVOKED"
    assert (fleet.ledger.started["a"], fleet.ledger.ended["a"]) == (1, 0)
    assert fleet.dead() == []
