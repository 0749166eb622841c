"""The rights in docs/access.md are enough for each kind of process, and none can be left out.

The lines are read from the page and given to a real server's users. Real processes do all that
they do with them, by way of relays, which tell whose connection is whose; what the server carries
out is recorded, scripts' own commands included. Then each right is taken away on its own, and the
server is asked (ACL DRYRUN) whether it would still carry out what was recorded.
"""

import re
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from harness import (
    PATIENCE,
    SCHEDULER,
    Process,
    Project,
    free_port,
    own_scheduler,
    processes,
    wait_until,
)
from redis import Redis
from secured import REDIS, Wire, relay, running
from support import Server

from acme_tasks.lanes import worker
from acme_tasks.lanes.timeouts import HEALTH

pytestmark = pytest.mark.ours_only("about the rights that ours needs")

PAGE = Path(worker.__file__).parents[3] / "docs" / "access.md"
LINES = dict(
    re.findall(r"^ACL SETUSER (\w+) (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
)
Commands = dict[str, set[tuple[bytes, ...]]]  # by role
Run = Callable[..., str]  # a program in a role's project, to its end
ROLES = ("sender", "sender_of_keys", "waiter", "worker", "operator", "metrics", "doctor")
#: What MONITOR keeps to itself.
UNSEEN = {(b"CONFIG", b"GET", b"save"), (b"ACL", b"DRYRUN", b"doctor", b"RPOP", b"work_tasks")}
PASSWORD = "Rm4Kx9Tz"  # noqa: S105 - for users that live for a second

LANES = """
default_lane = "work"
[lanes.work]
concurrency = 2
lease = "1s"
max_retries = 1
max_deliveries = 2
"""
LIMIT = 'rate_per_key = "1000/s"'
SCHEDULE = """
[schedule.note]
task = "light.note"
every = "1s"
args = ["FILE"]
"""
SENDING = f"""
import sys
from {worker.PACKAGE}.tasks import fail, light_note
note = sys.argv[1]
light_note.delay(note)
light_note.send_many([(note,)] * 3)
light_note.apply_async((note,), countdown=0.5)
light_note.send_many([(note,)] * 3, countdown=0.5)
fail.delay(note)
light_note.apply_async((note,), expires="2001-01-01T00:00:00")
"""
KEYED = f"""
import sys
from {worker.PACKAGE}.tasks import fail, light_note
note = sys.argv[1]
light_note.apply_async((note,), key="k")
light_note.send_many([(note,)] * 20, key="k")
light_note.apply_async((note,), key="k", countdown=0.5)
light_note.send_many([(note,)] * 3, key="k", countdown=0.5)
light_note.apply_async((note,), unique="done")
light_note.apply_async((note,), unique="for a time", unique_for="1m")
for _ in range(2):
    light_note.apply_async((note,), unique="latest", replace=True, countdown=0.5)
fail.apply_async((note,), key="fails", unique="fails")
"""
#: Sent by whom an older lanes.toml sets no limit, and then by whom one of one task does.
BEHIND_ONE = f"""
import sys
from {worker.PACKAGE}.tasks import light_note
light_note.send_many([(sys.argv[1],)] * 2, key="held")
"""
HOLDING = f"""
import sys
from {worker.PACKAGE}.tasks import hold_until
go, begun, *key = sys.argv[1:]
print(hold_until.apply_async((go, begun), **({{"key": key[0]}} if key else {{}})).id)
"""
WAITING = f"""
import sys
from celery import chain, chord, group
from {worker.PACKAGE}.tasks import echo, lists
echo.apply_async(("a",), countdown=0.2).get(timeout=60)
sent = echo.delay("a")
sent.get(timeout=60)
sent.forget()
group(echo.s("a"), echo.s("b")).delay().get(timeout=60)
chain(echo.s("a"), echo.s()).delay().get(timeout=60)
assert chord([echo.s("a"), echo.s("b")], lists.s()).delay().get(timeout=60) == ["a", "b"]
"""
# While nothing comes for less than the second that kombu has Redis wait, it takes its lock.
BRIEFLY = """
from acme_tasks.celery import app
app.control.inspect(timeout=0.3).active()
"""
COMMANDS = f"""
import sys
from {worker.PACKAGE}.lanes.cli import _main
from {worker.PACKAGE}.lanes.deploy import Project
project = Project(slug="tests-own", package="{worker.PACKAGE}", process_managers=("systemd",))
for line in sys.argv[1:]:
    _main(line.split(), obj=project, standalone_mode=False)
"""
REVOKING = f"""
from {worker.PACKAGE}.celery import app
app.control.revoke("some-id")
app.control.revoke_by_stamped_headers({{"some": ["stamp"]}})
"""
LISTS = """

@app.task(name="lists")
def lists(values: list[str]) -> list[str]:
    return values
"""


def scrape(port: int) -> None:
    """Ask what tells Prometheus, as soon as it answers."""

    def told() -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return b"lanes_broker_up 1.0" in answer.read()
        return False

    wait_until(told, "Prometheus to be told")


class Recorded:
    """What a server carried out, by role."""

    def __init__(self, server: Server, wires: dict[str, Wire]) -> None:
        self.server, self.wires = server, wires
        self._monitor = socket.create_connection(("127.0.0.1", server.port))
        self._monitor.sendall(b"MONITOR\r\n")
        self.lines: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with self._monitor.makefile("rb") as lines:
            for line in lines:
                self.lines.append(line)

    def saw(self, *command: bytes) -> bool:
        """Whether this command was carried out so far."""
        return any(b" ".join(b'"%s"' % each for each in command) in line for line in self.lines)

    def commands(self) -> Commands:
        """The commands, each once."""
        self._monitor.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._monitor.close()
        ports: dict[int, list[tuple[float, str]]] = defaultdict(list)
        for role_, wire in self.wires.items():
            for since, port in wire.ports:
                ports[port].append((since, role_))
        found: Commands = {role: set() for role in ROLES}
        role: str | None = None
        for line in self.lines:
            parts = re.match(rb"\+([\d.]+) \[\d+ (?:lua|[\d.]+:(\d+))\] (.*)", line)
            if not parts:
                continue
            if parts[2]:  # else a script's: whose it is comes before
                had = [each for each in ports[int(parts[2])] if each[0] <= float(parts[1])]
                role = max(had)[1] if had else None
            if role:
                found[role].add(_arguments(parts[3]))
        found["doctor"] |= UNSEEN
        return found


def _arguments(line: bytes) -> tuple[bytes, ...]:
    quoted = re.findall(rb'"((?:[^"\\]|\\.)*)"', line)
    return tuple(each.decode("unicode_escape").encode("latin-1")[:200] for each in quoted)


@pytest.fixture(scope="module", params=["Redis", "Valkey"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    if request.param == "Redis" and not REDIS:
        pytest.skip("no redis-server is installed")
    binary = REDIS if request.param == "Redis" else None
    with running(tmp_path_factory.mktemp("access") / "server", binary=binary) as server:
        yield server


def set_user(redis: Redis, name: str, rules: str) -> None:
    redis.execute_command("ACL", "SETUSER", name, *rules.replace("PASSWORD", PASSWORD).split())


@pytest.fixture(scope="module")
def recorded(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """What each role had carried out, when it had done all that it does."""
    folder = tmp_path_factory.mktemp("roles")
    assert set(LINES) == set(ROLES)
    with ExitStack() as stack:
        wires = {role: stack.enter_context(relay(server.port)) for role in ROLES}
        projects: dict[str, Project] = {}
        for role, wire in wires.items():
            set_user(server.redis, role, LINES[role])
            (folder / role).mkdir()
            url = f"redis://{role}:{PASSWORD}@127.0.0.1:{wire.port}/0"
            schedule = SCHEDULE.replace("FILE", str(folder / "kept"))
            lanes = LANES + schedule
            if role == "operator":  # whose file is newer, or older, than the workers'
                lanes = lanes.replace("[lanes.work]", f"[lanes.work]\n{LIMIT}")
            projects[role] = Project(folder / role, lanes, url)
            with (folder / role / worker.PACKAGE / "tasks.py").open("a") as tasks:
                tasks.write(LISTS)
            with (folder / role / worker.PACKAGE / "celery.py").open("a") as app:
                often = {"task": "light.note", "schedule": 0.5, "args": [str(folder / "beaten")]}
                app.write(own_scheduler({"often": often}))
        recorder = Recorded(server, wires)
        try:
            _do_all(recorder, projects, folder, stack)
        finally:
            commands = recorder.commands()
    return commands


def _do_all(  # noqa: PLR0915 - one story, in its order
    recorder: Recorded, projects: dict[str, Project], folder: Path, stack: ExitStack
) -> None:
    """Whatever each role does, until it is done; `stack` ends what is left of it."""
    redis, at_work = recorder.server.redis, projects["worker"]

    def start(role: str, *arguments: str) -> Process:
        project, command = projects[role], [sys.executable, *arguments]
        name = f"{role}{arguments[0]}"
        process = Process(name, command, project.folder, project.environment)
        stack.callback(process.end)
        return process

    def run(role: str, code: str, *arguments: str) -> str:
        process = start(role, "-c", code, *arguments)
        assert process.process.wait(PATIENCE) == 0, process.log
        return process.log

    def command_of(instance: int) -> list[str]:
        return [sys.executable, "-m", worker.PACKAGE, "worker", "work", f"--instance={instance}"]

    names = {f"worker-{instance}": command_of(instance) for instance in (1, 2)}
    with processes(names, at_work.folder, at_work.environment) as workers:
        beat = start("sender", "-m", "celery", "-A", worker.PACKAGE, "beat", *SCHEDULER)
        waiter = start("waiter", "-c", WAITING)
        port = free_port()
        exporter = start("metrics", "-m", worker.PACKAGE, "metrics", f"--port={port}")
        run("sender", SENDING, str(folder / "note"))
        assert waiter.process.wait(PATIENCE) == 0, waiter.log
        wait_until((folder / "beaten").exists, "a task of beat's to run")
        assert beat.end() == 0, beat.log
        wait_until((folder / "kept").exists, "a task of the schedule to run")
        steer = ("schedule run note", "schedule", "schedule resume note", "schedule pause note")
        run("operator", COMMANDS, *steer)
        wait_until(lambda: redis.zcard("lanes:work:dead") == 2, "what fails, and what has expired")
        letters = [f"work/{number.decode()}" for number in redis.zrange("lanes:work:dead", 0, -1)]
        one, other = letters
        run("sender_of_keys", KEYED, str(folder / "note"))
        wait_until(lambda: redis.zcard("lanes:work:dead") == 3, "what has a key, and fails")
        holds, let = folder / "holds", folder / "let"
        run("sender_of_keys", HOLDING, str(let), str(holds), "held")
        wait_until(holds.exists, "one of a key to run")
        run("operator", COMMANDS, "status", "dead list", f"dead show {one}", "pause work")
        wait_until(lambda: recorder.saw(b"BRPOP", b"lanes:work:never"), "workers to see that")
        run("sender_of_keys", BEHIND_ONE, str(folder / "note"))
        # As if that key had been the last to have its turn: one that is new comes before it.
        redis.hset("lanes:work:keyed:state", "served", "held")
        run("operator", COMMANDS, "dead list --key fails", "dead retry --key fails")
        run("sender", SENDING, str(folder / "note"))
        run("sender_of_keys", KEYED, str(folder / "note"))
        _lower_a_limit(projects["sender_of_keys"], run, str(folder / "note"))
        let.touch()
        scrape(port)  # while something waits
        run("operator", REVOKING)
        of_key = ("status work --keys", "advise", "revoke work --key k --yes")
        run("operator", COMMANDS, *of_key, "purge work --key k --yes")
        run("operator", COMMANDS, "status", "purge work --yes")
        # Those without a key behind tokens, when they are fetched.
        run("sender_of_keys", KEYED, str(folder / "note"))
        run("sender", SENDING, str(folder / "note"))
        purge = f"dead purge {other} --yes"
        run("operator", COMMANDS, "resume work", f"dead retry {one}", purge)
        inspect = start("operator", "-m", "celery", "-A", worker.PACKAGE, "inspect", "active")
        assert inspect.process.wait(PATIENCE) == 0, inspect.log
        run("operator", BRIEFLY)
        wait_until(lambda: not redis.exists("lanes:work:keyed:state"), "no key to be in use")
        # A token that stands for nothing, as one leaves it who takes a message by hand.
        redis.hincrby("lanes:work:keyed:state", "added", 1)
        redis.lpush("work_tasks", '"keyed"')
        wait_until(lambda: not redis.exists("work_tasks"), "workers to take that away")
        redis.lpush("celery", "of somebody else")
        redis.script_flush()  # as after a restart: the operator's command has loaded the scripts
        run("doctor", COMMANDS, "doctor")
        # A worker that was killed: another takes its task back, and its successor its name.
        begun, go = folder / "begun", folder / "go"
        held = run("sender", HOLDING, str(go), str(begun)).strip()
        wait_until(begun.exists, "one to run it")
        killed = next(name for name, each in workers.items() if f"hold_until[{held}]" in each.log)
        workers[killed].kill()
        wait_until(lambda: len(begun.read_text().split()) == 2, "the other to run it")
        go.touch()
        successor = {"successor": command_of(int(killed[-1]))}
        with processes(successor, at_work.folder, at_work.environment):
            wait_until(lambda: len(redis.hgetall("lanes:work:workers")) == 2, "two workers")
    assert not redis.hgetall("lanes:work:workers")
    _scrape_anew(redis, port, exporter)


def _lower_a_limit(project: Project, run: Run, note: str) -> None:
    """What is known of a key's messages no longer holds for who sends the next."""
    text = project.lanes_file.read_text(encoding="utf-8")
    run("sender_of_keys", BEHIND_ONE, note)
    limit = "[lanes.work]\nmax_running_per_key = 1\n"
    project.lanes_file.write_text(text.replace("[lanes.work]\n", limit), encoding="utf-8")
    run("sender_of_keys", BEHIND_ONE, note)
    project.lanes_file.write_text(text, encoding="utf-8")


def _scrape_anew(redis: Redis, port: int, exporter: Process) -> None:
    """After a time in which nobody did, on a server that has forgotten its scripts."""
    _await_idle(redis, "metrics")
    redis.script_flush()
    scrape(port)
    assert exporter.end() == 0


def _await_idle(redis: Redis, user: str) -> None:
    """For so long that a user's process sees first whether its connection is still there."""

    def is_idle() -> bool:
        found = [int(each["idle"]) for each in redis.client_list() if each["user"] == user]
        return min(found, default=0) > HEALTH

    wait_until(is_idle, f"{user} to be idle")


def test_nothing_that_a_process_does_is_denied(server: Server, recorded: Commands) -> None:
    assert all(recorded.values())
    assert [(each["username"], each["object"]) for each in server.redis.acl_log()] == []


@pytest.mark.parametrize("role", ROLES)
def test_no_right_can_be_left_out(server: Server, recorded: Commands, role: str) -> None:
    rules = LINES[role].split()
    assert not _denied(server.redis, recorded[role], rules)
    rights = [rule for rule in rules if rule[0] in "~&+"]
    needless = [
        right
        for right in rights
        if not _denied(server.redis, recorded[role], [rule for rule in rules if rule != right])
    ]
    assert len(rights) > 4
    assert not needless


def test_a_service_that_hides_what_it_is_is_taken_for_good(
    server: Server, recorded: Commands, tmp_path: Path
) -> None:
    """Without INFO, as managed ones may have it, version and kind are not looked at."""
    del recorded  # its roles are done
    set_user(server.redis, "trial", LINES["operator"].replace("+info ", ""))
    project = Project(tmp_path, LANES, f"redis://trial:{PASSWORD}@127.0.0.1:{server.port}/0")
    status = project.run("status", "--json")
    assert (status.returncode, status.stderr) == (0, "")


def _denied(redis: Redis, commands: set[tuple[bytes, ...]], rules: list[str]) -> list[bytes]:
    """Which of the commands a user with these rules may not run."""
    set_user(redis, "trial", " ".join(rules))
    with redis.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command("ACL", "DRYRUN", "trial", *command)
        answers = pipe.execute()
    pairs = zip(commands, answers, strict=True)
    return [command[0] for command, answer in pairs if answer not in (b"OK", True)]
