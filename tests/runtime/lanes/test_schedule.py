"""The schedule as it is declared, kept by real workers, and shown by the command."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.schedules import crontab, schedule, solar
from harness import SCHEDULER, Process, Project, own_scheduler, running_broker, wait_until

from acme_tasks.lanes.errors import ConfigError
from acme_tasks.lanes.redis.schedule import Schedule
from acme_tasks.lanes.schedule import check_tasks, entries
from acme_tasks.lanes.timetable import Entry
from acme_tasks.lanes.worker import PACKAGE

LANES = 'default_lane = "quick"\n[lanes.quick]\n[lanes.slow]\n'


def echo(value: str) -> str:
    return value


@pytest.fixture
def app(bound: Any) -> Celery:
    app = bound(LANES + '[schedule.kept]\ntask = "echo"\nevery = "1h"\nargs = ["x"]\n')
    app.task(echo, name="echo")
    app.finalize()
    return app


# Celery's own ways


def of(app: Celery, when: object, **more: object) -> Entry:
    app.conf.beat_schedule = {"one": {"task": "echo", "schedule": when, **more}}
    return entries(app)[-1]


@pytest.mark.parametrize("when", [90, 90.0, timedelta(seconds=90), schedule(90)], ids=repr)
def test_a_number_and_a_timedelta_are_seconds(app: Celery, when: object) -> None:
    entry = of(app, when, args=("x",), kwargs={"a": 1}, options={"lane": "slow"})
    assert (entry.every, entry.args, entry.kwargs) == (90.0, ("x",), {"a": 1})
    assert entry.options == {"lane": "slow"}


def test_a_crontab_is_in_the_time_zone_of_the_app(app: Celery) -> None:
    app.conf.timezone = "Europe/Berlin"
    entry = of(app, crontab(minute="*/20", hour="3,4", day_of_month="1-7", day_of_week="mon"))
    assert entry.cron == "0,20,40 3,4 1,2,3,4,5,6,7 * *"
    assert (entry.days, entry.timezone) == (frozenset({1}), "Europe/Berlin")
    assert of(app, crontab(hour="*", minute=0)).cron == "0 * * * *"


def test_add_periodic_task_is_kept_too(app: Celery) -> None:
    name = app.add_periodic_task(60.0, app.tasks["echo"].s("x"))
    app.add_periodic_task(crontab(), app.tasks["echo"].s("y"), name="named")
    found = {entry.name: entry for entry in entries(app)}
    assert found[name].every == 60.0
    assert (found["named"].cron, found["named"].args) == ("* * * * *", ("y",))


class Own(schedule):
    """A kind that nobody else knows."""


KINDS = "expected crontab, timedelta or a number"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"task": "echo", "schedule": object.__new__(solar)},
            f"solar schedules are not kept ({KINDS})",
        ),
        ({"task": "echo", "schedule": Own(60)}, f"Own is not kept ({KINDS})"),
        ({"task": "echo", "schedule": "daily"}, f"str is not kept ({KINDS})"),
        ({"task": "echo", "schedule": 0.5}, "every 0.5 s (expected a second or more)"),
        ({"task": "echo"}, "no 'schedule'"),
        ({"schedule": 60}, "no 'task'"),
        (
            {"task": "echo", "schedule": 60, "args": (object,)},
            "its arguments cannot be sent: Object of type type is not JSON serializable",
        ),
        (
            {"task": "echo", "schedule": 60, "options": {"unique": "x", "replace": True}},
            "replace is not kept: each run has an id of its own; say unique alone",
        ),
    ],
    ids=["solar", "own", "text", "often", "when", "what", "arguments", "latest"],
)
def test_what_cannot_be_kept_is_named_with_why(app: Celery, given: Any, why: str) -> None:
    app.conf.beat_schedule = {"one": given}
    with pytest.raises(ConfigError) as error:
        entries(app)
    assert error.value.problems == [f"beat_schedule: 'one': {why}"]


def test_one_name_is_one_entry(app: Celery) -> None:
    app.conf.beat_schedule = {"kept": {"task": "echo", "schedule": 60}}
    with pytest.raises(ConfigError) as error:
        entries(app)
    assert str(error.value) == "beat_schedule: 'kept' is in lanes.toml, too: remove one of them"


def test_tasks_their_arguments_and_lanes_are_looked_at(app: Celery) -> None:
    check_tasks(app, entries(app))
    wrong = [
        Entry(name="a", task="ecko", every=1.0),
        Entry(name="b", task="echo", every=1.0),
        Entry(name="c", task="echo", every=1.0, args=("x",), kwargs={"more": 1}),
        Entry(name="d", task="echo", every=1.0, args=("x",), options={"queue": "gone"}),
        Entry(name="e", task="echo", every=1.0, args=("x",), options={"unique_for": 1}),
    ]
    with pytest.raises(ConfigError) as error:
        check_tasks(app, wrong)
    assert error.value.problems == [
        "schedule.a.task: 'ecko' (no task is called so; known: echo)",
        "schedule.b.args: nothing (echo: echo() missing 1 required positional argument: 'value')",
        "schedule.c.args: 'x', more=1 (echo: echo() got an unexpected keyword argument 'more')",
        (
            'schedule.d: no lane consumes the queue "gone" (queues: quick_tasks by quick, '
            "slow_tasks by slow)"
        ),
        "schedule.e: echo: unique_for=1 needs unique: say unique=True, or a text",
    ]


# Real workers


SCHEDULED = """
default_lane = "quick"

[lanes.quick]
concurrency = 2
[lanes.single]
pool = "solo"
[lanes.light]
pool = "threads"
{schedule}
"""
OFTEN = """
[schedule.often]
task = "hold"
every = "1s"
args = [0, "{seen}"]
lane = "{lane}"
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[Any]:
    with running_broker() as server:
        yield server


def project(folder: Path, broker: Any, schedule: str) -> Project:
    broker.redis.flushall()
    return Project(folder, SCHEDULED.format(schedule=schedule), broker.url)


def runs(seen: Path) -> int:
    return len(seen.read_text().splitlines()) if seen.exists() else 0


@pytest.mark.parametrize("lane", ["quick", "single", "light"])
def test_a_worker_keeps_the_schedule_whatever_its_pool(
    tmp_path: Path, broker: Any, lane: str
) -> None:
    seen = tmp_path / "seen"
    ours = project(tmp_path, broker, OFTEN.format(seen=seen, lane=lane))
    with ours.workers(lane):
        wait_until(lambda: runs(seen) >= 2, "two runs")
    assert broker.redis.hgetall(f"lanes:@schedule:{PACKAGE}:keepers") == {}


def test_where_a_lane_has_no_workers_those_of_others_keep_its_schedule(
    tmp_path: Path, broker: Any
) -> None:
    ours = project(tmp_path, broker, OFTEN.format(seen=tmp_path / "seen", lane="light"))
    with ours.workers("quick"):
        wait_until(lambda: broker.redis.llen("light_tasks") >= 2, "two messages")


def test_an_entry_may_have_a_key_and_one_that_is_unique_waits_once(
    tmp_path: Path, broker: Any
) -> None:
    often = OFTEN.format(seen=tmp_path / "seen", lane="light")
    ours = project(tmp_path, broker, f'{often}key = "nightly"')
    options = {"lane": "single", "unique": "x"}
    each = {"once": {"task": "echo", "schedule": 1, "args": ["x"], "options": options}}
    with (tmp_path / PACKAGE / "celery.py").open("a") as file:
        file.write(f"app.conf.beat_schedule = {each!r}")
    with ours.workers("quick"):
        waiting = "lanes:light:keyed:messages:nightly"
        wait_until(lambda: broker.redis.llen(waiting) >= 3, "three messages of the key")
    assert broker.redis.llen("single_tasks") == 1


def test_a_schedule_that_cannot_be_kept_is_a_line_each_and_no_worker(
    tmp_path: Path, broker: Any
) -> None:
    wrong = '[schedule.a]\ntask = "ecko"\nevery = "1h"\n[schedule.b]\ntask = "echo"\nevery = "1h"'
    ended = project(tmp_path, broker, wrong).run("worker", "quick")
    assert ended.returncode == 2
    output = ended.stdout + ended.stderr
    lines = [line for line in output.splitlines() if "schedule." in line]
    assert [line.partition(" (")[0] for line in lines] == [
        "quick | schedule.a.task: 'ecko'",
        "quick | schedule.b.args: nothing",
    ]
    assert "Traceback" not in output


def test_it_waits_for_a_broker_that_is_away_and_says_so_once(tmp_path: Path, broker: Any) -> None:
    seen = tmp_path / "seen"
    ours = project(tmp_path, broker, OFTEN.format(seen=seen, lane="quick"))
    ours.environment["LOG_FORMAT"] = "json"
    with ours.workers("quick") as started:
        wait_until(lambda: runs(seen) >= 1, "a run")
        broker.redis.config_set("maxmemory", 1)
        try:
            started["quick"].await_log("the schedule waits")
        finally:
            broker.redis.config_set("maxmemory", 0)
        before = runs(seen)
        wait_until(lambda: runs(seen) >= before + 2, "runs after it")
        log = started["quick"].log
    lines = [json.loads(line) for line in log.splitlines()]
    [said] = [line["message"] for line in lines if "the schedule waits" in line["message"]]
    assert said.startswith(f"the schedule waits: BROKER_URL ({broker.url})")
    assert "maxmemory" in said


def test_a_thousand_entries_cost_an_idle_worker_next_to_nothing(
    tmp_path: Path, broker: Any
) -> None:
    """And are sent at once when all are due. Measured: 0.2 % of a processor; 0.4 to 0.6 s."""
    entry = '[schedule.e{0}]\ntask = "light.note"\n{1}\nargs = ["{2}"]\nlane = "light"\n'
    when = 'cron = "* * * * *"'
    entries = [entry.format(number, when, tmp_path / "seen") for number in range(1_000)]
    ours = project(tmp_path, broker, "".join(entries))
    runs = f"lanes:@schedule:{PACKAGE}:runs"
    with ours.workers("quick", "single") as started:
        wait_until(lambda: broker.redis.hlen(runs) == 1_000, "all to be sent", 100)
        late = [json.loads(each)["late_by"] for each in broker.redis.hvals(runs)]
        pid = started["single"].process.pid  # it has no children
        before = _cpu(pid)
        time.sleep(IDLE)  # what is measured
        used = (_cpu(pid) - before) / IDLE
    print(f"late by up to {max(late):.2f} s; idle, {100 * used:.2f} % of a processor")
    assert max(late) < 5
    assert used < 0.03


IDLE = 20.0  # seconds


def _cpu(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The command


HOURLY = '[schedule.hourly]\ntask = "echo"\nevery = "1h"\nargs = ["x"]\n'


def test_the_command_shows_runs_pauses_and_resumes(tmp_path: Path, broker: Any) -> None:
    ours = project(tmp_path, broker, HOURLY)
    assert "No worker keeps it" in ours.run("schedule").stdout
    with ours.workers("quick"):
        sent = ours.run("schedule", "run", "hourly")
        assert sent.returncode == 0, sent.stderr
        [id_] = re.findall(r"^hourly: sent (hourly@[\d.]+)$", sent.stdout, re.MULTILINE)
        paused = ours.run("schedule", "pause", "hourly").stdout
        assert paused == "hourly is paused; what is due meanwhile is passed over\n"

        def succeeded() -> Any:
            [found] = json.loads(ours.run("schedule", "--json").stdout)
            return found if found["state"] == "SUCCESS" else None

        found = wait_until(succeeded, "its result")
        assert (found["id"], found["paused"], found["kept"]) == (id_, True, True)
        assert (found["name"], found["task"], found["when"]) == ("hourly", "echo", "every 3600 s")
        assert (found["late"], found["missed"], found["overdue"]) == (0, 0, 0)
        shown = ours.run("schedule").stdout
        row = r"^ ?hourly +every 3600 s +paused +\d{4}-.* success +0 ms; 0"
        assert re.search(row, shown, re.MULTILINE)
        assert ours.run("schedule", "resume", "hourly").stdout == "hourly goes on\n"
        assert "kept by 1 workers" in ours.run("doctor").stdout
    wrong = ours.run("schedule", "run", "daily")
    assert wrong.returncode == 1
    assert wrong.stderr == "no entry of the schedule is called 'daily' (entries: hourly)\n"


def test_the_doctor_sees_a_schedule_that_nobody_keeps_or_that_is_wrong(
    tmp_path: Path, broker: Any
) -> None:
    ours = project(tmp_path, broker, HOURLY)
    assert "no worker keeps it, and it has 1 entry" in ours.run("doctor").stdout
    ours.lanes_file.write_text(ours.lanes_file.read_text().replace('"echo"', '"ecko"'))
    looked = ours.run("doctor")
    assert looked.returncode == 1
    assert "schedule.hourly.task: 'ecko' (no task is called so" in looked.stdout


def test_the_doctor_sees_what_is_late_and_what_is_another_releases(
    tmp_path: Path, broker: Any
) -> None:
    ours = project(tmp_path, broker, HOURLY)
    app: Any = ours.app()
    [entry] = entries(app)
    schedule_ = Schedule(broker.redis, {entry.name: entry.definition})
    schedule_.keep("somebody")
    says = broker.redis.hget(f"lanes:@schedule:{PACKAGE}:entries", "hourly").decode().split()[0]
    broker.redis.hset(f"lanes:@schedule:{PACKAGE}:entries", "hourly", f"{says} 1000.000")
    assert re.search(r"hourly: was due [\d,]+ s ago, and nobody sent it", ours.run("doctor").stdout)
    assert re.search(r"\d h late", ours.run("schedule").stdout)
    Schedule(broker.redis, {}).keep("newer")
    schedule_.leave("somebody")
    assert "workers keep another schedule than" in ours.run("doctor").stdout
    assert "1 workers keep another one" in ours.run("schedule").stdout
    app.close()


# Beat


KEPT = 'app.conf.beat_schedule = {"kept": {"task": "echo", "schedule": 1, "args": ["kept"]}}\n'
THEIRS = {"task": "echo", "schedule": 1, "args": ["theirs"]}


def beat(ours: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ours.python("-m", "celery", "-A", PACKAGE, "beat", *arguments)


@pytest.mark.parametrize("scheduler", [[], ["-S", "celery.beat:Scheduler"]], ids=["own", "memory"])
def test_beat_is_refused_as_it_would_run_everything_twice(
    tmp_path: Path, broker: Any, scheduler: list[str]
) -> None:
    ended = beat(project(tmp_path, broker, ""), *scheduler)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "celery beat: not needed, and it would run things twice: the lanes' workers keep the "
        "schedule, beat_schedule and add_periodic_task included; do not start it"
    )


def with_beat(folder: Path, broker: Any, name: str) -> Project:
    """Which keeps `kept`, and whose beat has an entry of this name."""
    ours = project(folder, broker, "")
    with (folder / PACKAGE / "celery.py").open("a") as file:
        file.write(KEPT + own_scheduler({name: THEIRS}))
    return ours


def test_a_scheduler_with_entries_of_its_own_sends_those_alone(tmp_path: Path, broker: Any) -> None:
    ours = with_beat(tmp_path, broker, "theirs")
    command = [sys.executable, "-m", "celery", "-A", PACKAGE, "beat", *SCHEDULER]
    started = Process("beat", command, ours.folder, ours.environment)
    try:
        wait_until(lambda: broker.redis.llen("quick_tasks") >= 3, "three messages")
    finally:
        assert started.end() == 0, started.log
    waiting = map(json.loads, broker.redis.lrange("quick_tasks", 0, -1))
    assert {each["headers"]["argsrepr"] for each in waiting} == {"['theirs']"}


def test_an_entry_that_both_would_send_is_refused(tmp_path: Path, broker: Any) -> None:
    ended = beat(with_beat(tmp_path, broker, "kept"), *SCHEDULER)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "celery beat: kept: kept by the lanes' workers, and by Own as well; delete it in one of "
        "them"
    )


DJANGO = """
SECRET_KEY = "of this test"
INSTALLED_APPS = ["django_celery_beat"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "FILE"}}
USE_TZ = True
"""
PERIODIC = """
import django, json
django.setup()
from django_celery_beat.models import IntervalSchedule, PeriodicTask
often, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
PeriodicTask.objects.create(name="theirs", task="echo", interval=often, args='["theirs"]')
"""


def test_django_celery_beat_goes_on_beside_the_workers(tmp_path: Path, broker: Any) -> None:
    """What is in its database it sends, to the task's lane; what workers keep it does not."""
    ours = with_beat(tmp_path, broker, "theirs")
    (tmp_path / "of_django.py").write_text(DJANGO.replace("FILE", str(tmp_path / "db")))
    ours.environment["DJANGO_SETTINGS_MODULE"] = "of_django"
    for arguments in (("-m", "django", "migrate", "-v0"), ("-c", PERIODIC)):
        done = ours.python(*arguments)
        assert done.returncode == 0, done.stderr
    scheduler = ("-S", "django_celery_beat.schedulers:DatabaseScheduler")
    command = [sys.executable, "-m", "celery", "-A", PACKAGE, "beat", *scheduler, "-l", "INFO"]
    with ours.workers("quick") as started:
        beat = Process("beat", command, ours.folder, ours.environment)
        try:

            def both() -> bool:
                log = started["quick"].log
                return log.count("Task echo[kept@") > 1 and log.count("succeeded") > 4

            wait_until(both, "tasks of both")
        finally:
            assert beat.end() == 0, beat.log
        log = started["quick"].log
    assert re.search(r"Task echo\[[0-9a-f-]{36}\] succeeded in .*'theirs'", log)
    assert "Sending due task theirs (echo)" in beat.log
    assert "Sending due task kept" not in beat.log
