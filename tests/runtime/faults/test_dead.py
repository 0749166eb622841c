"""Dead letters: one for each fault, kept by a cap, and good to be tried again."""

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import Fleet, alive, message, ticks

from acme_tasks.lanes import deadletters, status, worker

pytestmark = pytest.mark.ours_only("stock keeps no dead letters")


def _mend(fleet: Fleet, name: str) -> None:
    """End the fault of the task of this name."""
    (fleet.folder / f"ledger.{name}").touch()


def test_a_dead_letter_of_each_reason_is_retried_and_runs_once(make_fleet: MakeFleet) -> None:
    """After the fault is mended: by a new release, in the life of an owner."""
    fleet = make_fleet(concurrency=2, max_deliveries=2, expires="10m", unknown_wait=False)
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    faults = {
        "failed": message("fail", ["failed"]),
        "expired": message("tick", ["expired"], expires=past),
        "poison": message("kill_once", ["poison"]),
        "unknown": message("of_the_next_release", ["unknown"]),
        "malformed": message("tick", ["malformed"], retries="none"),
    }
    process = fleet.start()
    fleet.send(*faults.values())
    letters = fleet.await_dead(len(faults))
    assert {letter.reason for letter in letters} == set(faults)
    for name in faults:
        _mend(fleet, name)
    process.end()

    # The next release knows the task, and is not so strict.
    tasks = fleet.folder / "acme_tasks" / "tasks.py"
    known = '@app.task(name="of_the_next_release")\ndef new(name):\n    note("end", name)\n'
    tasks.write_text(f"{tasks.read_text()}\n\n{known}")
    process = fleet.start()
    assert deadletters.retry(fleet.redis, fleet.lane, letters, lambda _: None) == len(faults)
    wanted = [name for name in faults if name != "malformed"]
    fleet.await_ended(wanted, "all that can run")
    fleet.await_idle()
    assert alive(process)
    assert [letter.reason for letter in fleet.dead()] == ["malformed"]
    assert {name: fleet.ledger.ended[name] for name in wanted} == dict.fromkeys(wanted, 1)


def test_a_message_comes_back_byte_for_byte(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1, unknown_wait=False)
    fleet.send(message("fail", ["a"]), message("unheard_of", ["b"]), b'{ "not": "a task" }')
    sent = fleet.redis.lrange(fleet.lane.queue, 0, -1)
    process = fleet.start()
    letters = fleet.await_dead(3)
    process.end()
    assert {letter.reason for letter in letters} == {"failed", "unknown", "malformed"}
    deadletters.retry(fleet.redis, fleet.lane, letters, lambda _: None)
    assert sorted(fleet.redis.lrange(fleet.lane.queue, 0, -1)) == sorted(sent)
    assert not fleet.dead()


# `dead retry --all` in steps of five letters, so that a test that is late still finds it at work.
RETRY_SLOWLY = f"""
import runpy, sys
from {worker.PACKAGE}.lanes import deadletters
deadletters._BATCH = 5
sys.argv[1:] = ["dead", "retry", "--all"]
runpy.run_module("{worker.PACKAGE}", run_name="__main__")
"""


def test_a_retry_that_is_killed_half_way_leaves_each_message_in_one_place(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet()
    count, keys = 20_000, fleet.keys
    numbers = range(1, count + 1)
    with fleet.redis.pipeline(transaction=False) as pipe:  # as set_aside.lua leaves them
        for number in numbers:
            report = json.dumps({"at": 0, "reason": "failed", "deliveries": 1})
            pipe.zadd(keys("dead"), {str(number): number})
            pipe.hset(keys("dead:messages"), str(number), f"message {number}")
            pipe.hset(keys("dead:reports"), str(number), report)
        pipe.execute()
    with subprocess.Popen(
        [sys.executable, "-c", RETRY_SLOWLY], cwd=fleet.folder, env=fleet.environment
    ) as process:
        wait_until(lambda: fleet.redis.llen(keys.queue), "the first to be moved")
        process.kill()
    moved = fleet.redis.llen(keys.queue)
    print(f"killed when {moved} of {count} were moved")
    assert 0 < moved < count
    assert fleet.run("dead", "retry", "--all").returncode == 0
    assert not fleet.dead()
    assert sorted(fleet.redis.lrange(keys.queue, 0, -1)) == sorted(
        f"message {number}".encode() for number in numbers
    )


def test_a_task_that_rejects_its_message_makes_a_dead_letter(make_fleet: MakeFleet) -> None:
    """Celery would forget it: on Redis, unlike on RabbitMQ, there is nowhere else for it."""
    fleet = make_fleet(concurrency=1)
    fleet.send(message("reject", ["a"]))
    process = fleet.start()
    (letter,) = fleet.await_dead(1)
    assert (letter.reason, letter.error) == ("failed", "rejected: 'a is refused'")
    fleet.await_idle()
    assert fleet.ledger.started["a"] == 1
    assert alive(process)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_that_exhausts_memory_or_exits_makes_a_dead_letter(
    make_fleet: MakeFleet, pool: str
) -> None:
    """Seen before: the first ended prefork's worker, and threads lost a slot to each."""
    fleet = make_fleet(concurrency=1, max_deliveries=2, pool=pool)
    process = fleet.start()
    fleet.send(message("exhaust", ["a"]), message("leave", ["b"]))
    fleet.await_dead(2)
    fleet.run_good("both")
    fleet.await_idle()
    assert [(letter.reason, letter.error) for letter in fleet.dead()] == [
        ("failed", "MemoryError: a is too big"),
        ("poison", "delivered 2 times, and never acknowledged"),
    ]
    assert fleet.ledger.started["a"] == 1
    assert fleet.ledger.started["b"] == 2
    assert alive(process)


@pytest.mark.parametrize("exchange", ["", "tasks"], ids=["moved", "sent with an exchange"])
def test_a_retry_of_a_message_from_elsewhere_runs(make_fleet: MakeFleet, exchange: str) -> None:
    """Its retry was refused for a queue that no lane consumes, and neither ran nor was kept."""
    fleet = make_fleet(concurrency=1)
    foreign = message("retry_once", ["a", 0])
    foreign["properties"]["delivery_info"] = {"exchange": exchange, "routing_key": "elsewhere"}
    fleet.send(foreign)
    fleet.start()
    fleet.await_ended(["a"], "the retry")
    assert fleet.ledger.started["a"] == 2


def test_a_hard_time_limit_makes_one_dead_letter(make_fleet: MakeFleet) -> None:
    """Celery reports it twice, as a timeout and as a failure."""
    fleet = make_fleet(concurrency=1, time_limit="3s", soft_time_limit=False)
    process = fleet.start()
    fleet.send(message("fail", ["other"]), *ticks(["endless"], 60.0))
    fleet.await_dead(2)
    fleet.await_idle()
    errors = [letter.error for letter in fleet.dead()]
    assert errors == ["ValueError: other fails", "time limit of 3 s exceeded"]
    assert fleet.ledger.started["endless"] == 1
    # Each is in Redis first, and in the log then.
    wait_until(lambda: process.log.count("set aside as dead letter") >= 2, "two lines of log")
    assert process.log.count("set aside as dead letter") == 2


def test_the_newest_dead_letters_are_kept_and_dropping_is_logged(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1, dead_cap=5)
    process = fleet.start()
    fleet.send(*(message("fail", [f"t{number}"]) for number in range(8)))
    wait_until(lambda: fleet.is_idle() and fleet.ledger.started["t7"], "all to fail")
    errors = [letter.error for letter in fleet.dead()]
    assert errors == [f"ValueError: t{number} fails" for number in range(3, 8)]
    process.await_log("dropped the 1 oldest dead letters of tasks that ran")


def test_what_never_ran_is_kept_when_there_is_no_room_for_it(make_fleet: MakeFleet) -> None:
    """Seen before: all but five were deleted for the cap; of 12,000 messages, 2,000 in 25 s."""
    fleet = make_fleet(concurrency=2, dead_cap=5)
    process = fleet.start()
    sent = [f"garbage {number}".encode() for number in range(20)]
    fleet.send(*sent, message("fail", ["failed"]))
    delayed = fleet.keys("delayed")
    wait_until(lambda: fleet.redis.zcard(delayed) == 15, "those without room to be delayed")
    fleet.run_good("more than there is room for")
    # The one that ran has its letter; those that never ran are all there, in one of two places.
    wait_until(lambda: len(fleet.dead()) == 6, "the one that failed")
    letters = [letter.message for letter in fleet.dead() if letter.reason == "malformed"]
    assert sorted(letters + fleet.redis.zrange(delayed, 0, -1)) == sorted(sent)
    fleet.await_idle()
    assert process.log.count("the lane's dead letters are full of messages that never ran") == 1
    # The letter is there a moment before its line.
    wait_until(lambda: process.log.count("set aside as dead letter") >= 6, "a line for each")
    assert process.log.count("set aside as dead letter") == 6
    assert "\nwork: its dead letters are full" in fleet.run("status").stdout

    # With room again, and their time come, five more find it.
    assert fleet.run("dead", "purge", "--all", "--yes").returncode == 0
    for each in fleet.redis.zrange(delayed, 0, -1):
        fleet.redis.zadd(delayed, {each: time.time()})
    wait_until(lambda: len(fleet.dead()) == 5 and fleet.is_idle(), "five to find room")
    wait_until(lambda: fleet.redis.zcard(delayed) == 10, "the rest to be delayed again")
    assert alive(process)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_large_errors_are_small_in_redis_and_in_the_log(make_fleet: MakeFleet, pool: str) -> None:
    """Seen before: six errors of 20 MB were 240 MB of reports, and 360 MB of log."""
    fleet = make_fleet(concurrency=1, pool=pool, results=False)
    process = fleet.start()
    fleet.send(*(message("fail_at_length", [f"t{number}", 20_000_000]) for number in range(6)))
    letters = fleet.await_dead(6)
    fleet.run_good("large errors")
    sizes = [fleet.redis.hstrlen(fleet.keys("dead:reports"), each.number) for each in letters]
    kept, logged = sum(sizes), process.output.stat().st_size
    print(f"{pool}: {kept:,} bytes of reports, {logged:,} of log")
    assert kept < 1_000_000
    assert logged < 1_000_000
    for letter in letters:
        assert letter.error.startswith("ValueError: xxx")
        assert "characters left out ...]" in letter.error
        assert "in fail_at_length" in (letter.traceback or "")


def test_a_paused_lane_stays_paused_over_a_kill_and_then_runs_what_waited(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(concurrency=2)
    killed = fleet.start()
    app = fleet.app()
    status.pause(app, fleet.lane, paused=True)
    names = [f"t{number}" for number in range(20)]
    fleet.send(*ticks(names))
    fleet.kill(killed)
    fleet.start()
    # Twice the time in which a worker that is not paused has looked into its queue.
    time.sleep(1.0)
    assert not fleet.ledger.started
    assert fleet.redis.llen(fleet.lane.queue) == len(names)
    status.pause(app, fleet.lane, paused=False)
    fleet.await_ended(names, "what waited")
    fleet.assert_all_ran(names, 0, "paused over a kill")
