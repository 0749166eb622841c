"""A task that is sent once: one message of all senders, and a lock that goes with it."""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from conftest import MakeFleet
from harness import PATIENCE, wait_until
from support import NEW_TASK, PYTHON, SOAK, Fleet

from acme_tasks.lanes import worker
from acme_tasks.lanes.redis.store import Counts, Keys, Store
from acme_tasks.lanes.status import purge

pytestmark = pytest.mark.ours_only("stock sends whatever it is told to")

_dice = random.Random(13)  # noqa: S311 - moments, not secrets
#: Sends the same task from ten threads at one moment, and prints the ids of their results.
RACE = f"""
import sys, threading, time
from pathlib import Path
from {worker.PACKAGE}.celery import app

folder, ids = Path(sys.argv[1]), []
ready = threading.Barrier(11)

def send():
    app.send_task("tick", ("x",), unique="warm")  # with its connection made
    ready.wait()
    while not (folder / "go").exists():
        time.sleep(0.0005)
    ids.append(app.send_task("tick", ("x",), unique="race").id)

threads = [threading.Thread(target=send) for _ in range(10)]
for thread in threads:
    thread.start()
ready.wait()
(folder / f"ready-{{sys.argv[2]}}").touch()
for thread in threads:
    thread.join()
print("\\n".join(ids))
"""


def store_of(fleet: Fleet) -> Store:
    return Store(fleet.redis, Keys.of(fleet.lane))


def locks(fleet: Fleet) -> list[Any]:
    return list(fleet.redis.scan_iter(match=f"{fleet.keys('once:')}*"))


def in_lane(counts: Counts) -> int:
    """Messages that are not done with."""
    return counts.waiting + counts.delayed + counts.leased


def test_of_fifty_racing_senders_one_sends_and_all_have_its_result(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    """Seen without `unique`: 50 messages."""
    fleet = make_fleet()
    (tmp_path / "race.py").write_text(RACE, encoding="utf-8")
    senders = [
        subprocess.Popen(
            [PYTHON, str(tmp_path / "race.py"), str(tmp_path), str(number)],
            cwd=fleet.folder,
            env=fleet.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(5)
    ]
    wait_until(lambda: len(list(tmp_path.glob("ready-*"))) == 5, "all senders to be ready")
    (tmp_path / "go").touch()
    ids = [id_ for sender in senders for id_ in sender.communicate(timeout=PATIENCE)[0].split()]
    assert (len(ids), len(set(ids))) == (50, 1)
    assert in_lane(store_of(fleet).counts()) == 2  # and the one by which they were warm
    fleet.start()
    fleet.await_idle()
    assert fleet.ledger.started["x"] == 2
    assert locks(fleet) == []


class Ends:
    """The ways in which a task ends, each of a task called `name`."""

    def __init__(self, fleet: Fleet, app: Celery) -> None:
        self.fleet, self.app, self.store = fleet, app, store_of(fleet)

    def send(
        self,
        task: str,
        *args: object,
        meanwhile: Callable[[AsyncResult[Any]], object] = lambda _: None,
        **options: Any,
    ) -> None:
        """Send it twice, and see it once; `meanwhile` is done before a worker fetches it."""
        self.store.pause(paused=True)
        first = self.app.send_task(task, args, unique="u", **options)
        second = self.app.send_task(task, args, unique="u", **options)
        assert second.id == first.id
        assert in_lane(self.store.counts()) == len(locks(self.fleet)) == 1
        meanwhile(first)
        self.store.pause(paused=False)

    def success(self, name: str) -> None:
        self.send("tick", name)

    def failure_for_good(self, name: str) -> None:
        self.send("fail", name)

    def success_of_a_retry(self, name: str) -> None:
        self.send("retry_once", name, 0.5)
        wait_until(lambda: self.store.counts().delayed, "its retry to wait")
        assert len(locks(self.fleet)) == 1
        self.fleet.await_ended([name], "its retry")

    def reject(self, name: str) -> None:
        self.send("reject", name)

    def a_task_that_kills_its_process(self, name: str) -> None:
        self.send("kill_child", name)

    def a_task_that_nobody_knows(self, _: str) -> None:
        self.send(NEW_TASK)

    def expiry(self, _: str) -> None:
        # It has expired when it is fetched: there is no condition to wait for.
        self.send("tick", "stale", meanwhile=lambda _: time.sleep(0.4), expires=0.3)

    def revocation(self, _: str) -> None:
        self.send("tick", "no", meanwhile=lambda sent: sent.revoke())

    def revocation_of_what_is_delayed(self, _: str) -> None:
        self.send("tick", "no", meanwhile=lambda sent: sent.revoke(), countdown=0.5)

    def purge_of_what_waits(self, _: str) -> None:
        self.send("tick", "no", meanwhile=lambda _: self.purge("waiting"))

    def purge_of_what_is_delayed(self, _: str) -> None:
        self.send("tick", "no", meanwhile=lambda _: self.purge("delayed"), countdown=60)

    def purge(self, what: str) -> None:
        purge(self.fleet.redis, self.fleet.lane, what, lambda _: None)
        assert locks(self.fleet) == []


ENDS = [name for name in vars(Ends) if not name.startswith("_")]
ENDS = [name for name in ENDS if name not in ("send", "purge")]


@pytest.mark.parametrize("options", [{}, {"key": "a"}], ids=["without-a-key", "of-a-key"])
def test_after_every_kind_of_end_it_can_be_sent_again(
    make_fleet: MakeFleet, options: dict[str, Any]
) -> None:
    fleet = make_fleet(concurrency=1, max_deliveries=2, unknown_wait=False)
    fleet.start()
    with fleet.app() as app:
        ends = Ends(fleet, app)
        send_task = app.send_task
        app.send_task = lambda *args, **own: send_task(*args, **own, **options)
        for end in ENDS:
            getattr(ends, end)(end)
            wait_until(lambda: not in_lane(ends.store.counts()), f"nothing to be left: {end}")
            assert locks(fleet) == [], end
        assert not fleet.redis.exists(fleet.keys("keyed:leased"), fleet.keys("latest"))
    reasons = sorted(letter.reason for letter in fleet.dead())
    assert reasons == ["expired", "failed", "failed", "poison", "unknown"]


@pytest.mark.timeout(SOAK)
def test_no_kill_takes_the_lock_from_a_task_that_will_run_again(
    make_fleet: MakeFleet, rounds: int
) -> None:
    """`kill -9` of all at a moment at random: the lock is there for as long as its message is."""
    fleet = make_fleet(concurrency=1, max_deliveries=1000, lease="60s")
    store = store_of(fleet)
    with fleet.app() as app:
        kept = 0
        for number in range(5 * rounds):
            process = fleet.start()
            name = f"t{number}"
            sent = app.send_task("tick", (name, 0.05), unique="u")
            if number % 5 < 2:
                wait_until(lambda n=name: fleet.ledger.started[n], "it to run")
            else:
                time.sleep(_dice.random() * 0.2)
            fleet.kill(process)
            if in_lane(store.counts()):
                kept += 1
                assert app.send_task("tick", (name,), unique="u").id == sent.id
                again = fleet.start()
                fleet.await_ended([name], "it to run again")
                fleet.await_idle()
                fleet.kill(again)
            assert locks(fleet) == []
            assert fleet.ledger.ended[name] >= 1
            assert in_lane(store.counts()) == 0
        print(f"{kept} of {5 * rounds} kills came before the task had ended")
        assert kept


def test_of_twenty_sends_in_a_second_the_newest_runs_once_and_is_the_result_of_all(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(concurrency=2)
    fleet.start()
    fleet.run_good("the start")
    with fleet.app() as app:
        options: dict[str, Any] = {"unique": "save", "replace": True, "countdown": 1}
        sent = [app.send_task("tick", (f"t{number}",), **options) for number in range(20)]
        assert {each.get(PATIENCE) for each in sent} == {"t19"}
        fleet.await_idle()
        assert [name for name in fleet.ledger.started if name.startswith("t")] == ["t19"]
        assert fleet.ledger.started["t19"] == 1
        assert locks(fleet) == []
        assert not fleet.redis.exists(fleet.keys("latest"))
