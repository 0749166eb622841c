"""What `doctor` finds: each is brought about on a real server, and its words are compared."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import PATIENCE, Project, free_port, running_broker, wait_until
from redis import Redis
from test_descriptors import WAY_OUT
from test_refusals import running as running_redis

from acme_tasks.lanes import deploy, doctor, status
from acme_tasks.lanes.doctor import Finding
from acme_tasks.lanes.redis.store import EXCHANGE_KEYS, Keys, Limits, Store
from acme_tasks.lanes.routing import SENT_AT
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
[lanes.quick]
"""
PROJECT = deploy.Project(
    slug="tests-own", package=PACKAGE, process_managers=("systemd", "supervisor")
)
WRITE_IT = ", and write it into the server's configuration"
START = "run `make workers`, or start its units"
RIGHTS = "docs/access.md lists the rights that are needed"
NO_QUORUM = (
    "the Sentinel {} could make no replica the master (NOQUORUM 1 usable Sentinels. Not enough "
    "available Sentinels to reach the specified quorum for this master)"
)
LETTERS = "tests-own dead list --group"


@pytest.fixture
def project(server: Any, redis: Any, tmp_path: Path) -> Iterator[Project]:
    redis.config_set("appendonly", "yes")
    yield Project(tmp_path, LANES, server.url)
    for name, value in {
        "appendfsync": "everysec",
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "min-replicas-to-write": "0",
        "save": "",
    }.items():
        redis.config_set(name, value)


@pytest.fixture
def app(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    monkeypatch.chdir(project.folder)
    app = project.app()
    yield app
    app.close()


@contextmanager
def app_at(folder: Path, url: str, **variables: str) -> Iterator[Celery]:
    """An app of this broker."""
    folder.mkdir(exist_ok=True)
    project = Project(folder, LANES, url)
    project.variables |= variables
    app = project.app()
    try:
        yield app
    finally:
        app.close()


def examine(app: Any, *areas: str) -> list[Finding]:
    """What is found in these areas, or in all."""
    return [each for each in doctor.examine(app, PROJECT) if not areas or each.area in areas]


def unwell(app: Any, *areas: str) -> list[Finding]:
    """What is not well, but for lanes that nobody serves, which no test here has workers for."""
    idle = re.compile(r"\w+: no worker")
    return [
        each
        for each in examine(app, *(areas or ("broker", "lanes", "results", "deploy")))
        if each.level != "ok" and not idle.fullmatch(each.what)
    ]


# The command


def test_a_project_at_work_has_no_problem(project: Project) -> None:
    with project.workers("slow", "quick"):
        told = project.run("doctor", "--json")
    assert (told.returncode, told.stderr) == (0, "")
    findings = json.loads(told.stdout)
    assert [list(each) for each in findings] == [["area", "level", "what", "do"]] * len(findings)
    assert [each for each in findings if each["level"] != "ok"] == [
        {
            "area": "versions",
            "level": "note",
            "what": "tests-own is not installed, so its ranges of versions were not compared",
            "do": "pip install -e .",
        }
    ]
    lines = [f"{each['area']}: {each['what']}" for each in findings if each["level"] == "ok"]
    assert re.fullmatch(
        r"versions: lanes \S+, Python 3\.\d+\.\d+, celery 5\S+, kombu 5\S+, billiard 4\S+, "
        r"redis-py [678]\S+",
        lines[0].partition(", lanes ")[0],
    )
    assert re.fullmatch(r"broker: Valkey 9\.\S+", lines[1])
    assert lines[2:] == [
        "broker: maxmemory-policy is noeviction: it deletes nothing by itself",
        "broker: every write goes to an append-only file: a power cut loses the last second",
        "broker: its clock and this machine's agree within a second",
        "lanes: slow: 1 worker",
        "lanes: quick: 1 worker",
        f"results: {project.variables['BROKER_URL'].replace('/0', '/1')} answers",
        "machine: a worker may open the 56 files that it needs",
    ]


def test_it_says_what_to_do_below_each_finding_and_exits_1_for_a_problem(
    project: Project, redis: Any
) -> None:
    redis.lpush("slow_tasks", "a", "b")
    told = project.run("doctor")
    assert (told.returncode, told.stderr) == (1, "")
    lines = told.stdout.splitlines()
    at = lines.index("problem  lanes     slow: no worker, and 2 messages waiting, 0 delayed")
    assert lines[at + 1 : at + 4] == [
        f"                   -> {START}",
        "note     lanes     quick: no worker",
        f"                   -> {START}",
    ]
    assert lines[-1] == "problems: 1, notes: 2"
    assert "\x1b" not in told.stdout


def test_a_broker_that_is_away_is_a_problem_and_the_rest_is_looked_at(project: Project) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    project.environment["BROKER_URL"] = url
    told = project.run("doctor", "--json")
    assert (told.returncode, told.stderr) == (1, "")
    findings = [Finding(**each) for each in json.loads(told.stdout)]
    way_out = "start the server, or correct the URL"
    said = f"BROKER_URL ({url}): nothing listens there"
    assert Finding("broker", "problem", said, way_out) in findings
    assert Finding("lanes", "note", "not looked at: they are in the broker") in findings
    assert [each.area for each in findings][-2:] == ["results", "machine"]


def test_a_wrong_configuration_exits_2_as_elsewhere(project: Project) -> None:
    project.environment["BROKER_URL"] = "amqp://localhost"
    told = project.run("doctor")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("BROKER_URL: RabbitMQ is not supported")


def test_no_part_of_a_secret_is_told(project: Project, server: Any, redis: Any) -> None:
    secret = "Zq7XhWb9"  # noqa: S105 - what must not be told
    for rights in ("allkeys allchannels +@all", "allkeys +ping", "nothing"):
        redis.execute_command("ACL", "SETUSER", "app", "reset", "on", f">{secret}", *(
            rights.replace("nothing", "").split()
        ))  # fmt: skip
        project.environment["BROKER_URL"] = server.url.replace("//", f"//app:{secret}@")
        told = project.run("doctor")
        assert told.returncode in {0, 1}
        assert "app:***@" in told.stdout or "user app" in told.stdout
        pieces = [secret[at : at + 4] for at in range(len(secret) - 3)]
        assert not [piece for piece in pieces if piece in told.stdout + told.stderr]


# Versions


@contextmanager
def installed(folder: Path, *lines: str) -> Iterator[None]:
    """The project as a distribution with these lines in its metadata."""
    there = folder / "site" / "tests_own-0.1.0.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.4", "Name: tests-own", "Version: 0.1.0", *lines, ""])
    )
    sys.path.append(str(there.parent))
    try:
        yield
    finally:
        sys.path.remove(str(there.parent))


def test_versions_that_the_project_does_not_ask_for_are_problems(
    app: Celery, tmp_path: Path
) -> None:
    lines = (
        "Requires-Python: >=3.11,<3.12.dev0",
        "Requires-Dist: celery<5,>=4",
        "Requires-Dist: kombu[redis]>=5",
        "Requires-Dist: not-there-at-all>=1",
        "Requires-Dist: nor-this; extra == 'local'",
        "Provides-Extra: local",
    )
    way_out = "install what pyproject.toml asks for: pip install -e ."
    with installed(tmp_path, *lines):
        found = unwell(app, "versions")
    python = [each for each in found if each.what.startswith("this is Python")]
    assert bool(python) == (sys.version_info >= (3, 12))
    assert [each for each in found if each not in python] == [
        Finding(
            "versions",
            "problem",
            f"celery is {sys.modules['celery'].__version__}, and the project asks for >=4,<5",
            way_out,
        ),
        Finding("versions", "problem", "not-there-at-all is not installed", way_out),
    ]


def test_another_python_than_the_project_asks_for_is_a_problem(app: Celery, tmp_path: Path) -> None:
    with installed(tmp_path, "Requires-Python: <3.11"):
        found = unwell(app, "versions")
    version = ".".join(map(str, sys.version_info[:3]))
    assert found == [
        Finding(
            "versions",
            "problem",
            f"this is Python {version}, and the project asks for <3.11",
            "make .venv with another: make PYTHON=python3.13 ...",
        )
    ]


def test_what_our_versions_are_held_to_is_met_by_those_of_the_project(
    app: Celery, tmp_path: Path
) -> None:
    with installed(tmp_path, "Requires-Python: >=3.11", "Requires-Dist: celery<5.8,>=5.7"):
        assert unwell(app, "versions") == []


# The broker


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        pytest.param(
            {"appendfsync": "always"},
            Finding(
                "broker",
                "ok",
                "every write goes to an append-only file: a power cut loses nothing",
            ),
            id="always",
        ),
        pytest.param(
            {"appendfsync": "no"},
            Finding(
                "broker",
                "problem",
                "every write goes to an append-only file: a power cut loses some 30 s",
                f"CONFIG SET appendfsync everysec{WRITE_IT}",
            ),
            id="no sync",
        ),
        pytest.param(
            {"appendonly": "no", "save": ""},
            Finding(
                "broker",
                "problem",
                "it has no append-only file: a crash loses all tasks",
                f"CONFIG SET appendonly yes{WRITE_IT}",
            ),
            id="nothing on disk",
        ),
        pytest.param(
            {"maxmemory-policy": "allkeys-lru"},
            Finding(
                "broker",
                "note",
                "maxmemory-policy is allkeys-lru: once it has a maxmemory, it deletes tasks",
                f"CONFIG SET maxmemory-policy noeviction{WRITE_IT}",
            ),
            id="evicting later",
        ),
        pytest.param(
            {"maxmemory-policy": "allkeys-lru", "maxmemory": "1gb"},
            Finding(
                "broker",
                "problem",
                "maxmemory-policy is allkeys-lru: when its memory is full, it deletes tasks",
                f"CONFIG SET maxmemory-policy noeviction{WRITE_IT}",
            ),
            id="evicting",
        ),
        pytest.param(
            {"maxmemory-policy": "volatile-ttl", "maxmemory": "1gb"},
            Finding(
                "broker",
                "note",
                "maxmemory-policy is volatile-ttl: when its memory is full, it deletes results",
                f"CONFIG SET maxmemory-policy noeviction{WRITE_IT}",
            ),
            id="evicting results",
        ),
        pytest.param(
            {"min-replicas-to-write": "1"},
            Finding(
                "broker",
                "problem",
                "it refuses what is sent: 0 replicas are up to date, and min-replicas-to-write "
                "asks for 1",
                "start the replicas, or lower min-replicas-to-write",
            ),
            id="no replica",
        ),
    ],
)
def test_how_the_server_is_set(
    app: Celery, redis: Any, settings: dict[str, str], finding: Finding
) -> None:
    for name, value in settings.items():
        redis.config_set(name, value)
    found = examine(app, "broker")
    assert finding in found
    assert [each for each in found if each.level == "problem" and each != finding] == []


def test_what_only_snapshots_keep_is_told_in_changes(app: Celery, redis: Any) -> None:
    redis.config_set("appendonly", "no")
    redis.config_set("save", "3600 1")
    redis.save()
    redis.set("a", 1)
    [found] = unwell(app, "broker")
    assert found == Finding(
        "broker",
        "problem",
        "it has no append-only file: a crash loses what came since its last snapshot, now 1 "
        "changes in 0 min",
        f"CONFIG SET appendonly yes{WRITE_IT}",
    )


def test_memory_that_is_nearly_used_up_is_a_problem(app: Celery, redis: Any) -> None:
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.1))
    [found] = unwell(app, "broker")
    assert (found.level, found.do) == (
        "problem",
        "raise maxmemory; delete what nobody needs (purge, dead purge)",
    )
    said = r"\d+ of \d+ MiB of its maxmemory are used: it soon refuses what is sent"
    assert re.fullmatch(said, found.what)


def test_a_server_that_cannot_write_its_snapshot_is_a_problem(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as port, Redis(port=port) as redis:
        shutil.rmtree(tmp_path / "redis")  # its current folder: nothing can be written there
        with app_at(tmp_path / "app", f"redis://127.0.0.1:{port}/0") as app:
            redis.bgsave()
            wait_until(
                lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err", "a failure"
            )
            assert Finding(
                "broker",
                "problem",
                "it could not write its snapshot, and may refuse what is sent until it can",
                "make room on its disk, see that it may write there; its log says why it could not",
            ) in examine(app, "broker")


def test_connections_that_are_nearly_used_up_are_a_problem(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis", "--maxclients", "10") as port, ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(Redis(port=port, single_connection_client=True)).ping()
        app = stack.enter_context(app_at(tmp_path / "app", f"redis://127.0.0.1:{port}/0"))
        found = [each for each in examine(app, "broker") if "connections" in each.what]
    assert found == [
        Finding(
            "broker",
            "problem",
            "8 of 10 connections are taken: it soon refuses more",
            "raise its maxclients; see CLIENT LIST for who holds them",
        )
    ]


def test_replicas_are_looked_at_from_both_ends(tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(running_redis(tmp_path / "master"))
        replica = stack.enter_context(
            running_redis(tmp_path / "replica", "--replicaof", f"127.0.0.1 {port}")
        )
        redis = stack.enter_context(Redis(port=port))
        wait_until(lambda: redis.info("replication").get("slave0", {}).get("state") == "online",
                   "the replica")  # fmt: skip
        app = stack.enter_context(app_at(tmp_path / "app", f"redis://127.0.0.1:{port}/0"))
        found = examine(app, "broker")
        well = Finding("broker", "ok", f"the replica 127.0.0.1:{replica} is up to date")
        assert well in found
        assert (
            Finding(
                "broker",
                "note",
                "min-replicas-to-write is 0: cut off from its replicas it goes on taking tasks, "
                "which a fail-over loses",
                f"CONFIG SET min-replicas-to-write 1{WRITE_IT}",
            )
            in found
        )
        redis.config_set("min-replicas-to-write", "1")
        wait_until(lambda: redis.info("replication")["min_slaves_good_slaves"] == 1, "its word")
        assert [each for each in examine(app, "broker") if "replica" in each.what] == [well]
        other = stack.enter_context(app_at(tmp_path / "other", f"redis://127.0.0.1:{replica}/0"))
        assert Finding(
            "broker",
            "problem",
            "it is a replica, which takes no tasks",
            "name its master, or the Sentinels, in BROKER_URL",
        ) in examine(other, "broker")


def test_sentinels_are_asked_whether_they_could_act(tmp_path: Path) -> None:
    watch = "sentinel monitor mymaster 127.0.0.1 {} {}"
    with running_redis(tmp_path / "redis") as port, ExitStack() as stack:
        for quorum, finding in {
            1: ("ok", "the Sentinel {} could make a replica the master", ""),
            2: (
                "problem",
                NO_QUORUM,
                "start the Sentinels and replicas that are down, or correct BROKER_URL",
            ),
        }.items():
            sentinel = stack.enter_context(
                running_redis(
                    tmp_path / f"sentinel-{quorum}",
                    watch.format(port, quorum),
                    program="redis-sentinel",
                )
            )
            url = f"sentinel://127.0.0.1:{sentinel}/0"
            app = stack.enter_context(app_at(tmp_path / f"app-{quorum}", url))
            level, what, do = finding
            said = [each for each in examine(app, "broker") if "Sentinel" in each.what]
            assert said == [Finding("broker", level, what.format(f"127.0.0.1:{sentinel}"), do)]  # type: ignore[arg-type]


def test_a_clock_that_differs_is_a_note(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    [found] = unwell(app, "broker")
    assert re.fullmatch(
        r"this machine's clock is 3,(600|599)\.\d s ahead of the server's, by which all that is "
        r"due goes",
        found.what,
    )
    assert (found.level, found.do) == (
        "note",
        "keep both by NTP; tasks are right all the same, and logs are not",
    )


def test_a_server_that_loads_its_data_is_a_problem(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as port, Redis(port=port) as redis:
        redis.mset({str(number): "x" * 100 for number in range(20_000)})
        redis.save()
    (tmp_path / "redis").rename(tmp_path / "old")
    slow = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
    data = ("--dir", str(tmp_path / "old"))
    with (
        running_redis(tmp_path / "redis", *slow, *data) as port,
        app_at(tmp_path / "app", f"redis://127.0.0.1:{port}/0") as app,
    ):
        found = examine(app, "broker", "lanes")
    what = f"BROKER_URL (redis://127.0.0.1:{port}/0): the server loads its data"
    assert found == [
        Finding("broker", "problem", what, "wait until that is done"),
        Finding("lanes", "note", "not looked at: they are in the broker"),
    ]


# Rights


def test_each_right_that_lacks_is_named_and_the_rest_is_looked_at(
    server: Any, redis: Any, tmp_path: Path
) -> None:
    redis.config_set("appendonly", "yes")
    redis.lpush("slow_tasks", "a")
    user = server.url.replace("//", "//looking:secret@")
    everything = "reset on >secret allkeys allchannels +@all"
    for lacking, finding in {
        "-info": Finding(
            "broker",
            "note",
            f"BROKER_URL ({user.replace('secret', '***')}): the user looking may not run info: "
            "version, persistence, memory and replicas were not looked at",
            RIGHTS,
        ),
        "-config": Finding(
            "broker",
            "note",
            f"BROKER_URL ({user.replace('secret', '***')}): the user looking may not run "
            "config|get: appendfsync, save and min-replicas-to-write were not looked at",
            RIGHTS,
        ),
        "-time": Finding(
            "broker",
            "note",
            f"BROKER_URL ({user.replace('secret', '***')}): the user looking may not run time: its "
            "clock and this machine's were not looked at",
            RIGHTS,
        ),
        "-scan": Finding(
            "lanes",
            "note",
            f"BROKER_URL ({user.replace('secret', '***')}): the user looking may not run scan",
            RIGHTS,
        ),
        "-acl": Finding(
            "lanes",
            "note",
            "what the user looking may do was not looked at: the server has no ACL DRYRUN, or this "
            "user may not call it",
            RIGHTS,
        ),
        "-lpush": Finding(
            "lanes",
            "note",
            "the user looking may not do what a sender does (lpush)",
            "if senders have this URL, docs/access.md lists the rights that they need",
        ),
        "-hset": Finding(
            "lanes",
            "note",
            "the user looking may not do what a worker does (hset)",
            "if workers have this URL, docs/access.md lists the rights that they need",
        ),
    }.items():
        rights = f"{everything} {lacking}".split()
        redis.execute_command("ACL", "SETUSER", "looking", *rights)
        with app_at(tmp_path / "app", user) as its:
            found = unwell(its, "broker", "lanes")
        shutil.rmtree(tmp_path / "app")
        assert finding in found, "\n".join(map(str, found))
        waiting = "slow: no worker, and 1 message waiting, 0 delayed"
        if lacking not in {"-time", "-lpush", "-hset"}:
            assert Finding("lanes", "problem", waiting, START) in found


# The lanes


def test_a_lane_with_messages_and_no_worker_is_a_problem(app: Celery, redis: Any) -> None:
    redis.lpush("slow_tasks", "a", "b")
    redis.zadd("lanes:quick:delayed", {"c": time.time() + 3600})
    assert unwell(app, "lanes") == [
        Finding("lanes", "problem", f"{what} delayed", START)
        for what in (
            "slow: no worker, and 2 messages waiting, 0",
            "quick: no worker, and 0 messages waiting, 1",
        )
    ]


def test_fewer_workers_than_declared_are_a_note(project: Project) -> None:
    project.lanes_file.write_text(f"{LANES}workers = 3\n")
    declared = project.app()
    with project.workers("quick"):
        found = [each for each in examine(declared, "lanes") if each.what.startswith("quick")]
    declared.close()
    what = "quick: 1 worker, and lanes.toml says 3"
    assert found == [Finding("lanes", "note", what, START)]


def test_a_worker_that_does_not_answer_for_its_task_is_there_all_the_same(
    app: Any, redis: Any
) -> None:
    note = json.dumps({"project": PACKAGE})
    redis.hset("lanes:quick:workers", "quick-1@host#1", f"{time.time()} {note}")
    redis.lpush("quick_tasks", "a")
    assert unwell(app, "lanes") == []
    redis.hset("lanes:quick:workers", "quick-1@host#1", f"{time.time() - 3600} {note}")
    assert [each.level for each in unwell(app, "lanes")] == ["problem"]


def test_what_waits_in_a_paused_lane_is_a_problem(app: Any, redis: Any) -> None:
    status.pause(app, app.lanes.get("quick"), paused=True)
    note = json.dumps({"project": PACKAGE})
    redis.hset("lanes:quick:workers", "quick-1@host#1", f"{time.time()} {note}")
    redis.lpush("quick_tasks", json.dumps({"headers": {SENT_AT: time.time() - 9000}}))
    assert unwell(app, "lanes") == [
        Finding(
            "lanes", "problem", "quick: paused, with 1 message waiting", "tests-own resume quick"
        )
    ]


def test_what_waits_for_longer_than_it_may_is_a_problem(app: Any, redis: Any) -> None:
    note = json.dumps({"project": PACKAGE})
    redis.hset("lanes:quick:workers", "quick-1@host#1", f"{time.time()} {note}")
    redis.lpush("quick_tasks", json.dumps({"headers": {SENT_AT: time.time() - 9000}}))
    [found] = unwell(app, "lanes")
    assert re.fullmatch(
        r"quick: the oldest of 1 message has waited for 9,0\d\d s, and latency_slo is 1 s",
        found.what,
    )
    assert (found.level, found.do) == (
        "problem",
        "raise its workers or concurrency; move what runs for long to a lane of its own",
    )


def test_dead_letters_are_a_note_and_a_full_store_of_them_a_problem(app: Any, redis: Any) -> None:
    redis.zadd("lanes:quick:dead", {"1": 1})
    redis.zadd("lanes:slow:dead", {"1": 1, "2": 2})
    redis.hset("lanes:slow:dead:totals", "never", 10_000)
    assert unwell(app, "lanes") == [
        Finding(
            "lanes",
            "problem",
            "slow: its dead letters are full of messages that never ran; others like them stay "
            "delayed",
            f"{LETTERS}, then dead retry or dead purge",
        ),
        Finding("lanes", "note", "quick: 1 dead letter", LETTERS),
    ]


def test_a_lane_that_is_declared_no_more_and_not_empty_is_a_problem(app: Any, redis: Any) -> None:
    redis.lpush("gone_tasks", "a")
    redis.zadd("lanes:gone:delayed", {"b": time.time() + 3600})
    redis.zadd("lanes:past:dead", {"1": 1})
    redis.set("lanes:empty:paused", "1")
    redis.incr("lanes:revocations")
    undeclared = "declare it again until it is empty"
    held = "not in lanes.toml, and Redis holds"
    assert unwell(app, "lanes") == [
        Finding(
            "lanes", "problem", f"gone: {held} 2 messages and 0 dead letters of it", undeclared
        ),
        Finding("lanes", "note", f"past: {held} 0 messages and 1 dead letter of it", undeclared),
    ]


def test_a_lane_of_the_past_that_holds_messages_with_a_key_alone_is_a_problem(
    app: Any, redis: Any
) -> None:
    """Also where a limit leaves none that may start; its own queue is no list of others."""
    message = json.dumps({"headers": {"lane_key": "k", "id": "i"}})
    for lane, queue in (("gone", "gone_tasks"), ("past", "of_its_own")):
        Store(redis, Keys(lane, queue)).send([message] * 2)
    held = Store(redis, Keys("held", "held_tasks", Limits(running=1)))
    held.send([message] * 2)
    held.run("exchange", EXCHANGE_KEYS, (1, 60, "owner", 0))
    assert redis.llen("held_tasks") == 0
    undeclared = "declare it again until it is empty"
    what = "not in lanes.toml, and Redis holds 2 messages and 0 dead letters of it"
    assert unwell(app, "lanes") == [
        Finding("lanes", "problem", f"gone: {what}", undeclared),
        Finding("lanes", "problem", f"held: {what}", undeclared),
        Finding(
            "lanes",
            "problem",
            "of_its_own: 2 messages, and no lane takes from this queue",
            "send to slow_tasks, quick_tasks; or see whose it is, and give them another database",
        ),
    ]


def test_what_celery_sent_to_a_queue_that_no_lane_consumes_is_a_problem(
    app: Any, server: Any, redis: Any
) -> None:
    redis.lpush("somebody's list", "no message", json.dumps({"body": ""}), "[1]")
    with Celery(broker=server.url, set_as_current=False) as plain:
        for priority in (0, 3):
            plain.send_task("echo", ("x",), priority=priority)
        plain.send_task("echo", ("x",), queue="quick_tasks", priority=3)
    with Celery(broker=server.url, set_as_current=False) as stepped:
        stepped.conf.broker_transport_options = {"priority_steps": [0, 5]}
        stepped.send_task("echo", ("x",), queue="quick_tasks", priority=5)
    found = [each for each in unwell(app, "lanes") if "no worker" not in each.what]
    assert found == [
        Finding(
            "lanes",
            "problem",
            "celery: 2 messages, and no lane takes from this queue",
            "send to slow_tasks, quick_tasks; or see whose it is, and give them another database",
        ),
        Finding(
            "lanes",
            "problem",
            "quick_tasks: 1 message in lists of priorities that its workers do not read",
            "have their sender use the priorities 0, 3, 6 and 9, kombu's own priority_steps",
        ),
    ]


def test_workers_of_another_project_are_a_problem(app: Any, server: Any, redis: Any) -> None:
    note = json.dumps({"project": "others"})
    redis.hset("lanes:theirs:workers", "theirs-1@host#1", f"{time.time()} {note}")
    redis.lpush("theirs_tasks", json.dumps({"body": "", "headers": {}, "properties": {}}))
    assert unwell(app, "lanes") == [
        Finding(
            "lanes",
            "problem",
            "workers of another project are at work in this database, others (theirs-1@host): "
            "lanes of the same name take each other's tasks",
            f"give one of them another BROKER_URL, such as {server.url.replace('/0', '/2')}",
        )
    ]


def test_a_database_of_millions_of_keys_is_looked_through_for_so_long(
    app: Any, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.work, "SCAN", 0.0)
    redis.set("a", 1)
    redis.lpush("b", 1)
    redis.set("lanes:quick:paused", 1)
    assert unwell(app, "lanes")[-1] == Finding(
        "lanes",
        "note",
        "the database has more keys than can be looked through in 0 s",
        "give the lanes a database of their own",
    )


# Results, deploy/, the machine


def test_results_are_looked_at_in_short(server: Any, tmp_path: Path) -> None:
    with app_at(tmp_path / "off", server.url, RESULT_URL="") as app:
        none = "none are kept: RESULT_URL is empty"
        assert examine(app, "results") == [Finding("results", "ok", none)]
    away = f"redis://127.0.0.1:{free_port()}/0"
    with app_at(tmp_path / "away", server.url, RESULT_URL=away) as app:
        said = f"RESULT_URL ({away}): nothing listens there"
        way_out = "start the server, or correct the URL"
        assert examine(app, "results") == [Finding("results", "note", said, way_out)]
    with running_broker() as other:
        other.redis.config_set("maxmemory-policy", "allkeys-lru")
        other.redis.config_set("maxmemory", "1gb")
        with app_at(tmp_path / "evicting", server.url, RESULT_URL=other.url) as app:
            assert examine(app, "results") == [
                Finding("results", "ok", f"{other.url} answers"),
                Finding(
                    "results",
                    "note",
                    "maxmemory-policy is allkeys-lru: when its memory is full, it deletes results",
                    f"CONFIG SET maxmemory-policy noeviction{WRITE_IT}",
                ),
            ]


def test_deploy_is_looked_at_where_there_is_one(app: Any) -> None:
    assert examine(app, "deploy") == []
    folder = Path("deploy")
    folder.mkdir()
    deploy.write(deploy.render(app.lanes, PROJECT), folder)
    assert examine(app, "deploy") == [Finding("deploy", "ok", "as lanes.toml says")]
    unit = folder / "systemd" / "tests-own-quick@.service"
    unit.write_text(unit.read_text() + "# changed\n")
    what = f"out of date with lanes.toml: {unit}"
    assert examine(app, "deploy") == [
        Finding("deploy", "note", what, "make units, or tests-own units")
    ]


def test_too_few_open_files_and_a_poor_locale_are_notes(project: Project) -> None:
    script = f"ulimit -n 50; exec {sys.executable} -m {PACKAGE} doctor --json"
    variables = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    told = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=project.folder,
        env=os.environ | project.variables | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert told.stderr == ""
    assert [Finding(**each) for each in json.loads(told.stdout) if each["area"] == "machine"] == [
        Finding(
            "machine",
            "note",
            "a process may open 50 files here, and a worker needs 56",
            WAY_OUT,
        ),
        Finding(
            "machine",
            "note",
            "the locale's encoding is ANSI_X3.4-1968, so other characters are shown as escapes",
            "export LC_ALL=C.UTF-8",
        ),
    ]
