"""Take the broker or the result backend away: workers live on, nothing is lost or run again."""

import json
import time
from pathlib import Path

import pytest
from conftest import MakeFleet
from harness import free_port, wait_until
from support import Server, alive, encoded, message, ticks


@pytest.mark.stock("both tasks run twice")
@pytest.mark.parametrize("away", [0.3, 2.5], ids=["shorter", "longer"])
def test_a_task_that_outlasts_the_broker_runs_once(
    make_fleet: MakeFleet, server: Server, away: float
) -> None:
    """Shorter and longer than the lease; the second ends while the broker is away."""
    fleet = make_fleet(concurrency=2, lease="1s")
    process = fleet.start()
    names = ["ends-after", "ends-within"]
    fleet.send(*ticks(names[:1], away + 1.5), *ticks(names[1:], 0.3))
    wait_until(lambda: len(fleet.ledger.started) == 2, "both to run")
    server.restart(away=away)
    fleet.await_ended(names, "both to end")
    fleet.run_good("the outage")
    fleet.await_idle()
    # A full lease more, in which whatever is overdue would come back.
    time.sleep(0 if fleet.stock else fleet.lane.lease)
    fleet.await_idle()
    assert alive(process), process.log
    fleet.assert_all_ran(names, 0, f"{away} s without a broker")


@pytest.mark.stock("passes")
def test_what_waits_in_a_threads_worker_at_an_outage_runs_once(
    make_fleet: MakeFleet, server: Server
) -> None:
    """Threads have no pipe to read back from: what waits for one is still in the worker.

    Seen before: the worker handed back what waited, and its threads ran it all the same: 6 twice.
    """
    fleet = make_fleet(pool="threads", concurrency=2, prefetch=4)
    process = fleet.start()
    names = [f"t{number}" for number in range(8)]
    fleet.send(*ticks(names, 1.0))
    wait_until(lambda: len(fleet.ledger.started) >= 2, "two to run, so that six wait")
    server.restart()
    fleet.await_ended(names, "all to end")
    fleet.await_idle()
    assert alive(process), process.log
    fleet.assert_all_ran(names, 0, "one restart of the broker")


@pytest.mark.ours_only("stock keeps no dead letters")
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_that_fails_while_the_broker_is_away_becomes_a_dead_letter(
    make_fleet: MakeFleet, server: Server, pool: str
) -> None:
    """A thread says so at once, a child process when the event loop turns again."""
    fleet = make_fleet(concurrency=1, lease="2s", pool=pool, result_url="")
    process = fleet.start()
    raw = message("fail_late", ["late", 0.5])
    fleet.send(raw)
    wait_until(lambda: fleet.ledger.started, "it to run")
    server.restart(away=1.5)
    (letter,) = fleet.await_dead(1)
    fleet.run_good("the outage")
    fleet.await_idle()
    assert alive(process)
    assert (letter.reason, letter.task) == ("failed", "fail_late")
    assert fleet.ledger.started["late"] == 1


@pytest.mark.stock("passes; it keeps no dead letters that could be wrong")
def test_without_a_result_backend_a_task_runs_once_and_the_worker_goes_on(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    """Its result is lost, and the log says so."""
    results = Server(tmp_path / "results").start()
    fleet = make_fleet(concurrency=2, lease="2s", result_url=results.url)
    process = fleet.start()
    fleet.run_good("the start")
    results.stop()
    names = [f"t{number}" for number in range(4)]
    asked = [message("tick", [name], ignore_result=False) for name in names]
    fleet.send(*asked)
    fleet.await_ended(names, "all to run without a result backend")
    fleet.send(*ticks(["later"]))
    fleet.await_ended(["later"], "the next task")
    fleet.await_idle()
    results.close()
    assert alive(process)
    fleet.assert_all_ran(names, 0, "no result backend")
    assert "ERROR" in process.log
    assert not fleet.dead(), "a task that did its work is no dead letter"


@pytest.mark.stock("the worker ends")
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_server_without_memory_is_drained(
    make_fleet: MakeFleet, server: Server, pool: str
) -> None:
    """It refuses whatever may take memory. Seen before: the worker ended, and nothing drained."""
    fleet = make_fleet(concurrency=2, lease="1s", pool=pool)
    process = fleet.start()
    names = [f"t{number}" for number in range(40)]
    fleet.send(*(message("tick", [name, 0.1], ignore_result=False) for name in names))
    fleet.send(message("fail_late", ["late", 0.1]))
    server.redis.config_set("maxmemory", 1)
    assert len(fleet.ledger.ended) < 40
    wait_until(lambda: len(fleet.ledger.started) == 41 or not alive(process), "all to run")
    assert alive(process), process.log
    fleet.await_idle()
    fleet.assert_all_ran(names, 0, "no memory")
    assert fleet.stock or [letter.task for letter in fleet.dead()] == ["fail_late"]
    server.redis.config_set("maxmemory", 0)
    fleet.run_good("the shortage")


@pytest.mark.stock("the worker ends")
def test_a_worker_waits_for_a_server_that_refuses_to_write(
    make_fleet: MakeFleet, server: Server
) -> None:
    """At its start, and in the middle of its work. Seen before: it ended."""
    server.redis.config_set("maxmemory", 1)
    fleet = make_fleet(concurrency=2, lease="1s")
    process = fleet.start(ready=False)
    process.await_log("the broker refuses: ")
    server.redis.config_set("maxmemory", 0)
    fleet.run_good("a start without memory")
    # As one that must copy each write to a replica, and has none; or could not write to its disk.
    server.redis.config_set("min-replicas-to-write", 1)
    process.await_log(
        f"the broker refuses: BROKER_URL ({server.url}): the server refuses (NOREPLICAS Not enough "
        "good replicas to write.); docs/delivery.md says what can be done"
    )
    server.redis.config_set("min-replicas-to-write", 0)
    fleet.run_good("a time without replicas")
    fleet.await_idle()
    assert alive(process), process.log


@pytest.mark.ours_only("stock keeps no dead letters")
def test_an_expired_part_of_a_chord_holds_up_nobody_without_a_result_backend(
    make_fleet: MakeFleet,
) -> None:
    """Seen before: taken for a lost broker, again and again, and nothing behind it ran."""
    fleet = make_fleet(concurrency=2, result_url=f"redis://127.0.0.1:{free_port()}/1")
    body = fleet.app().signature("tick", ("body",)).set(task_id="body")
    chord = {**body, "chord_size": 2}
    expired = message("tick", ignore_result=False, group="g", expires="2020-01-01T00:00:00+00:00")
    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": chord}
    expired["body"] = encoded(json.dumps([["stale"], {}, options]).encode())
    names = ["good-1", "good-2"]
    process = fleet.start()
    fleet.send(expired, *ticks(names))
    wait_until(lambda: len(fleet.ledger.ended) == 2 or not alive(process), "those behind it")
    assert alive(process), process.log
    (letter,) = fleet.await_dead(1)
    fleet.await_idle()
    assert letter.reason == "expired"
    assert "consumer: Connection to broker lost" not in process.log
    fleet.assert_all_ran(names, 0, "an expired part of a chord")
