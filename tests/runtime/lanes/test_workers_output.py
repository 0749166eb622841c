"""`workers` where its output is no terminal, and after one that was killed."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, Project, free_port, wait_until
from test_workers import LANES, processes

from acme_tasks.lanes import worker
from acme_tasks.lanes.worker import PACKAGE

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path, LANES, f"redis://localhost:{free_port()}/0")


@pytest.fixture
def start(project: Project) -> Iterator[Start]:
    """Starts `workers`; what it starts ends with it."""
    started: list[subprocess.Popen[bytes]] = []

    def run(**output: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", PACKAGE, "workers"]
        started.append(
            subprocess.Popen(command, cwd=project.folder, env=project.environment, **output)
        )
        return started[-1]

    yield run
    for each in started:
        each.kill()
        each.wait()


def end(workers: subprocess.Popen[bytes]) -> int:
    workers.send_signal(signal.SIGINT)
    return workers.wait(PATIENCE)


def test_a_socket_may_be_its_output(start: Start) -> None:
    """As journald and node have it. Seen before: two lines, and then nothing for ever."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        workers = start(stdout=theirs, stderr=theirs)
        theirs.close()
        text = b""
        ours.settimeout(PATIENCE)
        while text.count(b" ready.") < 2:
            text += ours.recv(65_536)
        assert end(workers) == 0
    assert b"valkey | ready at " in text


def test_a_file_is_not_written_over(start: Start, tmp_path: Path) -> None:
    """Seen before, with `> file`: what the lanes said came over the first two lines."""
    path = tmp_path / "output"
    with path.open("wb") as file:
        file.write(b"what was there\n")
        file.flush()
        workers = start(stdout=file, stderr=file)
        wait_until(lambda: path.read_bytes().count(b" ready.") == 2, "both lanes")
        assert end(workers) == 0
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "what was there"
    assert lines[1].startswith("broker redis://localhost:")
    assert lines[2].startswith("lanes slow, quick; ")
    assert lines[-1] == "valkey | stopped"


def test_each_line_of_all_lanes_the_broker_and_its_own_is_whole(
    project: Project, start: Start
) -> None:
    """Supervisord hands on what it has read, which is no whole line: others' came in between.

    Seen before, with these lines of 50 kB: JSON that could not be parsed, and text that was mixed.
    """
    project.environment["LOG_FORMAT"] = "json"
    workers = start(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert workers.stdout is not None
    lines: list[bytes] = []
    ready = ended = 0
    with workers.stdout as output:
        for line in output:
            lines.append(line)
            if b" ready." in line:
                ready += 1
                if ready == 2:
                    with project.app() as app:
                        for lane in ("slow", "quick"):
                            app.send_task("loud", (50_000, 100), lane=lane)
            elif b"] succeeded in" in line:
                ended += 1
                if ended == 2:
                    workers.send_signal(signal.SIGINT)
    assert workers.wait(PATIENCE) == 0
    said = [json.loads(line) for line in lines]
    messages = [each["message"] for each in said]
    assert messages[0].startswith("broker redis://localhost:")
    assert messages[1].startswith("lanes slow, quick; ")
    assert any(each.startswith("valkey | ready at ") for each in messages)
    assert "stopping; Ctrl-C again hands running tasks back" in messages
    assert messages[-1] == "valkey | stopped"
    loud = [each["lane"] for each in said if each["logger"] == f"{PACKAGE}.tasks"]
    assert (loud.count("slow"), loud.count("quick")) == (100, 100)


def test_nobody_has_to_read_what_it_says(project: Project, start: Start) -> None:
    """`workers | head`: the lanes go on."""
    reading, writing = os.pipe()
    workers = start(stdout=writing, stderr=subprocess.DEVNULL)
    os.close(writing)
    with open(reading, "rb") as lines:  # noqa: PTH123 - a pipe
        assert any(b"valkey | ready" in line for line in lines)
    with project.app() as app:
        assert app.send_task("echo", ("answer",)).get(PATIENCE) == "answer"
    assert end(workers) == 0


def test_a_broker_where_another_projects_workers_are_is_refused(
    project: Project, start: Start, tmp_path: Path
) -> None:
    """Seen before: two new projects, both with the default BROKER_URL, took each other's tasks."""
    output = tmp_path / "output"
    with output.open("wb") as file:
        start(stdout=file, stderr=file)
        wait_until(lambda: output.read_bytes().count(b" ready.") == 2, "both lanes")
    url = project.environment["BROKER_URL"]
    other = tmp_path / "other"
    shutil.copytree(tmp_path / PACKAGE, other / "other_tasks", symlinks=True)
    shutil.copytree(Path(worker.__file__).parent, other / "other_tasks" / "lanes.copy")
    (other / "other_tasks" / "lanes").unlink()
    (other / "other_tasks" / "lanes.copy").rename(other / "other_tasks" / "lanes")
    refused = subprocess.run(
        [sys.executable, "-m", "other_tasks", "workers"],
        cwd=other,
        env=project.environment | {"PYTHONPATH": str(other)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    said = re.fullmatch(r"(.*), acme_tasks \((?:slow|quick)-1@\S+\), and (.*)\n", refused.stderr)
    assert said, refused.stderr
    assert said[1] == f"BROKER_URL: workers of another project are at work at {url}"
    assert said[2] == (
        "each would take the other's tasks; give this one a database of its own, such as "
        f"{url[:-1]}2"
    )


def test_what_a_killed_one_leaves_ends_and_the_next_one_starts(
    project: Project, start: Start, tmp_path: Path
) -> None:
    """Also where both have one process id, as in a container, and no `ps` is installed.

    Seen before: ten processes stayed, and the next one was refused for the id of its own.
    """
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "nice").symlink_to(str(shutil.which("nice")))
    project.environment["PATH"] = str(programs)
    path, begun, go = tmp_path / "output", tmp_path / "begun", tmp_path / "go"
    with path.open("wb") as file, project.app() as app:
        killed = start(stdout=file, stderr=file)
        wait_until(lambda: path.read_bytes().count(b" ready.") == 2, "both lanes")
        app.send_task("hold_until", (str(go), str(begun)), ignore_result=True)
        wait_until(begun.exists, "the task to run")
        mine = _descendants(killed.pid)
        killed.kill()
        killed.wait()
        assert len(mine) == 6
        workers = start(stdout=file, stderr=file)
        (tmp_path / ".lanes" / "lock").write_text(str(workers.pid))
        wait_until(lambda: begun.read_text().split() == ["run"] * 2, "it to run again")
        assert not mine & processes().keys()
        go.touch()
        assert end(workers) == 0
    text = path.read_text(encoding="utf-8")
    assert "waiting for the end of a run that was killed ...\nbroker" in text
    assert text.count(", started here\n") == 2


def _descendants(pid: int) -> set[int]:
    everything, found = processes(), {pid}
    for _ in range(5):
        found |= {each for each, (parent, _) in everything.items() if parent in found}
    return found - {pid}
