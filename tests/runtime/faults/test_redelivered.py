"""`redelivered` in `delivery_info` says whether somebody may have run a task before.

Seen before: False, always, so that `worker_deduplicate_successful_tasks` did nothing.
"""

import signal

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import Fleet, message

from acme_tasks.lanes import worker


def flags(fleet: Fleet, name: str) -> list[str]:
    """What each run of this task was told, in order."""
    lines = fleet.ledger.path.read_text(encoding="utf-8").splitlines()
    return [
        what.removeprefix("redelivered=")
        for what, ran, _ in map(str.split, lines)
        if what.startswith("redelivered=") and ran == name
    ]


def start_one(fleet: Fleet, how: str = "wait") -> None:
    fleet.send(message("redelivery", ["a", how]))
    wait_until(lambda: flags(fleet, "a"), "its first run")


def end_one(fleet: Fleet) -> list[str]:
    """Let the task end; what its runs were told."""
    fleet.mend("a")
    fleet.await_ended(["a"], "its last run")
    fleet.await_idle()
    return flags(fleet, "a")


def test_a_task_that_asks_to_be_run_again_is_told_in_each_run_but_the_first(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(concurrency=1, max_deliveries=1000)
    fleet.start()
    start_one(fleet, "reject")
    wait_until(lambda: len(flags(fleet, "a")) > 2, "more runs")
    first, *others = end_one(fleet)
    assert (first, set(others)) == ("False", {"True"})
    # What comes after it is a first delivery, and nothing is kept of it.
    fleet.mend("b")
    fleet.send(message("redelivery", ["b", "reject"]))
    fleet.await_ended(["b"], "another")
    fleet.await_idle()
    assert flags(fleet, "b") == ["False"]
    assert fleet.stock or not fleet.redis.exists(fleet.keys("deliveries"))


def test_a_task_whose_child_was_killed_is_told(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1)
    process = fleet.start()
    start_one(fleet)
    fleet.kill(process, "children")
    wait_until(lambda: len(flags(fleet, "a")) == 2, "a second run")
    assert end_one(fleet) == ["False", "True"]


@pytest.mark.stock("passes, after 100 s")
@pytest.mark.parametrize("rescuer", [1, 2], ids=["the-same-name", "another"])
def test_a_task_whose_worker_was_killed_is_told(make_fleet: MakeFleet, rescuer: int) -> None:
    """Taken back by a worker of the same name at once, or by another when the lease has run out."""
    fleet = make_fleet(concurrency=1, lease="2s")
    process = fleet.start()
    start_one(fleet)
    fleet.kill(process)
    fleet.start(instance=rescuer)
    assert end_one(fleet) == ["False", "True"]


@pytest.mark.ours_only("stock has no drain")
def test_a_task_that_a_drain_handed_back_is_told(make_fleet: MakeFleet) -> None:
    """And what only waited in that worker, which cannot be told apart; neither counts."""
    fleet = make_fleet(concurrency=1, prefetch=2, drain="requeue", drain_timeout="100ms")
    process = fleet.start()
    start_one(fleet)
    fleet.send(message("redelivery", ["waits", "wait"]))
    wait_until(lambda: fleet.held() == 2, "the second to be held")
    assert process.end() == 0
    fleet.mend("waits")
    fleet.start()
    assert end_one(fleet) == ["False", "True"]
    fleet.await_ended(["waits"], "the second")
    assert flags(fleet, "waits") == ["True"]


@pytest.mark.ours_only("stock counts no deliveries")
@pytest.mark.parametrize("rescuer", [1, 2], ids=["the-same-name", "another"])
def test_a_task_whose_stop_was_cut_short_is_told_and_it_does_not_count(
    make_fleet: MakeFleet, rescuer: int
) -> None:
    """SIGTERM, and SIGKILL before it has drained, as supervisors do it that wait no longer."""
    fleet = make_fleet(concurrency=1, lease="2s", max_deliveries=1)
    process = fleet.start()
    start_one(fleet)
    process.process.send_signal(signal.SIGTERM)
    wait_until(
        lambda: any(b'"stopping": true' in note for note in workers(fleet)), "the stop to be noted"
    )
    fleet.kill(process)
    fleet.start(instance=rescuer)
    assert end_one(fleet) == ["False", "True"]
    assert fleet.dead() == []


def workers(fleet: Fleet) -> list[bytes]:
    """What the lane's workers have noted of themselves."""
    return list(fleet.redis.hvals(fleet.keys("workers")))


@pytest.mark.stock("passes, after 100 s")
@pytest.mark.parametrize("setting", [True, False], ids=["deduplicate", "default"])
def test_a_task_that_had_succeeded_before_its_worker_died_runs_once_on_request(
    make_fleet: MakeFleet, setting: bool
) -> None:
    """By `worker_deduplicate_successful_tasks`, which goes by the flag. Seen before: twice."""
    fleet = make_fleet(concurrency=1, lease="2s")
    celery = fleet.folder / worker.PACKAGE / "celery.py"
    text = celery.read_text(encoding="utf-8")
    line = f"app.conf.worker_deduplicate_successful_tasks = {setting}\n"
    celery.write_text(text + line, encoding="utf-8")
    process = fleet.start()
    sent = message("succeed_and_kill_worker", ["a"], ignore_result=False)
    fleet.send(sent)
    process.ended()
    fleet.mend("a")
    fleet.start()
    fleet.await_idle()
    assert fleet.ledger.started["a"] == (1 if setting else 2)
    with fleet.app() as app:
        assert app.AsyncResult(sent["headers"]["id"]).get() == "a"
