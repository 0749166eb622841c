"""`workers` in a terminal of its own: a broker, every lane, and Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest
from harness import PATIENCE, Project, free_port, something_else, wait_until

from acme_tasks.lanes import broker, endpoint
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
concurrency = 1
[lanes.quick]
concurrency = 1
prefetch = 1
"""
# To the end of a word: pexpect lets a dot stand for the end of a line, and what was read at once
# may have the other lane in its next.
READY = (r"slow-1@\S+ ready", r"quick-1@\S+ ready")


def processes() -> dict[int, tuple[int, str]]:
    """All that run: parent and command line by process id."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=3) for line in listed.stdout.splitlines()]
    return {int(row[0]): (int(row[1]), row[3]) for row in rows if not row[2].startswith("Z")}


class Terminal:
    """`workers` as a person runs it: in the foreground of a pseudo-terminal."""

    def __init__(self, project: Project) -> None:
        self.text = ""
        self.known: dict[int, str] = {}  # every process of it that was ever seen
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", PACKAGE, "workers"],
            cwd=str(project.folder),
            env=project.environment,
            encoding="utf-8",
            dimensions=(50, 500),
            timeout=PATIENCE,
        )

    def read_until(self, *patterns: str) -> None:
        """Read on until each of `patterns` was seen, in any order."""
        missing = list(patterns)
        while missing:
            found = self.child.expect(missing)
            self.text += self.child.before + self.child.after
            del missing[found]

    def look(self) -> dict[int, str]:
        """Its processes at this moment, the first of them left out."""
        everything, mine = processes(), {self.child.pid}
        for pid in sorted(everything):  # parents, mostly, before their children
            if everything[pid][0] in mine:
                mine.add(pid)
        self.known |= {pid: everything[pid][1] for pid in mine - {self.child.pid}}
        return self.known

    def left(self) -> dict[int, str]:
        """What was seen of it and still runs."""
        now = processes()
        return {pid: args for pid, args in self.known.items() if now.get(pid, ("", ""))[1] == args}

    def ctrl_c(self, *, twice: bool = False) -> int | None:
        """As a terminal does it: SIGINT to every process of the foreground group.

        Returns:
            The exit code.
        """
        self.look()
        self.child.sendintr()
        if twice:
            self.read_until("Ctrl-C again", "Warm shutdown")
            self.child.sendintr()
        self.child.expect(pexpect.EOF)
        self.text += self.child.before
        self.child.close()
        return self.child.exitstatus


@contextmanager
def terminal(project: Project) -> Iterator[Terminal]:
    opened = Terminal(project)
    try:
        opened.read_until(*READY)
        opened.look()
        yield opened
    finally:
        if opened.child.isalive():
            opened.look()
            # First supervisord, which would start the others again.
            opened.child.kill(signal.SIGKILL)
        for pid in opened.left():
            os.kill(pid, signal.SIGKILL)
        opened.child.close()


@dataclass(frozen=True)
class Evidence:
    """What was seen of three runs in one folder: Ctrl-C, Ctrl-C twice, the terminal closed."""

    folder: Path
    first: Terminal
    second: subprocess.CompletedProcess[str]  # `workers` beside it, in the same folder
    exit_code: int | None
    left: dict[int, str]
    port_is_free: bool
    waiting: list[str]  # what a task wrote that waited in the queue at Ctrl-C: then, ...
    waiting_next: list[str]  # ... and in the next run
    hurried: Terminal
    hurried_exit_code: int | None
    hurried_left: dict[int, str]
    handed_back: list[str]  # what the task wrote that ran at the second Ctrl-C, in both runs
    closed_left: dict[int, str]  # what still ran long after the terminal was closed


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folder = tmp_path_factory.mktemp("workers")
    url = f"redis://localhost:{free_port()}/0"
    project = Project(folder, LANES, url)
    # As xdist and tox have it: a second one was not refused, since ps cut the first one's line.
    project.environment["COLUMNS"] = "40"
    app = project.app()
    seen = {name: folder / name for name in ("slow", "running", "waiting", "long")}
    go = folder / "go"
    with terminal(project) as first:
        app.send_task("hold", (0, str(seen["slow"])), lane="slow", ignore_result=True)
        first.read_until(r"slow \| [^\n]* succeeded")
        second = project.run("workers")
        # One lane's worker dies.
        (pid,) = (
            pid
            for pid, (parent, args) in processes().items()
            if parent == first.child.pid and "--hostname=slow-1@" in args
        )
        os.kill(pid, signal.SIGKILL)
        first.read_until(READY[0])
        # A task runs and another waits behind it at Ctrl-C.
        app.send_task("hold", (6, str(seen["running"])), ignore_result=True)
        wait_until(seen["running"].exists, "the task to begin")
        app.send_task("hold", (0, str(seen["waiting"])), ignore_result=True)
        exit_code = first.ctrl_c()
        left = first.left()
        port_is_free = broker.is_missing(endpoint.parse("BROKER_URL", url))
        waiting = seen["waiting"].read_text().split() if seen["waiting"].exists() else []
    with terminal(project) as hurried:
        wait_until(seen["waiting"].exists, "the task that waited")
        waiting_next = seen["waiting"].read_text().split()
        app.send_task("hold_until", (str(go), str(seen["long"])), ignore_result=True)
        wait_until(seen["long"].exists, "the task to begin")
        hurried_exit_code = hurried.ctrl_c(twice=True)
        hurried_left = hurried.left()
    with terminal(project) as closed:
        wait_until(lambda: seen["long"].read_text().count("run") == 2, "it to run again")
        go.touch()
        closed.read_until(r"hold_until\S* succeeded")
        closed.look()
        closed.child.ptyproc.fileobj.close()  # SIGHUP, as when the window is closed
        closed_left = wait_for_none(closed)
    app.close()
    return Evidence(
        folder=folder,
        first=first,
        second=second,
        exit_code=exit_code,
        left=left,
        port_is_free=port_is_free,
        waiting=waiting,
        waiting_next=waiting_next,
        hurried=hurried,
        hurried_exit_code=hurried_exit_code,
        hurried_left=hurried_left,
        handed_back=seen["long"].read_text().split(),
        closed_left=closed_left,
    )


def wait_for_none(terminal: Terminal) -> dict[int, str]:
    """What is left of it after a while, which is nothing, if all is well."""
    until = time.monotonic() + PATIENCE
    while (left := terminal.left()) and time.monotonic() < until:
        time.sleep(0.2)
    return left


def test_it_says_what_it_starts(evidence: Evidence) -> None:
    url = re.search("redis://localhost:[0-9]+/0", evidence.first.text)
    assert url
    assert evidence.first.text.splitlines()[:2] == [
        f"broker {url[0]}, started here",
        "lanes slow, quick; Ctrl-C lets running tasks finish and stops them",
    ]


def test_every_line_of_log_tells_its_lane(evidence: Evidence) -> None:
    """Seen before: to root, Celery said in nine lines, without one, that it should not be root."""
    lines = evidence.first.text.splitlines()[2:]
    assert {line.partition(" | ")[0] for line in lines if " | " in line} >= {"slow", "quick"}
    told = re.compile(r"(?:slow|quick|valkey) \| .*|(?:\^C)?stopping; .*|")
    assert [line for line in lines if not told.fullmatch(line)] == []


def test_ctrl_c_lets_the_running_task_finish(evidence: Evidence) -> None:
    after = evidence.first.text.partition("^C")[2]
    assert re.search(r"quick \| .* INFO Task hold\[.*\] succeeded in \d+\.", after)


def test_ctrl_c_ends_everything_with_exit_code_0(evidence: Evidence) -> None:
    assert evidence.exit_code == 0
    assert "valkey | stopped" in evidence.first.text
    assert any("valkey-server" in args for args in evidence.first.known.values())
    assert sum("celery" in args for args in evidence.first.known.values()) >= 4
    assert evidence.left == {}
    assert evidence.port_is_free


def test_ctrl_c_says_what_a_second_one_does(evidence: Evidence) -> None:
    after = evidence.first.text.partition("^C")[2]
    # A line that a lane had logged before may still be on its way to the terminal.
    said = after.splitlines().index("stopping; Ctrl-C again hands running tasks back")
    assert not [line for line in after.splitlines()[:said] if "Warm shutdown" in line]


def test_a_second_ctrl_c_hands_running_tasks_back(evidence: Evidence) -> None:
    assert evidence.hurried_exit_code == 0
    assert evidence.hurried_left == {}
    assert not re.search(r"hold_until\S* succeeded", evidence.hurried.text)
    assert "valkey | stopped" in evidence.hurried.text
    assert evidence.handed_back == ["run", "run"]


def test_a_closed_terminal_ends_everything(evidence: Evidence) -> None:
    assert evidence.closed_left == {}


def test_what_waits_is_kept_for_the_next_run(evidence: Evidence) -> None:
    assert evidence.waiting == []
    assert evidence.waiting_next == ["run"]


def test_a_second_one_in_the_same_folder_is_refused(evidence: Evidence) -> None:
    assert evidence.second.stdout == ""
    assert evidence.second.stderr == (
        f"lanes already run from this folder (process {evidence.first.child.pid}); "
        "stop them first\n"
    )
    assert evidence.second.returncode == 2


def test_a_lane_whose_worker_was_killed_is_started_again(evidence: Evidence) -> None:
    assert len(re.findall(r"slow-1@\S+ ready\.", evidence.first.text)) == 2
    assert len(re.findall(r"quick-1@\S+ ready\.", evidence.first.text)) == 1


def test_a_port_that_something_else_has_taken_is_told(tmp_path: Path) -> None:
    with something_else() as port:
        project = Project(tmp_path, LANES, f"redis://127.0.0.1:{port}/0")
        ended = project.run("workers")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"BROKER_URL: port {port} on 127.0.0.1 is taken by something that is not Redis or "
        "Valkey; stop it, or set another port, such as "
        f"redis://localhost:{port + 1}/0\n"
    )
