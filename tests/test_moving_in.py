"""A stock Celery project moves in, as docs/moving-in.md says, while its senders go on sending."""

import base64
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from processes import Process, broker, eventually, fleet
from support import run, succeed

# The first test waits for the whole move, some twenty conditions one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CELERY = """\
import os

from celery import Celery

app = Celery("proj", broker=os.environ["BROKER_URL"], backend=os.environ["RESULT_URL"])
app.conf.update(imports=["proj.tasks"], task_acks_late=True)
"""
TASKS = """\
from celery import shared_task

from .celery import app


@app.task
def send_mail(number): ...


@shared_task(bind=True)
def build_report(self, number): ...
"""
# What the page leaves out; the ledger outlives every worker.
BODIES = {
    "def send_mail(number): ...": """\
def send_mail(number):
    note(number)
    if number % 20 == 8:
        raise ValueError("for good")
    return number
""",
    "def build_report(self, number): ...": """\
def build_report(self, number):
    if number % 20 == 11 and not self.request.retries:
        raise self.retry(countdown=1)
    note(number)
    return number
""",
}
NOTE = """\
def note(number):
    import os, time
    from celery import current_task
    time.sleep({seconds})
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d %s\\n" % (number, current_task.request.hostname.encode()))
    os.close(file)


"""
# A sender that goes on until it is told to stop, and says what it has certainly sent.
SENDER = """\
import signal
import sys
import time
from importlib import import_module

tasks = import_module(sys.argv[1])
first, last = int(sys.argv[2]), []
signal.signal(signal.SIGTERM, lambda *_: last.append(True))
while not last:
    task = tasks.build_report if first % 2 else tasks.send_mail
    options = {3: {"countdown": 8}, 12: {"priority": 6}, 13: {"priority": 9}}.get(first % 20, {})
    print(first, task.apply_async((first,), **options).id, flush=True)
    first += 1
    time.sleep(0.04)
"""
ACROSS = """\
from celery import chain, chord, group

from acme_tasks.tasks import build_report, send_mail

print(
    chain(send_mail.si(-1), build_report.si(-2))().get(timeout=60),
    group(send_mail.s(-4), build_report.s(-5))().get(timeout=60),
    chord([send_mail.s(-6), build_report.s(-8)], send_mail.si(-10))().get(timeout=60),
)
"""
THEIR_BEAT = """\
app.conf.beat_schedule = {
    "mail": {
        "task": "proj.tasks.send_mail",
        "schedule": 1.0,
        "args": (-31,),
        "options": {"queue": "quick_tasks"},
    }
}
"""
FAILS = 8  # of each twenty


class Page:
    """The code of docs/moving-in.md."""

    def __init__(self, project: Path) -> None:
        """Of a baked project."""
        text = (project / "docs/moving-in.md").read_text()
        self.blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        self.used: set[str] = set()

    def block(self, language: str, begins: str) -> str:
        """The one block that begins so."""
        (found,) = (
            code for kind, code in self.blocks if kind == language and code.startswith(begins)
        )
        self.used.add(found)
        return str(found)


def number_of(message: dict[str, Any]) -> int:
    """The argument of a task, from its message."""
    return int(json.loads(base64.b64decode(message["body"]))[0][0])


@dataclass
class Move:
    """An old project, a baked one, and what was seen on the way."""

    page: Page
    here: Path
    there: Path
    env: dict[str, str]
    redis: Any
    start: Callable[..., Process]
    seen: dict[str, Any] = field(default_factory=dict)
    senders: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)

    def sh(self, folder: Path, command: str) -> str:
        """What a command of the page prints."""
        return succeed("sh", "-ec", command, cwd=folder, env=self.env)

    def save(self, folder: Path, name: str, begins: str) -> None:
        """A script of the page, as the file that it is to be."""
        (folder / name).write_text(self.page.block("python", begins))

    def append(self, path: Path, code: str) -> None:
        """Add code to a module."""
        path.write_text(f"{path.read_text()}\n{code}")

    def left(self) -> tuple[int, dict[str, int]]:
        """What `python left.py` says, and its exit code."""
        done = run("python", "left.py", cwd=self.there, env=self.env)
        return done.returncode, {
            name: int(count) for name, count in map(str.split, done.stdout.splitlines())
        }

    def held(self) -> set[int]:
        """What stock workers hold until it is due."""
        messages = [json.loads(value)[0] for value in self.redis.hvals("unacked")]
        return {number_of(message) for message in messages if message["headers"]["eta"]}

    def status(self) -> dict[str, Any]:
        """What `status` says, by lane."""
        lanes = json.loads(self.sh(self.here, "acme-tasks status --json"))
        return {lane["lane"]: lane for lane in lanes}

    def stock(self, name: str, *options: str) -> Process:
        """A worker of the old project, ready."""
        command = ("celery", "-A", "proj", "worker", "-lINFO", "-c2", f"-n{name}@%h", *options)
        worker = self.start(name, *command, folder=self.there)
        worker.await_log(" ready.")
        return worker

    def lanes(self, *names: str) -> list[Process]:
        """A worker of each, as the page starts them."""
        workers = [
            self.start(f"lane-{name}", "acme-tasks", "worker", name, folder=self.here)
            for name in names
        ]
        for worker in workers:
            worker.await_log(" ready.")
        return workers

    def sender(self, module: str, first: int) -> Process:
        """Start one, whose tasks are numbered from `first`."""
        folder = self.there if module.startswith("proj") else self.here
        process = self.start(
            f"sender-{first}", "python", "-c", SENDER, module, first, folder=folder
        )
        self.senders.append(process)
        eventually(lambda: process.output.read_text().count("\n") > 20, "a sender to send")
        return process

    @property
    def sent(self) -> dict[int, str]:
        """The id of each task by its number."""
        lines = [line for each in self.senders for line in each.output.read_text().splitlines()]
        return {int(number): id_ for number, id_ in map(str.split, lines)}

    @property
    def ran(self) -> dict[int, set[str]]:
        """The workers that ran each number."""
        ledger = Path(self.env["LEDGER"])
        ran: dict[int, set[str]] = {}
        for line in ledger.read_text().splitlines() if ledger.exists() else ():
            number, host = line.split()
            ran.setdefault(int(number), set()).add(host.partition("@")[0])
        return ran

    @property
    def ran_on(self) -> set[str]:
        """All workers that ran any."""
        return set().union(*self.ran.values())


@pytest.fixture(scope="module")
def move(
    baked: Callable[[str], Path], env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Move]:
    """The move, from the first look to the removal of the old queue's lane."""
    folder = tmp_path_factory.mktemp("moving")
    here = shutil.copytree(baked("default"), folder / "acme-tasks")
    (here / ".venv").symlink_to(sys.prefix)
    there = folder / "there"
    (there / "proj").mkdir(parents=True)
    (there / "proj/__init__.py").touch()
    (there / "proj/celery.py").write_text(CELERY)
    # Old workers that have a free slot are served first, so these have none.
    (there / "proj/tasks.py").write_text(with_bodies(TASKS, seconds=0.1))
    command = folder / "bin/acme-tasks"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m acme_tasks "$@"\n')
    command.chmod(0o755)
    with broker() as (url, redis):
        own = env | {
            "PATH": f"{command.parent}{os.pathsep}{env['PATH']}",
            "PYTHONPATH": f"{here / 'src'}{os.pathsep}{there}",
            "PYTHONUNBUFFERED": "1",
            "BROKER_URL": url,
            "RESULT_URL": url.replace("/0", "/1"),
            "LEDGER": str(folder / "ledger"),
        }
        with fleet(folder, own) as start:
            move = Move(Page(here), here, there, own, redis, start)
            move_in(move)
            yield move


def with_bodies(tasks: str, seconds: float = 0.0) -> str:
    """The tasks, each of which takes so long; without the page's types."""
    tasks = re.sub(r": (int|Task)\b| -> None", "", tasks)
    for line, body in BODIES.items():
        assert tasks.count(line) == 1
        tasks = tasks.replace(line, body)
    imports, found, rest = tasks.partition("@app.task")
    return f"{imports}{NOTE.format(seconds=seconds)}{found}{rest}"


def move_in(move: Move) -> None:
    """Step by step; what is to be asserted later goes to `seen`."""
    move.save(move.there, "left.py", '"""What waits in the old')
    stock = move.stock("stock")
    sender = move.sender("proj.tasks", 0)
    bring_tasks(move)
    lanes_toml = move.here / "src/acme_tasks/lanes.toml"
    before = lanes_toml.read_text()
    sharing = share_the_queue(move, lanes_toml)
    move.seen["held"] = move.held()
    stock.end()
    move.seen["after the stop"] = move.left()
    switch_senders(move, sender)
    eventually(lambda: set(move.sent) <= set(move.ran), "all to have run")
    eventually(lambda: at_work(move) == 0, "all to have ended")
    left = move.sh(move.there, move.page.block("sh", "python left.py"))
    move.seen["in the end"] = (left, move.status())
    move.seen["dead"] = json.loads(move.sh(move.here, "acme-tasks dead list --json"))
    sharing.end()
    lanes_toml.write_text(before)
    move.sh(move.here, "acme-tasks units")


def bring_tasks(move: Move) -> None:
    page, here = move.page, move.here
    tasks = here / "src/acme_tasks/tasks.py"
    brought = with_bodies(page.block("python", "from .celery import app"))
    for folder in (here, move.there):
        move.save(folder, "names.py", '"""The names of')
    move.sh(move.there, page.block("sh", "python names.py"))
    compare = page.block("sh", ".venv/bin/python names.py")
    for key, name in (("a name forgotten", ""), ("names", 'name="proj.tasks.send_mail", ')):
        tasks.write_text(brought.replace('name="proj.tasks.send_mail", ', name))
        move.seen[key] = run("sh", "-c", compare, cwd=here, env=move.env)


def share_the_queue(move: Move, lanes_toml: Path) -> Process:
    table, comment, routes = lanes_toml.read_text().partition("# By task name")
    lane = move.page.block("toml", "[lanes.old]")
    lanes_toml.write_text(f"{table}{lane}\n{comment}{routes}")
    move.seen["lanes"] = move.sh(move.here, move.page.block("sh", "acme-tasks units"))
    move.seen["unit"] = (move.here / "deploy/systemd/acme-tasks-old@.service").exists()
    *move.workers, sharing = move.lanes("slow", "quick", "old")
    move.seen["status"] = eventually(lambda: all_answer(move), "all three workers of lanes")
    before = max(move.sent)

    def both_work() -> bool:
        ran = move.ran
        return {"stock", "old-1"} <= set().union(*(ran[each] for each in ran if each > before))

    eventually(both_work, "old and new workers to share the queue")
    eventually(move.held, "the old worker to hold some that are not due")
    return sharing


def all_answer(move: Move) -> dict[str, Any] | None:
    """The status, once it shows each worker."""
    status = move.status()
    return status if sum(lane["workers"] for lane in status.values()) >= 3 else None


def switch_senders(move: Move, sender: Process) -> None:
    page, here, there = move.page, move.here, move.there
    move.append(there / "proj/celery.py", page.block("python", "app.conf.task_routes"))
    switched = [move.sender("proj.tasks", 20_000), move.sender("acme_tasks.tasks", 40_000)]
    sender.end()
    once = page.block("python", "from acme_tasks.tasks import build_report")
    once = once.replace("(1)", "(-21)").replace("(2,)", "(-22,)").replace("=60", "=3600")
    move.sh(here, f"python -c '{once}'")
    move.append(there / "proj/celery.py", THEIR_BEAT)
    ours = page.block("python", "app.conf.beat_schedule")
    move.append(
        here / "src/acme_tasks/celery.py", ours.replace("30.0", "1.0").replace("(1,)", "(-34,)")
    )
    beat = move.start("beat-there", "celery", "-A", "proj", "beat", folder=there)
    for worker in move.workers:
        worker.end()
    move.workers = move.lanes("slow", "quick")
    move.seen["across"] = move.sh(here, f"python -c '{ACROSS}'")
    eventually(lambda: {-21, -31, -34} <= move.ran.keys(), "tasks by the clock")
    move.sh(here, "acme-tasks schedule pause reports")
    for process in (beat, *switched):
        process.end()


def at_work(move: Move) -> int:
    """Tasks that run, wait, or are held: a failure is told before its dead letter is there."""
    held = sum(move.redis.hlen(f"lanes:{lane}:leased") for lane in ("slow", "quick", "old"))
    return int(held + sum(each["running"] + each["waiting"] for each in move.status().values()))


def test_names_that_were_not_brought_are_told(move: Move) -> None:
    assert (move.seen["names"].stdout, move.seen["names"].stderr) == ("", "")
    assert move.seen["a name forgotten"].stdout == "proj.tasks.send_mail\n"


def test_old_and_new_workers_share_the_queue(move: Move) -> None:
    assert re.search(r"^ old +celery ", move.seen["lanes"], re.MULTILINE)
    assert {lane: state["workers"] for lane, state in move.seen["status"].items()} == {
        "slow": 1,
        "quick": 1,
        "old": 1,  # beside the stock one, which keeps its own books
    }
    assert move.ran_on == {"stock", "old-1", "slow-1", "quick-1"}


def test_an_old_worker_that_stops_puts_back_what_it_holds(move: Move) -> None:
    assert move.seen["after the stop"][1]["unacked"] == 0
    assert any("old-1" in move.ran[number] for number in move.seen["held"])


def test_every_task_ran(move: Move) -> None:
    """Sent before, during and after; with priorities, countdowns and retries."""
    sent, ran = move.sent, move.ran
    doubled = sum(len(hosts) > 1 for hosts in ran.values())
    print(f"{len(sent)} sent, {len(sent.keys() - ran.keys())} lost, {doubled} run by two workers")
    assert len(sent) > 300
    assert sorted(sent.keys() - ran.keys()) == []
    priorities = {number for number in sent if number % 20 in (12, 13)}
    assert {host for number in priorities for host in ran[number]} >= {"old-1", "slow-1", "quick-1"}


def test_what_failed_for_good_in_a_lane_is_a_dead_letter(move: Move) -> None:
    failed = {
        number
        for number, hosts in move.ran.items()
        if number % 20 == FAILS and number >= 0 and hosts != {"stock"}
    }
    dead = move.seen["dead"]
    assert {letter["reason"] for letter in dead} == {"failed"}
    assert sorted(number_of(json.loads(letter["message"])) for letter in dead) == sorted(failed)


def test_chains_groups_and_chords_run_across_lanes(move: Move) -> None:
    assert move.seen["across"] == "-2 [-4, -5] -10\n"


def test_results_of_before_and_after_can_be_asked_for_on_both_sides(move: Move) -> None:
    good = [number for number in move.sent if number % 20 == 0]
    ids = {number: move.sent[number] for number in (good[0], good[-1])}
    for module in ("proj.celery", "acme_tasks.celery"):
        ask = (
            f"from {module} import app; "
            f"print(*(app.AsyncResult(id_).get() for id_ in {[*ids.values()]}))"
        )
        assert move.sh(move.here, f'python -c "{ask}"').split() == [str(number) for number in ids]


def test_nothing_is_left_in_the_end(move: Move) -> None:
    left, status = move.seen["in the end"]
    assert left == "unacked 0\ncelery 0\n"
    assert [status["old"][key] for key in ("waiting", "delayed", "running")] == [0, 0, 0]
    assert move.seen["unit"]
    assert not (move.here / "deploy/systemd/acme-tasks-old@.service").exists()


def test_there_is_a_way_back_and_what_a_killed_worker_held_is_put_back(move: Move) -> None:
    """Comes last: it stops the lanes."""
    delay = "from acme_tasks.tasks import send_mail; [send_mail.apply_async(({},), countdown={})]"
    # The lanes' workers are to have ended when the last is due.
    for number, countdown in ((-42, 3600), (-41, 15)):
        move.sh(move.here, f"python -c '{delay.format(number, countdown)}'")
    for worker in move.workers:
        worker.end()
    move.save(move.here, "back.py", '"""Put what waits for its time')
    said = move.sh(move.here, move.page.block("sh", "acme-tasks dead retry"))
    assert re.findall(r"^\w+ holds \d+$", said, re.MULTILINE) == ["slow holds 0", "quick holds 0"]
    failed = {number for number in move.ran if number % 20 == FAILS}
    command = move.page.block("sh", "celery -A proj worker")
    back = move.stock("back", *command.split()[4:])
    eventually(lambda: -41 in move.ran, "what was delayed in a lane to run on the old worker")
    assert move.ran[-41] == {"back"}
    assert {number for number in failed if "back" in move.ran[number]}
    # The one of the page, and the one above.
    eventually(lambda: move.left()[1] == {"unacked": 2, "celery": 0}, "the worker to hold the rest")
    os.killpg(back.process.pid, signal.SIGKILL)
    back.process.wait()
    assert move.left() == (1, {"unacked": 2, "celery": 0})
    move.save(move.there, "restore.py", '"""Put back what killed')
    move.sh(move.there, "python restore.py")
    assert move.left() == (0, {"unacked": 0, "celery": 0})
    assert move.redis.llen("quick_tasks") + move.redis.llen("slow_tasks") == 2


def test_all_code_of_the_page_was_run(move: Move) -> None:
    """Comes last, too."""
    assert [code for _, code in move.page.blocks if code not in move.page.used] == []
