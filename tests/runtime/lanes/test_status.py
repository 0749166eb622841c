import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import Project, free_port, wait_until

from acme_tasks.lanes import status
from acme_tasks.lanes.errors import BrokerError
from acme_tasks.lanes.redis.connect import Server
from acme_tasks.lanes.redis.store import EXCHANGE_KEYS, PRIORITY_LISTS, Store, quoted
from acme_tasks.lanes.routing import SENT_AT
from acme_tasks.lanes.status import LaneStatus, Recent
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
[lanes.quick]
latency_slo = "50ms"
"""


@pytest.fixture
def project(broker: Any, tmp_path: Path) -> Project:
    return Project(tmp_path, LANES, broker.url)


@pytest.fixture
def app(project: Project) -> Iterator[Celery]:
    app = project.app()
    yield app
    app.close()


def kept(app: Any, lane: str) -> tuple[Any, ...]:
    """Waiting, age of the oldest, delayed, dead, whether paused."""
    store = status.store_of(app.server.client, app.lanes.get(lane))
    [seen] = status.look([store])
    counts = seen.counts
    return counts.waiting, seen.oldest, counts.delayed, counts.dead, counts.paused


def test_without_workers_it_tells_what_waits_and_for_how_long(
    app: Celery, project: Project
) -> None:
    for _ in range(3):
        app.send_task("echo", ("x",), lane="quick")
    wait_until(lambda: not status.read(app)[1].slo_kept, "50 ms to pass")
    slow, quick = status.read(app)
    nothing: Any = {
        "done": 0,
        "per_second": 0.0,
        "outcomes": {},
        "in_time": None,
        **dict.fromkeys(("wait_p50", "wait_p99", "run_p50", "run_p99")),
    }
    periods = {
        name: Recent(seconds=getattr(slow, name).seconds, **nothing)
        for name in ("last_5m", "last_1h", "last_30d")
    }
    assert slow == LaneStatus(
        lane="slow",
        waiting=0,
        oldest=None,
        running=0,
        slots=0,
        workers=0,
        wanted_workers=None,
        latency_slo=600.0,
        slo_kept=True,
        keys=0,
        keys_held=0,
        delayed=0,
        dead=0,
        dead_full=False,
        paused=False,
        slo_target=0.99,
        budget_left=None,
        **periods,
    )
    assert (quick.waiting, quick.running, quick.workers) == (3, 0, 0)
    assert quick.oldest > quick.latency_slo == 0.05

    told = project.run("status", "--json")
    assert (told.returncode, told.stderr) == (0, "")
    assert [list(lane) for lane in json.loads(told.stdout)] == [list(LaneStatus.__slots__)] * 2
    assert [lane["waiting"] for lane in json.loads(told.stdout)] == [0, 3]


def test_what_a_plain_sender_gave_a_priority_waits_too(app: Celery, broker: Any) -> None:
    with Celery(broker=broker.url, set_as_current=False) as plain:
        for priority in (0, 3, 9):
            plain.send_task("echo", ("x",), queue="slow_tasks", priority=priority)
    assert broker.redis.llen("slow_tasks") == 1
    assert status.read(app)[0].waiting == 3


def test_it_tells_what_is_delayed_set_aside_and_paused(app: Celery, broker: Any) -> None:
    app.send_task("echo", ("x",), lane="slow", countdown=3600)
    broker.redis.zadd("lanes:slow:dead", {"1": 1, "2": 2})
    status.pause(app, app.lanes.get("slow"), paused=True)
    assert kept(app, "slow") == (0, None, 1, 2, True)
    assert kept(app, "quick") == (0, None, 0, 0, False)
    status.pause(app, app.lanes.get("slow"), paused=False)
    assert kept(app, "slow") == (0, None, 1, 2, False)


def test_a_task_that_was_delayed_waits_from_when_it_was_due(app: Celery, broker: Any) -> None:
    """What is due waits where it was delayed. Seen before: it was no waiting message until then."""
    now = time.time()
    for name, due in (("due", now - 100), ("due later", now - 50), ("later", now + 3600)):
        eta = datetime.fromtimestamp(due, UTC).isoformat()
        headers = {"id": name, SENT_AT: now - 3600, "eta": eta}
        broker.redis.zadd("lanes:slow:delayed", {json.dumps({"headers": headers}): due})
    waiting, oldest, delayed, *_ = kept(app, "slow")
    assert (waiting, delayed) == (2, 1)
    assert oldest == pytest.approx(100, abs=45)


@pytest.mark.parametrize("eta", [None, "2001-01-01T00:00:00", "soon"])
def test_a_host_whose_clock_is_wrong_tells_how_long_a_message_has_waited_all_the_same(
    app: Celery, broker: Any, monkeypatch: pytest.MonkeyPatch, eta: str | None
) -> None:
    """Seen before: an hour, on a host that was an hour ahead."""
    headers = {SENT_AT: time.time() - 1000, "eta": eta}
    broker.redis.lpush("slow_tasks", json.dumps({"headers": headers}))
    at = time.time()
    monkeypatch.setattr(time, "time", lambda: at + 3600)
    _, oldest, *_ = kept(app, "slow")
    assert oldest == pytest.approx(1000, abs=60)


def test_the_oldest_is_the_next_in_line(app: Celery, broker: Any) -> None:
    for value in ("first", "second"):
        app.send_task("echo", (value,), lane="slow")
    messages = [json.loads(message) for message in broker.redis.lrange("slow_tasks", 0, -1)]
    assert [message["headers"]["argsrepr"] for message in messages] == ["('second',)", "('first',)"]
    broker.redis.delete("slow_tasks")
    for age in (1000, 10):
        broker.redis.lpush("slow_tasks", json.dumps({"headers": {SENT_AT: time.time() - age}}))
    waiting, oldest, *_ = kept(app, "slow")
    assert (waiting, oldest) == (2, pytest.approx(1000, abs=60))


def stamped(age: float, due: float | None = None) -> str:
    """A message that was sent `age` seconds ago, and was due `due` seconds ago."""
    now = time.time()
    eta = None if due is None else datetime.fromtimestamp(now - due, UTC).isoformat()
    return json.dumps({"body": "W10=" * 20, "headers": {SENT_AT: now - age, "eta": eta}})


Lists = dict[str, list[str]]
HIDDEN: dict[str, tuple[Callable[[], Lists], float]] = {
    # By list: what is pushed on the right, which is what is taken next, in this order.
    "behind what was delayed and came back": (
        lambda: {"": [stamped(3600), *[stamped(7200, due=1) for _ in range(40)]]},
        3600,
    ),
    "behind a fresh one that came back": (
        lambda: {"": [stamped(1), stamped(3600), stamped(2)]},
        3600,
    ),
    "in a list of a lower priority": (
        lambda: {"": [stamped(1)], PRIORITY_LISTS[2]: [stamped(900)]},
        900,
    ),
    "a dead letter that was put back": (lambda: {"": [stamped(900), *[stamped(1)] * 300]}, 900),
    "behind 400 in a long queue": (
        lambda: {"": [*[stamped(5)] * 3000, stamped(900), *[stamped(1)] * 400]},
        900,
    ),
}


@pytest.mark.parametrize(("lists", "oldest"), HIDDEN.values(), ids=HIDDEN)
def test_the_oldest_is_the_oldest_wherever_it_stands(
    app: Celery, broker: Any, lists: Callable[[], Lists], oldest: float
) -> None:
    """Seen before: the age of the next alone, so that an hour behind a fresh one was "kept"."""
    for name, messages in lists().items():
        broker.redis.rpush(f"slow_tasks{name}", *messages)
    assert kept(app, "slow")[1] == pytest.approx(oldest, abs=60)


def test_what_is_due_does_not_hide_what_is_in_the_queue(app: Celery, broker: Any) -> None:
    broker.redis.zadd("lanes:slow:delayed", {stamped(5000, due=5): time.time() - 5})
    broker.redis.rpush("slow_tasks", stamped(900))
    assert kept(app, "slow")[1] == pytest.approx(900, abs=60)
    broker.redis.zadd("lanes:slow:delayed", {stamped(9000, due=2000): time.time() - 2000})
    assert kept(app, "slow")[1] == pytest.approx(2000, abs=60)


def test_large_messages_are_not_all_looked_at(app: Celery, broker: Any) -> None:
    """Each in turn is read by Redis, which serves nobody else meanwhile."""
    large = json.dumps({"body": "x" * 3_000_000, "headers": {SENT_AT: time.time() - 5}})
    broker.redis.rpush("slow_tasks", *[large] * 10)
    began = broker.redis.info("commandstats")
    assert kept(app, "slow")[1] == pytest.approx(5, abs=60)
    looked = broker.redis.info("commandstats")["cmdstat_lindex"]["calls"]
    assert looked - began.get("cmdstat_lindex", {"calls": 0})["calls"] == 2


def test_no_argument_is_taken_for_the_time_of_sending(app: Celery, broker: Any) -> None:
    fresh = json.loads(stamped(5))
    fresh["headers"]["argsrepr"] = repr({"a": f'"{SENT_AT}": 1.0'})
    fresh["headers"] = dict(sorted(fresh["headers"].items()))  # before it
    broker.redis.rpush("slow_tasks", json.dumps(fresh))
    assert kept(app, "slow")[1] == pytest.approx(5, abs=60)


def test_it_says_which_lanes_dead_letters_are_full(project: Project, broker: Any) -> None:
    text = project.lanes_file.read_text().replace("[lanes.slow]", "[lanes.slow]\ndead_cap = 2")
    project.lanes_file.write_text(text)
    app = project.app()
    store = status.store_of(app.server.client, app.lanes.get("slow"))
    for number in (1, 2):
        broker.redis.hset("lanes:slow:leased", f"{number}@me", "message")
        report = {"reason": "unknown", "error": "no"}
        assert store.set_aside(f"{number}@me", report, cap=2, size=1000, age=9.0) == 0
    app.close()
    told = project.run("status", "--json")
    assert [lane["dead_full"] for lane in json.loads(told.stdout)] == [True, False]
    told = project.run("status")
    assert "2, full" in told.stdout
    assert told.stdout.splitlines()[-1] == (
        "slow: its dead letters are full of messages that never ran, which are not dropped; others "
        "like them stay delayed until `dead retry` or `dead purge` makes room"
    )


# Purging.


@pytest.fixture
def filled(app: Celery, broker: Any) -> Any:
    """slow holds one waiting, one of a priority, two delayed, one running, two dead; quick one."""
    for value in ("a", "running"):
        app.send_task("echo", (value,), lane="slow")
    broker.redis.hset("lanes:slow:leased", "9@me", broker.redis.lpop("slow_tasks"))
    broker.redis.zadd("lanes:slow:leases", {"9@me": time.time() + 60})
    broker.redis.lpush(f"slow_tasks{PRIORITY_LISTS[0]}", stamped(1))
    for _ in range(2):
        app.send_task("echo", ("later",), lane="slow", countdown=3600)
    for name in ("dead", "dead:messages", "dead:reports"):
        report = json.dumps({"at": 1, "reason": "failed", "deliveries": 1, "task": "echo"})
        for number in ("1", "2"):
            if name == "dead":
                broker.redis.zadd("lanes:slow:dead", {number: 1})
            else:
                broker.redis.hset(f"lanes:slow:{name}", number, report)
    delayed = broker.redis.zrange("lanes:slow:delayed", 0, 0)[0]
    for message in (delayed, broker.redis.lindex("slow_tasks", 0)):
        digest = sha1(message, usedforsecurity=False).hexdigest()
        broker.redis.hset("lanes:slow:deliveries", digest, 1)
    app.send_task("echo", ("a",), lane="quick")
    return broker.redis


PURGES = {
    "what waits and is delayed": ([], "2 waiting, 2 delayed", "2 dead, 1 running", (0, None, 0, 2)),
    "what waits": (["--waiting"], "2 waiting", "2 delayed, 2 dead, 1 running", (0, None, 2, 2)),
    "what is delayed": (["--delayed"], "2 delayed", "2 waiting, 2 dead, 1 running", (2, 0, 0, 2)),
    "dead letters": (["--dead"], "2 dead", "2 waiting, 2 delayed, 1 running", (2, 0, 2, 0)),
    "all": (
        ["--dead", "--waiting", "--delayed"],
        "2 waiting, 2 delayed, 2 dead",
        "1 running",
        (0, None, 0, 0),
    ),
}


@pytest.mark.parametrize("what", PURGES)
def test_a_lane_is_purged_of_what_is_said_and_no_other_is_touched(
    app: Celery, filled: Any, project: Project, what: str
) -> None:
    options, gone, stays, left = PURGES[what]
    told = project.run("purge", "slow", "--yes", *options)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == f"slow: deleted {gone}; left {stays}\n"
    waiting, oldest, *rest = kept(app, "slow")
    assert (waiting, oldest and 0, *rest[:2]) == left
    assert kept(app, "quick")[0] == 1
    assert filled.hlen("lanes:slow:leased") == 1
    counted = {"what waits": 1, "what is delayed": 1, "dead letters": 2}
    assert filled.hlen("lanes:slow:deliveries") == counted.get(what, 0)


def test_a_purge_asks_first_and_without_an_answer_does_nothing(
    filled: Any, project: Project
) -> None:
    command = [sys.executable, "-m", PACKAGE, "purge", "slow"]
    options: Any = {"cwd": project.folder, "env": project.environment, "text": True}
    for answer in ("n\n", ""):
        told = subprocess.run(command, input=answer, capture_output=True, check=False, **options)
        assert told.returncode == 1
        assert told.stdout.startswith("slow: delete 2 waiting, 2 delayed for good? [y/N]: ")
    assert filled.zcard("lanes:slow:delayed") == 2
    told = subprocess.run(command, input="y\n", capture_output=True, check=True, **options)
    assert told.stdout.endswith("slow: deleted 2 waiting, 2 delayed; left 2 dead, 1 running\n")


@pytest.mark.parametrize("how", ["command", "remote control"])
def test_celerys_purge_empties_lanes_of_what_is_delayed_too(
    app: Celery, filled: Any, project: Project, how: str
) -> None:
    """Seen before: it left what was delayed, and the counts of deliveries."""
    code = f"from {PACKAGE}.celery import app; print('Purged', app.control.purge(), 'messages')"
    ways = {
        "command": ["-m", "celery", "-A", PACKAGE, "purge", "-f"],
        "remote control": ["-c", code],
    }
    told = subprocess.run(
        [sys.executable, *ways[how]],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Purged 5 messages" in told.stdout
    assert "slow: deleted 2 waiting and 2 delayed; 2 dead letters stay, see `purge --dead`" in (
        told.stderr
    )
    assert "quick: deleted 1 waiting and 0 delayed; 0 dead letters stay" in told.stderr
    assert kept(app, "slow") == (0, None, 0, 2, False)
    assert filled.hlen("lanes:slow:leased") == 1
    assert not filled.exists("lanes:slow:deliveries")


@pytest.fixture
def keyed(app: Celery, broker: Any) -> Store:
    """slow holds three waiting, one delayed, one running, one dead, of "é" and of "b" each."""
    store = status.store_of(broker.redis, app.lanes.get("slow"))
    for name in ("é", "b"):
        for value in ("dead", "running", "1", "2"):
            app.send_task("echo", (value,), lane="slow", key=name)
        app.send_task("echo", ("due",), lane="slow", key=name, countdown=0.01)
        app.send_task("echo", ("later",), lane="slow", key=name, countdown=3600)
    taken = store.run("exchange", EXCHANGE_KEYS, (4, 60, "owner", 0))[3::3]
    for id_ in taken[:2]:
        report = {"reason": "failed", "error": "no"}
        assert store.set_aside(id_.decode(), report, cap=9, size=1 << 20, age=60.0) == 0
    wait_until(lambda: store.counts().delayed == 2, "what is due soon to be due")
    app.send_task("echo", ("plain",), lane="slow")
    return store


def held(store: Store, key: str) -> tuple[int, int, int, int]:
    """Waiting, delayed, leased, dead, of a key."""
    counts = store.counts_of(key)
    numbers = store.dead_numbers()
    dead = [message for _, message, _ in store.dead_letters(numbers)]
    count = sum(json.loads(each)["headers"]["lane_key"] == quoted(key) for each in dead)
    return counts.waiting, counts.delayed, counts.leased, count


PURGES_OF_A_KEY = {
    "what waits and is delayed": ([], "3 waiting, 1 delayed", "1 dead, 1 running", (0, 0, 1, 1)),
    "what waits": (["--waiting"], "3 waiting", "1 delayed, 1 dead, 1 running", (0, 1, 1, 1)),
    "what is delayed": (["--delayed"], "1 delayed", "3 waiting, 1 dead, 1 running", (3, 0, 1, 1)),
    "dead letters": (["--dead"], "1 dead", "3 waiting, 1 delayed, 1 running", (3, 1, 1, 0)),
}


@pytest.mark.parametrize("what", PURGES_OF_A_KEY)
def test_a_lane_is_purged_of_one_key_and_no_other_is_touched(
    keyed: Store, project: Project, what: str
) -> None:
    options, gone, stays, left = PURGES_OF_A_KEY[what]
    told = project.run("purge", "slow", "--key", "é", "--yes", *options)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == f"slow: deleted {gone} of the key é; left {stays}\n"
    assert held(keyed, "é") == left
    assert held(keyed, "b") == (3, 1, 1, 1)
    assert keyed.counts().waiting == left[0] + 4


def test_a_purge_of_a_key_asks_first(keyed: Store, project: Project) -> None:
    command = [sys.executable, "-m", PACKAGE, "purge", "slow", "--key", "é"]
    options: Any = {"cwd": project.folder, "env": project.environment, "text": True}
    told = subprocess.run(command, input="n\n", capture_output=True, check=False, **options)
    assert told.returncode == 1
    asked = "slow: delete 3 waiting, 1 delayed of the key é for good? [y/N]: "
    assert told.stdout.startswith(asked)
    assert held(keyed, "é") == (3, 1, 1, 1)


@pytest.mark.parametrize("command", ["purge slow", "revoke slow", "dead list", "dead purge"])
def test_what_can_be_no_key_is_one_line_and_exit_2(project: Project, command: str) -> None:
    """An empty one would be none, and a purge would take all."""
    told = project.run(*command.split(), "--key", "")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == (
        "--key='' cannot be used: expected 1 to 200 characters, and these are 0; "
        "a hash of it is short enough\n"
    )


@pytest.mark.parametrize("foreign", ["no JSON", "[]", '{"headers": null}', '{"headers": {}}'])
def test_a_message_of_somebody_else_is_counted_without_an_age(
    app: Celery, broker: Any, foreign: str
) -> None:
    broker.redis.lpush("slow_tasks", foreign)
    assert kept(app, "slow") == (1, None, 0, 0, False)


def test_a_broker_that_accepts_and_says_nothing_is_down(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen one, or TLS asked of a port without it. Seen before: no end to it."""
    monkeypatch.setattr(Server.__init__, "__kwdefaults__", {"connect": 1.0, "reply": 0.1})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for scheme in ("redis", "rediss"):
            url = f"{scheme}://127.0.0.1:{port}/0"
            monkeypatch.setenv("BROKER_URL", url)
            with pytest.raises(BrokerError, match=r"^BROKER_URL") as caught:
                status.read(bound(LANES))
            assert url in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        # Seen before: lanes+socket://, which is none of the user's words.
        ("redis+socket:///nowhere.sock", "redis+socket:///nowhere.sock"),
        # Seen before: 1,500 characters of a client's repr.
        ("sentinel://127.0.0.1:1/0", "sentinel://127.0.0.1:1/0"),
    ],
)
def test_a_broker_of_another_kind_that_is_down_is_one_line_too(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, url: str, shown: str
) -> None:
    monkeypatch.setenv("BROKER_URL", url)
    with pytest.raises(BrokerError) as caught:
        status.read(bound(LANES))
    told = str(caught.value)
    assert told.startswith("BROKER_URL")
    assert shown in told
    assert len(told.splitlines()) == 1
    assert len(told) < 300


def test_a_broker_that_is_down_is_one_line_and_exit_1(tmp_path: Path) -> None:
    port = free_port()
    told = Project(tmp_path, LANES, f"redis://:secret@127.0.0.1:{port}/0").run("status")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("BROKER_URL")
    assert f"127.0.0.1:{port}/0" in told.stderr
    assert len(told.stderr.splitlines()) == 1
    assert "secret" not in told.stderr


def test_a_broker_that_refuses_is_one_line_and_exit_1(project: Project, broker: Any) -> None:
    """Seen before: a traceback."""
    broker.redis.config_set("maxmemory", 1)
    assert project.run("status").returncode == 0  # which writes nothing
    result = project.run("pause", "quick")
    assert result.returncode == 1
    assert re.fullmatch(
        rf"BROKER_URL.*{broker.url}.*command not allowed when used memory > 'maxmemory'.*\n",
        result.stderr,
    )
