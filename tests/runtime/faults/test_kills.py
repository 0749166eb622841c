"""Kill workers in every way, under load: no task is lost, few run twice."""

import random
import time

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import NOISE, SOAK, Fleet, Server, alive, children, message, ticks, until


def _names(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


def _load(fleet: Fleet, count: int) -> list[str]:
    names = _names(count)
    fleet.send(*ticks(names))
    return names


_dice = random.Random(3)  # noqa: S311 - moments, not secrets


def _amid_work(fleet: Fleet) -> bool:
    """Wait for a moment at random within the load; False when there is none left."""
    fleet.await_progress(_dice.randint(1000, 6000))  # bytes; a run is some 60
    time.sleep(_dice.random() * 0.02)
    return not fleet.is_idle()


@pytest.mark.timeout(SOAK)
@pytest.mark.stock("4 lost of 700 in 6 kills of the group, 3 in 3 of the main process")
@pytest.mark.parametrize("whom", ["group", "main"])
def test_a_killed_worker_loses_no_task(make_fleet: MakeFleet, rounds: int, whom: str) -> None:
    """With 16 messages held by each worker, so that doubles are many enough to be counted."""
    fleet = make_fleet(prefetch=4, max_deliveries=1000)
    names = _load(fleet, 700 * rounds)
    kills = doubles = 0
    while kills < (6 if whom == "group" else 3) * rounds:
        process = fleet.start(ready=False)
        if not _amid_work(fleet):
            break
        doubles += fleet.kill(process, whom)
        kills += 1
    fleet.start()
    fleet.await_idle()
    fleet.assert_all_ran(names, doubles, f"{kills} kills of the {whom}")


@pytest.mark.timeout(SOAK)
@pytest.mark.stock("passes: the main process has the messages")
def test_killed_children_lose_no_task(make_fleet: MakeFleet, rounds: int) -> None:
    fleet = make_fleet(prefetch=4, max_deliveries=1000)
    names = _load(fleet, 600 * rounds)
    process = fleet.start()
    kills = doubles = 0
    while kills < 4 * rounds and _amid_work(fleet):
        doubles += fleet.kill(process, "children")
        kills += 1
        # Children that are killed before they are up are replaced only so often.
        wait_until(lambda: len(children(process.process.pid)) >= 4, "new children")
    fleet.await_idle()
    assert alive(process)
    fleet.assert_all_ran(names, doubles, f"{kills} kills of all children")


@pytest.mark.timeout(SOAK)
@pytest.mark.stock("passes, or doubles one: it forgets what a child has just begun")
def test_sigterm_neither_loses_nor_doubles_a_task(make_fleet: MakeFleet, rounds: int) -> None:
    fleet = make_fleet(prefetch=4, max_deliveries=1000)
    names = _load(fleet, 400 * rounds)
    stops = 0
    while stops < 2 * rounds:
        process = fleet.start(ready=False)
        if not _amid_work(fleet):
            break
        process.end()
        stops += 1
    fleet.start()
    fleet.await_idle()
    fleet.assert_all_ran(names, 0, f"{stops} SIGTERM")


def _cut_connections(fleet: Fleet) -> None:
    fleet.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@pytest.mark.timeout(SOAK)
@pytest.mark.stock("passes: 0 lost, 8 doubled of 200 in 2 cuts")
def test_cut_connections_neither_lose_a_task_nor_end_the_worker(
    make_fleet: MakeFleet, rounds: int
) -> None:
    fleet = make_fleet(prefetch=4, max_deliveries=1000)
    names = _names(200 * rounds)
    fleet.send(*ticks(names, 0.01))
    process = fleet.start()
    cuts = doubles = 0
    while cuts < 4 * rounds and _amid_work(fleet):
        doubles += fleet.held()
        _cut_connections(fleet)
        cuts += 1
    fleet.await_idle()
    assert alive(process), process.log
    fleet.assert_all_ran(names, doubles, f"{cuts} times all connections cut")


@pytest.mark.timeout(SOAK)
@pytest.mark.stock("the worker ends with an AttributeError")
def test_a_restarted_broker_loses_no_task_under_load(
    make_fleet: MakeFleet, server: Server, rounds: int
) -> None:
    fleet = make_fleet(prefetch=4, max_deliveries=1000)
    names = _names(500 * rounds)
    fleet.send(*ticks(names, 0.01))
    process = fleet.start()
    restarts = doubles = 0
    while restarts < 2 * rounds and _amid_work(fleet):
        doubles += fleet.held()
        server.restart()
        restarts += 1
    fleet.await_idle()
    assert alive(process), process.log
    fleet.assert_all_ran(names, doubles, f"{restarts} restarts of the broker")


@pytest.mark.stock("rescued after 101.5 s")
def test_another_worker_rescues_within_the_lease_and_5_seconds(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1, lease="2s")
    killed = fleet.start()
    fleet.start(instance=2)
    names = ["held-1", "held-2"]
    fleet.send(*(message("hold", [name]) for name in names))
    wait_until(lambda: len(fleet.ledger.started) == 2, "both to run")
    fleet.kill(killed)
    for name in names:
        fleet.mend(name)
    elapsed = until(lambda: set(names) <= fleet.ledger.ended.keys(), "a rescue", 150)
    fleet.assert_all_ran(names, 1, f"rescued after {elapsed:.1f} s")
    assert sorted(fleet.ledger.started[name] for name in names) == [1, 2]
    assert elapsed < fleet.lane.lease + 5 + NOISE, fleet.logs


@pytest.mark.stock("not within 5 s: after its visibility timeout")
def test_a_worker_restarted_in_place_takes_its_own_back_at_once(make_fleet: MakeFleet) -> None:
    """Its lease, of a minute here, has not run out by far."""
    fleet = make_fleet(concurrency=1, lease="60s")
    killed = fleet.start()
    fleet.send(message("hold", ["held"]))
    wait_until(lambda: fleet.ledger.started, "it to run")
    fleet.kill(killed)
    fleet.mend("held")
    fleet.start(ready=True)
    elapsed = until(lambda: fleet.ledger.ended, "it to run again", 5 + NOISE)
    fleet.assert_all_ran(["held"], 1, f"taken back after {elapsed:.1f} s")
    assert fleet.ledger.started["held"] == 2


@pytest.mark.stock("runs for as long as there are workers; no dead letter")
@pytest.mark.parametrize("poison", ["kill_child", "kill_worker"])
def test_a_poison_task_is_set_aside_and_the_others_go_on(
    make_fleet: MakeFleet, poison: str
) -> None:
    """Not even those fetched with it are blamed, but for the one that ran beside it each time."""
    fleet = make_fleet(concurrency=2, prefetch=4, max_deliveries=2)
    names = _names(12)
    fleet.send(message(poison, ["poison"]), *ticks(names, 0.2))
    process = fleet.start()
    for _ in range(5):
        wait_until(lambda p=process: not alive(p) or fleet.is_idle(), "an end")
        if alive(process):
            break
        process = fleet.start()
    fleet.await_idle()
    assert fleet.ledger.started["poison"] == 2
    letters = [(each.reason, each.task, each.deliveries) for each in fleet.dead()]
    assert ("poison", poison, 2) in letters
    assert len(letters) <= fleet.lane.concurrency, letters
    beside = names[: len(letters) - 1]
    fleet.assert_all_ran(names[len(beside) :], 2 * fleet.lane.concurrency, poison)
