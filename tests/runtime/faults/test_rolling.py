"""Two releases at work in one lane, as in each rolling deploy; the next one has a task more."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import MakeFleet
from harness import PATIENCE, Process, wait_until
from support import NEW_TASK, SOAK, Fleet

pytestmark = pytest.mark.ours_only("stock deletes what a worker does not know")

TASKS = 3000
WORKERS = (1, 2)


class Sender:
    """Sends tasks that both releases know, and others, in turn, until it has sent enough."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.names: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        with self.fleet.app() as app:
            while len(self.names) < TASKS or not self.enough.is_set():
                for _ in range(10):
                    number = len(self.names)
                    name = f"{'new' if number % 2 else 'old'}-{number}"
                    task = NEW_TASK if number % 2 else "tick"
                    app.send_task(task, (name, 0.005), ignore_result=True)
                    self.names.append(name)
                # 500 in a second at the most, so that it is at work all the time.
                time.sleep(0.0 if self.enough.is_set() else 0.02)


@contextmanager
def sending(fleet: Fleet) -> Iterator[Sender]:
    """Within the block; at its end it has sent enough."""
    sender = Sender(fleet)
    thread = threading.Thread(target=sender.run)
    thread.start()
    try:
        yield sender
    finally:
        sender.enough.set()
        thread.join(PATIENCE)


def await_moved_on(fleet: Fleet) -> None:
    """Until more tasks have run: each worker that comes or goes meets some."""
    before = fleet.ledger.ended.total()
    wait_until(lambda: fleet.ledger.ended.total() > before + 20, "more to run")


def roll(running: dict[int, Process], release: Fleet) -> None:
    """Replace the workers one by one."""
    for number in WORKERS:
        await_moved_on(release)
        if number in running:
            assert running[number].end() == 0
        running[number] = release.start(instance=number)
    await_moved_on(release)


@pytest.mark.timeout(SOAK)
def test_forward_back_and_forward_again_each_task_of_both_releases_runs_once(
    make_fleet: MakeFleet,
) -> None:
    """Seen before: what an old worker fetched of the new tasks was a dead letter."""
    old, new = make_fleet(concurrency=2, prefetch=4), make_fleet(concurrency=2, prefetch=4)
    new.become_next_release(of=old)
    running = {number: old.start(instance=number) for number in WORKERS}
    with sending(new) as sender:
        for release in (new, old):
            roll(running, release)
        # Nobody is there for the new tasks: they wait.
        delayed = old.keys("delayed")
        ended = {name for name in old.ledger.ended if name.startswith("new")}
        wait_until(lambda: old.redis.zcard(delayed) > 50, "new tasks to wait")
        assert {name for name in old.ledger.ended if name.startswith("new")} == ended
        roll(running, new)
    new.await_ended(sender.names, "all to run", 3 * PATIENCE)
    new.await_idle()
    new.assert_all_ran(sender.names, 0, "rolling deploys")
    assert old.dead() == []
    assert len(sender.names) >= TASKS
    assert not new.redis.exists(new.keys("deliveries"), delayed)
    for process in running.values():
        assert process.end() == 0
