"""A schedule that three workers on two hosts keep, whatever befalls them; and beat's, beside it.

A minute of it; LANES_SCHEDULE_SECONDS=600 for ten.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
from processes import Process, eventually

from .cast import Cast, Here, Project, Server, ready
from .scenes import needs_redis
from .test_clocks import ELSEWHERE

SECONDS = float(os.environ.get("LANES_SCHEDULE_SECONDS", "60"))
SEED = int(os.environ.get("LANES_SCHEDULE_SEED", "12"))

pytestmark = [pytest.mark.slow, needs_redis, pytest.mark.timeout(SECONDS * 3 + 240)]

LANES = """
default_lane = "quick"

[lanes.quick]
concurrency = 2
lease = "5s"
[lanes.slow]
"""
ENTRY = """
[schedule.{name}]
task = "acme_tasks.tasks.hosts_tick"
{when}
missed = "{missed}"
"""
ENTRIES = {  # by name: each so many seconds, and `missed`
    "second_all": (1, "all"),
    "second_once": (1, "once"),
    "second_none": (1, "none"),
    "minute_all": (60, "all"),
    "minute_once": (60, "once"),
}


@dataclass(slots=True)
class Trouble:
    """What befalls workers and their Redis, one thing after the other."""

    server: Server
    workers: dict[str, Callable[[], Process]]
    running: dict[str, Process] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        """Start all workers."""
        for name, start in self.workers.items():
            self.running[name] = start()
        ready(*self.running.values())

    def cause(self, seconds: float, rng: random.Random) -> None:
        """For so many seconds."""
        until = time.monotonic() + seconds
        kinds = [self.kill, self.freeze, self.restart_redis, self.kill, self.restart_all]
        order: list[Callable[[random.Random], None]] = []
        while time.monotonic() < until:
            if not order:
                order = rng.sample(kinds, len(kinds))
            cause = order.pop()
            self.said[cause.__name__] += 1
            cause(rng)
            time.sleep(rng.uniform(1, 5))  # what they do between two of them

    def kill(self, rng: random.Random) -> None:
        """SIGKILL one, with its children, and start it anew."""
        name = rng.choice(list(self.running))
        os.killpg(self.running[name].process.pid, signal.SIGKILL)
        self.running[name].process.wait()
        self.running[name] = self.workers[name]()
        ready(self.running[name])

    def freeze(self, rng: random.Random) -> None:
        """SIGSTOP one for 20 s."""
        process = self.running[rng.choice(list(self.running))].process
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(20)
        os.killpg(process.pid, signal.SIGCONT)

    def restart_redis(self, rng: random.Random) -> None:
        """SIGKILL it, and start it some seconds later."""
        self.server.kill()
        time.sleep(rng.uniform(0, 8))
        self.server.start()

    def restart_all(self, rng: random.Random) -> None:
        """SIGKILL all workers; none is there for some seconds."""
        for each in self.running.values():
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()
        time.sleep(rng.uniform(0, 8))
        self.begin()


@dataclass(frozen=True, slots=True)
class Played:
    """What ran, and when it was due."""

    instants: dict[str, list[int]]  # by entry: seconds since 1970 of what ran, in their order
    first: Counter[str]  # ids of tasks, by how often they ran that were not delivered before
    began: int  # seconds since 1970, when all were at work; and when it ended
    ended: int
    missed: dict[str, int]  # what `schedule --json` says of each entry


@pytest.fixture(scope="module")
def played(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Three workers on two hosts whose clocks are an hour apart."""
    folder = tmp_path_factory.mktemp("schedule")
    lanes = folder / "lanes.toml"
    lanes.write_text(
        LANES
        + "".join(
            ENTRY.format(name=name, when=_when(every), missed=missed)
            for name, (every, missed) in ENTRIES.items()
        )
    )
    customize = folder / "elsewhere"
    customize.mkdir()
    (customize / "sitecustomize.py").write_text(ELSEWHERE)
    elsewhere = {"PYTHONPATH": f"{customize}:{project.source}", "SHIFT": "3600"}
    with Cast(folder / "scene", project) as cast:
        # On disk before the reply: a server that loses its last second is not what this is about.
        server = cast.server(Here("server"), "--appendfsync", "always")

        def worker(lane: str, instance: int, host: str, **env: str) -> Callable[[], Process]:
            return lambda: cast.worker(
                Here(host), server.url, lane=lane, instance=instance, LANES_FILE=str(lanes), **env
            )

        trouble = Trouble(
            server,
            {
                "quick-1": worker("quick", 1, "here"),
                "quick-2": worker("quick", 2, "there", **elsewhere),
                "slow-1": worker("slow", 1, "there", **elsewhere),
            },
        )
        trouble.begin()
        began = int(server.redis.time()[0]) + 1
        trouble.cause(SECONDS, random.Random(SEED))  # noqa: S311 - no secret
        eventually(lambda: _runs(cast.ledger, "second_all", server) >= 5, "it to be kept again")
        ended = int(server.redis.time()[0]) - 3
        eventually(lambda: not server.left("quick", "slow"), "all to have run")
        command = (sys.executable, "-m", "acme_tasks", "schedule", "--json")
        shown = cast.start(
            Here("operator"), "shown", *command, BROKER_URL=server.url, LANES_FILE=str(lanes)
        )
        assert shown.process.wait() == 0, shown.log
        listed = json.loads(shown.log[shown.log.index("[") :])
        lines = [line.split() for line in cast.ledger.read_text().splitlines()]
        instants: dict[str, set[int]] = {name: set() for name in ENTRIES}
        first: Counter[str] = Counter()
        for what, id_, *_ in lines:
            entry, _, due = id_.partition("@")
            instants[entry].add(int(datetime.fromisoformat(due).timestamp()))
            first[id_] += what == "first"
        print(f"{ended - began} s of trouble: {dict(trouble.said)}; {len(lines)} runs")
        yield Played(
            {name: sorted(found) for name, found in instants.items()},
            first,
            began,
            ended,
            {each["name"]: each["missed"] for each in listed},
        )


def _when(every: int) -> str:
    return 'cron = "* * * * *"' if every == 60 else f'every = "{every}s"'


def _runs(ledger: Path, name: str, server: Server) -> int:
    """Of the last ten seconds."""
    now = int(server.redis.time()[0])
    lines = [line.split()[1] for line in ledger.read_text().splitlines()]
    due = [line.partition("@")[2] for line in lines if line.startswith(name)]
    return sum(datetime.fromisoformat(each).timestamp() > now - 10 for each in due)


def due(played: Played, name: str) -> list[int]:
    every = ENTRIES[name][0]
    return [at for at in range(played.began, played.ended + 1) if at % every == 0]


@pytest.mark.parametrize("name", ["second_all", "minute_all"])
def test_with_missed_all_each_instant_has_its_message_whatever_happened(
    played: Played, name: str
) -> None:
    wanted = due(played, name)
    ran = set(played.instants[name])
    lost = [at for at in wanted if at not in ran]
    print(f"{name}: {len(wanted)} instants, {len(lost)} lost")
    assert not lost


def test_none_has_two(played: Played) -> None:
    """A message runs again when its worker was killed, and says that it was delivered before."""
    doubled = {id_: count for id_, count in played.first.items() if count > 1}
    print(f"{len(played.first)} messages, {len(doubled)} doubled")
    assert not doubled


@pytest.mark.parametrize("name", ["second_once", "second_none", "minute_once"])
def test_otherwise_what_is_missing_was_missed_in_an_outage_and_counted(
    played: Played, name: str
) -> None:
    wanted, ran = due(played, name), set(played.instants[name])
    missing = [at for at in wanted if at not in ran]
    print(f"{name}: {len(wanted)} instants, {len(missing)} missed, {played.missed[name]} counted")
    assert played.missed[name] >= len(missing)
    if name == "minute_once":
        assert not missing, "no outage was as long as a minute"


# The same with Celery's beat

STOCK = """
import os, time
from celery import Celery

app = Celery("stock", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_acks_late=True, broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 5},
    beat_schedule={"second": {"task": "tick", "schedule": 1.0}},
)

@app.task(name="tick", bind=True, ignore_result=True)
def tick(self):
    with open(os.environ["LEDGER"], "a") as file:
        file.write(f"tick {self.request.id} x 0 {time.monotonic()}\\\\n")
"""


@pytest.mark.parametrize("beats", [1, 2])
def test_beat_loses_what_was_due_while_it_was_away_and_two_send_twice(
    project: Project, tmp_path: Path, beats: int
) -> None:
    """The control. Seen: of 44 instants, 28 runs of one beat; 64 of two, and once 10."""
    (tmp_path / "stock.py").write_text(STOCK.replace("\\\\n", "\\n"))
    path = {"PYTHONPATH": str(tmp_path)}
    with Cast(tmp_path / "scene", project) as cast:
        server = cast.server(Here("server"), "--appendfsync", "always")

        def start(name: str, *command: str) -> Process:
            return cast.start(
                Here("here"),
                name,
                *(sys.executable, "-m", "celery", "-A", "stock", *command),
                BROKER_URL=server.url,
                **path,
            )

        worker = start("worker", "worker", "--concurrency", "2", "--loglevel", "INFO")
        ready(worker)
        names = [f"beat-{number}" for number in range(beats)]
        started = {
            name: start(name, "beat", "--max-interval", "1", "-s", str(tmp_path / name))
            for name in names
        }
        ran: Callable[[], int] = lambda: len(set(cast.ledger.read_text().split()[1::5]))  # noqa: E731
        eventually(lambda: cast.ledger.exists() and ran(), "the first run")
        began, before = time.monotonic(), ran()
        for away in (5, 3):
            time.sleep(5)
            server.kill()
            time.sleep(away)
            server.start()
            time.sleep(5)
            started[names[0]].process.kill()
            started[names[0]].process.wait()
            time.sleep(away)
            started[names[0]] = start(
                names[0], "beat", "--max-interval", "1", "-s", str(tmp_path / names[0])
            )
        time.sleep(8)
        took, sent = time.monotonic() - began, ran() - before
        print(f"{beats} beats: {took:.0f} instants, {sent} runs")
        assert abs(sent - took) > 5  # fewer runs than instants, or more
