"""A lane's worker serves its lane, whatever remote control or its command line asks of it."""

import subprocess
from typing import Any

import pytest
from conftest import MakeFleet
from harness import PATIENCE, Process, wait_until
from support import QUEUE, Fleet, message, ticks

from acme_tasks.lanes import worker

pytestmark = pytest.mark.ours_only("stock workers serve any queues")

AT_ONCE = (
    "how many tasks a worker of the lane work runs at once is set when it starts: change "
    "concurrency or workers in lanes.toml, and restart it"
)
REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another queue": (
        "add_consumer",
        {"queue": "other"},
        (
            "a worker serves one lane, and this one serves work with its queue work_tasks: "
            "'other' is for the worker of a lane that declares it in lanes.toml"
        ),
    ),
    "not its own": (
        "cancel_consumer",
        {"queue": QUEUE},
        (
            "a worker serves one lane, and this one serves work with its queue work_tasks: "
            'to have the lane wait, use the command "pause work", and later "resume work"'
        ),
    ),
    "more at once": ("pool_grow", {"n": 1}, AT_ONCE),
    "fewer at once": ("pool_shrink", {"n": 1}, AT_ONCE),
    "by load": ("autoscale", {"max": 9, "min": 1}, AT_ONCE),
    "a new pool": (
        "pool_restart",
        {},
        (
            "a worker of the lane work keeps its pool for as long as it runs: restart the worker, "
            "which finishes its tasks or hands them back"
        ),
    ),
    "an election": (
        "election",
        {"id": "1", "topic": "t"},
        "a worker of the lane work elects nobody: it starts without gossip",
    ),
}


def ask(fleet: Fleet, command: str, **arguments: Any) -> Any:
    control = fleet.app().control
    # It says that it is ready before it listens, and hears nothing of what was said until then.
    wait_until(lambda: control.ping(timeout=1, limit=1), "it to listen")
    (answer,) = control.broadcast(
        command, arguments=arguments, reply=True, timeout=PATIENCE, limit=1
    )
    (reply,) = answer.values()
    return reply


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_what_a_lanes_worker_cannot_do_is_refused_in_words(
    make_fleet: MakeFleet, pool: str
) -> None:
    """Seen before: "ok" to all of the first four with prefork, of which it did the last two; with
    the others an AttributeError, as to the election. And `stats` had no answer at all: "Object of
    type Server is not JSON serializable"."""
    fleet = make_fleet(pool=pool, concurrency=1)
    process = fleet.start()
    for command, arguments, why in REFUSALS.values():
        assert ask(fleet, command, **arguments) == {"error": why}
        assert f"remote control: {why}" in process.log
    # What it can do it goes on to do.
    assert ask(fleet, "add_consumer", queue=QUEUE) == {"ok": f"add consumer {QUEUE}"}
    assert ask(fleet, "cancel_consumer", queue="x") == {"ok": "no longer consuming from x"}
    assert ask(fleet, "stats")["broker"]["transport_options"]["server"] == fleet.server.url
    assert [each["name"] for each in ask(fleet, "active_queues")] == [QUEUE]
    fleet.run_good("all that")
    assert process.end() == 0


MEDDLE = """
@control_command(name="meddle")
def meddle(state, call, queue):
    state.consumer.call_soon(getattr(state.consumer, call), queue)
    return ok(call)
"""


def test_it_survives_whoever_makes_it_consume_another_queue_all_the_same(
    make_fleet: MakeFleet,
) -> None:
    """Its own queue cancelled and another added, by a step of the owner's or a task.

    Seen before: it took messages from there by BRPOP, without leases: a task that lost its child
    ended the worker with ValueError: invalid literal for int(), and was gone.
    """
    fleet = make_fleet(concurrency=1)
    tasks = fleet.folder / worker.PACKAGE / "tasks.py"
    text = tasks.read_text(encoding="utf-8")
    first = "from celery.worker.control import control_command, ok\n"
    tasks.write_text(
        text.replace("from .celery import app\n", f"{first}\nfrom .celery import app\n") + MEDDLE,
        encoding="utf-8",
    )
    process = fleet.start()
    ask(fleet, "meddle", call="cancel_task_queue", queue=QUEUE)
    process.await_log(f"Canceling queue {QUEUE}")
    ask(fleet, "meddle", call="add_task_queue", queue="other")
    process.await_log("the queue other is not consumed: this worker serves the lane work")
    fleet.redis.lpush("other", "{}")
    fleet.send(message("kill_once", ["a"]))
    # It is there, and takes nothing, from either.
    assert ask(fleet, "ping") == {"ok": "pong"}
    assert (fleet.redis.llen("other"), fleet.redis.llen(QUEUE)) == (1, 1)
    fleet.mend("a")
    ask(fleet, "meddle", call="add_task_queue", queue=QUEUE)
    fleet.await_ended(["a"], "its own queue, once it is consumed again")
    assert fleet.redis.llen("other") == 1
    assert process.end() == 0


def test_a_remote_shutdown_drains_as_the_signal_does(make_fleet: MakeFleet) -> None:
    """Seen before: after 15 s it waited for the task still, and had no reply."""
    fleet = make_fleet(drain="requeue", drain_timeout="1s", concurrency=1)
    process = fleet.start()
    fleet.send(message("hold", ["a"]))
    wait_until(lambda: fleet.ledger.started["a"], "the task")
    assert ask(fleet, "shutdown") == {"ok": "the lane's drain is 'requeue'"}
    assert process.ended() == 0
    assert (fleet.redis.llen(QUEUE), fleet.held()) == (1, 0)


def test_a_time_limit_that_is_set_by_remote_control_ends_the_task(make_fleet: MakeFleet) -> None:
    """Seen before: "time limits set successfully", and the task ran for as long as it liked."""
    fleet = make_fleet(concurrency=1)
    fleet.start()
    assert ask(fleet, "time_limit", task_name="hold", soft=1, hard=60) == {
        "ok": "time limits set successfully"
    }
    fleet.send(message("hold", ["a"]))
    (letter,) = fleet.await_dead(1)
    assert "SoftTimeLimitExceeded" in str(letter)


FLAGS = {
    "exclude": (["-X", QUEUE], "-X: a worker serves one lane; leave it out"),
    "autoscale": (
        ["--autoscale=3,1"],
        (
            "--autoscale: how many tasks run at once is the lane's to say; set concurrency and "
            "workers of work in lanes.toml"
        ),
    ),
    "beat": (
        ["-B"],
        (
            "-B: workers keep the schedule of lanes.toml and of beat_schedule by themselves; leave "
            "it out"
        ),
    ),
    **{
        pool: (
            ["-P", pool],
            "--pool: the lane work runs in prefork; say --pool=prefork, or change it in lanes.toml",
        )
        for pool in ("solo", "threads", "gevent")
    },
    "spawn": (
        ["--pool-start-method=spawn"],
        "--pool-start-method: only fork works here; leave it out",
    ),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_that_is_against_the_lane_is_refused_in_words(
    make_fleet: MakeFleet, name: str
) -> None:
    """Seen before: -X was ready and consumed nothing; -B went on, and beside the next one's, when
    the worker was killed; gevent and spawn ended with a traceback."""
    fleet = make_fleet()
    flags, why = FLAGS[name]
    ended = subprocess.run(
        [*worker.command(fleet.lane), *flags],
        cwd=fleet.folder,
        env=fleet.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert ended.stdout.strip() == why


def test_a_queue_for_each_worker_is_refused_in_words(make_fleet: MakeFleet) -> None:
    """Seen before: it was declared, and what was sent to it was never run."""
    fleet = make_fleet()
    app = fleet.folder / worker.PACKAGE / "celery.py"
    app.write_text(
        app.read_text(encoding="utf-8") + "\napp.conf.worker_direct = True\n", encoding="utf-8"
    )
    process = fleet.start(ready=False)
    assert process.ended() == 2
    assert process.log.strip() == (
        "worker_direct: a worker serves one lane, and this gives each a queue of its own; leave it "
        "out"
    )


def test_so_many_count_as_delivered_as_its_own_flag_has_it_run_at_once(
    make_fleet: MakeFleet,
) -> None:
    """Seen before: as many as the lane's; what ran beyond that was never counted."""
    fleet = make_fleet(concurrency=1, prefetch=1)
    command = [each for each in worker.command(fleet.lane) if "--concurrency" not in each]

    def start(name: str) -> Process:
        process = Process(name, [*command, "-c", "3"], fleet.folder, fleet.environment)
        fleet.processes.append(process)
        process.await_log(" ready.")
        return process

    process = start("first")
    names = ["a", "b", "c"]
    fleet.send(*ticks(names, 600))
    wait_until(lambda: names == sorted(fleet.ledger.started), "three at once")
    fleet.kill(process)
    start("second")
    wait_until(lambda: fleet.redis.hlen(fleet.keys("deliveries")) == 3, "all three to be counted")
